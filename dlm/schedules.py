"""Noise schedules: how much of the clean sequence is left at time t.

`alpha(t)` is the probability that a token still shows its clean value, decreasing on [0, 1], t = 0
clean, t = 1 noise. A schedule gives log alpha, log(1 - alpha) and d alpha / dt as float64, each
from a formula of its own: near t = 0 the noise level 1 - alpha must never come from a rounded
alpha. `inverse` is t(alpha). Formulas continue beyond [0, 1] where that is meaningful, so that a
schedule that stops short of pure noise can still be asked for any level in (0, 1).

| schedule | alpha | notes |
|---|---|---|
| Linear | 1 - (1 - alpha_min) t | "log-linear" of the published code; alpha_min 1e-3 there, 0 here
|
| Cosine | 1 - cos(pi/2 (1 - t)) | MaskGIT |
| Polynomial | 1 - t^power | power 1 is linear |
| Geometric | exp(-sigma_min^(1-t) sigma_max^t) | SEDD; alpha(0) < 1 and alpha(1) > 0 |
| Piecewise | straight between knots at even t | any curve: `dlm fit` writes one with even loss |
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from dlm.errors import UserError


def _double(t: Tensor | float) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


class Schedule(ABC):
    """alpha(t) and its relatives; frozen, so equal settings make equal schedules."""

    @abstractmethod
    def log_alpha(self, t: Tensor | float) -> Tensor:
        """log alpha(t), float64, shape of t; -inf where alpha is 0."""

    @abstractmethod
    def log_one_minus_alpha(self, t: Tensor | float) -> Tensor:
        """log(1 - alpha(t)), float64, shape of t; -inf where alpha is 1."""

    @abstractmethod
    def dalpha(self, t: Tensor | float) -> Tensor:
        """d alpha / dt, float64, at most 0."""

    @abstractmethod
    def inverse(self, alpha: Tensor | float) -> Tensor:
        """The time t at which alpha(t) has this value, float64."""

    def alpha(self, t: Tensor | float) -> Tensor:
        """alpha(t), float64."""
        return self.log_alpha(t).exp()

    def logit_alpha(self, t: Tensor | float) -> Tensor:
        """log alpha - log(1 - alpha), float64: the level a time-conditioned network sees."""
        return self.log_alpha(t) - self.log_one_minus_alpha(t)


def _log_complement(log_x: Tensor) -> Tensor:
    """log(1 - x) from log x <= 0, accurate at both ends."""
    small = log_x < -math.log(2.0)
    return torch.where(
        small,
        torch.log1p(-log_x.clamp(max=-math.log(2.0)).exp()),
        torch.log(-torch.expm1(log_x.clamp(min=-1.0))),
    )


@final
@dataclass(frozen=True)
class Linear(Schedule):
    """alpha = 1 - (1 - alpha_min) t.

    Raises:
        UserError: unless 0 <= alpha_min < 1.
    """

    alpha_min: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha_min < 1:
            raise UserError(
                f"alpha_min must be in [0, 1), got {self.alpha_min}; "
                "use 1e-3 to match MDLM checkpoints"
            )

    def log_one_minus_alpha(self, t: Tensor | float) -> Tensor:
        """log((1 - alpha_min) t)."""
        return torch.log(_double(t)) + math.log1p(-self.alpha_min)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        """log(1 - (1 - alpha_min) t)."""
        return torch.log1p(-(1 - self.alpha_min) * _double(t))

    def dalpha(self, t: Tensor | float) -> Tensor:
        """-(1 - alpha_min)."""
        return torch.full_like(_double(t), -(1 - self.alpha_min))

    def inverse(self, alpha: Tensor | float) -> Tensor:
        """t = (1 - alpha) / (1 - alpha_min)."""
        return (1 - _double(alpha)) / (1 - self.alpha_min)


@final
@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = 1 - cos(pi/2 (1 - t))."""

    def log_one_minus_alpha(self, t: Tensor | float) -> Tensor:
        """log sin(pi/2 t): the same function, exact near t = 0."""
        return torch.log(torch.sin(math.pi / 2 * _double(t)))

    def log_alpha(self, t: Tensor | float) -> Tensor:
        """log(2 sin^2(pi/4 (1 - t))): the same function, exact near t = 1."""
        return math.log(2.0) + 2 * torch.log(torch.sin(math.pi / 4 * (1 - _double(t))))

    def dalpha(self, t: Tensor | float) -> Tensor:
        """-(pi/2) cos(pi/2 t)."""
        return -(math.pi / 2) * torch.cos(math.pi / 2 * _double(t))

    def inverse(self, alpha: Tensor | float) -> Tensor:
        """t = 1 - (4/pi) asin(sqrt(alpha / 2))."""
        t = 1 - (4 / math.pi) * torch.asin(torch.sqrt(_double(alpha) / 2))
        return t.clamp(min=0.0)  # rounding must not leave the domain of the sine


