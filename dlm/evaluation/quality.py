"""Numbers about a set of generated texts, each with an interval, every sample counted.

    judge perplexity   exp(nats / tokens) over the whole set, by `dlm.evaluation.judge`
    bits per byte      the same nats over bytes: does not depend on the judge's tokenizer
    entropy            of the tokens of one sample, nats, mean over samples: falls when text repeats
    distinct-n         distinct n-grams of tokens over all n-grams of the set
    repeated-4         share of the 4-grams of a sample that stood in it before, mean over samples
    divergence         Jensen-Shannon, nats, of token pairs (bigrams) from those of held-out text

Intervals are 95 % bootstrap intervals over samples: whole samples are drawn again with replacement,
by numbers that depend on the seed alone. Distinct-n and the divergence depend on how many tokens
there are, so compare sets of one size, and held-out text of that size.

Source: Pillutla et al. 2021, arXiv:2102.01454 (why quality needs variety beside it).
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
RESAMPLES = 200


@final
@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def quality(
    tokens: Tokens,
    scores: Scores | None = None,
    reference: Tokens | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Estimate]:
    """All numbers of a set of samples.

    Args:
        tokens: ids of each sample.
        scores: of the judge, for the same samples; None: without.
        reference: ids of held-out texts, for the divergence; None: without.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        UserError: for no samples, or scores of another number of texts.
    """
    if not tokens:
        raise UserError("there are no samples to measure")
    if scores is not None and len(scores.nats) != len(tokens):
        raise UserError(f"{len(tokens)} samples but scores of {len(scores.nats)} texts")
    measures: dict[str, Callable[[np.ndarray], float]] = {}
    if scores is not None:
        nats, count, size = (x.double().numpy() for x in scores)
        measures["judge_perplexity"] = lambda at: math.exp(nats[at].sum() / max(1, count[at].sum()))
        measures["bits_per_byte"] = lambda at: nats[at].sum() / math.log(2) / max(1, size[at].sum())
    entropy = np.array([unigram_entropy(row) for row in tokens])
    measures["entropy"] = lambda at: float(entropy[at].mean())
    for n in (1, 2, 3):
        measures[f"distinct_{n}"] = _distinct(tokens, n)
    repeated = np.array([repeated_share(row, 4) for row in tokens])
    measures["repeated_4"] = lambda at: float(repeated[at].mean())
    if reference is not None:
        measures["divergence"] = _divergence(tokens, reference)
    draws = np.random.default_rng(seed).integers(0, len(tokens), (resamples, len(tokens)))
    everything = np.arange(len(tokens))
    return {name: _interval(f, everything, draws) for name, f in measures.items()}


def unigram_entropy(row: Sequence[int]) -> float:
    """Entropy in nats of the tokens of one sample; 0 for an empty one."""
    counts = np.unique(np.asarray(row, dtype=np.int64), return_counts=True)[1]
    share = counts / max(1, counts.sum())
    return float(-(share * np.log(share)).sum())


def repeated_share(row: Sequence[int], n: int) -> float:
    """Share of n-grams that stood in the sample before; 0 where there is none."""
    grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _interval(f: Callable[[np.ndarray], float], everything: np.ndarray, draws: np.ndarray):
    low, high = np.quantile([f(at) for at in draws], [0.025, 0.975])
    return Estimate(float(f(everything)), float(low), float(high))


def _grams(tokens: Tokens, n: int) -> list[np.ndarray]:
    """The n-grams of each sample as numbers."""
    table: dict[tuple[int, ...], int] = {}
    return [
        np.array(
            [table.setdefault(tuple(row[i : i + n]), len(table)) for i in range(len(row) - n + 1)],
            dtype=np.int64,
        )
        for row in tokens
    ]


def _distinct(tokens: Tokens, n: int) -> Callable[[np.ndarray], float]:
    """Distinct n-grams over all: of a resample, those of the distinct samples it holds."""
    grams = _grams(tokens, n)

    def measure(at: np.ndarray) -> float:
        rows = np.concatenate([grams[i] for i in np.unique(at)])
        return len(np.unique(rows)) / max(1, len(rows))

    return measure


def _divergence(tokens: Tokens, reference: Tokens) -> Callable[[np.ndarray], float]:
    """Jensen-Shannon divergence of bigrams from those of the reference."""
    grams = _grams([*tokens, *reference], 2)
    size = 1 + max((int(row.max()) for row in grams if len(row)), default=0)
    theirs = np.bincount(np.concatenate(grams[len(tokens) :]), minlength=size).astype(float)
    theirs /= max(1.0, theirs.sum())
    ours = grams[: len(tokens)]

    def measure(at: np.ndarray) -> float:
        mine = np.bincount(np.concatenate([ours[i] for i in at]), minlength=size).astype(float)
        mine /= max(1.0, mine.sum())
        middle = (mine + theirs) / 2
        return sum(
            0.5 * float((p[p > 0] * np.log(p[p > 0] / middle[p > 0])).sum()) for p in (mine, theirs)
        )

    return measure
