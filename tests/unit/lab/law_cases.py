"""Small laws of every family, each beside a definition of its own.

`chance` says p(x) in plain Python, from the definition of the family and not from its class, so
that a table of them is a reference for everything that the class computes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from inspect import isabstract
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlm.lab import laws
from dlm.lab.laws import (
    Checksum,
    Copy,
    Dirichlet,
    Empirical,
    HiddenMarkov,
    Independent,
    Law,
    Lazy,
    MarkovChain,
    MdsCode,
    MixtureOfProducts,
    Ngram,
    Pairs,
    Permutation,
    Product,
    Repeated,
    Table,
    Tunable,
    Zipf,
)

Tokens = tuple[int, ...]
Chance = Callable[[Tokens], float]


class Case(NamedTuple):
    """A law and its definition."""

    name: str
    law: Law
    chance: Chance


def concrete_laws() -> set[type[Law]]:
    """Every law of `dlm.lab.laws` that can be built."""
    found = [getattr(laws, name) for name in laws.__all__]
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, Law)]
    return {kind for kind in kinds if not isabstract(kind)}


# -- definitions -------------------------------------------------------------------------------


def normal(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def independent(rows: Sequence[Sequence[float]]) -> Chance:
    return lambda x: math.prod(normal(row)[v] for row, v in zip(rows, x, strict=True))


def mixture(weights: Sequence[float], rows: Sequence[Sequence[Sequence[float]]]) -> Chance:
    parts = [independent(row) for row in rows]
    shares = normal(weights)
    return lambda x: sum(w * part(x) for w, part in zip(shares, parts, strict=True))


def repeated(row: Sequence[float]) -> Chance:
    return lambda x: normal(row)[x[0]] * (len(set(x)) == 1)


def checksum(symbols: int) -> Chance:
    return lambda x: (sum(x) % symbols == 0) / symbols ** (len(x) - 1)


def polynomials(symbols: int, dimension: int, length: int) -> Chance:
    coefficients = product(range(symbols), repeat=dimension)
    words = {
        tuple(sum(c * i**a for a, c in enumerate(p)) % symbols for i in range(length))
        for p in coefficients
    }
    return lambda x: (x in words) / symbols**dimension


def chain(initial: Sequence[float], rows: Sequence[Sequence[float]]) -> Chance:
    return lambda x: normal(initial)[x[0]] * math.prod(normal(rows[v])[w] for v, w in pairwise(x))


def hidden_chain(
    initial: Sequence[float], rows: Sequence[Sequence[float]], emission: Sequence[Sequence[float]]
) -> Chance:
    states, seen = chain(initial, rows), [normal(row) for row in emission]

    def chance(x: Tokens) -> float:
        paths = product(range(len(rows)), repeat=len(x))
        return sum(
            states(path) * math.prod(seen[h][v] for h, v in zip(path, x, strict=True))
            for path in paths
        )

    return chance


def long_run(rows: Sequence[Sequence[float]]) -> list[float]:
    """The stationary law: that of the chain slowed down by half, after many steps."""
    matrix = np.array([normal(row) for row in rows])
    slow = (matrix + np.eye(len(matrix))) / 2
    return np.linalg.matrix_power(slow, 2**14)[0].tolist()


def ngram(text: Sequence[int], symbols: int, order: int, delta: float, chained: bool) -> Chance:
    counts = [
        Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for n in range(order + 1)
    ]

    def given(context: Tokens, v: int) -> float:
        seen = counts[len(context) + 1]
        total = sum(seen[(*context, w)] for w in range(symbols))
        base = given(context[1:], v) if chained and context else 1 / symbols
        return (seen[(*context, v)] + delta * symbols * base) / (total + delta * symbols)

    return lambda x: math.prod(given(x[max(0, i - order + 1) : i], v) for i, v in enumerate(x))


def empirical(stored: Sequence[Sequence[int]], symbols: int, smoothing: float) -> Chance:
    def of_one(row: Sequence[int], x: Tokens) -> float:
        keep = [(1 - smoothing) * (a == b) for a, b in zip(row, x, strict=True)]
        return math.prod(kept + smoothing / symbols for kept in keep)

    return lambda x: sum(of_one(row, x) for row in stored) / len(stored)


def in_a_row(*parts: tuple[int, Chance]) -> Chance:
    """Independent blocks: (tokens, definition) of each."""

    def chance(x: Tokens) -> float:
        result, begin = 1.0, 0
        for size, part in parts:
            result *= part(x[begin : begin + size])
            begin += size
        return result

    return chance


def twice(first: Chance) -> Chance:
    return lambda x: first(x[: len(x) // 2]) * (x[: len(x) // 2] == x[len(x) // 2 :])


def tabled(table: Tensor) -> Chance:
    return lambda x: float(table[x] / table.sum())


# -- instances ---------------------------------------------------------------------------------

SKEW = [[0.7, 0.2, 0.1], [0.0, 0.5, 0.5], [0.6, 0.0, 0.4]]  # not reversible
PERIODIC = [[0.0, 1.0], [1.0, 0.0]]
TRANSIENT = [[0.5, 0.25, 0.25], [0.0, 0.8, 0.2], [0.0, 0.4, 0.6]]  # state 0 is left for ever
LAZY = [[0.8 * (v == w) + 0.2 / 3 for w in range(3)] for v in range(3)]
EMIT = [[0.9, 0.1, 0.0], [0.1, 0.3, 0.6]]
SWITCH = [[0.95, 0.05], [0.2, 0.8]]
COIN = [[0.9, 0.1], [0.3, 0.7]]
ROWS = [[1.0, 2.0, 3.0], [0.0, 1.0, 1.0], [5.0, 0.0, 0.0]]
TEXT = [0, 1, 2, 0, 1, 1, 2, 0, 1, 2, 2, 1, 0, 0, 1, 2, 0, 2]
BITS = [0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 1, 0, 1]
STORED = [[0, 1, 2, 2], [2, 1, 0, 0], [0, 1, 2, 2], [1, 1, 1, 0], [2, 2, 1, 0]]
PARTS = [[[0.8, 0.2], [0.5, 0.5], [0.0, 1.0], [0.3, 0.7]], [[0.1, 0.9]] * 4, [[1.0, 0.0]] * 4]
SAME = [[[0.8, 0.1, 0.1]], [[0.1, 0.1, 0.8]]]
HALF = [1.0, 1.0]
THIRD = [1.0, 1.0, 1.0]


def random_table(symbols: int, length: int, seed: int, zeros: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = [symbols] * length
    table = torch.rand(shape, generator=generator, dtype=torch.float64) ** 3
    return table * (torch.rand(shape, generator=generator) >= zeros)


FULL, SPARSE, WIDE = random_table(3, 4, 0), random_table(2, 7, 1, 0.7), random_table(5, 3, 2, 0.2)
SQUARE = random_table(3, 2, 3)


def _tables() -> list[Case]:
    return [
        Case("table", Table(4, 3, FULL), tabled(FULL)),
        Case("table_sparse", Table(7, 2, SPARSE), tabled(SPARSE)),
        Case("table_wide", Table(3, 5, WIDE), tabled(WIDE)),
        Case("table_one", Table(1, 4, [1, 0, 2, 3]), independent([[1, 0, 2, 3]])),
    ]


def _products() -> list[Case]:
    zipf = [1.0, 1 / 2**0.7, 1 / 3**0.7]
    return [
        Case("product", Product(5, 3, Zipf(0.7)), independent([zipf] * 5)),
        Case("product_rows", Product(3, 3, ROWS), independent(ROWS)),
        Case("product_even", Product(6, 2), independent([HALF] * 6)),
        Case("product_one", Product(1, 3, THIRD), independent([THIRD])),
        Case(
            "mixture",
            MixtureOfProducts(4, 2, 3, PARTS, [1.0, 2.0, 1.0]),
            mixture([1, 2, 1], PARTS),
        ),
        Case(
            "mixture_same",
            MixtureOfProducts(5, 3, 2, SAME, varied=False),
            mixture([1, 1], [rows * 5 for rows in SAME]),
        ),
        Case(
            "mixture_one",
            MixtureOfProducts(1, 3, 2, SAME, [0.0, 1.0]),
            independent([[0.1, 0.1, 0.8]]),
        ),
    ]


def _blocks() -> list[Case]:
    coin, pair = chain([0.75, 0.25], COIN), repeated(THIRD)
    return [
        Case("repeated", Repeated(5, 3), repeated(THIRD)),
        Case("repeated_skew", Repeated(4, 3, [3.0, 0.0, 1.0]), repeated([3, 0, 1])),
        Case("repeated_one", Repeated(1, 4), independent([[1.0] * 4])),
        Case("pairs", Pairs(6, 3), in_a_row((2, pair), (2, pair), (2, pair))),
        Case("pairs_bits", Pairs(4, 2), in_a_row((2, repeated(HALF)), (2, repeated(HALF)))),
        Case("pairs_one", Pairs(2, 5), repeated([1.0] * 5)),
        Case(
            "independent",
            Independent([Checksum(3, 2), MarkovChain(2, 2, COIN)], [2, 1]),
            in_a_row((3, checksum(2)), (3, checksum(2)), (2, coin)),
        ),
        Case(
            "independent_hidden",
            Independent([HiddenMarkov(3, 3, 2, SWITCH, EMIT), Repeated(2, 3, [1, 2, 3])]),
            in_a_row((3, hidden_chain([0.8, 0.2], SWITCH, EMIT)), (2, repeated([1, 2, 3]))),
        ),
        Case(
            "tunable",
            Tunable(9, 2, 3, 0.3, 0.3),
            in_a_row((3, repeated(HALF)), (3, checksum(2)), (3, independent([HALF] * 3))),
        ),
        Case(
            "tunable_bits",
            Tunable(6, 2, 2, 0.3, 0.3),
            in_a_row((2, repeated(HALF)), (2, checksum(2)), (2, independent([HALF] * 2))),
        ),
        Case(
            "tunable_full",
            Tunable(6, 3, 3, 0.5, 0.5),
            in_a_row((3, repeated(THIRD)), (3, checksum(3))),
        ),
        Case("copy", Copy(MarkovChain(3, 3, SKEW)), twice(chain(long_run(SKEW), SKEW))),
        Case("copy_table", Copy(Table(2, 3, SQUARE)), twice(tabled(SQUARE))),
        Case("copy_one", Copy(Product(1, 3, [[1, 2, 0]])), twice(independent([[1, 2, 0]]))),
        Case(
            "copy_mixture",
            Copy(MixtureOfProducts(4, 2, 3, PARTS)),
            twice(mixture([1, 1, 1], PARTS)),
        ),
    ]


def _chains() -> list[Case]:
    start = [0.5, 0.5, 0.0]
    return [
        Case("markov", MarkovChain(6, 3, Lazy(0.8)), chain(THIRD, LAZY)),
        Case("markov_skew", MarkovChain(5, 3, SKEW), chain(long_run(SKEW), SKEW)),
        Case("markov_start", MarkovChain(5, 3, SKEW, start), chain(start, SKEW)),
        Case("markov_periodic", MarkovChain(7, 2, PERIODIC), chain(HALF, PERIODIC)),
        Case("markov_transient", MarkovChain(4, 3, TRANSIENT), chain([0, 2, 1], TRANSIENT)),
        Case("markov_one", MarkovChain(1, 3, SKEW, start), independent([start])),
        Case("hidden", HiddenMarkov(5, 3, 2, SWITCH, EMIT), hidden_chain([0.8, 0.2], SWITCH, EMIT)),
        Case(
            "hidden_start",
            HiddenMarkov(4, 2, 3, SKEW, [[1, 0], [1, 1], [1, 3]], start),
            hidden_chain(start, SKEW, [[1, 0], [1, 1], [1, 3]]),
        ),
        Case(
            "hidden_one",
            HiddenMarkov(1, 3, 2, SWITCH, EMIT),
            hidden_chain([0.8, 0.2], SWITCH, EMIT),
        ),
        Case("bigram", Ngram(5, 3, 2, TEXT, 0.3, "add"), ngram(TEXT, 3, 2, 0.3, False)),
        Case("trigram", Ngram(5, 3, 3, TEXT, 0.3), ngram(TEXT, 3, 3, 0.3, True)),
        Case("fourgram", Ngram(7, 2, 4, BITS, 0.5, "add"), ngram(BITS, 2, 4, 0.5, False)),
        Case("fivegram", Ngram(8, 2, 5, BITS, 0.2), ngram(BITS, 2, 5, 0.2, True)),
        Case("trigram_short", Ngram(2, 3, 3, TEXT, 1.0), ngram(TEXT, 3, 3, 1.0, True)),
        Case("fourgram_one", Ngram(1, 2, 4, BITS, 1.0), ngram(BITS, 2, 4, 1.0, True)),
    ]


def _codes() -> list[Case]:
    return [
        Case("checksum", Checksum(4, 5), checksum(5)),
        Case("checksum_even", Checksum(5, 4), checksum(4)),
        Case("checksum_bits", Checksum(8, 2), checksum(2)),
        Case("checksum_two", Checksum(2, 6), checksum(6)),
        Case("code", MdsCode(5, 5, 2), polynomials(5, 2, 5)),
        Case("code_three", MdsCode(4, 5, 3), polynomials(5, 3, 4)),
        Case("code_short", MdsCode(4, 5, 2), polynomials(5, 2, 4)),
        Case("code_repeats", MdsCode(3, 7, 1), polynomials(7, 1, 3)),
        Case("code_all", MdsCode(3, 3, 3), polynomials(3, 3, 3)),
        Case("code_one", MdsCode(1, 2, 1), independent([HALF])),
        Case("permutation", Permutation(4), lambda x: (len(set(x)) == 4) / 24),
        Case("permutation_odd", Permutation(5, 5), lambda x: (len(set(x)) == 5) / 120),
        Case("permutation_two", Permutation(2), lambda x: (len(set(x)) == 2) / 2),
        Case("empirical", Empirical(3, STORED), empirical(STORED, 3, 0.0)),
        Case("empirical_smooth", Empirical(3, STORED, 0.2), empirical(STORED, 3, 0.2)),
        Case("empirical_one", Empirical(4, [[2], [3], [2]], 0.5), independent([[3, 3, 11, 7]])),
    ]


def _one_symbol() -> list[Case]:
    """Laws that have no choice, and one symbol less than nothing to say."""
    sure: Chance = lambda x: 1.0  # noqa: E731 - one of the definitions above
    return [
        Case("table_sure", Table(3, 1, Dirichlet()), sure),
        Case("product_sure", Product(3, 1), sure),
        Case("mixture_sure", MixtureOfProducts(3, 1, 2, Dirichlet()), sure),
        Case("repeated_sure", Repeated(3, 1), sure),
        Case("pairs_sure", Pairs(4, 1), sure),
        Case("tunable_sure", Tunable(5, 1, 2, 0.4, 0.4), sure),
        Case("independent_sure", Independent([Permutation(1), Checksum(2, 1)]), sure),
        Case("copy_sure", Copy(Product(2, 1)), sure),
        Case("markov_sure", MarkovChain(3, 1, Lazy(0.5)), sure),
        Case("hidden_sure", HiddenMarkov(3, 1, 2, SWITCH, [[1.0], [1.0]]), sure),
        Case("ngram_sure", Ngram(3, 1, 2, [0, 0, 0]), sure),
        Case("checksum_sure", Checksum(3, 1), sure),
        Case("permutation_sure", Permutation(1), sure),
        Case("empirical_sure", Empirical(1, [[0, 0, 0]], 0.5), sure),
    ]


CASES = [*_tables(), *_products(), *_blocks(), *_chains(), *_codes(), *_one_symbol()]