@final
@dataclass(frozen=True)
class Polynomial(Schedule):
    """alpha = 1 - t^power.

    Raises:
        UserError: unless power > 0.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise UserError(f"power must be positive, got {self.power}; 1 is the linear schedule")

    def log_one_minus_alpha(self, t: Tensor | float) -> Tensor:
        """power log t."""
        return self.power * torch.log(_double(t))

    def log_alpha(self, t: Tensor | float) -> Tensor:
        """log(1 - t^power)."""
        return _log_complement(self.log_one_minus_alpha(t))

    def dalpha(self, t: Tensor | float) -> Tensor:
        """-power t^(power - 1)."""
        return -self.power * _double(t) ** (self.power - 1)

    def inverse(self, alpha: Tensor | float) -> Tensor:
        """t = (1 - alpha)^(1 / power)."""
        return (1 - _double(alpha)) ** (1 / self.power)


@final
@dataclass(frozen=True)
class Geometric(Schedule):
    """alpha = exp(-sigma), sigma = sigma_min^(1-t) sigma_max^t.

    Raises:
        UserError: unless 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(
                f"sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, "
                f"got {self.sigma_min} and {self.sigma_max}; SEDD uses 1e-4 and 20"
            )

    def log_alpha(self, t: Tensor | float) -> Tensor:
        """-sigma(t)."""
        return -torch.exp(math.log(self.sigma_min) + self._log_ratio * _double(t))

    def log_one_minus_alpha(self, t: Tensor | float) -> Tensor:
        """log(1 - exp(-sigma))."""
        return _log_complement(self.log_alpha(t))

    def dalpha(self, t: Tensor | float) -> Tensor:
        """-alpha sigma log(sigma_max / sigma_min)."""
        log_alpha = self.log_alpha(t)
        return log_alpha * log_alpha.exp() * self._log_ratio

    def inverse(self, alpha: Tensor | float) -> Tensor:
        """t = log(-log(alpha) / sigma_min) / log(sigma_max / sigma_min)."""
        return (torch.log(-torch.log(_double(alpha))) - math.log(self.sigma_min)) / self._log_ratio

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)


@final
@dataclass(frozen=True)
class Piecewise(Schedule):
    """Straight lines between knots at even times.

    Args:
        knots: alpha at t = 0, 1/n, ..., 1: from 1 down to 0, ever smaller.

    Raises:
        UserError: other ends, knots that do not fall, or fewer than two.
    """

    knots: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.knots) < 2 or self.knots[0] != 1 or self.knots[-1] != 0:
            raise UserError(
                "schedule.knots must be alpha at even times from 1 at t=0 to 0 at t=1, "
                f"got {list(self.knots)}"
            )
        for k, (left, right) in enumerate(pairwise(self.knots)):
            if not left > right:
                raise UserError(
                    f"schedule.knots must fall at every step, but knot {k} is {left} and knot "
                    f"{k + 1} is {right}"
                )

    def log_one_minus_alpha(self, t: Tensor | float) -> Tensor:
        """log of the noise, a sum of the noise of the knot before and a share of the step."""
        _, noise = self._alpha_and_noise(_double(t))
        return torch.log(noise)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        """log alpha; from the noise where that is the smaller."""
        alpha, noise = self._alpha_and_noise(_double(t))
        small = noise < 0.5
        low = torch.log1p(-torch.where(small, noise, 0.0))
        return torch.where(small, low, torch.log(torch.where(small, 1.0, alpha)))

    def dalpha(self, t: Tensor | float) -> Tensor:
        """The slope of the line; at a knot that of the line after it."""
        t = _double(t)
        knots = self._table(t)
        return knots.diff()[self._line(t)] * (len(self.knots) - 1)

    def inverse(self, alpha: Tensor | float) -> Tensor:
        """The place on the line that crosses this level."""
        alpha = _double(alpha)
        knots = self._table(alpha)
        line = torch.bucketize(1 - alpha, 1 - knots[1:-1], right=True)
        share = (knots[line] - alpha) / (knots[line] - knots[line + 1])
        return (line + share) / (len(self.knots) - 1)

    def _alpha_and_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Both are sums of terms of one sign: neither cancels at its end."""
        knots, count = self._table(t), len(self.knots) - 1
        line = self._line(t)
        step = knots[line] - knots[line + 1]
        alpha = knots[line + 1] + step * ((1 - t) * count - (count - 1 - line))
        return alpha, (1 - knots[line]) + step * (t * count - line)

    def _line(self, t: Tensor) -> Tensor:
        count = len(self.knots) - 1
        return (t.detach() * count).floor().long().clamp(0, count - 1)

    def _table(self, like: Tensor) -> Tensor:
        return torch.tensor(self.knots, dtype=torch.float64, device=like.device)
