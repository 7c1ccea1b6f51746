"""Orders: which hidden positions a reveal sampler opens next.

An order that does not look at predictions (`Random`, `LeftToRight`) knows its positions before the
network runs, so that head and draw touch only them. The others ask for a prediction at every hidden
position and open those that score highest; a temperature makes that a draw without replacement.

With exact posteriors, one position at a time is exact in any order, also in one that looks at the
predictions. Several at once err by their total correlation given what is known; in a random order
that is a function of the information curve (`dlm.samplers.curve`), in the others it is not.

Source: Chang et al. 2022, arXiv:2202.04200 (confidence); Kim et al. 2025, arXiv:2502.06768
(margin); Ben-Hamu et al. 2025, arXiv:2505.24857 (entropy bound).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from dlm.errors import UserError


class Order(ABC):
    """Gives every hidden position a priority; the largest go first."""

    informed: ClassVar[bool]  # whether it looks at predictions

    @abstractmethod
    def priority(self, log_probs: Tensor, column: Tensor, u: Tensor) -> Tensor:
        """Priorities, float64 (N,).

        Args:
            log_probs: posteriors of the N positions, (N, K); (N, 0) for orders that are not
                informed.
            column: places in the sequence, int64 (N,).
            u: uniforms, float64 (N,): of the whole run for orders that are not informed, of the
                step for the others.
        """

    def count(self, entropy: Tensor, hidden: Tensor, planned: Tensor) -> Tensor:
        """How many positions are opened, int64 (B,); what the plan says unless overridden.

        Args:
            entropy: of the posteriors, nats, float64 (B, L), read where hidden.
            hidden: bool (B, L).
            planned: int64 (B,), the number that the plan gives.
        """
        return planned


@final
@dataclass(frozen=True)
class Random(Order):
    """Every order of the positions is equally likely."""

    informed: ClassVar[bool] = False

    def priority(self, log_probs: Tensor, column: Tensor, u: Tensor) -> Tensor:
        """The uniforms themselves."""
        return u


@final
@dataclass(frozen=True)
class LeftToRight(Order):
    """As text is read."""

    informed: ClassVar[bool] = False

    def priority(self, log_probs: Tensor, column: Tensor, u: Tensor) -> Tensor:
        """Minus the place."""
        return -column.double()


@final
@dataclass(frozen=True)
class Confidence(Order):
    """Where the most likely token has the largest probability.

    Args:
        temperature: of the choice; 0 takes the highest scores, at temperature T position i goes
            first with a probability ~ p_i^(1 / T), and so on without replacement.

    Raises:
        UserError: for a negative temperature.
    """

    temperature: float = 0.0
    informed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _checked(self.temperature)

    def priority(self, log_probs: Tensor, column: Tensor, u: Tensor) -> Tensor:
        """log of the largest probability."""
        return _perturbed(log_probs.amax(-1), self.temperature, u)


@final
@dataclass(frozen=True)
class Margin(Order):
    """Where the most likely token is furthest ahead of the second.

    Args:
        temperature: as for `Confidence`, of the margin p_1 - p_2 itself.

    Raises:
        UserError: for a negative temperature.
    """

    temperature: float = 0.0
    informed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _checked(self.temperature)

    def priority(self, log_probs: Tensor, column: Tensor, u: Tensor) -> Tensor:
        """p_1 - p_2."""
        first, second = log_probs.topk(2, dim=-1).values.exp().unbind(-1)
        return _perturbed(first - second, self.temperature, u)


@final
@dataclass(frozen=True)
class EntropyBound(Order):
    """The lowest entropies first, as many as keep sum H - max H at or below a bound.

    That difference bounds the total correlation of the positions given what is known, so a step
    errs by at most `bound` nats. The plan says only how many must be opened to end in time.

    Args:
        bound: nats a step.
        temperature: as for `Confidence`, of minus the entropy.

    Raises:
        UserError: for a negative bound or temperature.

    Source: Ben-Hamu et al. 2025, arXiv:2505.24857.
    """

    bound: float = 0.5
    temperature: float = 0.0
    informed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _checked(self.temperature)
        if not self.bound >= 0:
            raise UserError(f"the entropy bound must be at least 0 nats, got {self.bound}")

    def priority(self, log_probs: Tensor, column: Tensor, u: Tensor) -> Tensor:
        """Minus the entropy."""
        return _perturbed(-torch.special.entr(log_probs.exp()).sum(-1), self.temperature, u)

    def count(self, entropy: Tensor, hidden: Tensor, planned: Tensor) -> Tensor:
        """The longest run of lowest entropies within the bound; at least one, and the plan's."""
        ascending = entropy.masked_fill(~hidden, torch.inf).sort(-1).values
        before = ascending.nan_to_num(posinf=0.0).cumsum(-1).roll(1, -1)  # sum - max
        before[:, 0] = 0.0
        within = (before <= self.bound) & ascending.isfinite()
        return torch.maximum(within.sum(-1), planned)


def _checked(temperature: float) -> None:
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise UserError(f"the temperature of an order must be at least 0, got {temperature}")


def _perturbed(scores: Tensor, temperature: float, u: Tensor) -> Tensor:
    """Scores with Gumbel noise at a temperature; without any at 0."""
    if temperature == 0:
        return scores.double()
    gumbel = -torch.log(-torch.log(u.clamp(min=2.0**-54)))
    return scores.double() / temperature + gumbel
