"""Information curves of the laws that tell plans apart; those of `dlm.lab.laws`, by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dlm.lab.laws import Checksum, Lazy, MarkovChain, Pairs, Permutation, Repeated
from dlm.samplers.curve import InformationCurve


def code(length: int, dimension: int) -> InformationCurve:
    """An MDS code of this length over the smallest prime field that has one.

    Even until `dimension` tokens are known, then certain: the curve of `dlm.lab.laws.MdsCode`,
    without the code itself.

    Source: Chen, Cong & Li 2026 (the laws behind their lower bounds).
    """
    prime = next(q for q in range(max(2, length), 2 * length + 2) if _is_prime(q))
    places = np.arange(1, length + 1)
    values = np.where(places > dimension, math.log(prime), 0.0)
    return InformationCurve((0.0, *values[1:].tolist()))


def mixed(curves: Sequence[InformationCurve]) -> InformationCurve:
    """Independent laws side by side: each position holds one token of every law.

    Information of independent parts adds.
    """
    return InformationCurve(tuple(np.sum([c.values for c in curves], axis=0).tolist()))


def family(length: int, symbols: int) -> dict[str, InformationCurve]:
    """Laws at which plans are compared, by name; the length is even and at least 4."""
    checksum = Checksum(length, symbols).curve()
    repeated = Repeated(length, symbols).curve()
    return {
        "checksum": checksum,
        "repeated token": repeated,
        "pairs": Pairs(length, symbols).curve(),
        "Markov chain": MarkovChain(length, symbols, Lazy(0.9)).curve(),
        "permutation": Permutation(length).curve(),
        "code of dimension L/4": code(length, length // 4),
        "code of dimension 3L/4": code(length, 3 * length // 4),
        "checksum and repeated": mixed([checksum, repeated]),
    }


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
