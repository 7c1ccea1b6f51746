"""Laws made of independent blocks, and of copies.

With a part of m tokens, a position knows n of its own block when j - 1 of the L - 1 others are
known with the hypergeometric chance h_j(n), so the curve of independent blocks is

    Z_j = sum over parts of (its share of the L positions) sum_n h_j(n) Z^part_{n+1}.

Repeated tokens have total correlation (m - 1) log V and dual total correlation log V, a checksum
the other way round: with blocks of both, either can be set by itself (`Tunable`).

Source: derived here. Pairs are the example behind the lower bound of Liang et al. 2026,
arXiv:2602.22505.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.lab.laws.base import Law, check_size
from dlm.lab.laws.codes import Checksum
from dlm.lab.laws.logs import exclusive_sum
from dlm.lab.laws.products import Product
from dlm.lab.laws.rows import Weights, probabilities
from dlm.random import sample_categorical
from dlm.samplers.curve import InformationCurve

Group = tuple[Law, int]  # a part, and how many independent copies of it follow each other


@final
class Repeated(Law):
    """One token, L times.

    Args:
        length: L.
        symbols: V.
        weights: of the token, (V,); None: even.

    Raises:
        UserError: for weights that do not fit.
    """

    def __init__(self, length: int, symbols: int, weights: Weights | None = None) -> None:
        check_size(length, symbols)
        self.length, self.symbols = length, symbols
        self.log_row = probabilities(weights, (symbols,), "weights").log()

    @property
    def draws(self) -> int:
        """One."""
        return 1

    def from_uniforms(self, u: Tensor) -> Tensor:
        """One draw, repeated."""
        row = self.log_row.expand(len(u), -1)
        return sample_categorical(row, u[:, 0])[:, None].repeat(1, self.length)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """That of the token, if all are the same."""
        first = tokens[:, :1]
        return torch.where((tokens == first).all(-1), self.log_row[first[:, 0]], -torch.inf)

    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """The evidence of all the others adds up."""
        return exclusive_sum(log_evidence, 1) + self.log_row

    def log_marginal(self, log_evidence: Tensor) -> Tensor:
        """All the evidence adds up."""
        return (log_evidence.sum(1) + self.log_row).logsumexp(-1)

    def exact_entropy(self) -> float:
        """That of the token."""
        return torch.special.entr(self.log_row.exp()).sum().item()

    def exact_curve(self) -> InformationCurve:
        """One known token tells all."""
        return InformationCurve((0.0, *[self.exact_entropy()] * (self.length - 1)))

    def marginals(self) -> Tensor:
        """p(x_i = v), float64 (L, V)."""
        return self.log_row.exp().expand(self.length, -1)


class Blocks(Law):
    """Independent blocks, one after another."""

    @property
    @abstractmethod
    def groups(self) -> tuple[Group, ...]:
        """The parts from left to right."""

    @property
    def draws(self) -> int:
        """Those of all parts."""
        return sum(law.draws * count for law, count in self.groups)

    def from_uniforms(self, u: Tensor) -> Tensor:
        """Each block on its own."""
        widths = [law.draws * count for law, count in self.groups]
        parts = [
            law.from_uniforms(part.reshape(-1, law.draws)).reshape(len(u), law.length * count)
            for (law, count), part in zip(self.groups, u.split(widths, -1), strict=True)
        ]
        return torch.cat(parts, -1)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Sum over blocks."""
        total = torch.zeros(len(tokens), dtype=torch.float64)
        for (law, count), part in self._split(tokens):
            log_p = law.log_prob(part.reshape(-1, law.length))
            total = total + log_p.reshape(len(tokens), count).sum(-1)
        return total

    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """Those of each block, where the other blocks are possible."""
        weights, masses = [], []
        for (law, count), part in self._split(log_evidence):
            block = part.reshape(-1, law.length, self.symbols)
            weights.append(law.log_weights(block).reshape(part.shape))
            mass = law.log_marginal(block).reshape(len(part), count)
            masses.append(mass)
        others = exclusive_sum(torch.cat(masses, -1), -1)
        sizes = [law.length for law, count in self.groups for _ in range(count)]
        others = others.repeat_interleave(torch.tensor(sizes), -1)
        return torch.cat(weights, 1) + torch.where(others == -torch.inf, others, 0.0)[..., None]

    def log_marginal(self, log_evidence: Tensor) -> Tensor:
        """Sum over blocks."""
        total = torch.zeros(len(log_evidence), dtype=torch.float64)
        for (law, count), part in self._split(log_evidence):
            mass = law.log_marginal(part.reshape(-1, law.length, self.symbols))
            total = total + mass.reshape(len(part), count).sum(-1)
        return total

    def exact_entropy(self) -> float | None:
        """Sum over blocks, if all are exact."""
        parts = [(law.entropy(), count) for law, count in self.groups]
        if any(part.stderr for part, _ in parts):
            return None
        return sum(part.value * count for part, count in parts)

    def exact_curve(self) -> InformationCurve | None:
        """By what a position knows of its own block, if all are exact."""
        curves = [law.curve() for law, _ in self.groups]
        if any(curve.stderr is not None for curve in curves):
            return None
        values = np.zeros(self.length)
        for (law, count), curve in zip(self.groups, curves, strict=True):
            chance = hypergeometric(self.length - 1, law.length - 1)
            values += law.length * count / self.length * (chance @ np.asarray(curve.values))
        return InformationCurve((0.0, *values[1:].tolist()))

    def marginals(self) -> Tensor:
        """p(x_i = v), float64 (L, V)."""
        return torch.cat([law.marginals().repeat(count, 1) for law, count in self.groups])

    def _split(self, values: Tensor) -> list[tuple[Group, Tensor]]:
        widths = [law.length * count for law, count in self.groups]
        return list(zip(self.groups, values.split(widths, 1), strict=True))


