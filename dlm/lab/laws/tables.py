"""Any joint law of few tokens and symbols, by its table of probabilities.

The leave-one-out sums of all positions share their parts: those over the right half of the
positions serve every position of the left half, and so on by halves, so that all L posteriors cost
about two passes over the table.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.lab.laws.base import Law, check_size
from dlm.lab.laws.enumeration import MOST, all_tokens, subset_curve
from dlm.lab.laws.logs import batches
from dlm.lab.laws.rows import Family, Weights, numbers, probabilities
from dlm.samplers.curve import InformationCurve

_MOST_SUBSETS = 100_000_000  # (V + 1)^L of an exact curve: seconds


@final
class Table(Law):
    """A table of V^L probabilities.

    Args:
        length: L.
        symbols: V.
        weights: of every sequence, in any shape with V^L entries; `Dirichlet` draws a law.

    Raises:
        UserError: for more than 1e6 sequences, or weights that do not fit.
    """

    def __init__(self, length: int, symbols: int, weights: Weights) -> None:
        check_size(length, symbols)
        if symbols**length > MOST:
            raise UserError(f"a table of {symbols}^{length} sequences is more than {MOST:.0e}")
        self.length, self.symbols = length, symbols
        if not isinstance(weights, Family):
            weights = numbers(weights, "weights").flatten()
        flat = probabilities(weights, (symbols**length,), "weights")
        self.log_table = flat.log().reshape([symbols] * length)

    @property
    def draws(self) -> int:
        """One: an entry of the table."""
        return 1

    def from_uniforms(self, u: Tensor) -> Tensor:
        """Inverse transform on the flat table."""
        flat = self.log_table.flatten()
        cumulative = flat.exp().cumsum(0)
        target = u[:, 0] * cumulative[-1]
        index = torch.searchsorted(cumulative, target, right=True)
        last = (cumulative < cumulative[-1]).sum()
        return all_tokens(self.symbols, self.length)[torch.minimum(index, last)]

    def log_prob(self, tokens: Tensor) -> Tensor:
        """An entry of the table."""
        return self.log_table[tuple(tokens.unbind(-1))]

    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """Sums over halves."""
        result = torch.empty_like(log_evidence)
        for at in batches(len(log_evidence), self.symbols ** (self.length - 1)):
            rows = result[at]
            self._fill(self.log_table[None], log_evidence[at], 0, self.length, rows)
        return result

    def _fill(self, table: Tensor, evidence: Tensor, low: int, high: int, rows: Tensor) -> None:
        """Posteriors of the positions from low to high, of a table (B or 1, V, ..., V) of them."""
        if high - low == 1:
            rows[:, low] = table
            return
        middle = (low + high) // 2
        left = table
        for i in reversed(range(middle, high)):  # the last axis leaves
            seen = evidence[:, i].reshape(-1, *[1] * (left.ndim - 2), self.symbols)
            left = (left + seen).logsumexp(-1)
        self._fill(left, evidence, low, middle, rows)
        right = table
        for i in range(low, middle):  # the first axis leaves
            seen = evidence[:, i].reshape(-1, self.symbols, *[1] * (right.ndim - 2))
            right = (right + seen).logsumexp(1)
        self._fill(right, evidence, middle, high, rows)

    def log_marginal(self, log_evidence: Tensor) -> Tensor:
        """The sum of the posterior weights of the first position times its evidence."""
        parts = []
        for at in batches(len(log_evidence), self.symbols ** (self.length - 1)):
            rest = self.log_table[None]
            for i in reversed(range(self.length)):
                seen = log_evidence[at, i].reshape(-1, *[1] * (rest.ndim - 2), self.symbols)
                rest = (rest + seen).logsumexp(-1)
            parts.append(rest)
        return torch.cat(parts)

    def exact_entropy(self) -> float:
        """By the table."""
        return torch.special.entr(self.log_table.exp()).sum().item()

    def exact_curve(self) -> InformationCurve | None:
        """By the entropies of all subsets; None where they are too many."""
        if (self.symbols + 1) ** self.length > _MOST_SUBSETS:
            return None
        return subset_curve(self.log_table.exp())


def table_of(joint: Tensor) -> Table:
    """The law of a table (V,) * L.

    Raises:
        UserError: if its axes differ in length.
    """
    if joint.ndim < 1 or len(set(joint.shape)) != 1:
        raise UserError(
            f"a table needs one axis of V entries for each token, got shape {tuple(joint.shape)}"
        )
    return Table(joint.ndim, joint.shape[0], joint)
