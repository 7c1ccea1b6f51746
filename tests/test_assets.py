"""What the package ships is what the ledger says."""

import json
import re
from pathlib import Path

import pytest

import dlm
from dlm.checkpoint import shipped
from dlm.data import Austen, Wrap, batches, prepare
from dlm.evaluation import evaluate

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", shipped())
def test_shipped_checkpoints_are_small_and_in_the_ledger(name):
    folder = ROOT / "dlm" / "assets" / name
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 10e6
    assert f"checkpoint={name}" in (ROOT / "docs" / "results.md").read_text("utf-8")
    assert json.loads((folder / "meta.json").read_text())["version"]


def test_austen_predicts_its_validation_text_as_the_ledger_says():
    """The bound of the first 40 of 188 rows, one draw each, in float32, against the whole's."""
    denoiser, tokenizer, meta = dlm.load("austen")
    blocks = prepare(Austen(), "validation", tokenizer, Wrap(), meta["length"])
    few = [batch for _, batch in zip(range(5), batches(blocks, 8), strict=False)]
    result = evaluate(denoiser, few, num_bytes=None, num_sequences=40, draws=1)
    ledger = (ROOT / "docs" / "results.md").read_text("utf-8")
    found = re.search(r"\| `checkpoint=austen`[^|]*\| (\d\.\d+) ", ledger)
    assert found is not None
    assert result.nelbo_stderr is not None
    assert abs(result.nelbo - float(found[1])) < 4 * result.nelbo_stderr
