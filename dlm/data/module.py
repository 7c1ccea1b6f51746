"""The Lightning side of the data: `TextData` gives a trainer its loaders.

The order of training rows is a function of the seed and the sample counter (`dlm.data.loaders`), so
there is nothing to save but the counter, and the number of workers, of devices and of resumes does
not show in it.
"""

from collections.abc import Sequence
from typing import final

from lightning import LightningDataModule, Trainer

from dlm.data.loaders import EvaluationLoader, Shares, StreamLoader, TrainLoader
from dlm.data.packing import Packing
from dlm.data.prepare import Blocks, prepare
from dlm.data.sources import Source, StreamingSource
from dlm.data.tokenizers import Tokenizer
from dlm.errors import UserError


@final
class TextData(LightningDataModule):
    """Train and validation rows of a source.

    Attributes:
        train_blocks: the training rows after `setup`; None for a stream.
        validation_blocks: the validation rows after `setup`; None without such a split.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        packing: Packing,
        length: int,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            source: documents.
            tokenizer: text to states.
            packing: documents to rows.
            length: tokens a row.
            batch_size: rows of a micro-batch on one device.
            seed: of the training order.
            num_workers: processes that fetch ahead.
            classes: names of the classes of the model; None: there are none.
        """
        super().__init__()
        # Ranks may have no validation row when there are fewer rows than ranks.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise UserError(f"{name} must be at least {least}, got {value}")
        self.source, self.tokenizer, self.packing = source, tokenizer, packing
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.num_workers, self.classes = num_workers, classes
        self.train_blocks: Blocks | None = None
        self.validation_blocks: Blocks | None = None

    def prepare_data(self) -> None:
        """Tokenize into the cache, once a machine, before the other ranks look there."""
        self._prepare()

    def setup(self, stage: str) -> None:
        """Open the cached tokens."""
        del stage  # both splits are needed in every stage that this module serves
        self._prepare()

    def _prepare(self) -> None:
        if self.train_blocks is None and self._stream() is None:
            self.train_blocks = self._rows("train")
        if self.validation_blocks is None and "validation" in self.source.splits:
            self.validation_blocks = self._rows("validation")

    def _rows(self, split: str) -> Blocks:
        return prepare(
            self.source, split, self.tokenizer, self.packing, self.length, classes=self.classes
        )

    def _stream(self) -> StreamingSource | None:
        source = self.source
        return source if isinstance(source, StreamingSource) and source.streaming else None

    def train_dataloader(self) -> TrainLoader | StreamLoader:
        """One loader for the whole run, continuing at the trainer's step.

        Raises:
            UserError: `trainer.max_steps` is not set.
        """
        trainer = self._trainer()
        if trainer.max_steps < 0:
            raise UserError("trainer.max_steps must be set: training is counted in steps")

        def step() -> int:
            return trainer.global_step

        shares = self._shares(trainer.accumulate_grad_batches)
        if stream := self._stream():
            return StreamLoader(
                stream,
                self.tokenizer,
                self.packing,
                self.length,
                shares,
                max_steps=trainer.max_steps,
                step=step,
                num_workers=self.num_workers,
            )
        assert self.train_blocks is not None, "setup() comes first"
        return TrainLoader(
            self.train_blocks,
            self.seed,
            shares,
            max_steps=trainer.max_steps,
            step=step,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> EvaluationLoader | list[EvaluationLoader]:
        """This rank's validation rows; an empty list without a validation split."""
        if self.validation_blocks is None:
            return []
        return EvaluationLoader(self.validation_blocks, self._shares(1))

    def _shares(self, accumulation: int) -> Shares:
        trainer = self._trainer()
        return Shares(self.batch_size, accumulation, trainer.world_size, trainer.global_rank)

    def _trainer(self) -> Trainer:
        assert self.trainer is not None, "TextData belongs to a trainer"
        return self.trainer
