"""Numbers about a set of generated texts, each with an interval, every sample counted.

    judge_perplexity   exp(nats / tokens) over the whole set, by `dlm.evaluation.judge`
    bits_per_byte      the same nats over bytes: does not depend on the judge's tokenizer
    entropy            of the tokens of one sample, nats, mean over samples: falls when text repeats
    distinct_n         distinct n-grams of tokens over all n-grams of the set, n = 1 to 4
    repeated_4         share of the 4-grams of a sample that stood in it before, mean over samples
    divergence_n       Jensen-Shannon, nats, of the n-grams of the set from those of held-out text
    empty, calls       share of texts without a byte; network calls a sample, mean

Intervals are 95 %, over samples. Means and ratios of sums: percentiles of the bootstrap, whole
samples drawn again by numbers that depend on the seed alone. Distinct-n and the divergence: 1.96
standard errors of the jackknife (each sample left out once), since a resample holds samples twice:
that looks less varied than any set of distinct samples, and its percentiles do not even contain the
number itself. The jackknife errs on the wide side.

Distinct-n falls and the divergence falls with the size of the set: compare sets of one size only.
The reference must have the size of the set; two sets of real text then show the floor.

Source: Li et al. 2016, arXiv:1510.03055 (distinct-n); Efron & Stein 1981, "The jackknife estimate
of variance"; Pillutla et al. 2021, arXiv:2102.01454 (why quality needs variety beside it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from dlm.errors import UserError
from dlm.evaluation.judge import Scores

Tokens = Sequence[Sequence[int]]
RESAMPLES = 1000
SAME_SIZE = 0.01  # by how much the reference may differ from the set, in tokens
_NORMAL = 1.96  # standard errors on either side: 95 % of a normal law


@final
@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float

    def plain(self) -> dict[str, float | None]:
        """For JSON, which has no NaN: null."""
        parts = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(part) else part for name, part in parts.items()}


def quality(
    tokens: Tokens,
    scores: Scores | None = None,
    reference: Tokens | None = None,
    calls: Sequence[int] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Estimate]:
    """All numbers of a set of samples.

    A sample without n-grams adds none to distinct-n and the divergence, and 0 to the means. The
    judge's numbers of texts that are all empty are NaN, and so are intervals of a single sample.

    Args:
        tokens: ids of each sample.
        scores: of the judge, for the same samples; None: without.
        reference: ids of held-out texts, as many tokens as the samples have; None: without.
        calls: network calls of each sample; None: without.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        UserError: there are no samples, scores or calls of another number of them, or a reference
            of another size.
    """
    if not tokens:
        raise UserError("there are no samples to measure")
    for what, given in (("scores", scores and scores.nats), ("calls", calls)):
        if given is not None and len(given) != len(tokens):
            raise UserError(f"{len(tokens)} samples but {what} of {len(given)}")
    rows = [np.asarray(row, dtype=np.int64) for row in tokens]
    draws = np.random.default_rng(seed).integers(0, len(rows), (resamples, len(rows)))
    ones = np.ones(len(rows))
    numbers: dict[str, Estimate] = {}
    if scores is not None:
        nats, count, size = (part.double().numpy() for part in scores)
        per_token = _ratio(nats, count, draws)
        numbers["judge_perplexity"] = Estimate(*np.exp([*per_token]).tolist())
        numbers["bits_per_byte"] = Estimate(*_ratio(nats / math.log(2), size, draws))
        numbers["empty"] = Estimate(*_ratio((size == 0).astype(float), ones, draws))
    means = {
        "entropy": np.array([unigram_entropy(row) for row in rows]),
        "repeated_4": np.array([repeated_share(row, 4) for row in rows]),
    }
    if calls is not None:
        means["calls"] = np.asarray(calls, dtype=float)
    numbers |= {name: Estimate(*_ratio(part, ones, draws)) for name, part in means.items()}
    numbers |= {f"distinct_{n}": _distinct(rows, n) for n in (1, 2, 3, 4)}
    if reference is not None:
        others = [np.asarray(row, dtype=np.int64) for row in reference]
        _check_size(rows, others)
        numbers |= {f"divergence_{n}": _divergence(rows, others, n) for n in (1, 2)}
    return numbers


def unigram_entropy(row: Sequence[int] | np.ndarray) -> float:
    """Entropy in nats of the tokens of one sample; 0 for an empty one."""
    counts = np.unique(np.asarray(row, dtype=np.int64), return_counts=True)[1]
    share = counts / max(1, counts.sum())
    return float(np.abs((share * np.log(share)).sum()))  # abs: no -0.0


def repeated_share(row: Sequence[int] | np.ndarray, n: int) -> float:
    """Share of n-grams that stood in the sample before; 0 where there is none."""
    (grams,), size = _grams([np.asarray(row, dtype=np.int64)], n)
    return 1 - size / len(grams) if len(grams) else 0.0


def _ratio(above: np.ndarray, below: np.ndarray, draws: np.ndarray) -> tuple[float, float, float]:
    """Sum over sum, and the percentiles of that over resamples; NaN where it divides by 0."""
    if not below.sum():
        return math.nan, math.nan, math.nan
    value = float(above.sum() / below.sum())
    if len(above) < 2:
        return value, math.nan, math.nan
    sums = below[draws].sum(-1)
    again = above[draws].sum(-1)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(again, [0.025, 0.975])
    return value, float(low), float(high)


def _grams(rows: Sequence[np.ndarray], n: int) -> tuple[list[np.ndarray], int]:
    """The n-grams of each row, numbered from 0, and how many different ones there are."""
    windows = [
        np.lib.stride_tricks.sliding_window_view(row, n) if len(row) >= n else np.empty((0, n), int)
        for row in rows
    ]
    found, numbers = np.unique(np.concatenate(windows), axis=0, return_inverse=True)
    ends = np.cumsum([len(window) for window in windows])
    return np.split(numbers.reshape(-1), ends[:-1]), len(found)


def _distinct(rows: Sequence[np.ndarray], n: int) -> Estimate:
    grams, size = _grams(rows, n)
    return _pooled(grams, size, lambda counts, total, at: (counts > 0) / total, 1.0)


def _divergence(rows: Sequence[np.ndarray], others: Sequence[np.ndarray], n: int) -> Estimate:
    """Jensen-Shannon divergence; the reference is taken as it is."""
    grams, size = _grams([*rows, *others], n)
    theirs = np.bincount(np.concatenate(grams[len(rows) :]), minlength=size)
    q = theirs / max(1, theirs.sum())

    def terms(counts: np.ndarray, total: int, at: np.ndarray) -> np.ndarray:
        p = counts / total
        middle = (p + q[at]) / 2
        return (_against(p, middle) + _against(q[at], middle)) / 2

    return _pooled(grams[: len(rows)], size, terms, math.log(2))


def _against(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The terms p log(p / q) of a divergence; 0 where p is 0."""
    return p * np.log(np.where(p > 0, p, 1.0) / np.where(p > 0, q, 1.0))


