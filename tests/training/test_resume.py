"""A resumed run is the uninterrupted one, bit for bit; an extended one is the longer one."""

from pathlib import Path

import pytest
import torch
from tiny import Loader, module, tensors, trainer, validation


def run(folder: Path, steps: int, *, accumulate: int = 2, resume: bool = False, **kwargs) -> dict:
    """Train (on) up to a step; the checkpoint it leaves."""
    save = kwargs.pop("save", 100)
    epoch = kwargs.pop("epoch", 5)
    last = folder / "checkpoints" / "last.ckpt"
    torch.manual_seed(123 if resume else 456)  # the global stream must not matter
    trainer(folder, steps, save=save, accumulate_grad_batches=accumulate).fit(
        module(2 * accumulate, **kwargs),
        Loader(2, epoch=epoch),
        validation(),
        ckpt_path=last if resume else None,
        weights_only=True,
    )
    return torch.load(last, weights_only=True)


def assert_same(one: dict, two: dict) -> None:
    left, right = tensors(one), tensors(two)
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, right[key]), key
        else:
            assert value == right[key], key


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("epoch", [5, 1000])
@pytest.mark.parametrize("stop", [2, 3, 4, 5])
def test_extended_run_equals_longer_run(tmp_path, accumulate, epoch, stop):
    whole = run(tmp_path / "whole", 7, accumulate=accumulate, dropout=0.1, epoch=epoch)
    run(tmp_path / "parts", stop, accumulate=accumulate, dropout=0.1, epoch=epoch)
    parts = run(
        tmp_path / "parts", 7, accumulate=accumulate, dropout=0.1, epoch=epoch, resume=True
    )
    assert_same(whole, parts)
    assert (tmp_path / "whole/metrics.csv").read_text() == (
        tmp_path / "parts/metrics.csv"
    ).read_text()
