"""Probabilities of a law from plain numbers: given ones, or families with one or two parameters.

Where a law takes `Weights`, it takes a tensor, nested lists of numbers (so a yaml can hold them),
or one of the families here. Weights are normalised over the last axis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.random import Key

_TRIES = 24  # of a rejection that fails with probability < 0.05


class Family(ABC):
    """Weights of any shape, from few numbers."""

    @abstractmethod
    def log_weights(self, shape: tuple[int, ...]) -> Tensor:
        """Logs of weights, float64, of this shape."""


Weights = Tensor | Sequence[Any] | Family


@final
@dataclass(frozen=True)
class Dirichlet(Family):
    """Every row drawn from a symmetric Dirichlet law.

    Args:
        concentration: 1 is even over the simplex, small values make rows peaked.
        seed: of the draw.

    Raises:
        UserError: unless concentration > 0.

    Source: Marsaglia & Tsang 2000 (gamma variates).
    """

    concentration: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.concentration <= 0:
            raise UserError(f"concentration must be above 0, got {self.concentration}")

    def log_weights(self, shape: tuple[int, ...]) -> Tensor:
        """Logs of gamma variates: of shape c + 1, times u^(1/c)."""
        count = torch.Size(shape).numel()
        key = Key(self.seed, torch.arange(count)).fold("dirichlet")
        d = self.concentration + 2 / 3
        x = torch.special.ndtri(key.fold("normal").uniform(_TRIES).clamp(min=1e-300))
        v = (1 + x / (9 * d) ** 0.5) ** 3
        log_v = v.clamp(min=1e-300).log()
        bound = x.square() / 2 + d * (1 - v + log_v)
        accepted = (v > 0) & (key.fold("accept").uniform(_TRIES).log() < bound)
        first = accepted.double().argmax(-1, keepdim=True)
        log_gamma = log_v.gather(-1, first).squeeze(-1)
        boost = torch.log1p(-key.fold("boost").uniform()) / self.concentration
        return (log_gamma + boost).reshape(shape)


@final
@dataclass(frozen=True)
class Zipf(Family):
    """The same row everywhere: symbol v has weight (v + 1)^-exponent."""

    exponent: float = 1.0

    def log_weights(self, shape: tuple[int, ...]) -> Tensor:
        """-exponent log(v + 1)."""
        ranks = torch.arange(1, shape[-1] + 1, dtype=torch.float64)
        return (-self.exponent * ranks.log()).expand(shape)


@final
@dataclass(frozen=True)
class Lazy(Family):
    """Square rows of a chain that keeps its symbol, else draws a new one (which may equal it).

    Reversible, and stationary at the law of the new symbol.

    Args:
        stay: probability to keep, in [0, 1).
        weights: of the new symbol; None: even.

    Raises:
        UserError: unless 0 <= stay < 1.
    """

    stay: float = 0.5
    weights: Sequence[float] | Zipf | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.stay < 1:
            raise UserError(
                f"stay must be in [0, 1), got {self.stay}; dlm.lab.laws.Repeated stays for ever"
            )

    def log_weights(self, shape: tuple[int, ...]) -> Tensor:
        """log(stay 1[v = w] + (1 - stay) weights(w))."""
        size = shape[-1]
        if shape[-2:] != (size, size):
            raise UserError("Lazy weights are for the transition of a chain, a square")
        eye = torch.eye(size, dtype=torch.float64)
        rows = self.stay * eye + (1 - self.stay) * probabilities(self.weights, (size,), "weights")
        return rows.log().expand(shape)


def probabilities(weights: Weights | None, shape: tuple[int, ...], name: str) -> Tensor:
    """Normalised rows, float64, of this shape.

    Args:
        weights: given ones may leave out leading dimensions; None: even.
        shape: of the result; the last axis sums to 1.
        name: of the argument, for messages.

    Raises:
        UserError: weights of another shape, negative ones, or rows without any.
    """
    if weights is None:
        return torch.full(shape[-1:], 1 / shape[-1], dtype=torch.float64).expand(shape)
    if isinstance(weights, Family):
        return weights.log_weights(shape).softmax(-1)
    given = numbers(weights, name)
    sums = given.sum(-1, keepdim=True)
    if not torch.isfinite(sums).all() or (given < 0).any() or (sums <= 0).any():
        raise UserError(f"{name} must be finite numbers from 0 on, some of each row above 0")
    try:
        if given.shape[-1:] == shape[-1:]:  # one number for a whole row is not spread
            return (given / sums).expand(shape)
    except RuntimeError:
        pass  # the leading dimensions do not fit
    raise UserError(f"{name} must be numbers of shape {shape}, got shape {tuple(given.shape)}")


def numbers(weights: Tensor | Sequence[Any], name: str) -> Tensor:
    """Weights as a tensor, float64.

    Raises:
        UserError: nested lists of several lengths, or entries that are no numbers.
    """
    try:
        return torch.as_tensor(weights, dtype=torch.float64)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{name} must be numbers in rows of one length, got {error}") from error
