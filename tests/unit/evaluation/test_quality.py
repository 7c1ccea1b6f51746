"""Numbers of generated text: by hand, with nothing dropped, and intervals as wide as the truth."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from dlm.errors import UserError
from dlm.evaluation.judge import Scores
from dlm.evaluation.quality import Estimate, quality, repeated_share, unigram_entropy

ROWS = [[1, 2, 1, 2, 1, 2], [3, 3, 3], [4], [1, 2, 5, 6, 7]]


def scores(nats, tokens, sizes):
    return Scores(torch.tensor(nats).double(), torch.tensor(tokens), torch.tensor(sizes))


def zipf_sets(count, samples, length=64, words=300, seed=0):
    """Sets of samples; each sample has a subject of its own, as texts have."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, words + 1)
    for _ in range(count):
        laws = weights * random.gamma(0.5, size=(samples, words))
        yield [random.choice(words, length, p=law / law.sum()).tolist() for law in laws]


def grams(rows, n):
    return Counter(tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1))


def distinct(rows, n):
    counts = grams(rows, n)
    return len(counts) / counts.total()


def divergence(rows, others, n):
    p, q = grams(rows, n), grams(others, n)
    p = {g: c / p.total() for g, c in p.items()}
    q = {g: c / q.total() for g, c in q.items()}
    middle = {g: (p.get(g, 0) + q.get(g, 0)) / 2 for g in p | q}
    return sum(x * math.log(x / middle[g]) / 2 for law in (p, q) for g, x in law.items())


def test_perplexity_is_of_the_set_not_a_mean_over_texts():
    numbers = quality([[1], [2]], scores([2.0, 40.0], [1, 20], [3, 60]))
    assert numbers["judge_perplexity"].value == pytest.approx(math.exp(2.0))
    assert numbers["bits_per_byte"].value == pytest.approx(42 / 63 / math.log(2))
    skewed = quality([[1], [2]], scores([3.0, 10.0], [1, 9], [1, 1]))
    assert skewed["judge_perplexity"].value == pytest.approx(math.exp(1.3))


def test_numbers_of_tokens_by_hand():
    numbers = quality(ROWS, calls=[8, 8, 8, 4])
    assert numbers["entropy"].value == pytest.approx((math.log(2) + math.log(5)) / 4)
    assert numbers["repeated_4"].value == pytest.approx(1 / 3 / 4)  # 1212, 2121, 1212
    assert numbers["calls"].value == 7
    assert numbers["distinct_1"].value == pytest.approx(7 / 15)
    assert numbers["distinct_2"].value == pytest.approx(6 / 11)
    assert numbers["distinct_4"].value == pytest.approx(4 / 5)
    assert unigram_entropy([]) == repeated_share([], 4) == repeated_share([1, 1], 4) == 0


def test_divergence_from_itself_and_from_other_words():
    assert quality(ROWS, reference=ROWS)["divergence_2"].value == pytest.approx(0, abs=1e-15)
    others = [[token + 10 for token in row] for row in ROWS]
    numbers = quality(ROWS, reference=others)
    assert numbers["divergence_1"].value == pytest.approx(math.log(2))
    assert numbers["divergence_2"].value == pytest.approx(math.log(2))
    half = quality([[1, 1, 2, 2]], reference=[[1, 1, 1, 1]])["divergence_1"].value
    assert half == pytest.approx(math.log(4 / 3) / 2 + math.log(2 / 3) / 4 + math.log(2) / 4)


@pytest.mark.parametrize("n", [1, 2])
def test_intervals_of_counts_are_those_of_the_jackknife(n):
    """Each sample left out, everything counted anew; the lengths differ."""
    (rows,) = zipf_sets(1, 12, length=20)
    rows = [row[: 10 + i] for i, row in enumerate(rows)]
    reference = [[token + 1 for token in row] for row in rows[::-1]]
    numbers = quality(rows, reference=reference)
    for name, measure in (
        (f"distinct_{n}", lambda kept: distinct(kept, n)),
        (f"divergence_{n}", lambda kept: divergence(kept, reference, n)),
    ):
        left_out = [measure(rows[:i] + rows[i + 1 :]) for i in range(len(rows))]
        spread = 1.96 * math.sqrt((len(rows) - 1) * np.var(left_out))
        assert numbers[name].value == pytest.approx(measure(rows))
        assert numbers[name].low == pytest.approx(measure(rows) - spread)
        assert numbers[name].high == pytest.approx(min(measure(rows) + spread, 1.0))


