"""Information curves: closed forms, what plans lose by enumeration, prompts, the best sizes."""

import json
import math
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlm import UserError
from dlm.lab import exact
from dlm.samplers import InformationCurve
from dlm.samplers.curve import waits_of
from tests.enumerated import average_kl, marginal, random_law, subset_curve

LOG_3 = math.log(3)


def compositions(total, parts):
    """All ways to cut `total` into `parts` positive sizes."""
    for cuts in combinations(range(1, total), parts - 1):
        edges = (0, *cuts, total)
        yield tuple(b - a for a, b in pairwise(edges))


def table(length, symbols, allowed):
    """The uniform law of the sequences that are allowed."""
    law = torch.zeros([symbols] * length, dtype=torch.float64)
    for tokens in product(range(symbols), repeat=length):
        law[tokens] = float(allowed(tokens))
    return law / law.sum()


CLOSED = {
    "repeated": (table(4, 3, lambda x: len(set(x)) == 1), (0, LOG_3, LOG_3, LOG_3)),
    "checksum": (table(4, 3, lambda x: sum(x) % 3 == 0), (0, 0, 0, LOG_3)),
    "pairs": (
        table(4, 3, lambda x: x[0] == x[1] and x[2] == x[3]),
        tuple(LOG_3 * j / 3 for j in range(4)),
    ),
    "permutations": (
        table(4, 4, lambda x: len(set(x)) == 4),
        tuple(math.log(4 / (4 - j)) for j in range(4)),
    ),
    "product": (torch.full((3, 3, 3), 1 / 27, dtype=torch.float64), (0, 0, 0)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name):
    law, values = CLOSED[name]
    assert subset_curve(law).values == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize(("length", "symbols"), [(2, 3), (3, 3), (4, 2), (5, 2)])
def test_expected_kl_is_that_of_the_enumeration(length, symbols):
    law = random_law(length, symbols)
    curve = subset_curve(law)
    for parts in range(1, length + 1):
        for sizes in compositions(length, parts):
            assert curve.expected_kl(sizes) == pytest.approx(average_kl(law, sizes), abs=1e-12)


def test_steps_that_open_nothing_cost_nothing():
    curve = subset_curve(random_law(5))
    assert curve.expected_kl((0, 2, 0, 0, 3, 0)) == curve.expected_kl((2, 3))


def test_waits_of_many_plans_are_those_of_each():
    sizes = np.array([[3, 0, 2], [1, 4, 0], [0, 0, 5]])
    expected = [[0, 2, 1, 0, 1], [0, 0, 3, 2, 1], [0, 4, 3, 2, 1]]
    assert waits_of(sizes, 5).tolist() == expected
    assert waits_of(sizes[None], 5).shape == (1, 3, 5)


def test_total_correlations_of_a_curve_are_those_of_the_law():
    law = random_law(6)
    curve, entropy = subset_curve(law), exact.entropy(law).item()
    ones = [torch.special.entr(marginal(law, (i,))).sum().item() for i in range(6)]
    rest = [entropy - exact.entropy(law.sum(i)).item() for i in range(6)]
    assert curve.total_correlation == pytest.approx(sum(ones) - entropy, abs=1e-12)
    assert curve.dual_total_correlation == pytest.approx(entropy - sum(rest), abs=1e-12)


@pytest.mark.parametrize("known", [0, 1, 2, 4])
def test_the_tail_is_the_average_curve_of_the_conditional_laws(known):
    law = random_law(5)
    total = np.zeros(5 - known)
    sets = list(combinations(range(5), known))
    for given_ in sets:
        front = law.permute(*given_, *[i for i in range(5) if i not in given_])
        for values in product(range(2), repeat=known):
            part = front[values]
            conditional = np.asarray(subset_curve(part / part.sum()).values)
            total += conditional * part.sum().item() / len(sets)
    assert subset_curve(law).tail(known).values == pytest.approx(tuple(total), abs=1e-12)


def test_the_tail_costs_what_is_left_of_a_plan():
    curve = subset_curve(random_law(6))
    for sizes in compositions(4, 2):
        whole = curve.expected_kl((1, 1, *sizes))
        assert curve.tail(2).expected_kl(sizes) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("steps", range(1, 10))
def test_optimal_sizes_are_the_best_of_all(steps):
    wiggly = (0.0, 0.3, 0.1, 0.4, 0.4, 0.2, 0.9, 0.8, 1.0)
    curves = [subset_curve(random_law(9, seed=seed)) for seed in range(2)]
    stairs = InformationCurve((0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0))  # ties
    for curve in (*curves, stairs, InformationCurve(wiggly).increasing()):
        for known in (0, 1, 4):
            parts = min(steps, 9 - known)
            costs = [curve.tail(known).expected_kl(s) for s in compositions(9 - known, parts)]
            found = curve.optimal_sizes(steps, known)
            assert len(found) == parts
            assert curve.tail(known).expected_kl(found) == pytest.approx(min(costs), abs=1e-12)
            assert found == curve.tail(known).optimal_sizes(steps)
    projected = InformationCurve(wiggly).increasing()
    assert InformationCurve(wiggly).optimal_sizes(steps) == projected.optimal_sizes(steps)


def test_sizes_do_not_depend_on_what_was_asked_before():
    """One table serves all numbers of steps and of known positions, and is computed once."""
    values = subset_curve(random_law(9)).values
    asked = [(steps, known) for steps in (3, 9, 1, 5) for known in (4, 0, 8)]
    together = InformationCurve(values)
    for scale, (steps, known) in enumerate(asked, start=2):
        own = InformationCurve(tuple(scale * v for v in values))  # a table of its own
        assert own.optimal_sizes(steps, known) == together.optimal_sizes(steps, known)


@pytest.mark.parametrize(("length", "steps"), [(97, 6), (128, 31), (200, 199)])
def test_optimal_sizes_of_long_curves_are_those_of_a_plain_table(length, steps):
    z = np.sort(np.random.default_rng(length).exponential(size=length)) ** 3
    z -= z[0]
    sums = np.concatenate([[0.0], z.cumsum()])
    begin, end = np.arange(length)[:, None], np.arange(1, length + 1)
    cost = sums[end] - sums[begin] - (end - begin) * z[:, None]
    cost[begin >= end] = np.inf
    best = cost[:, -1]
    for _ in range(steps - 1):
        best = (cost + np.append(best[1:], np.inf)).min(-1)
    curve = InformationCurve(tuple(z.tolist()))
    sizes = curve.optimal_sizes(steps)
    assert len(sizes) == steps
    assert curve.expected_kl(sizes) == pytest.approx(best[0], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (3, 3, 2), (1, 3, 4), (2, 2, 2, 2), (5, 1, 2)])