def hypergeometric(total: int, marked: int) -> np.ndarray:
    """Chances of n marked ones among k of `total`, float64 (total + 1, marked + 1), rows k."""
    k, n = np.arange(total + 1)[:, None], np.arange(marked + 1)[None]
    ways = _log_choose(k, n) + _log_choose(total - k, marked - n)
    chance = np.exp(ways - _log_choose(np.array(total), np.array(marked)))
    return chance / chance.sum(-1, keepdims=True)


def _log_choose(total: np.ndarray, part: np.ndarray) -> np.ndarray:
    """log of binomial coefficients, -inf where there is no such choice."""
    total, part = np.broadcast_arrays(total, part)
    possible = (part >= 0) & (part <= total)
    n, k = np.where(possible, total, 0), np.where(possible, part, 0)
    factorials = np.array([math.lgamma(m + 1) for m in range(int(n.max()) + 1)])
    return np.where(possible, factorials[n] - factorials[k] - factorials[n - k], -np.inf)


@final
class Independent(Blocks):
    """Given laws side by side.

    Args:
        parts: laws over the same symbols.
        counts: independent copies of each; None: one.

    Raises:
        UserError: for no parts, or parts that do not fit.
    """

    def __init__(self, parts: Sequence[Law], counts: Sequence[int] | None = None) -> None:
        counts = [1] * len(parts) if counts is None else list(counts)
        if not parts or len(counts) != len(parts) or min(counts) < 1:
            raise UserError("Independent needs at least one part, and a count from 1 on for each")
        if len({law.symbols for law in parts}) > 1:
            raise UserError("the parts of Independent must have the same symbols")
        self._groups = tuple(zip(parts, counts, strict=True))
        self.length = sum(law.length * count for law, count in self._groups)
        self.symbols = parts[0].symbols

    @property
    def groups(self) -> tuple[Group, ...]:
        """As given."""
        return self._groups


