"""The repeated bit X_1 = ... = X_L under uniform noise, its samplers pushed through by counts.

All positions are alike, so the law of a sampler that starts alike is a law of the number of ones:
L + 1 states instead of 2^L. From n ones each zero turns with one probability and each one with
another, independently; the new count is a sum of two binomials. Errors of sequences and of counts
are the same, since both laws are even within a count.

Source: derived here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import numpy as np

from dlm.lab.rates import binomial

Turn = Callable[[np.ndarray, float, float], np.ndarray]


@final
class RepeatedBit:
    """Laws of the number of ones, float64 (L + 1,).

    Args:
        length: L.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def law(self, alpha: float) -> np.ndarray:
        """Of the noisy bits at a level."""
        one = binomial(self.length, np.array([(1 + alpha) / 2]))[0]
        return (one + one[::-1]) / 2

    def step(self, law: np.ndarray, after: float, before: float, turn: Turn) -> np.ndarray:
        """The law after a step from level `before` to `after`.

        Args:
            law: before.
            after, before: alphas, before < after.
            turn: the chance that a bit turns, given the posterior that it should be the other.
        """
        ones = np.arange(self.length + 1)
        excess = 2 * ones - self.length  # of ones over zeros, among all
        log_odds = math.log1p(2 * before / (1 - before))
        up = turn(_sigmoid((excess + 1) * log_odds), after, before)  # of a zero: it is not counted
        down = turn(_sigmoid((1 - excess) * log_odds), after, before)
        result = np.zeros(self.length + 1)
        for n in range(self.length + 1):
            arrive = binomial(self.length - n, up[n : n + 1])[0]
            remain = binomial(n, 1 - down[n : n + 1])[0]
            result += law[n] * np.convolve(arrive, remain)
        return result

    def terminal_kl(self, levels: np.ndarray, turn: Turn) -> float:
        """KL of the law at the last level from that of a sampler that starts exactly at the first.

        Nats; the levels stay inside (0, 1).
        """
        law = self.law(levels[0])
        for before, after in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
            law = self.step(law, after, before, turn)
        target = self.law(levels[-1])
        kept = target > 0
        return float((target[kept] * np.log(target[kept] / law[kept])).sum())


def leave_one_out(other: np.ndarray, after: float, before: float) -> np.ndarray:
    """The exact reverse marginal: q_{t|s}(z | y) m_s(y), y the other bit."""
    survives = before / after
    marginal = after * other + (1 - after) / 2
    turned, stayed = (1 - survives) * marginal, (1 + survives) * (1 - marginal)
    return turned / (turned + stayed)


def tau_leaping(other: np.ndarray, after: float, before: float) -> np.ndarray:
    """Rates held over a step in the time of alpha = exp(-u); several jumps count as one."""
    return held(other, before, math.log(after / before))


def held(other: np.ndarray, before: float, duration: float) -> np.ndarray:
    """1 - exp(-R duration) at the rate R = m(y) / (2 m(z)) of the start."""
    marginal = before * other + (1 - before) / 2
    return -np.expm1(-duration * marginal / (2 * (1 - marginal)))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))
