"""Noise with two sources: a fixed law over the clean tokens, and MASK. The general formulas.

    b_t(y) = data_t base(y) + mask_t 1[y = MASK],      data_t + mask_t = 1 - alpha_t

Noise that arrives between s and t, g = b_t - (alpha_t / alpha_s) b_s, and the rate at which it
arrives, j = b' - (alpha' / alpha) b, have the same form. A concrete process gives those three pairs
of numbers and the base law; everything else is here. With p = loo, c = alpha / data, m = alpha p +
b, sigma_y = log(1 + c p_y / base_y), sp = sigma_x0 at p_x0 = 1, T = sum_y base_y sigma_y,

    KL(q_t(. | x0) || m) / data = k = (c + base_x0) sp - c sigma_x0 - T

and the integrand of the bound is

    z = MASK   j_mask (data / mask) k
    z != x0    j_data (k + (sigma_z + exp(-sigma_z) - 1) / data)
    z == x0    j_data base_z / (c + base_z) (k + (exp(d) - 1 - d) / data),     d = sp - sigma_z

The network has to see the noise level. Used by `Prior` (mask_t = 0) and `Hybrid`.

Source: von Rutte et al. 2025, arXiv:2503.04482 (GIDD), in the form that names the leave-one-out
posterior.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dlm.processes.base import Process
from dlm.processes.prediction import Prediction, State, log_add, log_point, pick


class Masses(NamedTuple):
    """Logarithms, float64 (...), of the mass on the base law and of the mass on MASK."""

    data: Tensor
    mask: Tensor


class Mixture(Process):
    """What processes with a base law and MASK have in common."""

    time_conditioned: ClassVar[bool] = True

    log_base: Tensor  # log of the base law, float64 (K,): full support on clean tokens; 0 at MASK

    @abstractmethod
    def masses(self, t: Tensor) -> Masses:
        """Noise at t: log data_t, log mask_t."""

    @abstractmethod
    def arrived(self, t: Tensor, s: Tensor) -> Masses:
        """Noise that came between s and t: of b_t - (alpha_t / alpha_s) b_s."""

    @abstractmethod
    def rates(self, t: Tensor) -> Masses:
        """Rate at which noise comes, per unit of t: of b' - (alpha' / alpha) b."""

    def active(self, state: State) -> Tensor:
        """Every position."""
        return torch.ones_like(state.tokens, dtype=torch.bool)

    def from_denoiser(self, log_probs: Tensor, state: State, t: Tensor) -> Prediction:
        """As it stands."""
        return Prediction(self, state, t, log_denoiser=log_probs)

    def from_score(self, logits: Tensor, state: State, t: Tensor) -> Prediction:
        """log m(y) / m(z) = log b(y) / b(z) + logits c / (1 + c), zero at y = z.

        Zero logits say that nothing is known; the factor vanishes with alpha, as the truth does, so
        that no error of the network there makes the bound infinite.
        """
        log_odds = self._log_alpha(t) - self.masses(t).data
        log_b = self._log_noise(self.masses(t), logits)
        ratios = log_b - pick(log_b, state.tokens)[..., None]
        ratios = ratios + logits * torch.sigmoid(log_odds)[..., None].to(logits.dtype)
        ratios = ratios.scatter(-1, state.tokens[..., None], 0.0)
        return Prediction(self, state, t, log_ratios=ratios)

    def evidence(self, state: State, t: Tensor) -> Tensor:
        """log(1 + alpha / b_t(z))."""
        return F.softplus(self._log_alpha(t) - self._at(self.masses(t), state.tokens))

    def ratios_to_loo(self, log_ratios: Tensor, state: State, t: Tensor) -> Tensor:
        """(m - b) / alpha, m the ratios normalised.

        An inexact score can make this negative: below the rounding of the dtype it bends into the
        positive tail d^2 / (2 d - x), so that logarithm and gradient stay finite.
        """
        log_b = self._log_noise(self.masses(t), log_ratios)
        log_alpha = self._log_alpha(t).to(log_ratios.dtype)[..., None]
        loo = (log_ratios.softmax(-1) - log_b.exp()) * (-log_alpha).exp()
        smallest = torch.finfo(log_ratios.dtype).eps
        tail = smallest**2 / (2 * smallest - loo.clamp(max=smallest))
        log_loo = torch.where(loo > smallest, loo, tail).log()
        if self.mask_id is not None:
            mask = torch.tensor(self.mask_id, device=log_loo.device)
            log_loo = log_loo.index_fill(-1, mask, -torch.inf)
        return log_loo.log_softmax(-1)

    def log_marginal(self, log_loo: Tensor, state: State, t: Tensor) -> Tensor:
        """alpha loo + b."""
        log_alpha = self._log_alpha(t).to(log_loo.dtype)[..., None]
        return torch.logaddexp(log_loo + log_alpha, self._log_noise(self.masses(t), log_loo))

    def posterior(self, prediction: Prediction, s: Tensor) -> Tensor:
        """m_s with the odds of z_t multiplied by 1 + (alpha_t / alpha_s) / g(z_t)."""
        z, t, log_loo = prediction.state.tokens, prediction.t, prediction.log_loo
        log_rho = self._log_alpha(t) - self.schedule.log_alpha(s)
        evidence = F.softplus(log_rho - self._at(self.arrived(t, s), z))
        log_marginal = self._log_marginal_at(log_loo, s)
        evidence = evidence[..., None].to(log_loo.dtype)
        return log_marginal.scatter_add(-1, z[..., None], evidence).log_softmax(-1)

    def move_bound(self, state: State, t: Tensor, s: Tensor) -> Tensor:
        """g(z) (1 - b_s(z)) / b_t(z): the probability if loo(z) = 0."""
        z = state.tokens
        here, left = self._at(self.masses(t), z), self._at(self.masses(s), z)
        bound = (self._at(self.arrived(t, s), z) - here).exp() * -torch.expm1(left)
        return bound.clamp(max=1.0)

    def renoise(self, state: State, s: Tensor, t: Tensor, u: Tensor) -> State:
        """A token survives with probability alpha_t / alpha_s; else base noise or MASK."""
        tokens = torch.where(
            self._survives(s, t, u[..., 0]), state.tokens, self._base_draw(u[..., 1])
        )
        if self.mask_id is None:
            return State(tokens)
        masked = 1 - u[..., 0] < self.arrived(t, s).mask.exp()  # the other end of the same uniform
        return State(torch.where(masked, self.mask_id, tokens))

    def rate_into(self, state: State, t: Tensor) -> Tensor:
        """j(z)."""
        return self._at(self.rates(t), state.tokens).exp()

    def jump_bound(self, state: State, t: Tensor) -> Tensor:
        """j(z) (1 / b(z) - 1)."""
        log_b = self._at(self.masses(t), state.tokens)
        return self.rate_into(state, t) * torch.expm1(-log_b)

    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """With x = alpha_t loo(z) / b_t(z): m_s(y) / ((1 - b_s(z)) (1 + x)) for y != z.

        And at z itself (x + alpha_s loo(z) / (1 - b_s(z))) / (1 + x).
        """
        z, t, log_loo = prediction.state.tokens, prediction.t, prediction.log_loo
        log_here = pick(log_loo, z).double()
        log_x = self._log_alpha(t) + log_here - self._at(self.masses(t), z)
        log_open = torch.log(-torch.expm1(self._at(self.masses(s), z)))
        log_draw = self._log_marginal_at(log_loo, s)
        log_draw = log_draw + (F.logsigmoid(-log_x) - log_open)[..., None].to(log_loo.dtype)
        keep = torch.logaddexp(log_x, self.schedule.log_alpha(s) + log_here - log_open)
        keep = (keep - F.softplus(log_x)).clamp(max=0.0).to(log_loo.dtype)
        return log_draw.scatter(-1, z[..., None], keep[..., None])

    def nelbo(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """The integrand above, float64; from the ratios where the prediction is made of them."""
        if prediction.made_of == "ratios":
            return self._nelbo_of_ratios(prediction, x0)
        z, t, log_loo = prediction.state.tokens, prediction.t, prediction.log_loo
        masses, rates = self.masses(t), self.rates(t)
        log_base = self.log_base.to(log_loo.device)
        log_c = self._log_alpha(t) - masses.data
        shifted = log_loo - log_base.to(log_loo.dtype) + log_c[..., None].to(log_loo.dtype)
        total = (torch.log1p(shifted.exp()) * self._base(log_loo)).sum(-1).double()
        s_z = F.softplus(pick(log_loo, z).double() + log_c - log_base[z])
        s_x0 = F.softplus(pick(log_loo, x0).double() + log_c - log_base[x0])
        base_x0, c = log_base[x0].exp(), log_c.exp()
        sp = F.softplus(log_c - log_base[x0])
        k = (c + base_x0) * sp - c * s_x0 - total
        per_noise = (-masses.data).exp()
        other = k + (s_z + torch.expm1(-s_z)) * per_noise
        d = sp - s_z
        equal = (k + (torch.expm1(d) - d) * per_noise) * base_x0 / (c + base_x0)
        loss = torch.where(z == x0, equal, other) * rates.data.exp()
        if self.mask_id is None:
            return loss
        masked = k * (rates.mask + masses.data - masses.mask).exp()
        return torch.where(z == self.mask_id, masked, loss)

    def elbo_weight(self, state: State, x0: Tensor, t: Tensor) -> Tensor:
        """j(z) / (b(z) + alpha 1[z = x0])."""
        z = state.tokens
        seen = torch.where(z == x0, self.evidence(state, t), 0.0)
        return (self._at(self.rates(t), z) - self._at(self.masses(t), z) - seen).exp()

    def _nelbo_of_ratios(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """j(z) sum_{y != z} x_y psi(log(ratio_y / x_y)), x_y = q(y | x0) / q(z | x0)."""
        state, t, log_ratios = prediction.state, prediction.t, prediction.log_ratios
        z = state.tokens
        log_b = self._log_noise(self.masses(t), log_ratios)
        known = log_point(x0, log_ratios) + self._log_alpha(t)[..., None].to(log_ratios.dtype)
        log_q = torch.logaddexp(log_b, known)
        log_x = log_q - pick(log_q, z)[..., None]
        u = log_ratios - log_x
        terms = (log_x.exp() * (torch.expm1(u) - u)).scatter(-1, z[..., None], 0.0)
        return terms.sum(-1).double() * self._at(self.rates(t), z).exp()

    def _base_draw(self, u: Tensor) -> Tensor:
        """Draws from the base law by inverse transform of uniforms (...)."""
        cdf = self._base(u).cumsum(0)
        return torch.searchsorted(cdf, u * cdf[-1], right=True).clamp(max=self.num_states - 1)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return self._levels(t, torch.float64)[0].squeeze(-1)

    def _base(self, like: Tensor) -> Tensor:
        """The base law with nothing at MASK, (K,) of the dtype of `like`."""
        base = self.log_base.exp()
        if self.mask_id is not None:
            base[self.mask_id] = 0.0
        return base.to(like)

    def _log_noise(self, masses: Masses, like: Tensor) -> Tensor:
        """log b, (..., K) of the dtype of `like`."""
        log_b = masses.data[..., None].to(like) + self.log_base.to(like)
        if self.mask_id is None:
            return log_b
        index = torch.tensor([self.mask_id], device=like.device)
        mask = masses.mask[..., None].to(like).expand(*log_b.shape[:-1], 1)
        return log_b.index_copy(-1, index, mask)

    def _log_marginal_at(self, log_loo: Tensor, s: Tensor) -> Tensor:
        """log m_s without the floor: at s = 0 it is the posterior itself, zeros included."""
        log_alpha = self.schedule.log_alpha(s).to(log_loo.dtype)[..., None]
        clean = self.schedule.log_one_minus_alpha(s) == -torch.inf
        masses = Masses(*(torch.where(clean, -torch.inf, mass) for mass in self.masses(s)))
        return log_add(log_loo + log_alpha, self._log_noise(masses, log_loo))

    def _at(self, masses: Masses, z: Tensor) -> Tensor:
        """Log of the mass at the token z, float64 (...)."""
        log_data = masses.data + self.log_base.to(z.device)[z]
        return (
            log_data
            if self.mask_id is None
            else torch.where(z == self.mask_id, masses.mask, log_data)
        )
