"""Integral probability metrics against their definition: a supremum over functions."""

import itertools

import pytest
import torch

from dlm import UserError
from dlm.lab import exact
from dlm.lab.metrics import KernelDiscrepancy, LocalVariation, TotalVariation
from dlm.lab.symmetry import pairs_discrepancy


def laws(symbols=3, length=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tables = torch.rand(2, symbols**length, dtype=torch.float64, generator=generator) ** 3
    return tables / tables.sum(-1, keepdim=True)


def pair_law(equal, symbols, length):
    """Independent pairs, equal with this probability, symbols alike."""
    eye = torch.eye(symbols, dtype=torch.float64)
    pair = equal * eye / symbols + (1 - equal) * (1 - eye) / (symbols * (symbols - 1))
    law = torch.ones(1, dtype=torch.float64)
    for _ in range(length // 2):
        law = (law[:, None] * pair.flatten()).flatten()
    return law


def test_total_variation_is_reached_by_the_indicator_of_where_one_law_is_larger():
    p, q = laws()
    seen = ((p > q).double() * (p - q)).sum()
    assert TotalVariation()(p, q, 3).item() == pytest.approx(seen.item(), rel=1e-12)
    assert exact.total_variation(p, q).item() == pytest.approx(seen.item(), rel=1e-12)


@pytest.mark.parametrize("tokens", [1, 2, 3, 9])
def test_local_variation_is_that_of_the_worst_marginal(tokens):
    p, q = laws(seed=1)
    states = exact.all_states(3, 3)
    worst = 0.0
    for places in itertools.combinations(range(3), min(tokens, 3)):
        gap = {}
        for state, value in zip(states.tolist(), (p - q).tolist(), strict=True):
            seen = tuple(state[i] for i in places)
            gap[seen] = gap.get(seen, 0.0) + value
        worst = max(worst, sum(v for v in gap.values() if v > 0))
    assert LocalVariation(tokens)(p, q, 3).item() == pytest.approx(worst, rel=1e-12)


def test_two_laws_with_the_same_small_marginals_differ_only_for_functions_of_more_tokens():
    even = torch.full((8,), 1 / 8, dtype=torch.float64)
    parity = (exact.all_states(2, 3).sum(-1) % 2 == 0).double() / 4
    assert LocalVariation(2)(even, parity, 2).item() < 1e-15
    assert LocalVariation(3)(even, parity, 2).item() == pytest.approx(0.5)
    assert KernelDiscrepancy()(even, parity, 2).item() > 0.05


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.9])
def test_kernel_discrepancy_is_the_double_sum(decay):
    p, q = laws(seed=2)
    states = exact.all_states(3, 3)
    apart = (states[:, None] != states).sum(-1)
    gap = p - q
    square = gap @ (decay ** apart.double()) @ gap
    found = KernelDiscrepancy(decay)(p, q, 3).item()
    assert found == pytest.approx(square.sqrt().item(), rel=1e-10)
    witness = (decay ** apart.double()) @ gap / found  # of norm 1: reaches the supremum
    assert (witness @ gap).item() == pytest.approx(found, rel=1e-10)


@pytest.mark.parametrize("metric", [TotalVariation(), LocalVariation(2), KernelDiscrepancy()])
def test_a_metric_is_symmetric_zero_on_the_diagonal_and_at_most_total_variation(metric):
    p, q = laws(seed=3)
    assert metric(p, q, 3).item() == pytest.approx(metric(q, p, 3).item(), rel=1e-12)
    assert metric(p, p, 3).item() == 0
    assert 0 < metric(p, q, 3).item() <= 2**0.5 * TotalVariation()(p, q, 3).item()


@pytest.mark.parametrize(("symbols", "length"), [(2, 2), (2, 6), (3, 4), (5, 4)])
@pytest.mark.parametrize("equal", [0.0, 0.7, 1.0])
def test_discrepancy_of_pairs_in_closed_form(symbols, length, equal):
    right, wrong = pair_law(1.0, symbols, length), pair_law(equal, symbols, length)
    known = KernelDiscrepancy(0.4)(right, wrong, symbols).item()
    assert pairs_discrepancy(equal, length, symbols, 0.4) == pytest.approx(known, abs=1e-8)


def test_refusals():
    with pytest.raises(UserError, match="tokens must be at least 1, got 0"):
        LocalVariation(0)
    with pytest.raises(UserError, match="decay must be above 0 and below 1, got 1"):
        KernelDiscrepancy(1.0)
