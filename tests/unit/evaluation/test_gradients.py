"""Moments of the gradient against gradients taken one by one."""

import pytest
import torch

from dlm.errors import UserError
from dlm.evaluation import gradients
from dlm.evaluation.gradients import GradientNoise, measure_gradients
from dlm.evaluation.likelihood import noised, stratified
from dlm.objectives import Elbo
from tests.training.tiny import denoiser, rows

MODEL = denoiser()


def by_hand(indices, bins: int, draws: int):
    """Every gradient of the bound as one vector, and its bin."""
    found = []
    for k in indices:
        batch = rows([k])
        for level, key in stratified(batch.rows, draws, 0, "gradients"):
            loss = Elbo()(MODEL, batch.tokens, noised(MODEL.process, batch, level, key), level,
                          batch.valid, None).loss  # fmt: skip
            parts = torch.autograd.grad(loss / batch.valid.sum(), list(MODEL.parameters()))
            vector = torch.cat([p.flatten() for p in parts]).double()
            found.append((int(level * bins), vector))
    return found


def test_moments_are_those_of_the_gradients():
    measured = measure_gradients(MODEL, [rows(range(8)), rows(range(8, 12))], bins=2, draws=2)
    found = by_hand(range(12), 2, 2)
    for b in range(2):
        vectors = torch.stack([v for where, v in found if where == b])
        assert measured.sums[0, b] == len(vectors)
        variance = vectors.var(0).sum()
        assert measured.variance[b].item() == pytest.approx(variance.item(), rel=1e-4)
        square = vectors.mean(0).square().sum()
        assert measured.mean_square[b].item() == pytest.approx(square.item(), rel=1e-3)
    assert measured.of == "all parameters"
    assert all(p.grad is None for p in MODEL.parameters())


def test_signal_and_variance_are_unbiased():
    """Vectors with mean 2 e_1 and unit variance in three directions, 40 of them, many times."""
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(3000, 40, 3, generator=generator, dtype=torch.float64)
    g[..., 0] += 2
    sums = torch.stack([torch.full((3000,), 40.0).double(), g.square().sum((1, 2))])
    found = GradientNoise(sums, g.mean(1).square().sum(-1), "")
    assert found.variance.mean().item() == pytest.approx(3, rel=0.01)
    assert found.signal.square().mean().item() == pytest.approx(4, rel=0.02)


def test_a_large_network_is_watched_at_its_head(monkeypatch):
    monkeypatch.setattr(gradients, "SMALL", 10)
    measured = measure_gradients(MODEL, [rows(range(8))], bins=1)
    assert measured.of == "the head"
    every = by_hand(range(8), 1, 1)
    size = sum(p.numel() for p in MODEL.backbone.head.parameters())
    assert size < len(every[0][1])
    assert 0 < measured.second_moment[0] < sum(v.square().sum() for _, v in every) / 8


@pytest.mark.parametrize("settings", [{"bins": 0}, {"draws": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError, match="a bin and a draw"):
        measure_gradients(MODEL, [rows(range(4))], **settings)


def test_too_few_draws_are_refused():
    with pytest.raises(UserError, match="4 draws are too few for 4 bins"):
        measure_gradients(MODEL, [rows(range(4))], bins=4)
