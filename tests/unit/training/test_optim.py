"""Optimizer groups and learning-rate schedules."""

import pytest
import torch
from torch import nn

from dlm.errors import UserError
from dlm.networks import DiT
from dlm.training import WSD, AdamW, Constant, Cosine
from dlm.training.optim import decay_groups


@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_that_are_no_embedding_decay(tied):
    net = DiT(11, 8, 16, 1, 2, time_conditioning=True, tied=tied)
    decayed, others = ({id(p) for p in group} for group in decay_groups(net))
    assert len(decayed) + len(others) == len(list(net.parameters()))
    assert id(net.head.weight) in decayed
    assert net.embedding is None or id(net.embedding.weight) in others
    for parameter in net.parameters():
        if parameter.ndim < 2:
            assert id(parameter) in others


def test_frozen_parameters_are_left_out():
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    assert [len(group) for group in decay_groups(model)] == [0, 1]


def test_weight_decay_acts_on_its_group_alone():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    AdamW(lr=0.1, weight_decay=0.5)(model).step()
    assert model.weight.flatten().tolist() == pytest.approx([0.95] * 4)
    assert model.bias.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("fused", [True, False])
def test_fused_is_as_asked(fused):
    optimizer = AdamW()(nn.Linear(2, 2), fused=fused)
    assert all(group["fused"] == fused for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"lr": 0.0}, "optimizer.lr"),
        ({"lr": float("nan")}, "optimizer.lr"),
        ({"betas": (0.9, 1.0)}, "optimizer.betas"),
        ({"betas": (0.9,)}, "optimizer.betas"),
        ({"eps": 0.0}, "optimizer.eps"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay"),
    ],
)
def test_bad_optimizer_is_refused(settings, key):
    with pytest.raises(UserError, match=key):
        AdamW(**settings)


def test_warmup_is_linear_and_ends_at_one():
    assert [Constant(warmup_steps=4)(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert Constant()(0) == 1


def test_cosine_goes_from_one_through_the_middle_to_its_minimum():
    lr = Cosine(total_steps=110, warmup_steps=10, min_ratio=0.2)
    assert [lr(step) for step in (9, 10, 60, 110, 500)] == pytest.approx([1, 1, 0.6, 0.2, 0.2])


def test_wsd_is_stable_then_linear():
    lr = WSD(total_steps=100, warmup_steps=10, decay_fraction=0.2, min_ratio=0.5)
    assert lr(0) == pytest.approx(0.1)
    assert [lr(step) for step in (10, 79, 80, 90, 100, 999)] == pytest.approx(
        [1, 1, 1, 0.75, 0.5, 0.5]
    )


@pytest.mark.parametrize("lr", [Cosine(50, 5), WSD(50, 5), Constant(5)])
def test_factors_stay_in_range(lr):
    assert all(0 <= lr(step) <= 1 for step in range(70))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Constant(-1), "lr.warmup_steps"),
        (lambda: Cosine(0), "lr.total_steps"),
        (lambda: Cosine(5, min_ratio=1.5), "lr.min_ratio"),
        (lambda: WSD(5, decay_fraction=0.0), "lr.decay_fraction"),
    ],
)
def test_bad_schedule_is_refused(make, key):
    with pytest.raises(UserError, match=key):
        make()
