"""Grids: the levels alpha at which a grid sampler stops, from noise to data.

Always 0 = alpha_0 <= ... <= alpha_K = 1 exactly, whatever the model's schedule: no truncation, no
clean-up step. The sampler turns a level into a time with the inverse of the schedule of the model
it is handed.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.schedules import Schedule


class Grid(ABC):
    """Where to stop between noise and data."""

    @abstractmethod
    def levels(self, steps: int, schedule: Schedule) -> Tensor:
        """alpha_0 = 0 to alpha_K = 1, never falling, float64 (steps + 1,), for steps >= 1."""


@final
@dataclass(frozen=True)
class EvenGrid(Grid):
    """Even in alpha: for the linear schedule also even in t."""

    def levels(self, steps: int, schedule: Schedule) -> Tensor:
        """k / steps."""
        return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


@final
@dataclass(frozen=True)
class TimeGrid(Grid):
    """Even in the t of the model's schedule, from t = 1 to 0; the two ends are set to 0 and 1."""

    def levels(self, steps: int, schedule: Schedule) -> Tensor:
        """alpha(1 - k / steps)."""
        levels = schedule.alpha(torch.linspace(1, 0, steps + 1, dtype=torch.float64))
        levels[0], levels[-1] = 0.0, 1.0
        return levels


@final
@dataclass(frozen=True)
class CosineGrid(Grid):
    """alpha_k = 1 - cos(pi/2 k / steps): small steps near the noise (MaskGIT)."""

    def levels(self, steps: int, schedule: Schedule) -> Tensor:
        """1 - cos(pi/2 k / steps), written 2 sin^2(pi/4 k / steps)."""
        angle = torch.linspace(0, 1, steps + 1, dtype=torch.float64) * (math.pi / 4)
        levels = 2 * torch.sin(angle) ** 2
        levels[-1] = 1.0
        return levels


@final
@dataclass(frozen=True)
class GeometricGrid(Grid):
    """The noise level falls by a constant factor, from 1 to `noise`, and then to 0 in one step.

    Small steps near the data: a step of the same size in log(1 - alpha) loses the same there. The
    first step from 1 is one of the factor too.

    Args:
        noise: 1 - alpha before the last step.

    Raises:
        UserError: for a level outside (0, 1).

    Source: Dmitriev, Huang & Wei 2026 (steps that shrink towards the data).
    """

    noise: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.noise < 1:
            raise UserError(f"noise must be between 0 and 1, got {self.noise}")

    def levels(self, steps: int, schedule: Schedule) -> Tensor:
        """1 - noise^(k / (steps - 1)), then 1."""
        exponent = torch.arange(steps, dtype=torch.float64) / max(1, steps - 1)
        levels = -torch.expm1(exponent * math.log(self.noise))
        return torch.cat([levels, torch.ones(1, dtype=torch.float64)])


@final
@dataclass(frozen=True)
class LoopGrid(Grid):
    """Up to `level`, a plateau there, then on to the data: the loop of ReMDM.

    On the plateau nothing becomes clean but what a remasking kernel hides again.

    Args:
        start, end: shares of the steps at which the plateau begins and ends.
        level: alpha of the plateau.

    Raises:
        UserError: unless 0 < start <= end < 1 and 0 < level < 1.

    Source: Wang et al. 2025, arXiv:2503.00307.
    """

    start: float = 0.45
    end: float = 0.95
    level: float = 0.9

    def __post_init__(self) -> None:
        if not (0 < self.start <= self.end < 1 and 0 < self.level < 1):
            raise UserError(
                "a loop needs 0 < start <= end < 1 and 0 < level < 1, got "
                f"start={self.start}, end={self.end}, level={self.level}"
            )

    def levels(self, steps: int, schedule: Schedule) -> Tensor:
        """Straight lines through (0, 0), (start, level), (end, level), (1, 1)."""
        share = torch.arange(steps + 1, dtype=torch.float64) / steps
        up = (share / self.start).clamp(max=1.0) * self.level
        last = ((share - self.end) / (1 - self.end)).clamp(min=0.0) * (1 - self.level)
        return up + last if steps > 1 else torch.tensor([0.0, 1.0], dtype=torch.float64)


@final
@dataclass(frozen=True)
class ProfileGrid(Grid):
    """The best grid for a model, from its measured profile (`dlm profile`).

    Args:
        path: the file that `dlm profile` wrote; it holds a table of step costs between levels.

    Raises:
        UserError: the file is missing or holds no grid.
    """

    path: str

    def levels(self, steps: int, schedule: Schedule) -> Tensor:
        """The cheapest path of so many steps through the levels of the profile."""
        levels, loss = _read_grid_profile(self.path)
        return best_grid(levels, loss, steps)


def best_grid(levels: Tensor, loss: Tensor, steps: int) -> Tensor:
    """The grid of least sum_k (a_{k+1} - a_k) g(a_k), by dynamic programming.

    g(alpha), the expected loss of the hidden positions, falls with alpha, and that sum is a left
    Riemann sum of its integral: their difference is the path KL of the ancestral sampler.

    Args:
        levels: candidates, float64 (n,), from 0 to 1, rising.
        loss: g at the candidates, nats per sequence, float64 (n,); made non-increasing here.
        steps: K. Where K exceeds the n - 1 gaps, every gap is split evenly in the same number of
            parts, or one more.

    Returns:
        float64 (steps + 1,).
    """
    gaps = len(levels) - 1
    if steps >= gaps:
        counts = [steps // gaps + (i < steps % gaps) for i in range(gaps)]
        parts = [
            levels[i] + (levels[i + 1] - levels[i]) * torch.arange(n, dtype=torch.float64) / n
            for i, n in enumerate(counts)
        ]
        return torch.cat([*parts, levels[-1:]])
    g = loss.double().cummin(0).values
    cost = (levels[None, :] - levels[:, None]) * g[:, None]  # from i to j
    cost = cost.masked_fill(torch.ones_like(cost, dtype=torch.bool).tril(), torch.inf)
    best = torch.full_like(levels, torch.inf)
    best[0] = 0.0
    choices = []
    for _ in range(steps):
        best, choice = (best[:, None] + cost).min(0)
        choices.append(choice)
    path = [gaps]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return levels[torch.tensor(path[::-1])]


def _read_grid_profile(path: str) -> tuple[Tensor, Tensor]:
    try:
        content = json.loads(Path(path).expanduser().read_text("utf-8"))
        levels, loss = (
            torch.tensor(content["grid"][name], dtype=torch.float64) for name in ("alpha", "loss")
        )
    except OSError as error:
        raise UserError(f"cannot read the profile {path!r}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path!r} holds no grid; write one with `dlm profile`") from error
    good = len(levels) == len(loss) > 1 and (levels.diff() > 0).all() and loss.isfinite().all()
    if not good or levels[0] != 0 or levels[-1] != 1:
        raise UserError(f"the grid in {path!r} must rise from alpha 0 to 1; run `dlm profile`")
    return levels, loss
