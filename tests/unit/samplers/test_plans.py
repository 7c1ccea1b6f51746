"""Plans: what they lose by the formula and by enumeration, their guarantees, batches."""

import json
import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlm import UserError
from dlm.lab import exact
from dlm.random import Key
from dlm.samplers import (
    Balanced,
    Cosine,
    Decreasing,
    Equaliser,
    Even,
    FirstHitting,
    FromProfile,
    Increasing,
    InformationCurve,
    Minimax,
)
from dlm.samplers.curve import waits_of
from dlm.samplers.minimax import equaliser, minimax_boundaries, systematic, weights

TABLED = [
    Even(), Cosine(), Balanced(), FirstHitting(), Decreasing(), Increasing(),
    Minimax("tc"), Minimax("dtc"), Minimax("both"),
]  # fmt: skip
PLANS = [*TABLED, Equaliser()]
CONSTANTS = {  # tc, dtc, both
    (64, 8): (0.2061, 0.2500, 0.4196),
    (256, 32): (0.0531, 0.0555, 0.1069),
    (1024, 32): (0.0789, 0.0858, 0.1620),
}


def random_curve(length, seed=0):
    """Z of a random table over two symbols, from the entropies of all subsets."""
    generator = torch.Generator().manual_seed(seed)
    law = torch.rand([2] * length, generator=generator, dtype=torch.float64) ** 4
    law = law / law.sum()
    mean = [0.0]
    for size in range(1, length + 1):
        sets = list(combinations(range(length), size))
        parts = [[i for i in range(length) if i not in kept] for kept in sets]
        laws = [law.sum(rest) if rest else law for rest in parts]
        mean.append(sum(exact.entropy(part).item() for part in laws) / len(sets))
    values = [mean[1] + mean[j - 1] - mean[j] for j in range(1, length + 1)]
    return InformationCurve((0.0, *values[1:])), law


def outcomes(plan, length, steps):
    """The law of the sizes, also of the plan that draws them one after the other."""
    if not isinstance(plan, Equaliser):
        chance, sizes = plan.table(length, steps, length)
        return list(zip(chance.tolist(), sizes.tolist(), strict=True))
    if steps >= length:
        return [(1.0, [1] * length)]
    table = equaliser(length, steps)

    def draw(left, k):
        if k == 0 or left == 0:
            return [(1.0, [])] if left == 0 else []
        if k >= left:
            return [(1.0, [1] * left)]
        law = table[k - 1].first[left]
        return [
            (law[m - 1] * chance, [m, *rest])
            for m in range(1, left + 1)
            if law[m - 1] > 0
            for chance, rest in draw(left - m, k - 1)
        ]

    return draw(length, steps)


@pytest.mark.parametrize("plan", PLANS, ids=repr)
@pytest.mark.parametrize("length", [5, 8])
def test_expected_kl_is_the_average_over_outcomes(plan, length):
    curve, _ = random_curve(length)
    for steps in range(1, length + 1):
        listed = outcomes(plan, length, steps)
        assert sum(chance for chance, _ in listed) == pytest.approx(1.0, abs=1e-12)
        direct = sum(chance * curve.expected_kl(sizes) for chance, sizes in listed)
        assert curve.cost(plan.waits(length, steps, length)) == pytest.approx(direct, abs=1e-12)


def test_total_correlations_of_a_curve_are_those_of_the_law():
    curve, law = random_curve(6)
    entropy = exact.entropy(law).item()
    ones = [exact.entropy(law.sum([j for j in range(6) if j != i])).item() for i in range(6)]
    rest = [entropy - exact.entropy(law.sum([i])).item() for i in range(6)]
    assert curve.total_correlation == pytest.approx(sum(ones) - entropy, abs=1e-12)
    assert curve.dual_total_correlation == pytest.approx(entropy - sum(rest), abs=1e-12)