def _pooled(
    grams: Sequence[np.ndarray],
    size: int,
    terms: Callable[[np.ndarray, int, np.ndarray], np.ndarray],
    largest: float,
) -> Estimate:
    """A sum over n-grams of terms of their counts in the whole set, with its jackknife interval.

    Args:
        grams: n-grams of each sample, numbers below `size`.
        size: of the table of n-grams.
        terms: of counts, their total, and the numbers of the n-grams that are asked for.
        largest: the largest value there is; 0 is the smallest.
    """
    everything = np.arange(size)
    counts = np.bincount(np.concatenate(grams), minlength=size)
    total = int(counts.sum())
    if not total:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(terms(counts, total, everything).sum())
    left_out: list[float] = []
    of_total: dict[int, np.ndarray] = {}  # samples of one length share most of their terms
    for row in grams:
        rest = max(1, total - len(row))
        if rest not in of_total:
            of_total[rest] = terms(counts, rest, everything)
        at, mine = np.unique(row, return_counts=True)
        changed = terms(counts[at] - mine, rest, at).sum() - of_total[rest][at].sum()
        left_out.append(float(of_total[rest].sum() + changed))
    if len(grams) < 2:
        return Estimate(value, math.nan, math.nan)
    spread = _NORMAL * math.sqrt((len(grams) - 1) * float(np.var(left_out)))
    return Estimate(value, max(0.0, value - spread), min(largest, value + spread))


def _check_size(rows: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> None:
    ours, theirs = (sum(map(len, part)) for part in (rows, others))
    if abs(ours - theirs) > SAME_SIZE * ours:
        raise UserError(
            f"the reference has {theirs} tokens and the samples {ours}: the divergence depends on "
            "the size, so give a reference of the same"
        )
