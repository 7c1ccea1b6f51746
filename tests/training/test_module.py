"""What one step does: sums over the window's tokens, the guard, dropout, logging."""

import csv
import math
from pathlib import Path

import pytest
import torch

from dlm.denoiser import Context
from dlm.errors import UserError
from dlm.evaluation.likelihood import evaluate
from dlm.objectives import BatchLoss, Elbo, Objective
from dlm.random import Key
from tests.training.tiny import Loader, denoiser, module, rows, trainer, validation


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def fit(folder: Path, per_device: int, accumulate: int, steps: int = 3, **kwargs):
    model = module(4, **kwargs)
    trainer(folder, steps, accumulate_grad_batches=accumulate, val_check_interval=4).fit(
        model, Loader(per_device), validation()
    )
    return model


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_accumulation_changes_nothing(tmp_path):
    """Rows are ragged: a mean of the batches' means would be another gradient."""
    whole = fit(tmp_path / "a", 4, 1)
    parts = fit(tmp_path / "b", 1, 4)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-5, atol=1e-6)
    for one, two in zip(
        read(tmp_path / "a/metrics.csv"), read(tmp_path / "b/metrics.csv"), strict=False
    ):
        for name in ("train/loss", "train/grad_norm", "train/tokens", "train/lr"):
            assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-5), name


def test_gradient_is_that_of_the_loss_per_token(tmp_path):
    """The first logged norm is that of sum / tokens, before clipping."""
    fit(tmp_path, 2, 2, steps=1)
    model = module(4)
    batch = rows(range(4))
    t, _ = model.times(batch.rows, seed=3, batch_size=4)
    process = model.denoiser.process
    state = process.corrupt(batch.tokens, t[:, None], key=Key(3, batch.rows).fold("train"))
    state = process.pin(state, batch.tokens, ~batch.valid)
    loss = Elbo()(model.denoiser, batch.tokens, state, t, batch.valid, Context()).loss
    loss = loss / batch.valid.sum()
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    (row,) = read(tmp_path / "metrics.csv")
    assert float(row["train/loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(row["train/grad_norm"]) == pytest.approx(norm.item(), rel=1e-5)
    assert int(row["train/tokens"]) == int(batch.valid.sum())


def test_validation_is_evaluate_on_the_averaged_weights(tmp_path):
    fit(tmp_path, 4, 1, steps=4)
    row = read(tmp_path / "metrics.csv")[-1]
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    model = denoiser()
    model.load_state_dict(
        {k.removeprefix("denoiser."): v for k, v in checkpoint["state_dict"].items()}
    )
    expected = evaluate(model, [rows(range(6))], num_bytes=100, num_sequences=6, draws=2)
    assert float(row["val/nelbo"]) == pytest.approx(expected.nelbo, rel=1e-6)
    assert float(row["val/bits_per_byte"]) == pytest.approx(expected.bits_per_byte, rel=1e-6)


@pytest.mark.parametrize("limit", [1, 0.5])
def test_a_part_of_the_validation_set_has_no_bits_per_byte(tmp_path, limit):
    """Its nats over the bytes of the whole split would look like a far better model."""
    model = module(4)
    trainer(tmp_path, 4, limit_val_batches=limit).fit(model, Loader(4), validation())
    assert model.likelihood is not None
    assert model.likelihood.nelbo > 0
    assert model.likelihood.bits_per_byte is None


def test_timing_stands_in_its_own_file(tmp_path):
    fit(tmp_path, 4, 1)
    assert not any("time" in name for name in read(tmp_path / "metrics.csv")[0])
    for row in read(tmp_path / "timing.csv"):
        assert float(row["time/tokens_per_second"]) > 0
        assert 0 < float(row["time/mfu"]) < 1


class Breaks(Objective):
    """Infinite at one row of the data."""

    def rows(self, prediction, x0):
        raise AssertionError

    def __call__(self, denoiser, x0, state, t, weight, context=None):
        result = Elbo()(denoiser, x0, state, t, weight, context)
        if torch.equal(x0[0], rows([9]).tokens[0]):
            return BatchLoss(result.loss * math.inf, result.rows * math.inf)
        return result


def test_infinite_loss_stops_before_the_weights_change(tmp_path):
    """Row 9 is the second batch of step 5; the checkpoint of step 4 stays, finite."""
    run = trainer(tmp_path, 10, save=1, accumulate_grad_batches=2)
    model = module(4, objective=Breaks())
    with pytest.raises(UserError, match=r"step 5: .*rows \[9\] of"):
        run.fit(model, Loader(1), validation())
    kept = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == 4
    assert all(value.isfinite().all() for value in kept["current_model_state"].values())
