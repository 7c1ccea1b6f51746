"""Minimax boundaries and the equaliser: guarantees, and that no plan has a better one."""

import math

import numpy as np
import pytest
import torch

from dlm.samplers import Equaliser, InformationCurve, Minimax
from dlm.samplers.curve import waits_of
from dlm.samplers.equaliser import first_size, shares
from dlm.samplers.minimax import (
    Against,
    minimax_boundaries,
    systematic,
    systematic_waits,
    weights,
)
from tests.enumerated import outcomes

AGAINST: tuple[Against, ...] = ("tc", "dtc", "both")
CONSTANTS = {
    (64, 8): (0.2061, 0.2500, 0.4196),
    (256, 32): (0.0531, 0.0555, 0.1069),
    (1024, 32): (0.0789, 0.0858, 0.1620),
    (1024, 128): (0.0133, 0.0135, 0.0267),
}
SMALL = [(3, 2), (6, 3), (9, 2), (8, 3), (10, 4), (16, 5), (33, 7)]
every_against = pytest.mark.parametrize("against", AGAINST)
every_size = pytest.mark.parametrize(("length", "steps"), [*SMALL, *CONSTANTS])


def least_waits(chance):
    """sum_{j >= 1} (1 - pi_l - ... - pi_{l+j-1})_+ for every l."""
    return np.array([np.maximum(0, 1 - chance[a:].cumsum()).sum() for a in range(len(chance))])


def hardest_curve(length, steps, against):
    """The curve of which every plan of K steps loses at least a share c: the dual solution.

    Of increments y >= 0 with sum y w = 1 whose losses sum_l y_l sum_j (1 - pi_l - ...)_+ have the
    same derivative in each pi; no information where a beginning is of no use.
    """
    chance, _ = minimax_boundaries(length, steps, against)
    terms = [int((chance[a:].cumsum() < 1 - 1e-11).sum()) for a in range(length - 1)]
    y = np.zeros(length - 1)
    for p in range(length - 1):
        if chance[p] > 0:
            before = sum(y[a] * max(0, terms[a] - (p - a)) for a in range(p))
            y[p] = (1 - before) / terms[p]
    assert (y >= 0).all()
    y /= y @ weights(length, against)
    return InformationCurve((0.0, *y.cumsum().tolist()))


@pytest.mark.parametrize(("length", "steps"), CONSTANTS)
def test_constants(length, steps):
    found = [minimax_boundaries(length, steps, against).constant for against in AGAINST]
    assert found == pytest.approx(CONSTANTS[length, steps], abs=5e-5)
    estimates = [math.log(1 + 2 * c * length) / (2 * steps) for c in found[:2]]
    assert estimates == pytest.approx(found[:2], rel=0.15)


@every_size
@every_against
def test_plans_meet_their_guarantee(length, steps, against):
    chance, constant = minimax_boundaries(length, steps, against)
    assert ((chance >= 0) & (chance <= 1)).all()
    assert chance.sum() == pytest.approx(steps - 1, abs=1e-9)
    waits = Minimax(against).waits(length, steps, length)
    assert waits[0] == 0
    assert (waits[1:] <= constant * weights(length, against) + 1e-10).all()
    assert waits[1:] == pytest.approx(least_waits(chance), abs=1e-10)
    assert Minimax(against).constant(length, steps) == constant


@every_size
@every_against
def test_no_plan_has_a_better_guarantee(length, steps, against):
    """The best plan of the hardest curve, found by dynamic programming, loses c all the same."""
    curve = hardest_curve(length, steps, against)
    least = curve.expected_kl(curve.optimal_sizes(steps))
    constant = minimax_boundaries(length, steps, against).constant
    assert least == pytest.approx(constant, rel=1e-9)
    assert curve.cost(Minimax(against).waits(length, steps, length)) == pytest.approx(least)


@pytest.mark.parametrize(("steps", "constants"), [(1, (1, 63, 63)), (64, (0, 0, 0))])
def test_one_step_and_one_at_a_time(steps, constants):
    found = [Minimax(against).constant(64, steps) for against in AGAINST]
    assert found == pytest.approx(constants)


@every_size
@every_against
def test_systematic_sampling_has_the_asked_probabilities(length, steps, against):
    asked = minimax_boundaries(length, steps, against).chance
    chance, sizes = systematic(asked, steps)
    assert chance.sum() == pytest.approx(1.0)
    assert (sizes >= 1).all()
    assert (sizes.sum(1) == length).all()
    begins = np.zeros(length - 1)
    for share, row in zip(chance, sizes, strict=True):
        begins[row.cumsum()[:-1] - 1] += share
    assert np.allclose(begins, asked, atol=1e-9)
    assert chance @ waits_of(sizes, length) == pytest.approx(systematic_waits(asked), abs=1e-9)


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        (3, 2),
        (5, 4),
        (9, 5),
        (16, 6),
        (100, 34),
        (256, 16),
        (100, 33),
        (1024, 128),
        (901, 301),
        (4096, 1366),
    ],
)
def test_even_boundaries_of_whole_sums_make_no_step_too_many(length, steps):
    """(K - 1) / (L - 1) may be 1 / m: then sums of m of them are whole up to rounding."""
    asked = np.full(length - 1, (steps - 1) / (length - 1))
    chance, sizes = systematic(asked, steps)
    assert chance @ waits_of(sizes, length) == pytest.approx(systematic_waits(asked), abs=1e-8)
    assert chance.sum() == pytest.approx(1.0)
    assert (sizes.sum(1) == length).all()
    most = -(-(length - 1) // (steps - 1))
    assert sizes.min() >= 1
    assert sizes.max() <= most
    assert (sizes[:, 1:-1] >= most - 1).all()


@pytest.mark.parametrize(("length", "steps"), [(4, 2), (6, 2), (7, 3), (8, 5), (9, 4)])
def test_the_equaliser_loses_the_same_share_everywhere(length, steps):
    listed = outcomes(Equaliser(), length, steps)
    chance, sizes = (np.array(column) for column in zip(*listed, strict=True))
    waits = chance @ waits_of(sizes, length)
    share = waits[1:] / np.arange(length - 1, 0, -1)
    assert np.allclose(share, Equaliser().share(length, steps), atol=1e-12)
    best = minimax_boundaries(length, steps, "tc").constant
    assert best - 1e-12 <= share[0] <= 1.9 * best


def test_shares_of_the_equaliser_are_those_of_the_recursion_for_sizes():
    """c_m = (1 - sum_{s < m} c_s (1 - v_{n-s})) / (1 + (n - m - 1) v_{n-m}), v = C / (1 + C)."""
    found = shares(30, 4)
    assert found[0].tolist() == [0, 0, *[1] * 29]
    for k in range(1, 4):
        v = found[k - 1]
        for n in range(2, 31):
            c = []
            for m in range(1, n):
                rest = 1 - sum(c[s - 1] * (1 - v[n - s]) for s in range(1, m))
                c.append((rest / (1 + (n - m - 1) * v[n - m])).item())
            total = sum(c[m - 1] * v[n - m].item() for m in range(1, n))
            assert found[k, n].item() == pytest.approx(total / (1 + total), abs=1e-12)
            law = first_size(v, torch.tensor(n))
            assert law.tolist() == pytest.approx([*c, *[0] * (31 - n)], abs=1e-12)
            assert law.sum().item() * (1 - found[k, n].item()) == pytest.approx(1)
    assert torch.equal(shares(12, 4), found[:, :13])
