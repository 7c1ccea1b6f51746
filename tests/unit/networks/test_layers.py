"""The parts of a block against formulas written out here."""

import math

import pytest
import torch

from dlm.networks import layers


def test_rms_norm_and_its_gradient():
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    expected = x / (x.square().mean(-1, keepdim=True) + layers.NORM_EPS).sqrt()
    torch.testing.assert_close(layers.rms_norm(x), expected, atol=1e-14, rtol=0)
    assert torch.autograd.gradcheck(layers.rms_norm, x)


def test_rms_norm_keeps_16_bits_and_survives_zeros():
    x = torch.randn(4, 64).bfloat16()
    assert layers.rms_norm(x).dtype == torch.bfloat16
    assert layers.rms_norm(x).float().square().mean(-1).sub(1).abs().max() < 0.02
    zero = torch.zeros(2, 8, requires_grad=True)
    layers.rms_norm(zero).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


def test_layer_norm_has_mean_zero_and_variance_one():
    y = layers.layer_norm(3 + 2 * torch.randn(4, 64))
    assert y.mean(-1).abs().max() < 1e-5
    assert y.var(-1, correction=0).sub(1).abs().max() < 1e-3


def test_rotary_scores_depend_on_the_distance_only():
    rotary = layers.rotary_tables(32, 16, torch.device("cpu"))
    q, k = torch.randn(2, 16)
    q_at, k_at = (layers.rotate(x.expand(1, 32, 1, 1, 16), rotary)[0, :, 0, 0] for x in (q, k))
    scores = q_at @ k_at.T
    for shift in (1, 7):
        torch.testing.assert_close(scores[shift:, shift:], scores[:-shift, :-shift])
    assert not torch.allclose(scores[0, 1:], scores[0, :-1])
    torch.testing.assert_close(q_at.norm(dim=-1), q.norm().expand(32))


def test_rotary_turns_each_pair_by_position_times_frequency():
    x = torch.randn(5, 8)
    turned = layers.rotate(x.view(1, 5, 1, 1, 8), layers.rotary_tables(5, 8, x.device))[0, :, 0, 0]
    for position in range(5):
        for i in range(4):
            angle = position * 10_000 ** (-2 * i / 8)
            pair = torch.complex(x[position, i], x[position, i + 4])
            pair = pair * complex(math.cos(angle), math.sin(angle))
            assert turned[position, i] == pytest.approx(pair.real.item(), abs=1e-6)
            assert turned[position, i + 4] == pytest.approx(pair.imag.item(), abs=1e-6)


def test_swiglu_has_the_parameters_of_gelu_up_to_rounding():
    gelu, swiglu = (sum(p.numel() for p in f(768, 4.0).parameters()) for f in layers.MLPS.values())
    assert gelu == swiglu == 8 * 768**2


def test_level_embedding_tells_levels_apart():
    torch.manual_seed(0)
    embed = layers.LevelEmbedding(32)
    out = embed(torch.tensor([-12.0, -11.9, 0.0, 0.1, 12.0], dtype=torch.float64))
    assert out.shape == (5, 32)
    assert (torch.cdist(out, out) + torch.eye(5)).min() > 1e-3
