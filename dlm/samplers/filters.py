"""Filters: temperature, top-k, top-p, min-p and typical as maps of log-probabilities (..., K).

Each keeps a normalised law, and all but `Typical` the most likely token. Which posterior they act
on is the sampler's choice; `dlm.samplers.bending` puts them together. For the uniform process it
matters: the denoiser contains the evidence of the observed token, so a low temperature on it also
amplifies that (possibly noise) token; on the leave-one-out posterior it does not. For the absorbing
process the two agree.

Source: Holtzman et al. 2020 (top-p); Nguyen et al. 2024, arXiv:2407.01082 (min-p); Meister et al.
2022, arXiv:2202.00666 (typical).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dlm.errors import UserError


@final
@dataclass(frozen=True)
class Temperature:
    """p^(1/temperature), normalised."""

    temperature: float

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UserError(
                f"temperature must be positive, got {self.temperature}; "
                "use top_k=1 for the most likely token"
            )

    def __call__(self, log_probs: Tensor) -> Tensor:
        """Sharpen (below 1) or flatten (above 1)."""
        return (log_probs / self.temperature).log_softmax(-1)


@final
@dataclass(frozen=True)
class TopK:
    """The k most likely tokens."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"top_k must be at least 1, got {self.k}")

    def __call__(self, log_probs: Tensor) -> Tensor:
        """Exactly k tokens stay, also when some are tied."""
        k = min(self.k, log_probs.shape[-1])
        kept = torch.zeros_like(log_probs, dtype=torch.bool)
        kept = kept.scatter(-1, log_probs.topk(k, dim=-1).indices, True)
        return _keep(log_probs, kept)


@final
@dataclass(frozen=True)
class TopP:
    """The smallest set of most likely tokens with mass of at least p: the crossing one is in."""

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise UserError(f"top_p must be in (0, 1], got {self.p}")

    def __call__(self, log_probs: Tensor) -> Tensor:
        """A token stays while the mass before it is below p."""
        sorted_probs, order = log_probs.exp().sort(-1, descending=True)
        before = sorted_probs.cumsum(-1) - sorted_probs
        kept = torch.zeros_like(log_probs, dtype=torch.bool).scatter(-1, order, before < self.p)
        return _keep(log_probs, kept)


@final
@dataclass(frozen=True)
class MinP:
    """Tokens at least `p` times as likely as the most likely one."""

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise UserError(f"min_p must be in (0, 1], got {self.p}")

    def __call__(self, log_probs: Tensor) -> Tensor:
        """The threshold is relative to the mode."""
        return _keep(log_probs, log_probs >= log_probs.amax(-1, keepdim=True) + math.log(self.p))


@final
@dataclass(frozen=True)
class Typical:
    """The smallest set of mass at least p whose surprise is nearest to the entropy.

    The most likely token goes if it is far more likely than the entropy makes expected.
    """

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise UserError(f"typical_p must be in (0, 1], got {self.p}")

    def __call__(self, log_probs: Tensor) -> Tensor:
        """A token stays while the mass of the more typical ones is below p."""
        probs = log_probs.exp()
        entropy = torch.special.entr(probs).sum(-1, keepdim=True)
        order = (-log_probs - entropy).abs().argsort(dim=-1, stable=True)
        sorted_probs = probs.gather(-1, order)
        before = sorted_probs.cumsum(-1) - sorted_probs
        kept = torch.zeros_like(log_probs, dtype=torch.bool).scatter(-1, order, before < self.p)
        return _keep(log_probs, kept)


def _keep(log_probs: Tensor, kept: Tensor) -> Tensor:
    return log_probs.masked_fill(~kept, -torch.inf).log_softmax(-1)
