"""The uniform process: a token survives with probability alpha_t, else any of the K replaces it.

The noise may equal the clean token; every formula assumes so. Seeing z at level a multiplies its
odds by 1 + K a / (1 - a): the same shift turns the leave-one-out posterior into the denoiser, with
a = alpha_t, and the marginal m_s into the reverse step, with a = alpha_t / alpha_s. Write
e = K alpha / (1 - alpha), p = loo, sp = log(1 + e), sigma_y = log(1 + e p_y), T = sum_y sigma_y.
The bound's integrand is -alpha' / (alpha K) times

    z == x0   (K sigma_z - T - (K - 1)(1 + sp)) / (1 + e) + (K + e) exp(-sigma_z) - 1
    z != x0   (1 + e) sp - e sigma_x0 + (K + e)(sigma_z + exp(-sigma_z) - 1) - T

The form is chosen for differentiation: one sum over K besides the softmax, no cancelling
exponentials. Its minimiser is the leave-one-out posterior, not the denoiser. The network has to see
the noise level.

Source: Schiff et al. 2024, arXiv:2412.10193 (UDLM); Gourevitch et al. 2026, arXiv:2605.22765.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, final

import torch
import torch.nn.functional as F
from torch import Tensor

from dlm.errors import UserError
from dlm.ops.triton_rows import UniformBoundRows
from dlm.processes.base import LOG_FLOOR, Process
from dlm.processes.prediction import Posterior, Prediction, State, add_at, log_add, pick
from dlm.random import Key
from dlm.schedules import Schedule


@final
@dataclass(frozen=True)
class Uniform(Process):
    """Uniform-state diffusion over `num_states` tokens, none of them MASK or PAD.

    Raises:
        UserError: for fewer than two states.
    """

    num_states: int
    schedule: Schedule
    mask_id: int | None = field(default=None, init=False)
    time_conditioned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_states < 2:
            raise UserError(f"num_states must be at least 2, got {self.num_states}")

    def noise_law(self, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """1 / K."""
        return torch.full((self.num_states,), 1 / self.num_states, dtype=torch.float64).to(t.device)

    def prior(self, shape: tuple[int, int], *, key: Key) -> State:
        """Independent, even tokens."""
        return State((key.uniform(shape[-1]) * self.num_states).long())

    def corrupt(self, x0: Tensor, t: Tensor, *, key: Key) -> State:
        """Replace each token with probability 1 - alpha_t by an even draw, which may equal it."""
        length = x0.shape[-1]
        noisy = key.fold("move").uniform(length) < self.schedule.log_one_minus_alpha(t).exp()
        noise = (key.fold("value").uniform(length) * self.num_states).long()
        return State(torch.where(noisy, noise, x0))

    def prior_kl(self, alpha: float) -> float:
        """KL of alpha 1[x0] + (1 - alpha) / K from 1 / K."""
        k = self.num_states
        hit = (alpha + (1 - alpha) / k) * math.log1p((k - 1) * alpha)
        return hit + ((1 - 1 / k) * (1 - alpha) * math.log1p(-alpha) if alpha < 1 else 0.0)

    def active(self, state: State) -> Tensor:
        """Every position."""
        return torch.ones_like(state.tokens, dtype=torch.bool)

    def renoise(self, state: State, s: Tensor, t: Tensor, u: Tensor) -> State:
        """A token survives with probability alpha_t / alpha_s, else an even draw."""
        noise = (u[..., 1] * self.num_states).long()
        return State(torch.where(self._survives(s, t, u[..., 0]), state.tokens, noise))

    def on(self, schedule: Schedule) -> Self:
        """The same process on another schedule."""
        return replace(self, schedule=schedule)

    def from_denoiser(self, log_probs: Tensor, state: State, t: Tensor) -> Prediction:
        """As it stands."""
        return Prediction(self, state, t, log_denoiser=log_probs)

    def from_score(self, logits: Tensor, state: State, t: Tensor) -> Prediction:
        """log m(y) / m(z) = logits sp / (1 + sp), zero at y = z, with sp = log(1 + e).

        The true log-ratio lies in [-sp, sp] and vanishes with alpha. Without a factor that vanishes
        with it, any error of the network at alpha -> 0 would make the bound infinite (its rate
        there is 1 / alpha).
        """
        sp = self.evidence(state, t)[..., None]
        ratios = logits * (sp / (1 + sp)).to(logits.dtype)
        return Prediction(
            self, state, t, log_ratios=ratios.scatter(-1, state.tokens[..., None], 0.0)
        )

    def evidence(self, state: State, t: Tensor) -> Tensor:
        """log(1 + K alpha / (1 - alpha))."""
        log_alpha, log_noise = self._levels(t, torch.float64)
        return F.softplus(math.log(self.num_states) + log_alpha - log_noise).squeeze(-1)

    def ratios_to_loo(self, log_ratios: Tensor, state: State, t: Tensor) -> Tensor:
        """(m - (1 - alpha) / K) / alpha with m the normalised ratios.

        An inexact score can make this negative: below the rounding of the dtype it bends into a
            positive tail d^2 / (2 d - x), so that logarithm and gradient stay finite; exact scores
            are not touched.
        """
        log_alpha, log_noise = self._levels(t, log_ratios.dtype)
        excess = log_ratios.softmax(-1) - log_noise.exp() / self.num_states
        loo = excess * (-log_alpha).exp()
        smallest = torch.finfo(log_ratios.dtype).eps
        tail = smallest**2 / (2 * smallest - loo.clamp(max=smallest))
        loo = torch.where(loo > smallest, loo, tail)
        return loo.log() - loo.sum(-1, keepdim=True).log()

    def log_marginal(self, log_loo: Tensor, state: State, t: Tensor) -> Tensor:
        """alpha loo + (1 - alpha) / K."""
        log_alpha, log_noise = self._levels(t, log_loo.dtype)
        return torch.logaddexp(log_alpha + log_loo, log_noise - math.log(self.num_states))

    def posterior(self, prediction: Prediction, s: Tensor) -> Tensor:
        """m_s with the odds of z_t multiplied by 1 + K rho / (1 - rho), rho = alpha_t / alpha_s."""
        log_marginal = self._log_marginal_at(prediction.log_loo, s)
        log_rho = self._log_rho(prediction.t, s)
        log_moved = torch.log(-torch.expm1(log_rho))
        evidence = F.softplus(math.log(self.num_states) + log_rho - log_moved)[..., None]
        return add_at(log_marginal, prediction.state.tokens, evidence).log_softmax(-1)

    def move_bound(self, state: State, t: Tensor, s: Tensor) -> Tensor:
        """(1 - alpha_t / alpha_s) / (1 - alpha_t)."""
        log_noise = self.schedule.log_one_minus_alpha(t)
        bound = (-torch.expm1(self._log_rho(t, s)) * (-log_noise).exp()).clamp(max=1.0)
        return bound.expand(state.tokens.shape)

    def moved_given(self, x0: Tensor, state: State, t: Tensor, s: Tensor, u: Tensor) -> Tensor:
        """x0 with probability alpha_s, else an even draw; z = x0 stays with odds e : 1."""
        log_alpha, log_noise = self._levels(t, torch.float64)
        log_odds = (math.log(self.num_states) + log_alpha - log_noise).squeeze(-1)
        kept = (state.tokens == x0) & (u[..., 0] < torch.sigmoid(log_odds))
        noise = (u[..., 2] * self.num_states).long()
        drawn = torch.where(u[..., 1] < self.schedule.alpha(s), x0, noise)
        return torch.where(kept, x0, drawn)

    def rate_into(self, state: State, t: Tensor) -> Tensor:
        """beta / K."""
        return (self._jump_rate(t) / self.num_states).expand(state.tokens.shape)

    def jump_bound(self, state: State, t: Tensor) -> Tensor:
        """beta (1 / (1 - alpha) - 1 / K)."""
        log_noise = self.schedule.log_one_minus_alpha(t).clamp(min=LOG_FLOOR)
        bound = self._jump_rate(t) * ((-log_noise).exp() - 1 / self.num_states)
        return bound.expand(state.tokens.shape)

    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """Accept with probability 1 / (1 + e loo(z)) and draw from m_s; keep z otherwise."""
        z = prediction.state.tokens
        log_alpha, log_noise = self._levels(prediction.t, prediction.log_loo.dtype)
        log_odds = math.log(self.num_states) + log_alpha - log_noise
        log_odds = log_odds + pick(prediction.log_loo, z)[..., None]
        log_draw = F.logsigmoid(-log_odds) + self._log_marginal_at(prediction.log_loo, s)
        log_keep = F.logsigmoid(log_odds)
        here = torch.logaddexp(pick(log_draw, z)[..., None], log_keep)
        return log_draw.scatter(-1, z[..., None], here)

    def nelbo(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """The integrand above; from the ratios themselves where the prediction is made of them."""
        z = prediction.state.tokens
        log_e, rate = self._bound_scalars(prediction.t)
        if prediction.made_of == "ratios":
            loss = _bound_of_ratios(prediction.log_ratios, z, x0, log_e)
        else:
            loss = _bound_of_loo(prediction.log_loo, z, x0, log_e)
        return loss * rate

    def elbo_weight(self, state: State, x0: Tensor, t: Tensor) -> Tensor:
        """beta / (1 - alpha), or beta / (1 - alpha + K alpha) where z == x0."""
        seen = self.schedule.log_one_minus_alpha(t).clamp(min=LOG_FLOOR)
        seen = seen + torch.where(state.tokens == x0, self.evidence(state, t), 0.0)
        return self._jump_rate(t) * (-seen).exp()

    def nelbo_kernel(
        self, softmax_is: Posterior, state: State, t: Tensor, x0: Tensor
    ) -> UniformBoundRows | None:
        """For the leave-one-out posterior."""
        if softmax_is != "loo":
            return None
        return UniformBoundRows(state.tokens, x0, *self._bound_scalars(t))

    def _bound_scalars(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log e and the factor before the bracket of the module's formula, float64 (...)."""
        log_alpha = self.schedule.log_alpha(t).clamp(min=LOG_FLOOR)
        log_noise = self.schedule.log_one_minus_alpha(t).clamp(min=LOG_FLOOR)
        rate = self._jump_rate(t) / self.num_states
        return math.log(self.num_states) + log_alpha - log_noise, rate

    def _log_rho(self, t: Tensor, s: Tensor) -> Tensor:
        """log alpha_t / alpha_s, float64."""
        return self.schedule.log_alpha(t).clamp(min=LOG_FLOOR) - self.schedule.log_alpha(s)

    def _log_marginal_at(self, log_loo: Tensor, s: Tensor) -> Tensor:
        """log m_s without the floor: at s = 0 it is the posterior itself, zeros included."""
        log_alpha = self.schedule.log_alpha(s).to(log_loo.dtype)[..., None]
        log_noise = self.schedule.log_one_minus_alpha(s).to(log_loo.dtype)[..., None]
        return log_add(log_alpha + log_loo, log_noise - math.log(self.num_states))


