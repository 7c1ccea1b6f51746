"""Noise processes: every formula of one process in one file, row-wise over `[..., K]`.

Every process here corrupts each token on its own, `q_t(z | x0) = alpha_t 1[z = x0] + b_t(z)`, where
`b_t = (1 - alpha_t) pi_t`. With `loo(v) = p(x0^i = v | z^{-i})`, the leave-one-out posterior of a
position given all the others, and `m_t = alpha_t loo + b_t`, the law of its noisy token given all
the others:

1. Bayes:      denoiser(v) ~ loo(v) q_t(z | v)
2. ancestral:  p(z_s | z_t) ~ q_{t|s}(z_t | z_s) m_s(z_s)
3. bound:      its integrand at the token z is the jump rate into z times
               sum_{y != z} phi(q_t(y|x0) / q_t(z|x0), m_t(y) / m_t(z)),
               phi(x, y) = y - x + x log(x / y)

A `Prediction` is what flows from the network to the loss and to the sampler. It is made in one of
three currencies (leave-one-out posterior, denoiser, ratios of the noisy marginal) and converts only
when a formula asks, because near t = 0 the conversion from the denoiser cancels digits.

Shapes: tokens (...), times broadcast against tokens, log-probabilities (..., K), all in nats.
Source: Gourevitch et al. 2026, arXiv:2605.22765; Dmitriev, Huang & Wei 2026 (leave-one-out
sampler).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.ops.triton_rows import RowKernel
from dlm.processes.prediction import (
    Posterior,
    Prediction,
    State,
    add_at,
    log_point,
    pick,
)
from dlm.random import Key, sample_categorical
from dlm.schedules import Schedule

# 1 - alpha and alpha are kept above exp(-69) = 1e-30: conversions stay finite in float32 at t = 0
# and t = 1.
LOG_FLOOR = -69.0


class Process(ABC):
    """One noise process: numbers only, no device. Concrete ones are frozen dataclasses."""

    time_conditioned: ClassVar[bool]  # whether the network has to see the noise level
    noise_conditioned: ClassVar[bool] = False  # whether it has to see State.noise
    coupled: ClassVar[bool] = True  # whether maximal coupling keeps the marginals: pi is constant
    shows_noise: ClassVar[bool] = False  # a noisy token is known to be (or to look like) noise
    reveals: ClassVar[bool] = False  # has an absorbing view: positions are hidden until revealed
    num_states: int
    schedule: Schedule
    mask_id: int | None

    # -- forward -------------------------------------------------------------------------------

    @abstractmethod
    def noise_law(self, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """pi_t at a scalar time, float64 (K,): with the schedule it defines the process.

        Where the noise of a position is known (State.noise, (...)), it is (..., K). Every other
        formula follows from it; the conformance suite derives them independently.
        """

    @abstractmethod
    def prior(self, shape: tuple[int, int], *, key: Key) -> State:
        """A state of pure noise for (B, L) tokens, on the device of the key."""

    @abstractmethod
    def corrupt(self, x0: Tensor, t: Tensor, *, key: Key) -> State:
        """Draw z ~ q_t(. | x0) for x0 (B, L) and t (B, 1)."""

    @abstractmethod
    def prior_kl(self, alpha: float) -> float:
        """KL(q_t(. | x0) || prior) in nats per token at this alpha."""

    def pin(self, state: State, x0: Tensor, where: Tensor) -> State:
        """The state with known clean tokens (prompts, padding) written at `where`."""
        return state._replace(tokens=torch.where(where, x0, state.tokens))

    @abstractmethod
    def active(self, state: State) -> Tensor:
        """Bool (...): positions whose loss or update is not known to be zero."""

    @abstractmethod
    def on(self, schedule: Schedule) -> Self:
        """The same process on another schedule."""

    @abstractmethod
    def renoise(self, state: State, s: Tensor, t: Tensor, u: Tensor) -> State:
        """Noise a state of time s on to a later time t: a draw of z_t ~ q_{t|s}(. | z_s).

        At s with alpha_s = 1 that is corruption; what a state keeps (State.noise) is kept.

        Args:
            state: tokens (...) at time s.
            s, t: times, s < t, broadcastable to (...).
            u: uniforms, float64 (..., 2).
        """

    # -- the absorbing view, of processes with `reveals` ---------------------------------------

    def hidden(self, state: State) -> Tensor:
        """Bool (...): positions that show nothing of their clean token, or cannot be told to."""
        return torch.zeros_like(state.tokens, dtype=torch.bool)

    def blank(self, state: State, where: Tensor) -> State:
        """The state with positions hidden, so that a network can be asked about them.

        Where the leave-one-out posterior can be had at any token, nothing is changed.
        """
        return state

    def hidden_time(self, share: Tensor) -> Tensor:
        """The time at which this share of the positions is expected to be hidden, float64."""
        return self.schedule.inverse(1 - share)

    def view_time(self, t: Tensor) -> Tensor:
        """The time, in the place of t, at which the absorbing view is exact, float64 like t.

        There the leave-one-out posterior of a hidden position given revealed tokens is that given
        clean tokens and nothing else. For masks that is any time.
        """
        return t

    # -- one posterior, three currencies -------------------------------------------------------

    @abstractmethod
    def from_denoiser(self, log_probs: Tensor, state: State, t: Tensor) -> Prediction:
        """Read a normalised network output (..., K) as a denoiser."""

    @abstractmethod
    def from_score(self, logits: Tensor, state: State, t: Tensor) -> Prediction:
        """Read a raw network output (..., K) as log-ratios of the noisy marginal."""

    @abstractmethod
    def evidence(self, state: State, t: Tensor) -> Tensor:
        """log(q_t(z | z) / q_t(z | v)), v != z: what seeing z adds to its log-odds, float64 (...).

        Infinite, and then never asked for, where z cannot be noise.
        """

    def to_denoiser(self, log_loo: Tensor, state: State, t: Tensor) -> Tensor:
        """Denoiser from the leave-one-out posterior, normalised, (..., K): Bayes' rule."""
        evidence = self.evidence(state, t)[..., None]
        return add_at(log_loo, state.tokens, evidence).log_softmax(-1)

    def to_loo(self, log_denoiser: Tensor, state: State, t: Tensor) -> Tensor:
        """Leave-one-out posterior from the denoiser, normalised, (..., K)."""
        evidence = self.evidence(state, t)[..., None]
        return add_at(log_denoiser, state.tokens, -evidence).log_softmax(-1)

    def log_denoiser_at(self, prediction: Prediction, index: Tensor) -> Tensor:
        """log denoiser(index), float64 (...): two entries of the posterior, no second softmax."""
        if prediction.made_of != "loo":
            return pick(prediction.log_denoiser, index).double()
        z, log_loo = prediction.state.tokens, prediction.log_loo
        evidence = self.evidence(prediction.state, prediction.t)
        here = pick(log_loo, z).double()  # read once: its two gradients cancel, in float64
        entry = torch.where(index == z, here + evidence, pick(log_loo, index).double())
        return entry - torch.log1p(here.exp() * torch.expm1(evidence))

    @abstractmethod
    def ratios_to_loo(self, log_ratios: Tensor, state: State, t: Tensor) -> Tensor:
        """Leave-one-out posterior from the ratios m(y) / m(z), normalised, (..., K)."""

    @abstractmethod
    def log_marginal(self, log_loo: Tensor, state: State, t: Tensor) -> Tensor:
        """log m_t = log(alpha_t loo + (1 - alpha_t) pi), (..., K)."""

    # -- one reverse step from t to s < t ------------------------------------------------------

    @abstractmethod
    def posterior(self, prediction: Prediction, s: Tensor) -> Tensor:
        """log p(z_s | z_t), (..., K): exact per position where the prediction is."""

    @abstractmethod
    def move_bound(self, state: State, t: Tensor, s: Tensor) -> Tensor:
        """b, (...): no position changes with a larger probability, whatever the network says.

        Only meaningful at active positions; the others do not change.
        """

    def moved_given(self, x0: Tensor, state: State, t: Tensor, s: Tensor, u: Tensor) -> Tensor:
        """A draw of z_s ~ q(z_s | z_t, x0) at a position drawn with probability b, int64 (...).

        Args:
            x0: clean tokens, (...).
            state: tokens (...) at time t.
            t, s: times, broadcastable to (...).
            u: uniforms, float64 (..., 3).
        """
        like = torch.zeros(*x0.shape, self.num_states, device=x0.device)
        known = Prediction(self, state, t, log_loo=log_point(x0, like))
        return sample_categorical(self.moved(known, s), u[..., 0])

    @abstractmethod
    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """Log-law (..., K) of z_s at a position drawn with probability b.

        p(z_s | z_t) = (1 - b) 1[z_t] + b moved: a sampler draws the positions first and runs the
        network only where one was drawn.
        """

    # -- bounds --------------------------------------------------------------------------------

    @abstractmethod
    def nelbo(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """Integrand of the negative ELBO at prediction.t, (...): nats per token and unit of t."""

    @abstractmethod
    def elbo_weight(self, state: State, x0: Tensor, t: Tensor) -> Tensor:
        """Jump rate into z over q_t(z | x0), float64 (...): the factor before the divergence.

        nelbo = elbo_weight times (KL(q_t(. | x0) || m_t) + e - log e - 1), e = q_t(z|x0) / m_t(z);
        reweighted objectives replace the factor.
        """

    def dynamic_weight(self, state: State, x0: Tensor, t: Tensor) -> Tensor:
        """What GIDD's dynamic weighting puts in the place of `elbo_weight`, float64 (...).

        Raises:
            UserError: only noise with MASK has such weights.
        """
        raise UserError(f"{type(self).__name__} noise has no dynamic weights")

    def bridge_kl(self, prediction: Prediction, x0: Tensor, s: Tensor) -> Tensor:
        """KL(q(z_s | z_t, x0) || p(z_s | z_t)) in nats, (...): one term of the K-step bound.

        The bridge is the posterior of a prediction that knows x0. As a sum of q psi(log p/q),
        psi(u) = exp(u) - 1 - u >= 0, a small divergence is not a difference of large terms.
        """
        log_p = self.posterior(prediction, s)
        state, t = prediction.state, prediction.t
        known = Prediction(self, state, t, log_loo=log_point(x0, prediction.log_loo))
        log_q = self.posterior(known, s)
        possible = log_q > -torch.inf
        u = torch.where(possible, log_p - log_q, 0.0)
        terms = torch.where(possible, log_q.exp() * (torch.expm1(u) - u), log_p.exp())
        return terms.sum(-1)

    # -- jumps of the reverse process ----------------------------------------------------------

    @abstractmethod
    def rate_into(self, state: State, t: Tensor) -> Tensor:
        """r_t(z), float64 (...): forward jumps into the token shown, per unit of t.

        Only meaningful at active positions.
        """

    @abstractmethod
    def jump_bound(self, state: State, t: Tensor) -> Tensor:
        """r_t(z) (1 - b_t(z)) / b_t(z), float64 (...): no position leaves z at a larger rate.

        Only meaningful at active positions.
        """

    def log_jump_rates(self, prediction: Prediction) -> Tensor:
        """Log-rates (..., K) of the reverse jumps from z: r_t(z) m_t(y) / m_t(z), -inf at y = z."""
        state, t = prediction.state, prediction.t
        log_m = self.log_marginal(prediction.log_loo, state, t)
        log_rate = self.rate_into(state, t).log() - pick(log_m, state.tokens).double()
        rates = log_m + log_rate[..., None].to(log_m.dtype)
        rates = rates.scatter(-1, state.tokens[..., None], -torch.inf)
        return rates.masked_fill(~self.active(state)[..., None], -torch.inf)

    # -- maximal coupling ----------------------------------------------------------------------
    #
    # The bridge (1 - c) 1[z_t] + c 1[x0], c = (alpha_s - alpha_t) / (1 - alpha_t), has the same
    # marginals wherever pi is constant, and a position jumps at most once.

    def coupling_chance(self, t: Tensor, s: Tensor) -> Tensor:
        """c(t, s), float64."""
        log_noise = self.schedule.log_one_minus_alpha
        return -torch.expm1(log_noise(s) - log_noise(t))

    def coupling_nelbo(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """Integrand of the negative ELBO of maximal coupling at prediction.t, float64 (...).

        (-alpha' / (1 - alpha)) (1 - p_z - 1[x0 != z] (1 + log p_x0)), p the denoiser. Valid for
        every process with a constant pi; tight where z says whether it is noise (absorbing,
        lifted), not for uniform noise: there its perplexity compares with no other.
        """
        z = prediction.state.tokens
        rate = self.reveal_rate(prediction.t)
        left = -torch.expm1(self.log_denoiser_at(prediction, z))
        loss = left - torch.where(x0 != z, 1 + self.log_denoiser_at(prediction, x0), 0.0)
        return torch.where(self.active(prediction.state), loss * rate, 0.0)

    def coupling_kl(self, prediction: Prediction, x0: Tensor, s: Tensor) -> Tensor:
        """KL of the coupled bridge from (1 - c) 1[z_t] + c denoiser, float64 (...)."""
        z = prediction.state.tokens
        c = self.coupling_chance(prediction.t, s)
        log_stay = torch.log1p(-c * -torch.expm1(self.log_denoiser_at(prediction, z)))
        jump = torch.where(x0 == z, 0.0, -c * self.log_denoiser_at(prediction, x0))
        log_stay = log_stay.clamp(min=LOG_FLOOR)
        stay = torch.where(x0 == z, -log_stay, torch.xlogy(1 - c, 1 - c) - (1 - c) * log_stay)
        return torch.where(self.active(prediction.state), jump + stay, 0.0)

    # -- kernels -------------------------------------------------------------------------------
    #
    # Row losses of raw logits that one pass on a GPU computes with their gradient. `softmax_is`
    # says what the softmax of the logits without MASK stands for; at inactive positions the
    # kernels need not agree. None: the loss is differentiated by torch.

    def nelbo_kernel(
        self, softmax_is: Posterior, state: State, t: Tensor, x0: Tensor
    ) -> RowKernel | None:
        """A kernel that computes `nelbo` at positions (N,), if there is one."""
        return None

    def cross_entropy_kernel(
        self, softmax_is: Posterior, state: State, t: Tensor, x0: Tensor
    ) -> RowKernel | None:
        """A kernel that computes -log denoiser(x0) at positions (N,), if there is one."""
        return None

    # -- shared arithmetic ---------------------------------------------------------------------

    def reveal_rate(self, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha), float64 (...): c(t, s) / (t - s) for s -> t."""
        log_noise = self.schedule.log_one_minus_alpha(t).clamp(min=LOG_FLOOR)
        return -self.schedule.dalpha(t) * (-log_noise).exp()

    def _survives(self, s: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """Whether tokens of time s are left alone until t: with probability alpha_t / alpha_s."""
        log_alpha = self.schedule.log_alpha(t).clamp(min=LOG_FLOOR) - self.schedule.log_alpha(s)
        return u < log_alpha.exp()

    def _jump_rate(self, t: Tensor) -> Tensor:
        """beta = -alpha' / alpha, float64 (...): forward jumps per unit of t."""
        return -self.schedule.dalpha(t) * (-self.schedule.log_alpha(t).clamp(min=LOG_FLOOR)).exp()

    def _levels(self, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """log alpha and log(1 - alpha) at t, floored, with a trailing axis for the states."""
        log_alpha = self.schedule.log_alpha(t).clamp(min=LOG_FLOOR)
        log_noise = self.schedule.log_one_minus_alpha(t).clamp(min=LOG_FLOOR)
        return log_alpha.to(dtype)[..., None], log_noise.to(dtype)[..., None]


def uncoupled(process: Process, instead: str) -> str | None:
    """Why maximal coupling is not defined for a process, and what to use `instead`; or None."""
    if process.coupled:
        return None
    return (
        f"maximal coupling needs noise of a constant law, {type(process).__name__} noise changes "
        f"with time; {instead}"
    )
