"""Information curves in closed form, of the laws that tell plans apart.

Z_j in nats, j = 1..L. Derived here, except where a docstring names a paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dlm.lab.laws import Lazy, MarkovChain
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
    """A stationary chain that keeps its symbol with this probability, else draws any."""
    return MarkovChain(length, symbols, Lazy(stay)).exact_curve()


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
