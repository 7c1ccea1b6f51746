"""Which times the sequences of a training batch are noised to.

A time is a function of (seed, global sample counter), so it depends neither on the number of
devices nor on accumulation. `LowDiscrepancy` stratifies over the *global* batch of one optimizer
step: n sequences get the n points of a grid shifted by one uniform, t_i = frac(U + i / n); each is
uniform, together they cover [0, 1] evenly, and the estimate of the bound stays unbiased. A draw
comes with its weight, one over its density: the weighted loss is unbiased under every law.

Source: Kingma et al. 2021, arXiv:2107.00630 (low-discrepancy times).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from dlm.random import Key

# Below this noise level float32 losses lose their digits; the bound's integrand grows at most like
# log(1/t) there, so stopping here moves the training loss by about 1e-5 nats.
T_MIN = 1e-5


class TimeDraw(NamedTuple):
    """Times of some sequences and what their losses count.

    t: float64 (B,) in [T_MIN, 1].
    weight: float64 (B,), 1 / density of t: an unbiased loss is multiplied by it. 1 for even laws.
    """

    t: Tensor
    weight: Tensor


class Times(ABC):
    """Training times."""

    @abstractmethod
    def __call__(self, rows: Tensor, *, seed: int, batch_size: int) -> TimeDraw:
        """Times of the sequences with these global sample counters.

        Args:
            rows: int64 (B,), global sample counters: 0, 1, 2, ... over the whole run.
            seed: of the run.
            batch_size: sequences of one optimizer step over all devices and accumulation.

        Returns:
            Times and weights, a function of (seed, row) alone.
        """


@final
@dataclass(frozen=True)
class UniformTimes(Times):
    """Independent, even times."""

    def __call__(self, rows: Tensor, *, seed: int, batch_size: int) -> TimeDraw:
        """One uniform per sequence."""
        return _even(Key(seed, rows).fold("times").uniform())


@final
@dataclass(frozen=True)
class LowDiscrepancy(Times):
    """A randomly shifted grid over the global batch."""

    def __call__(self, rows: Tensor, *, seed: int, batch_size: int) -> TimeDraw:
        """frac(U_step + place in the global batch / batch_size)."""
        step = torch.div(rows, batch_size, rounding_mode="floor")
        shift = Key(seed, step).fold("times").uniform()
        return _even((shift + (rows % batch_size) / batch_size) % 1.0)


def _even(t: Tensor) -> TimeDraw:
    return TimeDraw(t.clamp(min=T_MIN), torch.ones_like(t))
