"""The law of a finite training set: what a model that memorises would learn.

The exact posterior of N stored sequences is the best predictor for the training data and a wrong
one for the law that they were drawn from; the gap between the two laws is an error of estimation
that no number of steps removes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.lab.laws.atoms import atom_marginal, atom_weights
from dlm.lab.laws.base import Law, point_evidence
from dlm.random import Key
from dlm.samplers.curve import InformationCurve


@final
@dataclass(frozen=True)
class Draws:
    """A training set of sequences drawn from a law.

    Args:
        law: what they are drawn from.
        count: N.
        seed: of the draw.
    """

    law: Law
    count: int
    seed: int = 0

    def tokens(self) -> Tensor:
        """The sequences, int64 (N, L)."""
        key = Key(self.seed, torch.arange(self.count)).fold("training")
        return self.law.sample(self.count, key=key)


@final
class Empirical(Law):
    """One of N stored sequences, all equally likely, perhaps with some tokens replaced.

    Args:
        symbols: V.
        tokens: the sequences, (N, L), or `Draws` of a law.
        smoothing: chance that a token is replaced by an even one, in [0, 1).

    Raises:
        UserError: for no sequences, tokens outside [0, V), or another smoothing.
    """

    def __init__(
        self, symbols: int, tokens: Tensor | Sequence[Sequence[int]] | Draws, smoothing: float = 0.0
    ) -> None:
        given = tokens.tokens() if isinstance(tokens, Draws) else _stored(tokens)
        if given.ndim != 2 or not given.numel() or given.is_floating_point():
            raise UserError("Empirical needs at least one sequence of tokens, all of one length")
        if int(given.min()) < 0 or int(given.max()) >= symbols:
            raise UserError(f"Empirical got a token outside [0, {symbols})")
        if not 0 <= smoothing < 1:
            raise UserError(f"smoothing must be in [0, 1), got {smoothing}")
        self.length, self.symbols, self.smoothing = given.shape[1], symbols, smoothing
        self.atoms, counts = given.long().unique(dim=0, return_counts=True)
        self.log_shares = (counts.double() / len(given)).log()

    @property
    def draws(self) -> int:
        """One for the sequence, two a token: whether it is replaced, and by what."""
        return 1 + 2 * self.length

    def from_uniforms(self, u: Tensor) -> Tensor:
        """A stored sequence, some tokens replaced."""
        cumulative = self.log_shares.exp().cumsum(0)
        index = torch.searchsorted(cumulative / cumulative[-1], u[:, 0].contiguous(), right=True)
        stored = self.atoms[index.clamp(max=len(self.atoms) - 1)]
        replaced = u[:, 1 : 1 + self.length] < self.smoothing
        even = (u[:, 1 + self.length :] * self.symbols).long()
        return torch.where(replaced, even, stored)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Sum over stored sequences."""
        parts = [
            self.log_marginal(point_evidence(part, self.symbols)) for part in tokens.split(4096)
        ]
        return torch.cat(parts)

    def log_weights(self, log_evidence: Tensor) -> Tensor:
        """Sum over stored sequences."""
        return atom_weights(self.atoms, log_evidence, self.log_shares, self.smoothing)

    def log_marginal(self, log_evidence: Tensor) -> Tensor:
        """Sum over stored sequences."""
        return atom_marginal(self.atoms, log_evidence, self.log_shares, self.smoothing)

    def exact_entropy(self) -> float | None:
        """That of the shares, without smoothing."""
        if self.smoothing:
            return None
        return -(self.log_shares.exp() @ self.log_shares).item()

    def exact_curve(self) -> InformationCurve | None:
        """None."""
        return


def _stored(tokens: Tensor | Sequence[Sequence[int]]) -> Tensor:
    try:
        return torch.as_tensor(tokens)
    except (TypeError, ValueError):
        return torch.empty(0)  # of several lengths, or no numbers
