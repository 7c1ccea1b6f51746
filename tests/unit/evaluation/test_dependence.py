"""The measured curve against that of an enumerated law, and what plans are predicted to lose."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from dlm.data import Batch
from dlm.errors import UserError
from dlm.evaluation.dependence import (
    Dependence,
    binomial,
    known_counts,
    measure_dependence,
    sequence_losses,
)
from dlm.evaluation.plan_costs import MEASURED, NAMES, PLANS, PlanCosts
from dlm.lab import Oracle, exact
from dlm.random import Key, sample_categorical
from dlm.samplers import curve as curves
from dlm.samplers.curve import InformationCurve
from dlm.samplers.kernels import Ancestral
from dlm.schedules import Cosine
from tests.toys import absorbing, correlated_law, hybrid, lifted, uniform

LENGTH, COUNT = 4, 1500
LAW = correlated_law(3, LENGTH)


def text(count: int, law: Tensor = LAW) -> Batch:
    """Sequences of the law."""
    rows = torch.arange(count)
    table = law.flatten().log().expand(count, -1)
    sequences = exact.all_states(law.shape[0], law.ndim)
    tokens = sequences[sample_categorical(table, Key(1, rows).fold("text").uniform())]
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), None, rows)


def exact_losses(law: Tensor) -> list[float]:
    """h_n = mean over |S| = n, i not in S of H(X_i | X_S), by marginal entropies."""
    length = law.ndim

    def entropy(kept: tuple[int, ...]) -> float:
        others = [i for i in range(length) if i not in kept]
        return exact.entropy(law.sum(others) if others else law).item()

    means = [np.mean([entropy(s) for s in combinations(range(length), k)]) for k in range(5)]
    return np.diff(means).tolist()


@pytest.fixture(scope="module")
def measured() -> Dependence:
    """By the oracle of the masked process."""
    return measure_dependence(Oracle(LAW, absorbing()), [text(COUNT)])


@pytest.mark.parametrize("make", [absorbing, hybrid, lifted])
def test_the_losses_of_the_oracle_are_those_of_the_law(make):
    """Masks at any level. Where the level matters, asked where so many are expected hidden."""
    process, batch = make(), text(COUNT)
    losses = sequence_losses(Oracle(LAW, process), batch, draws=1, seed=0)
    mean, stderr = losses.mean(0), losses.std(0) / COUNT**0.5
    expected = torch.tensor(exact_losses(LAW), dtype=torch.float64)
    off = (mean - expected).abs() / stderr
    if make is absorbing:
        assert off.max() < 4
    else:  # the shared level is not that of the absorbing view, and nothing known is the same
        assert off[0] < 4
        assert mean[-1] > expected[-1] - 4 * stderr[-1]


def test_the_curve_is_within_its_stated_errors(measured):
    losses = np.asarray(exact_losses(LAW))
    curve = measured.curve
    assert curve.values[0] == 0
    assert curve.stderr is not None
    off = np.abs(np.asarray(curve.values) - (losses[0] - losses))[1:] / np.asarray(curve.stderr)[1:]
    assert off.max() < 3.5
    assert (np.asarray(curve.stderr)[1:] < 0.05).all()
    entropy = exact.entropy(LAW).item() / LENGTH
    assert measured.nelbo == pytest.approx(entropy, abs=4 * measured.nelbo_stderr)
    assert measured.nelbo_stderr < 0.02
    costs = PlanCosts.of(measured, 200, 0)
    total = (losses[0] - losses).sum()
    for found, truth in (
        (costs.total_correlation(), total),
        (costs.dual_total_correlation(), LENGTH * (losses[0] - losses[-1]) - total),
    ):
        spread = found.high - found.low
        assert 0 < spread < 0.2
        assert found.low - 0.5 * spread < truth < found.high + 0.5 * spread


def test_intervals_cover():
    """95 % intervals of small samples hold the truth about so often."""
    losses = np.asarray(exact_losses(LAW))
    truth = (losses[0] - losses).sum()
    every = measure_dependence(Oracle(LAW, absorbing()), [text(2400)])
    inside = 0
    for part in np.split(every.losses, 60):
        found = PlanCosts.of(Dependence(LENGTH, every.known, part), 100, 0).total_correlation()
        inside += found.low <= truth <= found.high
    assert 48 <= inside <= 60


def test_an_estimate_that_falls_is_made_to_rise():
    losses = np.array([[3.0, 2.0, 2.5, 1.0], [3.2, 2.1, 2.4, 1.1]])
    values = Dependence(4, (0, 1, 2, 3), losses).curve.values
    assert values[1] == values[2] == pytest.approx((1.05 * 9 + 0.65) / 10)  # errors 1 : 3
    assert values[3] == pytest.approx(2.05)


def test_between_measured_places_the_curve_is_straight():
    losses = np.array([[3.0, 2.0, 1.0], [3.5, 2.1, 1.1]])
    values = Dependence(9, (0, 4, 8), losses).curve.values
    assert values[::4] == pytest.approx((0, 1.2, 2.2))
    assert values[2] == pytest.approx(0.6)
    assert values[6] == pytest.approx(1.7)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 100, 256, 1024])
def test_known_counts_reach_both_ends(length):
    known = known_counts(length)
    assert (known[0], known[-1]) == (0, length - 1)
    assert list(known) == sorted(set(known))
    assert len(known) <= 4 * max(1, length.bit_length())
    assert max(np.diff(known), default=0) <= max(1, length // 4)


def test_the_loss_by_level_integrates_to_the_bound_and_its_riemann_sum_is_that_of_a_grid(measured):
    level = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    integral = measured.loss_by_level(level).mean().item()
    assert integral == pytest.approx(measured.nelbo * LENGTH, rel=1e-6)
    grid = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)
    riemann = (grid.diff() * measured.loss_by_level(grid[:-1])).sum().item()
    predicted = PlanCosts.of(measured, 20, 0).grid_cost(grid)
    assert predicted.value == pytest.approx(riemann - integral, rel=1e-6)
    assert predicted.low <= predicted.value <= predicted.high


def test_a_grid_costs_what_the_exact_path_does():
    """The curve of the law in the place of the measured one: enumeration agrees."""
    losses = np.asarray(exact_losses(LAW))
    curve = InformationCurve((0.0, *(losses[0] - losses)[1:].tolist()))
    costs = PlanCosts(curve, np.asarray(curve.values)[None], (curve, curve))
    grid = torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64)
    truth = exact.path_kl(LAW, Oracle(LAW, absorbing()), Ancestral(), 1 - grid)
    assert costs.grid_cost(grid).value == pytest.approx(truth.item(), rel=1e-9)


def test_predictions_are_the_formulas(measured):
    costs = PlanCosts.of(measured, 50, 3)
    assert set(costs.names) == {*NAMES.values(), MEASURED}
    for key, name in NAMES.items():
        for steps in (1, 2, 3, 4):
            waits = PLANS[key].waits(LENGTH, steps, LENGTH)
            found = costs.cost(name, steps)
            assert found.value == pytest.approx(measured.curve.cost(waits), abs=1e-12)
            assert found.low <= found.high
            assert costs.cost(MEASURED, steps).value <= found.value + 1e-12
    assert costs.cost("even", 1).value == pytest.approx(measured.curve.total_correlation)
    assert costs.cost("even", LENGTH) == (0, 0, 0)
    sizes = measured.curve.optimal_sizes(2)
    assert costs.cost(MEASURED, 2).value == pytest.approx(measured.curve.expected_kl(sizes))
    assert costs.budgets() == (1, 2, 4)


def test_calls_bring_a_plan_to_the_target_and_one_fewer_does_not(measured):
    costs = PlanCosts.of(measured, 50, 0)
    for name in costs.names:
        target = (costs.cost(name, 2).value + costs.cost(name, 3).value) / 2
        found = costs.calls(name, target)
        assert found.value == 3
        assert found.low <= 3 <= found.high
    assert costs.calls("even", 1e-9).value == LENGTH
    assert costs.calls("even", 1e9).value == 1


def test_the_table_of_the_best_sizes_is_made_once_for_all_budgets_and_targets(
    measured, monkeypatch
):
    rows, one_more = [], curves._one_more

    def counted(*arguments):
        rows.append(1)
        return one_more(*arguments)

    monkeypatch.setattr(curves, "_one_more", counted)
    losses = measured.losses + 1e-3 * np.arange(measured.losses.size).reshape(measured.losses.shape)
    costs = PlanCosts.of(Dependence(LENGTH, measured.known, losses), 10, 0)
    for steps in (1, 2, 3, 4):
        costs.cost(MEASURED, steps)
        costs.crossed(steps)
    costs.calls(MEASURED, 0.01)
    assert len(rows) == 3 * (LENGTH - 1)  # of the curve and of both halves


def test_crossed_is_the_plan_of_one_half_on_the_other(measured):
    costs = PlanCosts.of(measured, 10, 0)
    one, two = (half.curve for half in measured.halves())
    there = two.expected_kl(one.optimal_sizes(2))
    back = one.expected_kl(two.optimal_sizes(2))
    assert costs.crossed(2) == pytest.approx((there + back) / 2)
    assert measured.halves()[1].losses.tolist() == measured.losses[1::2].tolist()


def test_the_seed_and_not_the_batch_decides():
    oracle, batch = Oracle(LAW, absorbing()), text(40)
    parts = [
        Batch(batch.tokens[k : k + 7], batch.valid[k : k + 7], None, batch.rows[k : k + 7])
        for k in range(0, 40, 7)
    ]
    one, two = (measure_dependence(oracle, each, draws=2) for each in ([batch], parts))
    np.testing.assert_allclose(one.losses, two.losses, rtol=1e-12)
    other = measure_dependence(oracle, [batch], draws=2, seed=1)
    assert not np.allclose(one.losses, other.losses)
    assert (one.resampled(5, 0) == one.resampled(5, 0)).all()
    assert (one.resampled(5, 0) != one.resampled(5, 1)).any()


def test_more_draws_vary_less():
    oracle, batch = Oracle(LAW, absorbing(Cosine())), text(400)
    few, many = (measure_dependence(oracle, [batch], draws=d) for d in (1, 16))
    assert (many.stderr[1:-1] < few.stderr[1:-1]).all()


def test_sequences_with_padding_are_left_out():
    oracle, batch = Oracle(LAW, absorbing()), text(10)
    valid = batch.valid.clone()
    valid[3, -1] = False
    ragged = measure_dependence(oracle, [batch._replace(valid=valid)])
    full = measure_dependence(oracle, [batch])
    assert ragged.losses.tolist() == np.delete(full.losses, 3, 0).tolist()
    with pytest.raises(UserError, match="two sequences that fill the length of 4 tokens, got 0"):
        measure_dependence(oracle, [batch._replace(valid=torch.zeros_like(batch.valid))])


def test_mistakes_are_sentences():
    with pytest.raises(UserError, match="Uniform noise hides no position"):
        measure_dependence(Oracle(LAW, uniform()), [text(4)])
    with pytest.raises(UserError, match="draws must be at least 1"):
        measure_dependence(Oracle(LAW, absorbing()), [text(4)], draws=0)
    with pytest.raises(UserError, match="not finite"):
        Dependence(2, (0, 1), np.array([[1.0, np.inf], [1.0, 1.0]]))


def test_binomial_is_a_law():
    law = binomial(5, torch.tensor([0.0, 0.3, 1.0]))
    assert law.sum(-1).tolist() == pytest.approx([1, 1, 1])
    assert law[0, 0] == law[2, 5] == 1
    assert law[1, 2].item() == pytest.approx(10 * 0.3**2 * 0.7**3)


def test_a_law_of_independent_tokens_loses_nothing():
    law = torch.einsum("i,j->ij", *[torch.tensor([0.2, 0.3, 0.5]).double()] * 2)
    found = measure_dependence(Oracle(law, absorbing()), [text(300, law)])
    assert found.curve.total_correlation < 3 * found.gain_stderr[-1] + 1e-9
    with pytest.raises(UserError, match="needs two sequences"):
        replace(found, losses=found.losses[:1])
