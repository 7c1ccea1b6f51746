"""Kernels: one reverse transition from t to s, as "who may move" and "where to".

A kernel gives a bound b on the probability that a position changes, known before the network runs,
and the law of a position that was drawn with that probability; the transition is p(z_s | z_t) = (1
- b) 1[z_t] + b moved. So a sampler runs the network only for sequences with a drawn position and
the head only at those positions, and its law is exactly that of the kernel (thinning).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dlm.processes import Prediction, Process


class Kernel(ABC):
    """One reverse transition per position, independent given the prediction."""

    @abstractmethod
    def bound(self, process: Process, t: Tensor, s: Tensor) -> Tensor:
        """b(t, s) in [0, 1], shape of t."""

    @abstractmethod
    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """Log-law (..., K) of z_s at a position drawn with probability b."""

    def log_probs(self, prediction: Prediction, s: Tensor) -> Tensor:
        """log p(z_s | z_t), (..., K): the two parts put together, for exact analyses."""
        process, t = prediction.process, prediction.t
        moved = self.moved(prediction, s)
        bound = torch.where(
            process.active(prediction.state), self.bound(process, t, s).to(moved.dtype), 0.0
        )[..., None]
        stays = torch.nn.functional.one_hot(prediction.state.tokens, moved.shape[-1])
        return torch.log((1 - bound) * stays + bound * moved.exp())


@final
@dataclass(frozen=True)
class Ancestral(Kernel):
    """The reverse step of the process: p(z_s | z_t) with the leave-one-out posterior plugged in.

    Exact per position, so its only error is that positions move independently; the path KL falls
    with order 1 in the number of steps.

    Source: Gourevitch et al. 2026, arXiv:2605.22765; Dmitriev, Huang & Wei 2026.
    """

    def bound(self, process: Process, t: Tensor, s: Tensor) -> Tensor:
        """The bound of the process."""
        return process.move_bound(t, s)

    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """The law of the process."""
        return prediction.process.moved(prediction, s)
