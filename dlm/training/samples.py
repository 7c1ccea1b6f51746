"""What a run shows of itself: generated text while it trains, and a plot of the loss at its end."""

import contextlib
import csv
from pathlib import Path
from typing import Any, Protocol, final

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from dlm.errors import UserError
from dlm.random import Key
from dlm.samplers import Sampler
from dlm.training.callbacks import EMA
from dlm.training.logs import json_lines, json_record
from dlm.training.module import DiffusionModule


class Decoder(Protocol):
    """The one method of a tokenizer that is needed here."""

    def decode(self, tokens: list[int], /) -> str:
        """Text of tokens."""
        ...


@final
class SampleLogger(Callback):
    """Generates texts every so many steps, with the averaged weights where there are some.

    They are appended to `samples.jsonl` (step, index, text, calls) and shown in wandb and
    TensorBoard. The draws have keys of their own, the same every time, so that texts of different
    steps compare; training does not notice them.

    Args:
        sampler: how to generate.
        tokenizer: decodes tokens.
        folder: where `samples.jsonl` stands.
        every_n_steps: optimizer steps between two rounds.
        num: texts a round.
        length: tokens of a text; None: the context length.
        seed: of the draws.

    Raises:
        UserError: a number of steps or texts below 1.
    """

    def __init__(
        self,
        sampler: Sampler,
        tokenizer: Decoder,
        folder: str | Path,
        every_n_steps: int = 1000,
        num: int = 4,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        if every_n_steps < 1 or num < 1:
            raise UserError(
                "sample.every_n_steps and sample.num must be at least 1, got "
                f"{every_n_steps} and {num}; sample=null logs none"
            )
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._every = every_n_steps
        self._shape = (num, length)
        self._seed = seed
        self._file = json_lines(Path(folder) / "samples.jsonl")
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed step has its samples."""
        self._seen = trainer.global_step

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Generate at the end of a step that is due."""
        step = trainer.global_step
        if step == self._seen:
            return
        self._seen = step
        if step % self._every:
            return
        assert isinstance(pl_module, DiffusionModule)
        texts = self._generate(trainer, pl_module, step)
        for logger in trainer.loggers:
            _show(logger, texts, step)
        pl_module.speed.resume()

    @torch.no_grad()
    def _generate(self, trainer: Trainer, module: DiffusionModule, step: int) -> list[str]:
        num, length = self._shape
        shape = (num, length or module.denoiser.backbone.length)
        key = Key(self._seed, torch.arange(num, device=module.device)).fold("samples")
        callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        emas = [callback for callback in callbacks if isinstance(callback, EMA)]
        module.eval()
        weights = emas[0].averaged(module) if emas else contextlib.nullcontext()
        with weights, trainer.precision_plugin.forward_context():
            samples = self._sampler(module.denoiser, shape, key=key)
        module.train()
        texts = [self._tokenizer.decode(row) for row in samples.tokens.tolist()]
        for index, (text, calls) in enumerate(zip(texts, samples.calls.tolist(), strict=True)):
            record = {"step": step, "index": index, "text": text, "calls": calls}
            self._file.append(step, json_record(record))
        return texts


def _show(logger: Logger, texts: list[str], step: int) -> None:
    """Send texts to a logger that can show text."""
    if isinstance(logger, WandbLogger):
        rows = [[step, text] for text in texts]
        logger.log_text("samples", columns=["step", "text"], data=rows, step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("samples", "\n\n---\n\n".join(texts), step)


@final
class LossPlot(Callback):
    """Draws `loss.png` from `metrics.csv` at the end: training loss and validation bound.

    Args:
        folder: where both files stand.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, once all rows are written."""
        for logger in trainer.loggers:
            logger.save()
        if (self._folder / "metrics.csv").exists():
            plot_loss(self._folder / "metrics.csv", self._folder / "loss.png")


def plot_loss(metrics: Path, image: Path) -> None:
    """Plot the columns `train/loss` and `val/nelbo` of a metrics file, nats per token by step."""
    from matplotlib.figure import Figure  # a second of import, only here

    with metrics.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for column, label, marker in (
        ("train/loss", "training loss of a step", ""),
        ("val/nelbo", "validation bound", "o"),
    ):
        points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
        steps, values = [step for step, _ in points], [value for _, value in points]
        axes.plot(steps, values, label=label, marker=marker, markersize=3, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("nats per token")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(image, dpi=120)