def test_the_bound_for_the_largest_size_holds(sizes):
    """Li & Cai 2025, theorem 1: (2^ceil(log2 s) - 1) / L of the sum of I(X_i; the others)."""
    for seed in range(4):
        curve = subset_curve(random_law(8, seed=seed))
        factor = (2 ** math.ceil(math.log2(max(sizes))) - 1) / 8
        bound = factor * 8 * curve.values[-1]
        assert 0 < curve.expected_kl(sizes) <= bound


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 1)), min_size=1, max_size=8),
)
def test_the_projection_is_the_nearest_curve_that_rises(drawn):
    """By the max-min formula of isotonic regression, over the values that are not given."""
    values, errors = (np.array(column) for column in zip(*drawn, strict=True))
    weights = 1 / errors**2

    def mean(a, b):
        return np.average(values[a : b + 1], weights=weights[a : b + 1])

    n = len(values)
    nearest = [
        max(0.0, max(min(mean(a, b) for b in range(i, n)) for a in range(i + 1))) for i in range(n)
    ]
    curve = InformationCurve((0.0, *values.tolist()), (0.0, *errors.tolist()))
    assert curve.increasing().values[1:] == pytest.approx(nearest, abs=1e-9)
    assert curve.increasing().stderr == curve.stderr


def test_a_curve_is_read_at_another_length_by_the_share_that_is_known():
    curve = InformationCurve((0.0, 1.0, 4.0), (0.1, 0.1, 0.1))
    assert curve.stretched(5).values == (0.0, 0.5, 1.0, 2.5, 4.0)
    assert curve.stretched(2).values == (0.0, 4.0)
    assert curve.stretched(3) is curve


def test_a_saved_curve_is_read_back(tmp_path):
    curve = InformationCurve((0.0, 1 / 3, 0.5), (0.0, 0.1, 0.1))
    curve.save(tmp_path / "p.json", checkpoint="last.ckpt", split="validation")
    assert InformationCurve.load(tmp_path / "p.json") == curve
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["kind"] == "information_curve"
    assert (content["length"], content["split"]) == (3, "validation")
    InformationCurve((0.0, 1.0)).save(tmp_path / "q.json")
    assert InformationCurve.load(str(tmp_path / "q.json")).stderr is None


GOOD = {"kind": "information_curve", "length": 2, "values": [0, 1], "stderr": None}


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[1, 2]",
        "not json",
        json.dumps(GOOD | {"kind": "grid"}),
        json.dumps(GOOD | {"length": 3}),
        json.dumps(GOOD | {"values": [0, "x"]}),
        json.dumps(GOOD | {"values": [1, 2]}),
        json.dumps(GOOD | {"values": [0, math.nan]}),
        json.dumps(GOOD | {"stderr": [0]}),
        json.dumps({k: v for k, v in GOOD.items() if k != "stderr"}),
    ],
)
def test_another_file_is_no_profile(tmp_path, text):
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    assert InformationCurve.load(tmp_path / "good.json").values == (0, 1)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="holds no information curve; write one with `dlm prof"):
        InformationCurve.load(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: InformationCurve(()), "begins with 0"),
        (lambda: InformationCurve((0.1, 0.2)), "begins with 0"),
        (lambda: InformationCurve((0.0, math.inf)), "begins with 0"),
        (lambda: InformationCurve((0.0, 1.0), (0.1,)), "as many standard errors"),
        (lambda: InformationCurve((0.0, 1.0), (0.1, -0.1)), "none below 0"),
        (lambda: InformationCurve((0.0, 1.0), (0.1, math.nan)), "as many standard errors"),
        (lambda: InformationCurve((0.0, 1.0)).expected_kl((1, 2)), "must sum to 2"),
        (lambda: InformationCurve((0.0, 1.0)).expected_kl((3, -1)), "must sum to 2"),
        (lambda: InformationCurve((0.0, 1.0)).expected_kl(()), "must sum to 2"),
        (lambda: InformationCurve((0.0, 1.0)).tail(2), "0 to 1 known ones, got 2"),
        (lambda: InformationCurve((0.0, 1.0)).tail(-1), "got -1"),
        (lambda: InformationCurve((0.0, 1.0)).optimal_sizes(0), "at least 1 step"),
        (lambda: InformationCurve((0.0, 1.0)).optimal_sizes(1, known=2), "and 2 known ones"),
        (lambda: InformationCurve.load("no/such/file.json"), "cannot read the profile"),
    ],
)
def test_what_makes_no_sense_is_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