def test_a_checksum_is_lost_whole_by_every_fixed_plan_and_to_a_share_by_the_adaptive_one():
    length, log_v = 64, math.log(5)
    curve = InformationCurve((*[0.0] * (length - 1), log_v))
    for steps in (1, 8, 32):
        for plan in (Even(), Cosine(), Increasing()):
            assert curve.cost(plan.waits(length, steps, length)) == pytest.approx(log_v)
    share = minimax_boundaries(length, 8, "tc").constant
    assert curve.cost(Minimax("tc").waits(length, 8, length)) == pytest.approx(share * log_v)
    assert curve.cost(Equaliser().waits(length, 8, length)) == pytest.approx(
        Equaliser().share(length, 8) * log_v
    )


def test_a_repeated_token_is_the_mirror_of_a_checksum():
    length, log_v = 64, math.log(5)
    curve = InformationCurve((0.0, *[log_v] * (length - 1)))
    assert curve.dual_total_correlation == pytest.approx(log_v)
    for plan in (Even(), Balanced()):
        assert curve.cost(plan.waits(length, 8, length)) > 0.9 * log_v
    found = curve.cost(Minimax("dtc").waits(length, 8, length))
    assert found <= minimax_boundaries(length, 8, "dtc").constant * log_v + 1e-9


@pytest.mark.parametrize(("length", "steps"), CONSTANTS)
@pytest.mark.parametrize("against", ["tc", "dtc", "both"])
def test_minimax_plans_meet_their_guarantee(length, steps, against):
    constant = minimax_boundaries(length, steps, against).constant
    waits = Minimax(against).waits(length, steps, length)[1:]
    assert (waits <= constant * weights(length, against) * (1 + 1e-9) + 1e-9).all()
    expected = CONSTANTS[length, steps][["tc", "dtc", "both"].index(against)]
    assert constant == pytest.approx(expected, abs=5e-5)
    assert 2 * constant * steps == pytest.approx(
        math.log(1 + 2 * constant * length), rel=0.25 if against != "both" else 2.0
    )


def test_no_plan_that_was_tried_has_a_better_worst_case():
    """The largest E R_l / w_l of each plan is at least that of the minimax one."""
    for against in ("tc", "dtc", "both"):
        best = minimax_boundaries(64, 8, against).constant
        w = weights(64, against)
        for plan in PLANS:
            assert (plan.waits(64, 8, 64)[1:] / w).max() >= best - 1e-9


@pytest.mark.parametrize(("length", "steps"), [(6, 2), (7, 3), (8, 5)])
def test_the_equaliser_loses_the_same_share_everywhere(length, steps):
    listed = outcomes(Equaliser(), length, steps)
    waits = sum(chance * waits_of(np.asarray(sizes), length) for chance, sizes in listed)
    share = waits[1:] / np.arange(length - 1, 0, -1)
    assert np.allclose(share, Equaliser().share(length, steps), atol=1e-12)
    assert share[0] >= minimax_boundaries(length, steps, "tc").constant


def test_systematic_sampling_has_the_asked_probabilities():
    chance = minimax_boundaries(40, 7, "dtc").chance
    table = systematic(chance, 7)
    begins = np.zeros(39)
    for share, sizes in zip(*table, strict=True):
        begins[np.cumsum(sizes)[:-1] - 1] += share
    assert np.allclose(begins, chance, atol=1e-9)


