"""Integral probability metrics between laws on a small space: what a class of functions can see.

    D(p, q) = sup over f of the class of  E_p f - E_q f

Total variation sees everything. A bound on path KL carries log V through symbols that no function
of interest looks at; smaller classes tell what a reader would notice. All take flat tables over the
K^L sequences, in the order of `dlm.lab.exact.all_states`.

Source: Müller 1997, "Integral probability metrics and their generating classes of functions";
Gretton et al. 2012, "A kernel two-sample test".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.lab import exact


class Metric(Protocol):
    """A distance between two laws."""

    def __call__(self, p: Tensor, q: Tensor, num_states: int) -> Tensor:
        """D(p, q), float64 scalar, of flat tables (num_states^L,)."""
        ...


@final
@dataclass(frozen=True)
class TotalVariation:
    """All functions with values in [0, 1]."""

    def __call__(self, p: Tensor, q: Tensor, num_states: int) -> Tensor:
        """Half the sum of absolute differences."""
        return exact.total_variation(p, q)


@final
@dataclass(frozen=True)
class LocalVariation:
    """Functions with values in [0, 1] that look at few tokens: the largest TV of their marginals.

    Args:
        tokens: how many they look at; the length, or more, is total variation.

    Raises:
        UserError: for tokens below 1.
    """

    tokens: int = 2

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"tokens must be at least 1, got {self.tokens}")

    def __call__(self, p: Tensor, q: Tensor, num_states: int) -> Tensor:
        """The largest over all sets of positions."""
        gap = _table(p - q, num_states)
        kept = min(self.tokens, gap.ndim)
        sums = []
        for places in combinations(range(gap.ndim), kept):
            others = [i for i in range(gap.ndim) if i not in places]
            marginal = gap.sum(others) if others else gap
            sums.append(marginal.abs().sum() / 2)
        return torch.stack(sums).max()


@final
@dataclass(frozen=True)
class KernelDiscrepancy:
    """The unit ball of the kernel decay^(number of tokens that differ): smooth functions of all.

    Its square is sum over x, y of gap(x) gap(y) decay^H(x, y), H the Hamming distance.

    Args:
        decay: in (0, 1); near 1 only rough differences count.

    Raises:
        UserError: for another decay.
    """

    decay: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise UserError(f"decay must be above 0 and below 1, got {self.decay}")

    def __call__(self, p: Tensor, q: Tensor, num_states: int) -> Tensor:
        """Maximum mean discrepancy: the kernel is a product over positions, applied to each."""
        gap = _table(p - q, num_states)
        seen = gap
        for place in range(gap.ndim):
            total = seen.sum(place, keepdim=True)
            seen = (1 - self.decay) * seen + self.decay * total
        return (gap * seen).sum().clamp(min=0).sqrt()


def _table(values: Tensor, num_states: int) -> Tensor:
    length = round(math.log(values.numel(), num_states)) if num_states > 1 else 1
    return values.reshape([num_states] * length)
