"""Factors that reweight the integrand of the bound, for `dlm.objectives.Reweighted`.

The integrand is a weight w = `Process.elbo_weight` times a divergence, per unit of t. `Clip` and
`Dynamic` put another weight in the place of w; `Simple` and `Sigmoid` multiply by a function of the
noise level. Weights are per unit of t: another schedule spends its times elsewhere, so unlike the
bound these objectives depend on the schedule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.processes import Process, State


class Weighting(ABC):
    """A factor that is known from the noisy and the clean token."""

    def refusal(self, process: Process) -> str | None:
        """Why the factor is not defined for a process; None where it is."""
        return None

    @abstractmethod
    def factor(self, process: Process, state: State, x0: Tensor, t: Tensor) -> Tensor:
        """What multiplies the integrand of the bound, float64 (...), at active positions."""


@final
@dataclass(frozen=True)
class Clip(Weighting):
    """w, but at most `max_weight`: no row near t = 0 or t = 1 outweighs a batch.

    Source: von Rutte et al. 2025, arXiv:2503.04482 (GIDD).
    """

    max_weight: float = 2.0

    def __post_init__(self) -> None:
        _check_positive("max_weight", self.max_weight)

    def factor(self, process: Process, state: State, x0: Tensor, t: Tensor) -> Tensor:
        """min(w, max_weight) / w."""
        return (self.max_weight / process.elbo_weight(state, x0, t)).clamp(max=1.0)


@final
@dataclass(frozen=True)
class Dynamic(Weighting):
    """GIDD's dynamic weights in the place of w, at most `max_weight`.

    2 at MASK, 1 at any other noise, and B / (K - 1) exp(-logit(alpha) / 2) where the token is
    clean, with the B of hybrid noise (0 without even tokens).

    Source: von Rutte et al. 2025, arXiv:2503.04482 (GIDD).
    """

    max_weight: float = 2.0

    def __post_init__(self) -> None:
        _check_positive("max_weight", self.max_weight)

    def refusal(self, process: Process) -> str | None:
        """There must be a MASK."""
        if process.mask_id is not None:
            return None
        return (
            f"dynamic weights are defined for noise with MASK, not for {type(process).__name__} "
            "noise; use objective=clipped"
        )

    def factor(self, process: Process, state: State, x0: Tensor, t: Tensor) -> Tensor:
        """Dynamic weight over w."""
        wanted = process.dynamic_weight(state, x0, t).clamp(max=self.max_weight)
        return wanted / process.elbo_weight(state, x0, t)


@final
@dataclass(frozen=True)
class Simple(Weighting):
    """(1 - alpha) / -alpha': masked diffusion becomes the plain cross-entropy of masked tokens.

    Source: Shi & Titsias 2025, arXiv:2511.19664; MaskGIT.
    """

    def factor(self, process: Process, state: State, x0: Tensor, t: Tensor) -> Tensor:
        """One over the rate at which tokens are revealed."""
        return 1 / process.reveal_rate(t)


@final
@dataclass(frozen=True)
class Sigmoid(Weighting):
    """sigmoid(shift - logit alpha): more of the noisy levels, less of the nearly clean ones.

    The sigmoid weighting of continuous diffusion, in the signal-to-noise ratio of masked diffusion
    (what Shi & Titsias carry over from there: factors that decrease with it).

    Source: Kingma & Gao 2023, arXiv:2303.00848; Shi & Titsias 2025, arXiv:2511.19664 (masked).
    """

    shift: float = 0.0

    def factor(self, process: Process, state: State, x0: Tensor, t: Tensor) -> Tensor:
        """The sigmoid."""
        return torch.sigmoid(self.shift - process.schedule.logit_alpha(t))


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name} must be positive, got {value}")
