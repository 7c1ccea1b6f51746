"""Closed forms of the lab against enumeration."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from dlm.lab import Oracle, exact, pushed, rates
from dlm.lab.bits import RepeatedBit, held, leave_one_out, tau_leaping
from dlm.lab.drawn import drawn_path_kl
from dlm.lab.experiments.tables import pairs_table, repeated_table
from dlm.lab.laws import HiddenMarkov, Lazy
from dlm.lab.symmetry import RepeatedUniform, pair_equal, token_chance
from dlm.samplers import Ancestral, Euler, EvenGrid, GridSampler, TauLeaping
from dlm.samplers.curve import InformationCurve
from dlm.samplers.grids import best_grid
from tests.toys import absorbing, correlated_law, double, hybrid, uniform

LAW = correlated_law()
LEVELS = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
CURVE = rates.table_curve(LAW)


def times_of(process):
    return process.schedule.inverse(LEVELS)


@pytest.mark.parametrize("process", [absorbing(), uniform(), hybrid()], ids=repr)
def test_step_costs_sum_to_the_path_kl(process):
    times = times_of(process)
    costs = [rates.step_cost(LAW, process, s, t) for t, s in pairwise(times)]
    pushed_kl = exact.path_kl(LAW, Oracle(LAW, process), Ancestral(), times).item()
    assert sum(costs) == pytest.approx(pushed_kl, abs=1e-11)
    assert min(costs) > -1e-12


def test_the_curve_of_a_table_gives_both_correlations():
    single = [LAW.sum([j for j in range(3) if j != i]) for i in range(3)]
    total = sum(float(exact.entropy(law)) for law in single)
    joint = float(exact.entropy(LAW))
    given = sum(joint - float(exact.entropy(LAW.sum(i))) for i in range(3))
    assert CURVE.total_correlation == pytest.approx(total - joint, abs=1e-12)
    assert CURVE.dual_total_correlation == pytest.approx(joint - given, abs=1e-12)


def test_masked_path_kl_comes_from_the_curve():
    oracle = Oracle(LAW, absorbing())
    pushed_kl = exact.path_kl(LAW, oracle, Ancestral(), times_of(absorbing())).item()
    assert rates.masked_path_kl(CURVE, LEVELS.numpy()) == pytest.approx(pushed_kl, abs=1e-12)


def test_the_slope_of_known_information_is_its_derivative():
    alpha, h = np.array([0.1, 0.5, 0.8]), 1e-5
    rise = rates.known_information(CURVE, alpha + h) - rates.known_information(CURVE, alpha - h)
    assert rates.known_slope(CURVE, alpha) == pytest.approx(rise / (2 * h), rel=1e-7)
    ends = rates.known_information(CURVE, np.array([0.0, 1.0]))
    assert ends == pytest.approx([0.0, 3 * CURVE.values[-1]])


def test_the_continuum_is_the_limit_of_the_best_grids():
    curve = InformationCurve(tuple((np.arange(16) / 15) ** 3))
    alpha, constant = np.linspace(0, 1, 401), rates.continuum_grid(curve, 1).constant
    loss = -torch.from_numpy(rates.known_information(curve, alpha))
    best = best_grid(torch.from_numpy(alpha), loss, 50).numpy()
    quantiles = rates.continuum_grid(curve, 50).levels
    assert 50 * rates.masked_path_kl(curve, best) == pytest.approx(constant, rel=0.03)
    assert rates.masked_path_kl(curve, quantiles) == pytest.approx(
        rates.masked_path_kl(curve, best), rel=0.02
    )
    assert np.abs(best - quantiles).max() < 0.05
    even = rates.masked_path_kl(curve, np.linspace(0, 1, 51))
    assert rates.masked_path_kl(curve, best) < 0.95 * even


def test_cheapest_path_is_the_best_of_all():
    cost = np.random.default_rng(0).uniform(size=(7, 7))
    path, total = rates.cheapest_path(cost, 3)
    every = {
        (0, i, j, 6): cost[0, i] + cost[i, j] + cost[j, 6]
        for i in range(1, 6)
        for j in range(i + 1, 6)
    }
    assert tuple(path) == min(every, key=lambda p: every[p])
    assert total == pytest.approx(min(every.values()))


def test_order_is_minus_the_slope():
    steps = [4, 8, 16, 32]
    assert rates.order(steps, [100.0, *(3 / k**2 for k in steps[1:])]) == pytest.approx(2.0)


def test_binomial_at_the_ends():
    assert rates.binomial(3, np.array([0.0, 1.0, 0.5])) == pytest.approx(
        np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0.125, 0.375, 0.375, 0.125]])
    )


def test_pairs_under_masks():
    table, process = pairs_table(3, 4), absorbing()
    law = pushed.grid_law(GridSampler(Ancestral(), EvenGrid(), steps=3), Oracle(table, process), 4)
    target, known = exact.embed(table, process), rates.masked_pairs(np.linspace(0, 1, 4), 4, 3)
    assert known.tv == pytest.approx(exact.total_variation(target, law).item(), abs=1e-12)
    assert known.kl == pytest.approx(exact.kl(target, law).item(), abs=1e-12)
    assert known.path_kl == pytest.approx(2 * np.log(3) / 3)
    steps = rates.pair_steps(known.tv, 4, 3)
    assert steps == pytest.approx(3.0)


@pytest.mark.parametrize(("symbols", "length"), [(2, 4), (3, 3), (5, 2), (4, 3)])
def test_repeated_tokens_by_counts(symbols, length):
    table, process = repeated_table(symbols, length), uniform(symbols=symbols)
    law, alpha = RepeatedUniform(symbols, length), 0.4
    noised = exact.noised_law(table, process, process.schedule.inverse(double(alpha)))
    assert law.entropy(alpha) == pytest.approx(float(exact.entropy(noised)), abs=1e-12)
    costs = [rates.step_cost(table, process, s, t) for t, s in pairwise(times_of(process))]
    assert law.path_kl(LEVELS.numpy()) == pytest.approx(sum(costs), abs=1e-11)


@pytest.mark.parametrize("process", [absorbing(), uniform(), hybrid()], ids=repr)
@pytest.mark.parametrize("kernel", [Ancestral(), Euler(), TauLeaping()], ids=repr)
def test_one_state_of_each_class_tells_the_law(process, kernel):
    levels = torch.linspace(0, 1, 4, dtype=torch.float64)
    sampler = GridSampler(kernel, EvenGrid(), steps=3)
    pair, one = torch.eye(3, dtype=torch.float64) / 3, torch.tensor([0.6, 0.2, 0.2])
    law = pushed.grid_law(sampler, Oracle(pair, process), 2)
    equal = law[exact.embed(torch.eye(3), process) > 0].sum().item()
    assert pair_equal(kernel, process, levels) == pytest.approx(equal, abs=1e-12)
    law = pushed.grid_law(sampler, Oracle(one.double() / one.double().sum(), process), 1)
    assert token_chance(kernel, process, levels, 0.6) == pytest.approx(law[0].item(), abs=1e-7)


def of_counts(law, length):
    """A law of sequences as one of the number of ones."""
    ones = exact.all_states(2, length).sum(-1)
    return torch.zeros(length + 1, dtype=torch.float64).index_add(0, ones, law)


def linear_tau(other, after, before):
    """Held rates in the time of the linear schedule, as our kernel has them."""
    return held(other, before, after / before - 1)


@pytest.mark.parametrize(
    ("kernel", "turn"), [(Ancestral(), leave_one_out), (TauLeaping(), linear_tau)]
)
def test_bits_by_counts_are_the_kernels(kernel, turn):
    length, process = 4, uniform(symbols=2)
    table, bits = repeated_table(2, length), RepeatedBit(length)
    t, s = (process.schedule.inverse(double(a)) for a in (0.3, 0.55))
    before = exact.noised_law(table, process, t)
    after = before @ exact.step_law(Oracle(table, process), kernel, t, s, length)
    assert bits.law(0.3) == pytest.approx(of_counts(before, length).numpy(), abs=1e-14)
    found = bits.step(bits.law(0.3), 0.55, 0.3, turn)
    assert found == pytest.approx(of_counts(after, length).numpy(), abs=1e-13)


def test_small_steps_of_all_kinds_agree():
    other = np.array([0.1, 0.7])
    chances = [turn(other, 0.4004, 0.4) for turn in (leave_one_out, tau_leaping)]
    assert chances[0] == pytest.approx(chances[1], rel=5e-3)


@pytest.mark.parametrize("process", [absorbing(), uniform(), hybrid()], ids=repr)
def test_drawn_path_kl_is_unbiased(process):
    law = HiddenMarkov(3, 3, 2, Lazy(0.8), [[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]])
    found = drawn_path_kl(law, process, Ancestral(), LEVELS, 4000)
    table = law.table()
    known = exact.path_kl(table, Oracle(table, process), Ancestral(), times_of(process)).item()
    assert abs(found.value - known) < 4 * found.stderr
    assert found.stderr < 0.2 * known
