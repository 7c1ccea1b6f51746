"""Training through Lightning sees the rows it should, also after a stop, a resume, an extension."""

import logging
import warnings

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dlm.data import Char, HubDataset, TextFiles, Wrap
from dlm.data.module import TextData
from dlm.errors import UserError

TEXTS = [chr(97 + i % 26) * (5 + i % 9) for i in range(80)]
LENGTH, BATCH = 8, 3


class Recorder(lightning.LightningModule):
    """Learns nothing and writes down what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[list[int], list[list[int]]]] = []
        self.validated: list[int] = []

    def training_step(self, batch, batch_idx):
        self.seen.append((batch.rows.tolist(), batch.tokens.tolist()))
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        self.validated += batch.rows.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*dataloader is not resumable.*")
        yield


@pytest.fixture(params=["stored", "streamed"])
def source(request, jsonl):
    path = jsonl(TEXTS, "set/train.jsonl")
    jsonl(TEXTS[:7], "set/validation.jsonl")
    folder = path.rsplit("/", 1)[0]
    if request.param == "stored":
        return TextFiles(path, validation_path=f"{folder}/validation.jsonl")
    return HubDataset(
        folder,
        data_files={"train": "train.jsonl", "validation": "validation.jsonl"},
        streaming=True,
    )


def run(source, folder, max_steps, *, resume=None, workers=0, every=None):
    """A run with all objects new, as in a new process."""
    data = TextData(
        source, Char().load(source, mask=True), Wrap(), LENGTH, BATCH, seed=5, num_workers=workers
    )
    module = Recorder()
    save = ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=every or max_steps, save_top_k=-1
    )
    trainer = lightning.Trainer(
        max_steps=max_steps,
        accumulate_grad_batches=2,
        accelerator="cpu",
        callbacks=[save],
        val_check_interval=4,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
    assert trainer.global_step == max_steps
    return module


STEPS = 40  # several epochs of the stored rows


def counters(module):
    return [i for rows, _ in module.seen for i in rows]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_goes_on_with_the_next_row(source, tmp_path, workers):
    whole = run(source, tmp_path / "whole", STEPS)
    assert counters(whole) == list(range(STEPS * 2 * BATCH))
    run(source, tmp_path / "part", STEPS, workers=workers, every=7)
    for step in (7, 14, 35):
        saved = tmp_path / "part" / f"step={step}.ckpt"
        rest = run(source, tmp_path / "rest", STEPS, resume=saved, workers=workers)
        assert rest.seen == whole.seen[2 * step :]


def test_a_finished_run_can_be_extended_twice(source, tmp_path):
    whole = run(source, tmp_path / "whole", 15)
    first = run(source, tmp_path / "a", 5)
    second = run(source, tmp_path / "b", 9, resume=tmp_path / "a" / "step=5.ckpt")
    third = run(source, tmp_path / "c", 15, resume=tmp_path / "b" / "step=9.ckpt")
    assert first.seen + second.seen + third.seen == whole.seen
    assert whole.validated == first.validated + second.validated + third.validated


def test_epochs_are_whole_and_differ(jsonl, tmp_path):
    source = TextFiles(jsonl(TEXTS))
    data = TextData(source, Char().load(source, mask=True), Wrap(), LENGTH, BATCH)
    data.prepare_data()
    data.setup("fit")
    size = len(data.train_blocks)
    module = run(source, tmp_path, STEPS)
    rows = [row for _, batch in module.seen for row in batch]
    every = sorted(data.train_blocks[i].tokens.tolist() for i in range(size))
    epochs = [rows[i * size : (i + 1) * size] for i in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [every, every]
    assert epochs[0] != epochs[1]


def test_validation_rows_come_once_each(source, tmp_path):
    module = run(source, tmp_path, 2)  # one validation
    assert module.validated == list(range(len(module.validated)))
    assert len(module.validated) == -(-sum(len(t) + 1 for t in TEXTS[:7]) // LENGTH)


def test_data_without_validation_trains(jsonl, tmp_path):
    source = TextFiles(jsonl(TEXTS), validation_fraction=0)
    assert run(source, tmp_path, 2).validated == []


def test_steps_must_be_counted_and_sizes_positive(jsonl, tmp_path):
    source = TextFiles(jsonl(TEXTS))
    tokenizer = Char().load(source, mask=True)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with pytest.raises(UserError, match="max_steps must be set"):
        trainer.fit(Recorder(), TextData(source, tokenizer, Wrap(), LENGTH, BATCH))
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        TextData(source, tokenizer, Wrap(), LENGTH, 0)