def test_intervals_are_about_as_wide_as_the_spread_of_fresh_sets():
    """95 % of a normal law lie within 3.92 standard deviations; the jackknife may be wider."""
    (reference,) = zipf_sets(1, 24, seed=9)
    names = ("judge_perplexity", "entropy", "distinct_1", "distinct_2", "divergence_2")
    found = []
    for rows in zipf_sets(60, 24):
        nats = [3 * unigram_entropy(row) for row in rows]
        fake = scores(nats, [3] * len(rows), [9] * len(rows))
        numbers = quality(rows, fake, reference, resamples=300)
        found.append([(numbers[n].value, numbers[n].low, numbers[n].high) for n in names])
    value, low, high = np.array(found).transpose(2, 1, 0)
    assert (low <= value).all()
    assert (value <= high).all()
    width = (high - low).mean(1) / 3.92 / value.std(1, ddof=1)
    assert (width > 0.75).all(), dict(zip(names, width, strict=True))
    assert (width < 1.8).all(), dict(zip(names, width, strict=True))
    assert (np.abs(value - value.mean(1, keepdims=True)) < (high - low)).all()


def test_no_sample_is_dropped():
    full, fuller = quality(ROWS), quality([*ROWS, []])
    assert fuller["entropy"].value == pytest.approx(full["entropy"].value * 4 / 5)
    assert fuller["distinct_1"].value == full["distinct_1"].value
    numbers = quality(
        [*ROWS, []], scores([6.0, 3.0, 1.0, 5.0, 0.0], [6, 3, 1, 5, 0], [9] * 4 + [0])
    )
    assert numbers["empty"].value == pytest.approx(1 / 5)
    assert numbers["judge_perplexity"].value == pytest.approx(math.e)


def test_what_is_not_defined_is_null_not_a_good_number():
    numbers = quality([[], []], scores([0.0, 0.0], [0, 0], [0, 0]), [[], []])
    plain = {name: estimate.plain() for name, estimate in numbers.items()}
    nothing = {"value": None, "low": None, "high": None}
    for name in ("judge_perplexity", "bits_per_byte", "distinct_1", "divergence_1"):
        assert plain[name] == nothing
    assert plain["empty"]["value"] == 1
    assert plain["entropy"]["value"] == 0
    json.dumps(plain, allow_nan=False)


def test_a_single_sample_has_no_interval():
    numbers = quality([[1, 2, 3, 4]], scores([3.0], [3], [3]), [[1, 2, 4, 4]], [8])
    assert not any(math.isnan(estimate.value) for estimate in numbers.values())
    for name in ("judge_perplexity", "entropy", "distinct_1", "divergence_1", "calls"):
        assert numbers[name].plain()["low"] is None


def test_the_seed_decides_the_bootstrap():
    first, again, other = (quality(ROWS, seed=seed)["entropy"] for seed in (1, 1, 2))
    assert first == again
    assert isinstance(first, Estimate)
    more = [quality(ROWS, seed=seed, resamples=7)["entropy"] for seed in range(4)]
    assert len({(e.low, e.high) for e in more}) > 1
    assert other.value == first.value


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="no samples"):
        quality([])
    with pytest.raises(UserError, match="4 samples but scores of 1"):
        quality(ROWS, scores([1.0], [1], [1]))
    with pytest.raises(UserError, match="4 samples but calls of 2"):
        quality(ROWS, calls=[1, 2])
    with pytest.raises(UserError, match="the reference has 30 tokens and the samples 15"):
        quality(ROWS, reference=ROWS * 2)
