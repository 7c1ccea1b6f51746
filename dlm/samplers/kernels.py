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

from dlm.errors import UserError
from dlm.processes import Prediction, Process, State
from dlm.processes.base import uncoupled


class Kernel(ABC):
    """One reverse transition per position, independent given the prediction."""

    @abstractmethod
    def bound(self, process: Process, state: State, t: Tensor, s: Tensor) -> Tensor:
        """b in [0, 1], (...): known from the noisy tokens, before the network runs."""

    @abstractmethod
    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """Log-law (..., K) of z_s at a position drawn with probability b."""

    def log_probs(self, prediction: Prediction, s: Tensor) -> Tensor:
        """log p(z_s | z_t), (..., K): the two parts put together, for exact analyses."""
        process, state = prediction.process, prediction.state
        moved = self.moved(prediction, s)
        bound = self.bound(process, state, prediction.t, s).to(moved.dtype)
        bound = torch.where(process.active(state), bound, 0.0)[..., None]
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

    def bound(self, process: Process, state: State, t: Tensor, s: Tensor) -> Tensor:
        """The bound of the process."""
        return process.move_bound(state, t, s)

    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """The law of the process."""
        return prediction.process.moved(prediction, s)


@final
@dataclass(frozen=True)
class MaximalCoupling(Kernel):
    """z_s is a draw from the denoiser with probability c, else z_t: at most one jump a position.

    c = (alpha_s - alpha_t) / (1 - alpha_t). For absorbing and lifted noise this is the ancestral
    step. For uniform noise and a given prior it is another one with the same marginals: it needs no
    vector over K but the denoiser, errs about as much, and its own bound (objective and
    `dlm evaluate bound=maximal_coupling`) is valid but not tight.

    Raises:
        UserError: for a process whose noise changes its law with time.

    Source: Gourevitch et al. 2026, arXiv:2605.22765.
    """

    def bound(self, process: Process, state: State, t: Tensor, s: Tensor) -> Tensor:
        """c(t, s)."""
        if (refusal := uncoupled(process, "use sampler=ancestral")) is not None:
            raise UserError(refusal)
        return process.coupling_chance(t, s).expand(state.tokens.shape)

    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """The denoiser."""
        return prediction.log_denoiser
