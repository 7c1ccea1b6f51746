"""Callbacks of a training run: averaged weights, checkpoints, progress on the screen.

`EMA`: after update n (from 0) the average moves by `1 - min(decay, (1 + n) / (10 + n))` towards the
weights, so that a short run has an average of its own and not of its initial weights. Validation
and samples use the average; a checkpoint holds it as `state_dict`, the raw weights beside it under
`current_model_state`. The raw weights stay in the module at the end: an extended run goes on
exactly from where it was.

`Checkpoints`: a step is saved when all of it is done, after its validation if it has one, and only
at the end of an accumulation window. So a resumed run repeats no validation and skips none.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ProgressBar, WeightAveraging
from torch import Tensor
from tqdm import tqdm

from dlm.errors import UserError
from dlm.files import replace_file
from dlm.training.module import DiffusionModule


@final
class EMA(WeightAveraging):
    """Exponential moving average of the weights, with warm-up.

    Args:
        decay: share of the average that is kept at each step, in [0, 1), once warm.

    Raises:
        UserError: a decay outside [0, 1).

    Source of the warm-up: the moving averages of TensorFlow, `num_updates`.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay must be in [0, 1), got {decay}; try 0.9999")
        # Buffers (rotary tables) are copied, not averaged.
        super().__init__(use_buffers=False, multi_avg_fn=partial(_average, decay))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the raw weights in place: Lightning would overwrite them by the average."""

    @contextlib.contextmanager
    def averaged(self, module: LightningModule) -> Iterator[None]:
        """A context in which the module has the averaged weights."""
        self._swap_models(module)
        try:
            yield
        finally:
            self._swap_models(module)


@torch.no_grad()
def _average(
    decay: float, average: list[Tensor], current: list[Tensor], count: Tensor | int
) -> None:
    # `count` updates were made; torch makes the first one, a copy of the weights, by itself.
    n = int(count)
    weight = 1 - min(decay, (1 + n) / (10 + n))
    torch._foreach_lerp_(average, current, weight)  # pyright: ignore[reportPrivateImportUsage]


@final
class _AtomicIO(TorchCheckpointIO):
    """Reads and writes checkpoints: whole or not at all, and without running what is in a file."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write beside the target, flush to disk, rename."""
        replace_file(Path(path), partial(torch.save, checkpoint))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read tensors and plain values only."""
        return super().load_checkpoint(path, map_location, weights_only=True)


@final
class Checkpoints(Checkpoint):
    """Keeps `last.ckpt`, to resume from, and `best.ckpt`, of the least validation bound.

    `last.ckpt` is written every so many steps and at the end. A run that never validated ends with
    its last state as `best.ckpt`. What stops a run, a loss that is not finite among others, writes
    nothing: the last checkpoint is from before it.

    Args:
        folder: where the files stand.
        every_n_train_steps: optimizer steps between two `last.ckpt`.

    Raises:
        UserError: a number of steps below 1.
    """

    def __init__(self, folder: str | Path, every_n_train_steps: int = 500) -> None:
        super().__init__()
        if every_n_train_steps < 1:
            raise UserError(
                "callbacks.checkpoint.every_n_train_steps must be at least 1, got "
                f"{every_n_train_steps}; a large number saves at the end only"
            )
        self._folder = Path(folder)
        self._every = every_n_train_steps
        self._best = math.inf
        self._seen = self._saved = 0  # optimizer steps
        self._whole = False  # the last batch ended a step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have Lightning read and write through us."""
        trainer.strategy.checkpoint_io = _AtomicIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed step is a saved step; what a killed process was writing goes away."""
        self._seen = self._saved = trainer.global_step
        if trainer.is_global_zero:
            for half_written in self._folder.glob(".*.ckpt.tmp-*"):
                half_written.unlink()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save a step that is due, unless its validation is still to come."""
        self._whole = trainer.global_step > self._seen
        self._seen = trainer.global_step
        # Lightning validates after this hook, every `val_check_batch` batches (see check_trainer).
        batches, interval = trainer.fit_loop.total_batch_idx + 1, trainer.val_check_batch
        if not (trainer.enable_validation and interval and batches % interval == 0):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best bound so far, and the step if it is due."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        nelbo = trainer.callback_metrics["val/nelbo"].item()
        if nelbo < self._best:
            self._best = nelbo
            self._save(trainer, "best.ckpt")
        self._save_if_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what a run that was told to stop early has not saved; leave a `best.ckpt`."""
        if trainer.global_step > self._saved:
            self._save(trainer, "last.ckpt")
        if math.isinf(self._best):
            self._save(trainer, "best.ckpt")

    @property
    def best(self) -> float:
        """The best bound so far, nats per token: that of `best.ckpt`; infinite before the first."""
        return self._best

    def state_dict(self) -> dict[str, Any]:
        """The best bound so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best bound so far."""
        self._best = state_dict["best"]

    def _save_if_due(self, trainer: Trainer) -> None:
        step = trainer.global_step
        due = step % self._every == 0 or step == trainer.max_steps
        if due and self._whole and step > self._saved:
            self._saved = step
            self._save(trainer, "last.ckpt")

    def _save(self, trainer: Trainer, name: str) -> None:
        for logger in trainer.loggers:  # a resumed run relies on the rows up to its step
            logger.save()
        trainer.save_checkpoint(self._folder / name)


@final
class Progress(ProgressBar):
    """One line on the screen: steps, time left, loss, tokens per second, last validation bound.

    Written to standard error; where that is no terminal, a line every half minute.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm | None = None

    def disable(self) -> None:
        """Show nothing: another rank does."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step reached so far."""
        screen = sys.stderr.isatty()
        self._bar = tqdm(
            desc="train",
            total=trainer.max_steps if trainer.max_steps > 0 else None,
            initial=trainer.global_step,
            unit=" steps",
            dynamic_ncols=True,
            mininterval=0.5 if screen else 30.0,
            disable=not self._enabled,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on at the end of a step."""
        assert isinstance(pl_module, DiffusionModule)
        if self._bar is None or trainer.global_step == self._bar.n:
            return
        shown = {"loss": f"{pl_module.metrics['train/loss']:.3f}"}
        shown["tokens/s"] = f"{pl_module.speed.tokens_per_second:,.0f}"
        if pl_module.likelihood is not None:
            shown["val"] = f"{pl_module.likelihood.nelbo:.3f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the steps stand still."""
        self._describe("validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on."""
        self._describe("train")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished line on the screen."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the line; the message follows below it."""
        self._close()

    def _describe(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_description(text, refresh=sys.stderr.isatty())

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
