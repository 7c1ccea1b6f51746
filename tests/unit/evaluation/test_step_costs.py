"""Measured step costs against the exact path KL of the ancestral sampler, by enumeration."""

import pytest
import torch

from dlm.data import Batch
from dlm.errors import UserError
from dlm.evaluation.step_costs import (
    StepCosts,
    _noise_path,
    candidate_levels,
    measure_step_costs,
)
from dlm.lab import Oracle, exact
from dlm.random import Key, sample_categorical
from dlm.samplers.grids import EvenGrid, best_grid
from dlm.samplers.kernels import Ancestral
from dlm.schedules import Cosine, Linear
from tests.toys import absorbing, correlated_law, hybrid, lifted, prior, uniform

LAW = correlated_law(3, 2)


def text(count: int) -> Batch:
    rows = torch.arange(count)
    table = LAW.flatten().log().expand(count, -1)
    tokens = exact.all_states(3, 2)[sample_categorical(table, Key(1, rows).uniform())]
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), None, rows)


def path_kl(process, levels: list[float]) -> float:
    times = process.schedule.inverse(torch.tensor(levels, dtype=torch.float64))
    return exact.path_kl(LAW, Oracle(LAW, process), Ancestral(), times).item()


@pytest.mark.parametrize("make", [uniform, hybrid, prior, absorbing, lifted])
def test_the_excess_is_the_path_kl(make):
    """At the exact posterior what finite steps add to the bound is their divergence."""
    process = make()
    costs = measure_step_costs(Oracle(LAW, process), [text(4000)])
    for levels in ([0.0, 1.0], [0.0, 0.5, 1.0], [0.0, 0.25, 0.5, 0.75, 1.0]):
        grid = torch.tensor(levels, dtype=torch.float64)
        low, high = costs.excess_interval(grid, 100, 0)
        truth, spread = path_kl(process, levels), high - low
        assert spread < 0.6 * truth
        assert low - spread / 2 - 0.01 * truth < truth < high + spread / 2 + 0.01 * truth


def test_the_schedule_changes_nothing():
    """Levels are levels of alpha."""
    grid = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    one, two = (
        measure_step_costs(Oracle(LAW, uniform(schedule)), [text(300)]).excess(grid)
        for schedule in (Linear(), Cosine())
    )
    assert one == pytest.approx(two, rel=1e-3)


def test_some_positions_stand_for_all():
    batch = text(3000)
    grid = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    oracle = Oracle(LAW, uniform())
    every, one = (measure_step_costs(oracle, [batch], positions=p) for p in (2, 1))
    low, high = one.excess_interval(grid, 100, 0)
    assert low - (high - low) / 2 < every.excess(grid) < high + (high - low) / 2
    assert low < high < 3 * low


def test_the_noise_is_one_path_that_spares_padding():
    """Every level has its marginal, and what is noise at a level stays noise above it."""
    batch, process = text(4000), lifted()
    valid = batch.valid.clone()
    valid[:, 1] = False
    batch, key = batch._replace(valid=valid), Key(0, batch.rows)
    levels = candidate_levels()
    path = _noise_path(process, batch, levels, key)
    assert len(path) == len(levels) - 1
    before = torch.ones(4000, dtype=torch.bool)
    for (state, t), alpha in zip(path, levels, strict=False):
        assert process.schedule.alpha(t).item() == pytest.approx(alpha.item(), abs=2e-5)
        assert torch.equal(state.tokens[:, 1], batch.tokens[:, 1])
        hidden = process.active(state)[:, 0]
        expected = 1 - alpha.item() * 2 / 3  # by chance u is the clean token
        assert hidden.double().mean().item() == pytest.approx(expected, abs=0.035)
        assert (before | ~hidden).all()
        before = hidden


def synthetic(slope: float) -> StepCosts:
    """D(a, x) = slope (x - a): loss = slope (1 - alpha), excess = slope / 2 sum h^2."""
    levels = candidate_levels()
    stale = slope * (levels[None] - levels[:, None]).clamp(min=0)
    stale[:, -1] = stale[:, -2]  # not measured at the data itself
    return StepCosts(levels, stale.expand(3, -1, -1).clone())


@pytest.mark.parametrize("steps", [1, 2, 3, 16, 40, 500])
def test_between_the_levels_costs_are_read_smoothly(steps):
    grid = EvenGrid().levels(steps, Linear())
    assert synthetic(3.0).excess(grid) == pytest.approx(1.5 / steps, rel=2e-3)


def test_the_loss_has_the_excess_as_its_riemann_error():
    levels, loss = synthetic(3.0).loss()
    assert loss.tolist() == pytest.approx((3 * (1 - levels)).tolist())
    assert best_grid(levels, loss, 4).tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_levels_rise_from_noise_to_data():
    levels = candidate_levels()
    assert (levels[0], levels[-1]) == (0, 1)
    assert (levels.diff() > 0).all()


def test_mistakes_are_sentences():
    oracle = Oracle(LAW, uniform())
    with pytest.raises(UserError, match="positions must be at least 1"):
        measure_step_costs(oracle, [text(4)], positions=0)
    with pytest.raises(UserError, match="two sequences"):
        measure_step_costs(oracle, [text(1)])
    with pytest.raises(UserError, match="not finite"):
        StepCosts(candidate_levels(), torch.full((2, 23, 23), torch.nan))
