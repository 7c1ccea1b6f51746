"""Kernels: one reverse transition from t to s, as "who may move" and "where to".

A kernel gives a bound b on the probability that a position changes, known before the network runs,
and the law of a position that was drawn with that probability; the transition is p(z_s | z_t) = (1
- b) 1[z_t] + b moved. So a sampler runs the network only for sequences with a drawn position and
the head only at those positions, and its law is exactly that of the kernel (thinning).

The reverse steps of a process are here; those that noise tokens again are in `remasking`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.processes import Prediction, Process, State
from dlm.processes.base import uncoupled
from dlm.random import Key, sample_categorical


class Kernel(ABC):
    """One reverse transition per position, independent given the prediction.

    `order` is that of the terminal total variation in the number of steps, `path_order` that of the
    path KL, at the exact posterior on even levels; None where nothing is claimed. `uniforms` is how
    many numbers a draw takes, `remembers` whether the bound depends on the confidence.
    """

    order: ClassVar[int | None] = None
    path_order: ClassVar[int | None] = None
    uniforms: ClassVar[int] = 1
    remembers: ClassVar[bool] = False

    def refusal(self, process: Process) -> str | None:
        """Why this kernel is not defined for a process, and what to use instead; or None."""
        return None

    @abstractmethod
    def bound(
        self, process: Process, state: State, t: Tensor, s: Tensor, confidence: Tensor | None = None
    ) -> Tensor:
        """b in [0, 1], (...): known from the noisy tokens, before the network runs.

        Args:
            process: whose step it is.
            state: tokens (..., L) at time t.
            t, s: times s <= t, broadcastable to the tokens.
            confidence: log-probability that the model gave each token when it was drawn, NaN where
                it drew none; (..., L), for kernels that choose by it.
        """

    @abstractmethod
    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """Log-law (..., K) of z_s at a position drawn with probability b."""

    def draw(self, prediction: Prediction, s: Tensor, u: Tensor) -> State:
        """A draw from `moved` at positions (N,), with uniforms float64 (N, uniforms)."""
        tokens = sample_categorical(self.moved(prediction, s), u[..., 0])
        return prediction.state._replace(tokens=tokens)

    def log_probs(self, prediction: Prediction, s: Tensor) -> Tensor:
        """log p(z_s | z_t), (..., K): the two parts put together, for exact analyses."""
        process, state = prediction.process, prediction.state
        moved = self.moved(prediction, s)
        bound = self.bound(process, state, prediction.t, s).to(moved.dtype)[..., None]
        stays = torch.nn.functional.one_hot(state.tokens, moved.shape[-1])
        return torch.log((1 - bound) * stays + bound * moved.exp())

    def __call__(self, prediction: Prediction, s: Tensor, *, key: Key) -> State:
        """One step by hand: the state at time s, for a prediction of tokens (B, L)."""
        if (refusal := self.refusal(prediction.process)) is not None:
            raise UserError(refusal)
        state, t = prediction.state, prediction.t
        length = state.tokens.shape[-1]
        bound = self.bound(prediction.process, state, t, s)
        moves = key.fold("move").uniform(length) < bound
        drawn = self.draw(prediction, s, key.fold("value").uniform(length, self.uniforms))
        noise = state.noise
        if noise is not None and drawn.noise is not None:
            noise = torch.where(moves, drawn.noise, noise)
        return State(torch.where(moves, drawn.tokens, state.tokens), noise)


@final
@dataclass(frozen=True)
class Ancestral(Kernel):
    """The reverse step of the process: p(z_s | z_t) with the leave-one-out posterior plugged in.

    Exact per position, so its only error is that positions move independently; the path KL falls
    with order 1 in the number of steps.

    Source: Gourevitch et al. 2026, arXiv:2605.22765; Dmitriev, Huang & Wei 2026.
    """

    order: ClassVar[int | None] = 1
    path_order: ClassVar[int | None] = 1

    def bound(
        self, process: Process, state: State, t: Tensor, s: Tensor, confidence: Tensor | None = None
    ) -> Tensor:
        """The bound of the process."""
        return torch.where(process.active(state), process.move_bound(state, t, s), 0.0)

    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """The law of the process."""
        return prediction.process.moved(prediction, s)


@final
@dataclass(frozen=True)
class SampledX0(Kernel):
    """x0 is drawn from the denoiser, then z_s from the bridge q(z_s | z_t, x0).

    The law of `Ancestral`: the average of the bridge over the denoiser is the plug-in of the
    leave-one-out posterior. It needs no second vector over K, and a filter on the denoiser acts on
    the token that is drawn.

    Source: Austin et al. 2021, arXiv:2107.03006; Gourevitch et al. 2026, arXiv:2605.22765.
    """

    order: ClassVar[int | None] = 1
    path_order: ClassVar[int | None] = 1
    uniforms: ClassVar[int] = 4

    def bound(
        self, process: Process, state: State, t: Tensor, s: Tensor, confidence: Tensor | None = None
    ) -> Tensor:
        """The bound of the process."""
        return torch.where(process.active(state), process.move_bound(state, t, s), 0.0)

    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """The law of the process."""
        return prediction.process.moved(prediction, s)

    def draw(self, prediction: Prediction, s: Tensor, u: Tensor) -> State:
        """Two draws, the second without a vector over K where the process knows how."""
        state = prediction.state
        x0 = sample_categorical(prediction.log_denoiser, u[..., 0])
        tokens = prediction.process.moved_given(x0, state, prediction.t, s, u[..., 1:])
        return state._replace(tokens=tokens)


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

    order: ClassVar[int | None] = 1

    def refusal(self, process: Process) -> str | None:
        """Only noise of a constant law."""
        return uncoupled(process, "use sampler=ancestral")

    def bound(
        self, process: Process, state: State, t: Tensor, s: Tensor, confidence: Tensor | None = None
    ) -> Tensor:
        """c(t, s)."""
        return torch.where(process.active(state), process.coupling_chance(t, s), 0.0)

    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """The denoiser."""
        return prediction.log_denoiser


class JumpKernel(Kernel):
    """Kernels that hold the rates R of the reverse jumps over a step of h = t - s.

    Rates belong to the time of the schedule: on another schedule h is another. They diverge at pure
    noise for some processes, and hardly any step by rates ends at clean tokens; so the steps that
    begin at alpha = 0 or end at alpha = 1 are those of `Ancestral`, and nothing is truncated. On
    even levels the path KL does not vanish for uniform noise: the last steps halve the noise,
    however short they are.
    """

    order: ClassVar[int | None] = 1

    @abstractmethod
    def leave(self, total: Tensor, h: Tensor) -> Tensor:
        """Probability of leaving z at a total rate (...) in a time h, in [0, 1]."""

    def bound(
        self, process: Process, state: State, t: Tensor, s: Tensor, confidence: Tensor | None = None
    ) -> Tensor:
        """That at the largest total rate the process can have."""
        by_rate = self.leave(process.jump_bound(state, t), t - s)
        chance = torch.where(_at_an_end(process, t, s), process.move_bound(state, t, s), by_rate)
        return torch.where(process.active(state), chance, 0.0)

    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """The jump, if the rate that the network gives allows it."""
        process, state, t = prediction.process, prediction.state, prediction.t
        if _at_an_end(process, t, s).any():  # of a grid: then at all positions
            return process.moved(prediction, s)
        rates = process.log_jump_rates(prediction)
        log_total = rates.logsumexp(-1)
        chance = self.leave(log_total.double().exp(), t - s)
        bound = self.leave(process.jump_bound(state, t), t - s)
        share = (chance / bound.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1.0)
        stuck = log_total == -torch.inf  # inactive: nowhere to go
        to = rates - torch.where(stuck, 0.0, log_total)[..., None]
        share = torch.where(stuck, 0.0, share).to(rates.dtype)[..., None]
        jumps = torch.log(share) + to
        return jumps.scatter(-1, state.tokens[..., None], torch.log1p(-share))


def _at_an_end(process: Process, t: Tensor, s: Tensor) -> Tensor:
    schedule = process.schedule
    return (schedule.log_alpha(t) == -torch.inf) | (schedule.log_one_minus_alpha(s) == -torch.inf)


@final
@dataclass(frozen=True)
class Euler(JumpKernel):
    """One Euler step: P(y) = h R(y), and 1 - h R_total stays; a total above 1 is cut.

    For masks on the linear schedule it is the ancestral step, on any grid.

    Source: Liang et al. 2026, arXiv:2602.22505 (rates for masked diffusion).
    """

    def leave(self, total: Tensor, h: Tensor) -> Tensor:
        """h R, at most 1."""
        return (total * h).clamp(max=1.0)


@final
@dataclass(frozen=True)
class TauLeaping(JumpKernel):
    """Jumps of a step are counted by a Poisson law: none with probability exp(-h R), else one.

    Tokens have no order, so several jumps of one position count as one (truncated tau-leaping).

    Source: Campbell et al. 2022, arXiv:2205.14987; Dmitriev, Huang & Wei 2026, arXiv:2602.15008.
    """

    def leave(self, total: Tensor, h: Tensor) -> Tensor:
        """1 - exp(-h R)."""
        return -torch.expm1(-total * h)
