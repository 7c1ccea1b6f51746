"""Two processes with accumulation train as one process with the doubled batch."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.ddp_run import main

ROOT = Path(__file__).parents[2]


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_two_processes_equal_one(tmp_path):
    """Ragged rows: the ranks' and batches' tokens differ, so means of means would differ too."""
    one, two = tmp_path / "one", tmp_path / "two"
    main(one, devices=1, per_device=8, accumulate=1)
    command = [sys.executable, "-m", "tests.training.ddp_run", str(two), "2", "2", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    left, right = read(one / "metrics.csv"), read(two / "metrics.csv")
    assert len(left) == len(right) == 5
    for a, b in zip(left, right, strict=True):
        assert a["train/tokens"] == b["train/tokens"]
        for name in a:
            if a[name]:
                assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-5), name
    assert left[-1]["val/nelbo"]
    checkpoints = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (one, two)
    ]
    for part in ("current_model_state", "times"):
        for name, value in checkpoints[0][part].items():
            torch.testing.assert_close(value, checkpoints[1][part][name], rtol=1e-4, atol=1e-6)
    assert checkpoints[0]["times"]["draws"].sum() == 5 * 8
