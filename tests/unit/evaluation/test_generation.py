"""Records of samples: complete, repeatable, written whole or not at all."""

import json

import pytest
import torch

from dlm.evaluation import record_samples, write_records
from dlm.random import Key
from dlm.samplers import Samples


class Letters:
    def decode(self, tokens):
        return "".join(chr(97 + token) for token in tokens)


def test_a_record_tells_how_to_make_the_sample_again(tmp_path):
    samples = Samples(torch.tensor([[0, 1], [2, 3]]), torch.tensor([4, 3]))
    key = Key(7, torch.tensor([10, 11]))
    records = record_samples(
        samples,
        key,
        Letters(),
        prompt="é",
        sampler={"steps": 4},
        checkpoint="austen",
        condition="Emma",
        guidance={"scale": 2.0},
    )
    write_records(tmp_path / "deep" / "out.jsonl", records)
    lines = (tmp_path / "deep" / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1]) == {
        "text": "cd",
        "tokens": [2, 3],
        "prompt": "é",
        "seed": 7,
        "row": 11,
        "calls": 3,
        "sampler": {"steps": 4},
        "checkpoint": "austen",
        "condition": "Emma",
        "guidance": {"scale": 2.0},
    }
    assert "é" in lines[0]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old\n")
    with pytest.raises(ValueError, match="JSON"):
        write_records(path, [{"a": 1}, {"a": float("nan")}])
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]
