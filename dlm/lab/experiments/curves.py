"""Information curves in closed form, of the laws that tell plans apart.

Z_j in nats, j = 1..L. Derived here, except where a docstring names a paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dlm.samplers.curve import InformationCurve


def repeated(length: int, symbols: int) -> InformationCurve:
    """X_1 = ... = X_L ~ Uniform(V): one token tells all; dual total correlation log V."""
    return _curve([0.0] + [math.log(symbols)] * (length - 1))


def checksum(length: int, symbols: int) -> InformationCurve:
    """Uniform on sum x = 0 mod V: only the last token is known; total correlation log V."""
    return _curve([0.0] * (length - 1) + [math.log(symbols)])


def code(length: int, symbols: int, dimension: int) -> InformationCurve:
    """An MDS code: even until `dimension` tokens are known, then certain.

    Source: Chen, Cong & Li 2026 (the laws behind their lower bounds).
    """
    places = np.arange(1, length + 1)
    return _curve(np.where(places > dimension, math.log(symbols), 0.0).tolist())


def pairs(length: int, symbols: int) -> InformationCurve:
    """X_1 = X_2, X_3 = X_4, ...: the partner is among j - 1 of L - 1 others; a straight line."""
    return _curve((np.arange(length) / (length - 1) * math.log(symbols)).tolist())


def permutation(length: int) -> InformationCurve:
    """A uniform permutation of L symbols: log L - log(L - j + 1)."""
    return _curve([math.log(length / (length - j)) for j in range(length)])


def markov(length: int, symbols: int, stay: float) -> InformationCurve:
    """A stationary chain that keeps its symbol with this probability, else draws any.

    The nearest neighbours of a subset decide: H_k = H_1 + mean over gaps of H(X_{i+g} | X_i).
    """
    gaps = np.arange(1, length)
    chance = stay**gaps + (1 - stay**gaps) / symbols
    other = (1 - stay**gaps) / symbols
    conditional = -chance * np.log(chance) - (symbols - 1) * other * np.log(other)
    log_ways = [math.lgamma(n + 1) for n in range(length + 1)]

    def log_choose(n: int, k: int) -> float:
        return log_ways[n] - log_ways[k] - log_ways[n - k] if 0 <= k <= n else -math.inf

    mean = [0.0, math.log(symbols)]
    for k in range(2, length + 1):
        shares = [
            (length - g) * math.exp(log_choose(length - g - 1, k - 2) - log_choose(length, k))
            for g in range(1, length)
        ]
        mean.append(mean[1] + float(np.dot(shares, conditional)))
    entropies = np.array(mean)
    values = entropies[1] + entropies[:-1] - entropies[1:]
    return _curve([0.0, *np.maximum(values[1:], 0.0).tolist()])


def mixed(curves: Sequence[InformationCurve], weights: Sequence[float]) -> InformationCurve:
    """The curve of independent streams: each position holds one token of every law.

    Information of independent parts adds; weights scale it (so many copies).
    """
    values = sum(w * np.asarray(c.values) for c, w in zip(curves, weights, strict=True))
    return _curve(np.asarray(values).tolist())


def family(length: int, symbols: int) -> dict[str, InformationCurve]:
    """Laws at which plans are compared, by name."""
    return {
        "checksum": checksum(length, symbols),
        "repeated token": repeated(length, symbols),
        "pairs": pairs(length, symbols),
        "Markov chain": markov(length, symbols, 0.9),
        "permutation": permutation(length),
        "code of dimension L/4": code(length, symbols, length // 4),
        "code of dimension 3L/4": code(length, symbols, 3 * length // 4),
        "checksum and repeated": mixed(
            [checksum(length, symbols), repeated(length, symbols)], [1.0, 1.0]
        ),
    }


def _curve(values: list[float]) -> InformationCurve:
    return InformationCurve(tuple(values))
