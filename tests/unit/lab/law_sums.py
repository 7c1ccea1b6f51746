"""Sums over all sequences of a small law, and evidence of every kind to sum with."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.unit.lab.law_cases import CASES, Case


class Sums(NamedTuple):
    """All sequences, int64 (N, L), and the logs of their probabilities, float64 (N,)."""

    tokens: Tensor
    log_p: Tensor

    def posterior(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        """Leave-one-out posterior (B, L, V), even where undefined, and log marginal (B,)."""
        length, symbols = evidence.shape[1:]
        seen = evidence[:, torch.arange(length), self.tokens]  # (B, N, L)
        result = torch.empty_like(evidence)
        for i in range(length):
            others = [j for j in range(length) if j != i]
            log_joint = self.log_p + seen[:, :, others].sum(-1)
            for v in range(symbols):
                result[:, i, v] = log_joint[:, self.tokens[:, i] == v].logsumexp(-1)
        total = result.logsumexp(-1, keepdim=True)
        even = torch.full_like(result, -math.log(symbols))
        marginal = (self.log_p + seen.sum(-1)).logsumexp(-1)
        return torch.where(total > -torch.inf, result - total, even), marginal


@cache
def sums(name: str) -> Sums:
    """Those of a case, from its definition."""
    case = next(case for case in CASES if case.name == name)
    every = list(product(range(case.law.symbols), repeat=case.law.length))
    chances = torch.tensor([case.chance(x) for x in every], dtype=torch.float64)
    return Sums(torch.tensor(every), chances.log())


def table_of_case(case: Case) -> np.ndarray:
    """The probabilities of a case by its definition, (V,) * L."""
    return sums(case.name).log_p.exp().reshape([case.law.symbols] * case.law.length).numpy()


class Numbers(NamedTuple):
    """What a table knows about itself, nats."""

    entropy: float
    total: float
    dual: float
    curve: list[float]


def numbers_of(table: np.ndarray) -> Numbers:
    """Entropies of all subsets; Z_j averages I(X_i; X_S) over |S| = j - 1 and i outside."""
    length = table.ndim
    entropies = {
        kept: _entropy(table.sum(tuple(set(range(length)) - set(kept))))
        for size in range(length + 1)
        for kept in combinations(range(length), size)
    }
    whole = entropies[tuple(range(length))]
    single = [entropies[(i,)] for i in range(length)]
    given = [whole - entropies[tuple(j for j in range(length) if j != i)] for i in range(length)]
    curve = [
        float(
            np.mean(
                [
                    single[i] + entropies[known] - entropies[tuple(sorted((*known, i)))]
                    for known in combinations(range(length), size)
                    for i in set(range(length)) - set(known)
                ]
            )
        )
        for size in range(length)
    ]
    return Numbers(whole, sum(single) - whole, whole - sum(given), curve)


def _entropy(table: np.ndarray) -> float:
    positive = table[table > 0]
    return float(-(positive * np.log(positive)).sum())


# -- evidence ----------------------------------------------------------------------------------

BATCH = 6


def _random(case: Case, generator: torch.Generator) -> Tensor:
    """Any positive evidence."""
    shape = (BATCH, case.law.length, case.law.symbols)
    return 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


def _drawn(case: Case, generator: torch.Generator) -> Tensor:
    """Sequences of positive probability, (BATCH, L)."""
    found = sums(case.name)
    rows = torch.multinomial(found.log_p.exp(), BATCH, replacement=True, generator=generator)
    return found.tokens[rows]


def _masked(case: Case, generator: torch.Generator) -> Tensor:
    """Some tokens are seen, of the others nothing is known."""
    tokens = _drawn(case, generator)
    hidden = torch.rand(tokens.shape, generator=generator) < 0.5
    point = torch.nn.functional.one_hot(tokens, case.law.symbols).double().log()
    return torch.where(hidden[..., None], 0.3, point)


def _replaced(case: Case, generator: torch.Generator) -> Tensor:
    """Even but for one symbol, which is more likely: noise that replaces tokens."""
    tokens = torch.randint(case.law.symbols, (BATCH, case.law.length), generator=generator)
    share = torch.rand((BATCH, 1, 1), generator=generator, dtype=torch.float64) ** 3
    spike = torch.nn.functional.one_hot(tokens, case.law.symbols).double()
    return ((1 - share) * spike + share / case.law.symbols).log()


def _hybrid(case: Case, generator: torch.Generator) -> Tensor:
    """Seen, hidden and replaced tokens side by side."""
    kind = torch.randint(3, (BATCH, case.law.length, 1), generator=generator)
    rows = [_masked(case, generator), _replaced(case, generator), torch.zeros(())]
    return torch.where(kind == 0, rows[0], torch.where(kind == 1, rows[1], rows[2]))


def _mixed(case: Case, generator: torch.Generator) -> Tensor:
    """Seen tokens, and of others anything."""
    kind = torch.rand((BATCH, case.law.length, 1), generator=generator) < 0.5
    return torch.where(kind, _masked(case, generator), _random(case, generator))


def _excluded(case: Case, generator: torch.Generator) -> Tensor:
    """Some symbols are impossible; some of the evidence may be, too."""
    evidence = _random(case, generator)
    return evidence.masked_fill(torch.rand(evidence.shape, generator=generator) < 0.4, -torch.inf)


def _impossible(case: Case, generator: torch.Generator) -> Tensor:
    """One position rules out every symbol; in half of the rows so does another one."""
    evidence = _hybrid(case, generator)
    evidence[:, 0] = -torch.inf
    evidence[::2, -1] = -torch.inf
    return evidence


def _spread(case: Case, generator: torch.Generator) -> Tensor:
    """Over hundreds of nats."""
    return 100 * _random(case, generator)


def _steep(case: Case, generator: torch.Generator) -> Tensor:
    """Even but for one symbol, which is 300 nats more likely, or 1000: nearly seen."""
    evidence = _replaced(case, generator)
    less = torch.where(torch.arange(BATCH) % 2 == 0, 300.0, 1000.0)[:, None, None]
    return torch.where(evidence < evidence.amax(-1, keepdim=True), evidence - less, evidence)


def _flat(case: Case, generator: torch.Generator) -> Tensor:
    """Even but for 1e-12, and exactly even."""
    tokens = torch.randint(case.law.symbols, (BATCH, case.law.length), generator=generator)
    spike = torch.nn.functional.one_hot(tokens, case.law.symbols).double()
    evidence = torch.log1p(1e-12 * spike)
    evidence[0] = 0.7
    return evidence


Maker = Callable[[Case, torch.Generator], Tensor]
EVIDENCE: dict[str, Maker] = {
    "random": _random,
    "masked": _masked,
    "replaced": _replaced,
    "hybrid": _hybrid,
    "mixed": _mixed,
    "excluded": _excluded,
    "impossible": _impossible,
    "spread": _spread,
    "steep": _steep,
    "flat": _flat,
}


def evidence_of(kind: str, case: Case, seed: int = 0) -> Tensor:
    """Log evidence of a kind for a case, float64 (BATCH, L, V)."""
    return EVIDENCE[kind](case, torch.Generator().manual_seed(seed))


def assert_same_logs(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal logs: -inf at the same places, elsewhere to a tolerance, relative beyond 1 nat."""
    assert found.dtype == torch.float64
    assert found.shape == expected.shape
    assert not found.isnan().any()
    assert torch.equal(found == -torch.inf, expected == -torch.inf)
    finite = expected > -torch.inf
    torch.testing.assert_close(found[finite], expected[finite], rtol=tolerance, atol=tolerance)