def _bound_of_loo(log_loo: Tensor, z: Tensor, x0: Tensor, log_e: Tensor) -> Tensor:
    """The bracket of the module's formula, float64 (...); the pass over K keeps its dtype."""
    k = log_loo.shape[-1]
    e = log_e.exp()
    sp = F.softplus(log_e)
    sigma = torch.log1p(e.to(log_loo.dtype)[..., None] * log_loo.exp())
    total = sigma.sum(-1).double()
    s_z, s_x0 = pick(sigma, z).double(), pick(sigma, x0).double()
    equal = (k * s_z - total - (k - 1) * (1 + sp)) / (1 + e) + (k + e) * torch.exp(-s_z) - 1
    other = (1 + e) * sp - e * s_x0 + (k + e) * (s_z + torch.expm1(-s_z)) - total
    return torch.where(z == x0, equal, other)


def _bound_of_ratios(log_ratios: Tensor, z: Tensor, x0: Tensor, log_e: Tensor) -> Tensor:
    """sum_{y != z} phi(q(y|x0) / q(z|x0), ratio(y)), float64 (...).

    Written with psi(u) = exp(u) - 1 - u >= 0, since phi(x, y) = x psi(log(y / x)).
    """
    sp = F.softplus(log_e)
    shift = torch.where(z == x0, sp, 0.0)
    shifted = log_ratios + shift.to(log_ratios.dtype)[..., None]
    total = (torch.expm1(shifted) - shifted).sum(-1).double()
    at_x0 = pick(log_ratios, x0).double()
    equal = (total - (torch.expm1(sp) - sp)) * torch.exp(-sp)
    other = total - (torch.expm1(at_x0) - at_x0)
    other = other + torch.exp(sp) * (torch.expm1(at_x0 - sp) - (at_x0 - sp))
    return torch.where(z == x0, equal, other)
