"""A resumed run is the uninterrupted one, bit for bit; an extended one is the longer one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from dlm.times import ImportanceSampled, LowDiscrepancy, Times
from tests.training.tiny import Loader, module, tensors, trainer, validation

STEPS = 7
EVEN = LowDiscrepancy()
LEARNED = ImportanceSampled(bins=4, min_draws=1)


def run(
    folder: Path,
    steps: int,
    *,
    accumulate: int = 2,
    resume: bool = False,
    times: Times = EVEN,
    **kwargs,
) -> dict:
    """Train (on) up to a step; the checkpoint it leaves."""
    last = folder / "checkpoints" / "last.ckpt"
    torch.manual_seed(123 if resume else 456)  # the global stream must not matter
    trainer(folder, steps, accumulate_grad_batches=accumulate, **kwargs).fit(
        module(2 * accumulate, dropout=0.1, times=times),
        Loader(2),
        validation(),
        ckpt_path=last if resume else None,
        weights_only=True,
    )
    return torch.load(last, weights_only=True)


def assert_same(one: Path, two: Path) -> None:
    """Equal checkpoints, every leaf of them, and equal metrics."""
    for name in ("last.ckpt", "best.ckpt"):
        left, right = (
            tensors(torch.load(folder / "checkpoints" / name, weights_only=True))
            for folder in (one, two)
        )
        assert left.keys() == right.keys()
        for key, value in left.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, right[key]), key
            else:
                assert value == right[key], key
    assert (one / "metrics.csv").read_text() == (two / "metrics.csv").read_text()


@pytest.fixture(scope="module", params=[1, 2], ids=["single", "accumulated"])
def whole(request, tmp_path_factory) -> tuple[int, Path]:
    """An uninterrupted run with validation, EMA and dropout."""
    folder = tmp_path_factory.mktemp("whole")
    checkpoint = run(folder, STEPS, accumulate=request.param, save=2)
    assert checkpoint["global_step"] == STEPS
    return request.param, folder


@pytest.mark.parametrize("stop", [3, 4])  # step 4 validates
def test_extended_run_equals_longer_run(tmp_path, whole, stop):
    accumulate, folder = whole
    run(tmp_path, stop, accumulate=accumulate, save=2)
    run(tmp_path, STEPS, accumulate=accumulate, save=2, resume=True)
    assert_same(folder, tmp_path)


class Kill(Callback):
    """Ends the run like `kill -9` would, as far as one process can: nothing more is written."""

    def __init__(self, hook: str, step: int) -> None:
        self._step = step
        setattr(self, hook, self._kill)

    def _kill(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self._step:
            trainer.logger.finalize = lambda status: None
            raise KeyError("killed")


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_start", 2),
        ("on_train_batch_start", 3),
        ("on_before_optimizer_step", 4),
        ("on_train_batch_end", 4),
        ("on_validation_batch_end", 4),
        ("on_validation_end", 4),
        ("on_train_batch_start", 5),
    ],
)
def test_killed_run_resumes_exactly(tmp_path, whole, hook, step):
    accumulate, folder = whole
    with pytest.raises(KeyError, match="killed"):
        run(tmp_path, STEPS, accumulate=accumulate, save=2, callbacks=[Kill(hook, step)])
    run(tmp_path, STEPS, accumulate=accumulate, save=2, resume=True)
    assert_same(folder, tmp_path)


def test_run_killed_before_its_first_checkpoint_starts_over(tmp_path, whole):
    accumulate, folder = whole
    with pytest.raises(KeyError, match="killed"):
        run(tmp_path, STEPS, accumulate=accumulate, callbacks=[Kill("on_train_batch_start", 3)])
    run(tmp_path, STEPS, accumulate=accumulate, save=2)
    assert_same(folder, tmp_path)


def test_a_learned_density_is_resumed(tmp_path):
    """Its memory decides the times of the next step; it is warm at step 4, as asserted."""
    one = run(tmp_path / "one", STEPS, times=LEARNED)
    stopped = run(tmp_path / "two", 4, times=LEARNED)
    assert stopped["times"]["draws"].min() >= LEARNED.min_draws
    run(tmp_path / "two", STEPS, times=LEARNED, resume=True)
    assert_same(tmp_path / "one", tmp_path / "two")
    even = run(tmp_path / "three", STEPS)
    assert even["times"]["draws"].numel() == 0
    assert one["times"]["draws"].sum() == STEPS * 4


def test_averaged_weights_are_saved_and_raw_ones_go_on(tmp_path, whole):
    """The average of step n + 1 is that of step n moved by 1 - min(d, (1 + n) / (10 + n))."""
    accumulate, _ = whole
    one = run(tmp_path, 2, accumulate=accumulate)
    two = run(tmp_path, 3, accumulate=accumulate, resume=True)
    assert two["averaging_state"]["n_averaged"].item() == 3
    decay = min(0.9, (1 + 2) / (10 + 2))
    for key, average in two["state_dict"].items():
        raw = two["current_model_state"][key]
        expected = one["state_dict"][key] * decay + raw * (1 - decay)
        torch.testing.assert_close(average, expected)
        assert not torch.equal(average, raw)
