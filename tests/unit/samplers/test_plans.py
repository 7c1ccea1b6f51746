"""Plans: what they lose by enumeration, the laws of their sizes and times, prompts, batches."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
from dlm.samplers.minimax import Against, minimax_boundaries, weights
from tests.conformance.registry import built, names, with_profile
from tests.enumerated import average_kl, outcomes, random_law, subset_curve

DETERMINISTIC = [Even(), Cosine(), FirstHitting(), Decreasing(), Increasing()]
RANDOM = [Balanced(), Minimax("tc"), Minimax("dtc"), Minimax("both"), Equaliser()]
AGAINST: tuple[Against, ...] = ("tc", "dtc", "both")
PLANS = [*DETERMINISTIC, *RANDOM]
every_plan = pytest.mark.parametrize("plan", PLANS, ids=repr)
every_random = pytest.mark.parametrize("plan", RANDOM, ids=repr)


def keys(number, start=0):
    return Key(0, torch.arange(start, start + number))


def drawn(plan, number, hidden, steps, total=None):
    counts = torch.full((number,), hidden)
    return plan.sizes(counts, steps, key=keys(number), total=total or hidden)


@pytest.mark.parametrize("name", names("plan"))
def test_every_plan_of_the_configs_loses_what_its_waits_say(name):
    """The sizes it draws, each by brute force over the sets of positions of each step."""
    plan, number = built("plan", name, *with_profile("plan", name)), 2000
    law = random_law(4)
    for steps in (1, 2, 3, 4):
        found, counts = drawn(plan, number, 4, steps).unique(dim=0, return_counts=True)
        kl = np.array([average_kl(law, tuple(sizes)) for sizes in found.tolist()])
        mean = (kl @ counts.numpy()) / number
        error = math.sqrt(((kl - mean) ** 2 @ counts.numpy()) / number**2)
        expected = subset_curve(law).cost(plan.waits(4, steps, 4))
        assert mean == pytest.approx(expected, abs=1e-12 + 4 * error)


@every_plan
@pytest.mark.parametrize("length", [4, 5])
def test_expected_kl_is_the_enumerated_one(plan, length):
    """Over all outcomes of the sizes, and over all sets of positions of each step."""
    law = random_law(length)
    for steps in range(1, length + 1):
        listed = outcomes(plan, length, steps)
        direct = sum(chance * average_kl(law, sizes) for chance, sizes in listed if chance)
        cost = subset_curve(law).cost(plan.waits(length, steps, length))
        assert cost == pytest.approx(direct, abs=1e-12)


@every_plan
def test_waits_are_averages_over_outcomes(plan):
    curve = subset_curve(random_law(8))
    for steps in range(1, 11):
        listed = outcomes(plan, 8, steps)
        assert sum(chance for chance, _ in listed) == pytest.approx(1.0, abs=1e-12)
        direct = sum(chance * curve.expected_kl(sizes) for chance, sizes in listed)
        assert curve.cost(plan.waits(8, steps, 8)) == pytest.approx(direct, abs=1e-12)
        assert (direct < 1e-12) == (steps >= 8)


@every_random
def test_random_sizes_follow_their_law(plan):
    number, length, steps = 8000, 7, 3
    law: dict[tuple[int, ...], float] = {}
    for chance, sizes in outcomes(plan, length, steps):
        law[sizes] = law.get(sizes, 0.0) + chance
    found, counts = drawn(plan, number, length, steps).unique(dim=0, return_counts=True)
    seen = dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True))
    assert set(seen) <= set(law)
    chi2 = sum((seen.get(s, 0) - p * number) ** 2 / (p * number) for s, p in law.items() if p)
    assert chi2 < len(law) + 4 * math.sqrt(2 * len(law))


def test_steps_of_minimax_plans_begin_as_often_as_asked():
    number, length, steps = 20_000, 24, 6
    for against in AGAINST:
        begins = drawn(Minimax(against), number, length, steps).cumsum(-1)[:, :-1]
        found = torch.bincount(begins.flatten(), minlength=length)[1:] / number
        asked = torch.from_numpy(minimax_boundaries(length, steps, against).chance)
        spread = (asked * (1 - asked) / number).sqrt()
        assert ((found - asked).abs() <= 4 * spread + 1e-9).all()


def test_a_checksum_is_lost_whole_by_every_fixed_plan_and_to_a_share_by_the_adaptive_one():
    length, log_v = 64, math.log(5)
    curve = InformationCurve((*[0.0] * (length - 1), log_v))
    for steps in (1, 8, 32):
        for plan in (Even(), Cosine(), Increasing()):
            assert curve.cost(plan.waits(length, steps, length)) == pytest.approx(log_v)
    share = minimax_boundaries(length, 8, "tc").constant
    assert curve.cost(Minimax("tc").waits(length, 8, length)) == pytest.approx(share * log_v)
    share = Equaliser().share(length, 8)
    assert curve.cost(Equaliser().waits(length, 8, length)) == pytest.approx(share * log_v)


def test_a_repeated_token_is_the_mirror_of_a_checksum():
    """What s positions lose when drawn together at first: s - 1 times the entropy."""
    length, log_v = 64, math.log(5)
    curve = InformationCurve((0.0, *[log_v] * (length - 1)))
    assert curve.cost(Even().waits(length, 8, length)) == pytest.approx(7 * log_v)
    assert curve.cost(Balanced().waits(length, 8, length)) == pytest.approx(4 * log_v)
    assert curve.cost(Increasing().waits(length, 8, length)) == 0
    share = minimax_boundaries(length, 8, "dtc").constant
    assert curve.cost(Minimax("dtc").waits(length, 8, length)) <= share * log_v + 1e-9


def test_pairs_lose_what_pairs_drawn_together_lose():
    """Two positions of one step are partners with probability 1 / (L - 1)."""
    length, log_v = 10, math.log(3)
    curve = InformationCurve(tuple(log_v * j / (length - 1) for j in range(length)))
    for plan in DETERMINISTIC:
        for steps in range(1, length + 1):
            ((_, sizes),) = outcomes(plan, length, steps)
            together = sum(math.comb(s, 2) for s in sizes) / (length - 1)
            cost = curve.cost(plan.waits(length, steps, length))
            assert cost == pytest.approx(together * log_v, abs=1e-12)


@pytest.mark.parametrize(("length", "steps"), [(64, 8), (100, 41), (256, 32)])
def test_no_plan_that_was_tried_has_a_better_worst_case(length, steps):
    """The largest E R_l / w_l of each plan is at least that of the minimax one."""
    for against in AGAINST:
        best = minimax_boundaries(length, steps, against).constant
        for plan in PLANS:
            ratio = plan.waits(length, steps, length)[1:] / weights(length, against)
            assert ratio.max() >= best - 1e-9


def test_steps_of_balanced_plans_begin_everywhere_alike():
    for length, steps in ((9, 3), (12, 5), (64, 10)):
        begins = np.zeros(length)
        for chance, sizes in outcomes(Balanced(), length, steps):
            begins[np.cumsum(sizes)[:-1]] += chance
        assert begins[1:] == pytest.approx((steps - 1) / (length - 1))


def test_deterministic_sizes():
    """By hand: rounded shares, the cosine, and fixed shares of what is left."""
    made = {
        Even(): [3, 2, 3, 2, 3],
        FirstHitting(): [3, 2, 3, 2, 3],
        Cosine(): [1, 1, 3, 4, 4],
        Decreasing(): [6, 3, 2, 1, 1],
        Increasing(): [1, 1, 2, 3, 6],
    }
    for plan, sizes in made.items():
        assert drawn(plan, 1, 13, 5).tolist() == [sizes]
    assert drawn(Cosine(), 1, 12, 8).tolist() == [[1, 1, 1, 1, 1, 2, 3, 2]]


@pytest.mark.parametrize(("length", "steps"), [(13, 5), (64, 8), (256, 32), (100, 90)])
def test_shares_of_what_is_left_are_the_smallest_that_end_in_time(length, steps):
    """Between those of the last zeta of a fine list that does and the first that does not."""

    def opened(zeta):
        done = [0]
        while done[-1] < length:
            done.append(done[-1] + max(1, math.floor((length - done[-1]) / zeta)))
        return done[1:]

    zetas = np.geomspace(1, length, 1500).tolist()
    first = next(i for i, zeta in enumerate(zetas) if len(opened(zeta)) > steps)
    falling, rising = (drawn(plan, 1, length, steps)[0] for plan in (Decreasing(), Increasing()))
    kept = falling[falling > 0]
    assert rising.tolist() == [*kept.flip(0).tolist(), *[0] * (steps - len(kept))]
    done = kept.cumsum(0).tolist()
    late, early = opened(zetas[first]), opened(zetas[first - 1])
    assert all(a <= b for a, b in zip(late, done, strict=False))
    assert all(a <= b for a, b in zip(done, early, strict=False))
    for plan, w in (
        (Decreasing(), weights(length, "tc")),
        (Increasing(), weights(length, "dtc")),
    ):
        ratio = plan.waits(length, steps, length)[1:] / w
        assert ratio.max() <= 1 / (zetas[first - 1] - 1)


@every_plan
@settings(max_examples=40)
@given(
    hidden=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    steps=st.integers(1, 14),
    seed=st.integers(0, 99),
)
def test_sizes_sum_to_what_is_hidden(plan, hidden, steps, seed):
    """With and without a prompt; a row alone is that row in a batch, whatever the others are."""
    counts = torch.tensor(hidden)
    key = Key(seed, torch.arange(5, 5 + len(hidden)))
    sizes = plan.sizes(counts, steps, key=key, total=12)
    assert sizes.shape == (len(hidden), steps)
    assert sizes.dtype == torch.int64
    assert torch.equal(sizes.sum(-1), counts)
    assert (sizes >= 0).all()
    assert (sizes[counts <= steps] <= 1).all()
    if not isinstance(plan, Decreasing | Increasing):  # their shares may end early
        assert (sizes[counts >= steps] >= 1).all()
    levels = plan.levels(sizes, key=key)
    assert levels.dtype == torch.float64
    assert ((levels >= 0) & (levels <= 1)).all()
    assert (levels.diff(dim=-1) >= 0).all()
    last = torch.tensor([len(hidden) - 1])
    alone = plan.sizes(counts[last], steps, key=key[last], total=12)
    assert torch.equal(alone, sizes[last])
    assert torch.equal(plan.levels(alone, key=key[last]), levels[last])


@pytest.mark.parametrize("name", names("plan"))
def test_a_text_is_planned_by_its_own_length(name):
    """Texts of different lengths in one batch, each as if it were alone, also with equal numbers
    of hidden positions.
    """
    plan = built("plan", name, *with_profile("plan", name))
    hidden, lengths = torch.tensor([9, 6, 6, 0, 6, 12]), torch.tensor([12, 7, 12, 5, 6, 12])
    for steps in (1, 3, 4):
        together = plan.sizes(hidden, steps, key=keys(6), total=lengths)
        for row, (count, length) in enumerate(zip(hidden, lengths.tolist(), strict=True)):
            own = plan.sizes(count[None], steps, key=keys(1, row), total=length)
            assert torch.equal(together[row], own[0])


@every_random
def test_sequences_draw_on_their_own(plan):
    sizes = drawn(plan, 64, 30, 5)
    assert len(sizes.unique(dim=0)) > 8
    other = plan.sizes(torch.full((64,), 30), 5, key=Key(1, torch.arange(64)), total=30)
    assert not torch.equal(sizes, other)


@pytest.mark.parametrize("size", [1, 3])
def test_openings_are_binomial_above_every_level(size):
    """Of the time at which each sequence opens its positions: chi-square of the counts."""
    number, hidden = 6000, 6
    sizes = torch.full((number, hidden // size), size)
    levels = FirstHitting().levels(sizes, key=keys(number))
    for level in (0.2, 0.5, 0.8):
        done = ((levels <= level).sum(-1) * size).bincount(minlength=hidden + 1)[::size]
        law = [
            math.comb(hidden, k) * level**k * (1 - level) ** (hidden - k) for k in range(hidden + 1)
        ]
        expected = torch.tensor([sum(law[k : k + size]) for k in range(0, hidden + 1, size)])
        chi2 = ((done - expected * number) ** 2 / (expected * number)).sum().item()
        freedom = len(expected) - 1
        assert chi2 < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(("size", "place"), [(1, 0), (1, 4), (2, 0), (4, 0)])
def test_times_of_openings_are_exactly_beta(size, place):
    """Kolmogorov-Smirnov against the law of an order statistic of uniforms."""
    number, hidden = 6000, 8
    sizes = torch.full((number, hidden // size), size)
    times = FirstHitting().levels(sizes, key=keys(number))[:, place].sort().values.numpy()
    rank = (place + 1) * size  # at most `level` where at least so many of 8 uniforms are
    cdf = sum(
        math.comb(hidden, k) * times**k * (1 - times) ** (hidden - k)
        for k in range(rank, hidden + 1)
    )
    empirical = (np.arange(number) + 0.5) / number
    assert np.abs(cdf - empirical).max() < 1.63 / math.sqrt(number)  # 1 in 100


def test_levels_of_other_plans_are_the_share_that_is_open():
    sizes = torch.tensor([[1, 2, 1], [0, 0, 0], [1, 1, 0]])
    expected = torch.tensor([[0, 0.25, 0.75], [0, 0, 0], [0, 0.5, 1]])
    assert torch.equal(Even().levels(sizes, key=keys(3)), expected.double())


@pytest.fixture
def profile(tmp_path):
    """Writes a curve, gives the plan that reads it."""

    def write(values, stderr=None):
        InformationCurve(values, stderr).save(tmp_path / "p.json")
        return FromProfile(str(tmp_path / "p.json"))

    return write


def test_a_profile_plan_follows_its_curve_and_the_prompt(profile):
    """All information at one step: a boundary there is all that matters."""
    plan = profile((0.0, 0.0, 0.0, 1.0, 1.0, 1.0))
    hidden = torch.tensor([6, 4, 0, 2, 1])
    sizes = plan.sizes(hidden, 2, key=keys(5), total=6)
    assert sizes[:3].tolist() == [[3, 3], [1, 3], [0, 0]]
    assert sizes[3:].tolist() == [[1, 1], [1, 0]]
    assert 24 <= drawn(plan, 1, 60, 2)[0, 0] <= 36


@pytest.mark.parametrize("known", [0, 2, 5])
def test_a_profile_plan_is_the_best_of_all_plans_on_its_own_curve(profile, known):
    curve = subset_curve(random_law(9))
    plan, hidden = profile(curve.values), 9 - known
    for steps in range(1, 10):
        best = curve.tail(known).cost(plan.waits(hidden, steps, 9))
        for other in PLANS:
            assert best <= curve.tail(known).cost(other.waits(hidden, steps, 9)) + 1e-12


def test_a_profile_plan_trusts_sure_values_more(profile):
    """The projection is that of the whole curve with its errors, also after a prompt."""
    values, errors = (0.0, 0.0, 0.9, 0.1, 0.9, 1.0), (0.0, 0.01, 1.0, 0.01, 0.01, 0.01)
    plan, equal = profile(values, errors), InformationCurve(values)
    assert InformationCurve(values, errors).optimal_sizes(2, known=1) == (3, 2)
    assert equal.optimal_sizes(2, known=1) != (3, 2)
    assert plan.sizes(torch.tensor([5]), 2, key=keys(1), total=6).tolist() == [[3, 2]]
    longer = InformationCurve(values, errors).increasing().stretched(21).optimal_sizes(2)
    assert tuple(drawn(plan, 1, 21, 2)[0].tolist()) == longer
    assert equal.stretched(21).optimal_sizes(2) != longer


def test_sizes_grow_towards_the_end_where_dtc_is_bounded_and_fall_where_tc_is():
    mean = {
        against: drawn(Minimax(against), 2000, 64, 8).double().mean(0) for against in ("tc", "dtc")
    }
    assert all(a > b for a, b in pairwise(mean["tc"].tolist()[1:]))
    assert all(a < b for a, b in pairwise(mean["dtc"].tolist()[:-1]))
