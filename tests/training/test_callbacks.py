"""Samples, progress, plot and checkpoints in a run; half precision with a loss scaler."""

import csv
import json
import logging
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from dlm.errors import UserError
from dlm.samplers import Ancestral, EvenGrid, GridSampler
from dlm.training import EMA, LossPlot, Progress, SampleLogger, quiet_lightning
from tests.training.tiny import K, L, Loader, module, trainer, validation


class Letters:
    """A tokenizer that only decodes."""

    def decode(self, tokens: list[int]) -> str:
        return "".join("abcdefghijk"[token] for token in tokens)


def column(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def samples(folder: Path, every: int = 2) -> SampleLogger:
    sampler = GridSampler(Ancestral(), EvenGrid(), steps=4)
    return SampleLogger(sampler, Letters(), folder, every_n_steps=every, num=3)


def fit(folder: Path, steps: int, *callbacks, ckpt_path=None, **settings) -> lightning.Trainer:
    run = trainer(folder, steps, callbacks=list(callbacks), **settings)
    run.fit(module(2), Loader(2), validation(), ckpt_path=ckpt_path, weights_only=True)
    return run


def test_samples_are_written_and_training_does_not_notice(tmp_path):
    fit(tmp_path / "without", 4)
    fit(tmp_path / "with", 4, samples(tmp_path / "with"))
    lines = (tmp_path / "with/samples.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(r["step"], r["index"]) for r in records] == [(s, i) for s in (2, 4) for i in range(3)]
    assert all(len(r["text"]) == L and r["calls"] >= 1 for r in records)
    assert "k" not in "".join(r["text"] for r in records), f"state {K - 1} is the mask"
    one, two = (tmp_path / name / "metrics.csv" for name in ("without", "with"))
    assert one.read_text() == two.read_text()


def test_samples_come_from_the_averaged_weights(tmp_path):
    class Weights:
        """Records the weights that it is asked to sample with."""

        def __call__(self, predictor, shape, *, key):
            self.seen = [p.clone() for p in predictor.parameters()]
            self.training = predictor.training
            return GridSampler(Ancestral(), EvenGrid(), steps=2)(predictor, shape, key=key)

    spy = Weights()
    fit(tmp_path, 2, SampleLogger(spy, Letters(), tmp_path, every_n_steps=2, num=1))
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(a, b) for a, b in zip(spy.seen, saved.values(), strict=True))
    assert not spy.training


def test_progress_shows_steps_and_speed_and_the_plot_is_drawn(tmp_path, capsys):
    fit(tmp_path, 4, Progress(), LossPlot(tmp_path), enable_progress_bar=True)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "tokens/s" in shown
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_best_is_the_least_bound_and_last_the_end(tmp_path):
    """The learning rate is far too large, so that the bound rises in the end."""
    fit(tmp_path, 6, val_check_interval=1, save=4)
    bounds = column(tmp_path, "val/nelbo")
    best = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    assert len(bounds) == 6
    assert best["global_step"] == 1 + min(range(6), key=bounds.__getitem__)
    last = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 6
    assert last["dlm"]["meta"]["step"] == 6


def test_run_without_validation_leaves_its_end_as_best(tmp_path):
    fit(tmp_path, 2)
    assert torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)["global_step"] == 2


def test_told_to_stop_saves_where_it_stopped(tmp_path):
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step == 3

    fit(tmp_path, 10, Stop())
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3


def test_average_stays_out_of_the_raw_weights_at_the_end(tmp_path):
    run = fit(tmp_path, 3)
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    for name, value in run.lightning_module.state_dict().items():
        assert torch.equal(value, saved["current_model_state"][name])


def test_loss_scaler_gives_the_step_of_full_precision(tmp_path):
    """Unscaled before the division and the clipping, whatever the scale."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    fit(tmp_path / "half", 3, plugins=[plugin])
    fit(tmp_path / "full", 3)
    for name in ("train/loss", "train/grad_norm"):
        half, full = column(tmp_path / "half", name), column(tmp_path / "full", name)
        assert half == pytest.approx(full, rel=2e-2), name


def test_screen_stays_clean(tmp_path, caplog, recwarn):
    quiet_lightning()
    with caplog.at_level(logging.NOTSET):
        fit(tmp_path, 2)
    assert caplog.text == ""
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_out_of_range_is_refused(decay):
    with pytest.raises(UserError, match="callbacks.ema.decay"):
        EMA(decay)


def test_half_written_checkpoints_of_a_killed_process_go_away(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".last.ckpt.tmp-abc").write_text("half")
    fit(tmp_path, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