@final
class Pairs(Blocks):
    """X_1 = X_2, X_3 = X_4, ...: L / 2 independent pairs of equal, even tokens.

    Args:
        length: L, even.
        symbols: V.

    Raises:
        UserError: for an odd length.
    """

    def __init__(self, length: int, symbols: int) -> None:
        check_size(length, symbols)
        if length % 2:
            raise UserError(f"pairs need an even length, got {length}")
        self.length, self.symbols = length, symbols
        self._pair = Repeated(2, symbols)

    @property
    def groups(self) -> tuple[Group, ...]:
        """L / 2 pairs."""
        return ((self._pair, self.length // 2),)


@final
class Tunable(Blocks):
    """Blocks of repeated tokens, blocks that sum to 0 mod V, and independent, even tokens.

    With blocks of m tokens, r repeated ones and c checksums,

        TC = (r (m - 1) + c) log V,      DTC = (r + c (m - 1)) log V.

    So TC is set by r and DTC by c, up to a share 1 / (m - 1) of the other: all pairs between the
    lines DTC = TC / (m - 1) and DTC = TC (m - 1) with TC + DTC <= L log V can be reached, in steps
    of a block.

    Args:
        length: L.
        symbols: V.
        block: m, tokens of a block, at least 2.
        repeated: share of the tokens in repeated blocks; the nearest number of blocks is taken.
        checksum: share of the tokens in checksum blocks, likewise.

    Raises:
        UserError: for shares outside [0, 1], or blocks that do not fit.
    """

    def __init__(
        self, length: int, symbols: int, block: int, repeated: float, checksum: float
    ) -> None:
        check_size(length, symbols)
        if block < 2 or not 0 <= repeated <= 1 or not 0 <= checksum <= 1:
            raise UserError(
                "Tunable needs blocks of at least 2 tokens and shares in [0, 1], got "
                f"block {block}, repeated {repeated}, checksum {checksum}"
            )
        self.length, self.symbols, self.block = length, symbols, block
        self.repeated = round(repeated * length / block)
        self.checksums = round(checksum * length / block)
        rest = length - (self.repeated + self.checksums) * block
        if rest < 0:
            raise UserError(
                f"{self.repeated} repeated blocks and {self.checksums} checksums of {block} tokens "
                f"do not fit into {length}; lower their shares"
            )
        parts: list[Group] = [
            (Repeated(block, symbols), self.repeated),
            (Checksum(block, symbols), self.checksums),
        ]
        if rest:
            parts.append((Product(rest, symbols), 1))
        self._groups = tuple((law, count) for law, count in parts if count)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Repeated blocks, checksums, the rest."""
        return self._groups


@final
class Copy(Law):
    """A sequence, and the same once more.

    Args:
        first: the law of the first half.
    """

    def __init__(self, first: Law) -> None:
        self.first = first
        self.length, self.symbols = 2 * first.length, first.symbols

    @property
    def draws(self) -> int:
        """Those of the first half."""
        return self.first.draws

    def from_uniforms(self, u: Tensor) -> Tensor:
        """Twice the first half."""
        return self.first.from_uniforms(u).repeat(1, 2)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """That of the first half, if the second is the same."""
        left, right = tokens.chunk(2, 1)
        return torch.where((left == right).all(-1), self.first.log_prob(left), -torch.inf)

    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """Both halves speak of one sequence; the twin of a position is seen, itself is not."""
        left, right = log_evidence.chunk(2, 1)
        others = self.first.log_weights(left + right)
        return torch.cat([others + right, others + left], 1)

    def log_marginal(self, log_evidence: Tensor) -> Tensor:
        """Both halves speak of one sequence."""
        left, right = log_evidence.chunk(2, 1)
        return self.first.log_marginal(left + right)

    def exact_entropy(self) -> float | None:
        """That of the first half."""
        entropy = self.first.entropy()
        return None if entropy.stderr else entropy.value

    def exact_curve(self) -> InformationCurve | None:
        """With its twin known a position is known; else u distinct others are, and tell Z_{u+1}."""
        curve, entropy = self.first.curve(), self.first.entropy()
        if curve.stderr is not None or entropy.stderr:
            return None
        half = self.first.length
        single = (entropy.value + curve.total_correlation) / half
        known = np.arange(self.length)  # j - 1
        others = _distinct(half - 1) @ np.asarray(curve.values)
        twin = known / (self.length - 1)
        values = twin * single + (1 - twin) * np.append(others, 0.0)
        return InformationCurve((0.0, *values[1:].tolist()))

    def marginals(self) -> Tensor:
        """p(x_i = v), float64 (L, V)."""
        return self.first.marginals().repeat(2, 1)


def _distinct(pairs: int) -> np.ndarray:
    """Chances of u different pairs among k of the 2 n members of n pairs, (2 n + 1, n + 1)."""
    k, u = np.arange(2 * pairs + 1)[:, None], np.arange(pairs + 1)[None]
    double = k - u  # pairs of which both are chosen
    ways = _log_choose(np.array(pairs), u) + _log_choose(u, double)
    chance = np.exp(ways + (u - double) * math.log(2) - _log_choose(np.array(2 * pairs), k))
    return chance / chance.sum(-1, keepdims=True)