@pytest.mark.parametrize(("length", "steps"), [(256, 16), (100, 33), (5, 4), (1024, 128)])
def test_even_boundaries_of_whole_sums_make_no_step_too_many(length, steps):
    chance, sizes = Balanced().table(length, steps, length)
    assert chance.sum() == pytest.approx(1.0)
    assert (sizes.sum(1) == length).all()
    most = -(-(length - 1) // (steps - 1))
    assert sizes.min() >= 1
    assert sizes.max() <= most
    assert (sizes[:, 1:-1] >= most - 1).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_optimal_sizes_are_the_best_of_all(steps):
    length = 8
    for seed in range(4):
        curve, _ = random_curve(length, seed)
        every = [
            sizes for sizes in product(range(1, length + 1), repeat=steps) if sum(sizes) == length
        ]
        best = min(curve.increasing().expected_kl(sizes) for sizes in every)
        found = curve.increasing().expected_kl(curve.optimal_sizes(steps))
        assert found == pytest.approx(best, abs=1e-12)


def test_a_profile_plan_follows_its_curve_and_the_prompt(tmp_path):
    """All information at one step: a boundary there is all that matters."""
    values = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    InformationCurve(values, (0.1,) * 6).save(tmp_path / "p.json", split="validation")
    plan = FromProfile(str(tmp_path / "p.json"))
    hidden = torch.tensor([6, 4, 0])
    sizes = plan.sizes(hidden, 2, key=Key(0, torch.arange(3)), total=6)
    assert sizes.tolist() == [[3, 3], [1, 3], [0, 0]]
    assert json.loads((tmp_path / "p.json").read_text())["split"] == "validation"
    longer = plan.sizes(torch.tensor([60]), 2, key=Key(0, torch.arange(1)), total=60)
    assert 24 <= longer[0, 0] <= 36


def test_estimates_that_fall_are_made_to_rise():
    curve = InformationCurve((0.0, 0.3, 0.1, 0.4), (0.1, 0.1, 0.1, 0.1)).increasing()
    assert curve.values == pytest.approx((0.0, 0.2, 0.2, 0.4))
    surer = InformationCurve((0.0, 0.3, 0.1, 0.4), (0.1, 0.01, 0.1, 0.1)).increasing()
    assert surer.values[1] == pytest.approx(0.298, abs=1e-3)


@given(
    hidden=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    steps=st.integers(1, 14),
    which=st.integers(0, len(PLANS) - 1),
)
def test_sizes_sum_to_what_is_hidden(hidden, steps, which):
    counts = torch.tensor(hidden)
    sizes = PLANS[which].sizes(counts, steps, key=Key(0, torch.arange(len(hidden))), total=12)
    assert torch.equal(sizes.sum(-1), counts)
    assert (sizes >= 0).all()
    assert (sizes[counts <= steps] <= 1).all()


@pytest.mark.parametrize("plan", [Minimax("tc"), Balanced(), Equaliser()], ids=repr)
def test_random_sizes_follow_their_law(plan):
    number, length, steps = 8000, 6, 3
    sizes = plan.sizes(
        torch.full((number,), length), steps, key=Key(0, torch.arange(number)), total=length
    )
    law: dict[tuple[int, ...], float] = {}
    for chance, each in outcomes(plan, length, steps):
        law[tuple(each)] = law.get(tuple(each), 0.0) + chance
    found: dict[tuple[int, ...], int] = {}
    for row in sizes.tolist():
        found[tuple(row)] = found.get(tuple(row), 0) + 1
    assert set(found) <= set(law)
    chi2 = sum(
        (found.get(k, 0) - p * number) ** 2 / (p * number) for k, p in law.items() if p > 1e-9
    )
    assert chi2 < len(law) + 5 * math.sqrt(2 * len(law))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: InformationCurve(()), "begins with 0"),
        (lambda: InformationCurve((0.1, 0.2)), "begins with 0"),
        (lambda: InformationCurve((0.0, 1.0), (0.1,)), "as many standard errors"),
        (lambda: InformationCurve((0.0, 1.0)).expected_kl((1, 2)), "must sum to 2"),
        (lambda: InformationCurve((0.0, 1.0)).tail(2), "leave nothing"),
        (lambda: InformationCurve.load("no/such/file.json"), "cannot read the profile"),
    ],
)
def test_what_makes_no_sense_is_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_another_file_is_no_profile(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match="holds no information curve"):
        InformationCurve.load(tmp_path / "x.json")
