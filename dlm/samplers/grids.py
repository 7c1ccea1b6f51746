"""Grids: the levels alpha at which a grid sampler stops, from noise to data.

Always 0 = alpha_0 < ... < alpha_K = 1 exactly, whatever the model's schedule: no truncation, no
clean-up step. The sampler turns a level into a time with the inverse of the schedule of the model
it is handed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


class Grid(ABC):
    """Where to stop between noise and data."""

    @abstractmethod
    def levels(self, steps: int) -> Tensor:
        """alpha_0 = 0 to alpha_K = 1, increasing, float64 (steps + 1,), for steps >= 1."""


@final
@dataclass(frozen=True)
class EvenGrid(Grid):
    """Even in alpha: for the linear schedule also even in t."""

    def levels(self, steps: int) -> Tensor:
        """k / steps."""
        return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


@final
@dataclass(frozen=True)
class CosineGrid(Grid):
    """alpha_k = 1 - cos(pi/2 k / steps): small steps near the noise (MaskGIT)."""

    def levels(self, steps: int) -> Tensor:
        """1 - cos(pi/2 k / steps), written 2 sin^2(pi/4 k / steps)."""
        angle = torch.linspace(0, 1, steps + 1, dtype=torch.float64) * (math.pi / 4)
        levels = 2 * torch.sin(angle) ** 2
        levels[-1] = 1.0
        return levels
