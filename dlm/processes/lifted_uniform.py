"""Lifted uniform: the absorbing-state reformulation of uniform diffusion.

Every position draws its noise token u once, evenly, and keeps it; x shows the clean token with
probability alpha_t, else u. The pair (x0, x) has the law of the uniform process, but (x, u) is an
absorbing process whose MASK at position i is u^i: a token with x != u is clean and stays, one with
x == u is noise or, by chance, clean. The leave-one-out posterior here is p(x0^i | x^{-i}, u^{-i}),
and p the denoiser p(x0^i | x, u).

    Bayes     where x == u, the odds of u times 1 / (1 - alpha_t); where x != u, x itself
    bound     (-alpha'_t / (1 - alpha_t)) 1[x = u] (1 - p_u - 1[x0 != u] (1 + log p_x0))
    step      where x == u, with probability (alpha_s - alpha_t) / (1 - alpha_t) a draw from p

u is independent of the text, so the bound given u, averaged over u, is a bound on -log p(x0), tight
at the posterior. The network has to see the noise level and u (of which x and [x == u] tell all).

Source: Gourevitch et al. 2026, arXiv:2605.22765.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.processes.base import LOG_FLOOR, Process
from dlm.processes.prediction import Prediction, State, log_add, log_point, pick
from dlm.random import Key
from dlm.schedules import Schedule

VIEW_ALPHA = 1e-15  # evidence that no float64 sum notices, but some: x != u must stay possible


@final
@dataclass(frozen=True)
class LiftedUniform(Process):
    """Uniform noise over `num_states` tokens with its noise token kept, as `State.noise`.

    Raises:
        UserError: for fewer than two states.
    """

    num_states: int
    schedule: Schedule
    mask_id: int | None = field(default=None, init=False)
    time_conditioned: ClassVar[bool] = True
    noise_conditioned: ClassVar[bool] = True
    shows_noise: ClassVar[bool] = True
    reveals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_states < 2:
            raise UserError(f"num_states must be at least 2, got {self.num_states}")

    def noise_law(self, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """The point mass at u; 1 / K where u is not given."""
        if noise is not None:
            return torch.nn.functional.one_hot(noise, self.num_states).double()
        return torch.full((self.num_states,), 1 / self.num_states, dtype=torch.float64).to(t.device)

    def prior(self, shape: tuple[int, int], *, key: Key) -> State:
        """Even u, and x = u."""
        noise = self._noise(shape[-1], key)
        return State(noise, noise)

    def corrupt(self, x0: Tensor, t: Tensor, *, key: Key) -> State:
        """Even u; with probability 1 - alpha_t a token shows it."""
        length = x0.shape[-1]
        noise = self._noise(length, key.fold("value"))
        noisy = key.fold("move").uniform(length) < self.schedule.log_one_minus_alpha(t).exp()
        return State(torch.where(noisy, noise, x0), noise)

    def prior_kl(self, alpha: float) -> float:
        """0 at alpha = 0; infinite otherwise: the prior never shows x != u."""
        return math.inf if alpha > 0 else 0.0

    def pin(self, state: State, x0: Tensor, where: Tensor) -> State:
        """Known clean tokens: where u happens to equal one, u gives way, so that it is seen."""
        noise = _noise_of(state)
        other = torch.where(noise == x0, (x0 + 1) % self.num_states, noise)
        tokens = torch.where(where, x0, state.tokens)
        return State(tokens, torch.where(where, other, noise))

    def active(self, state: State) -> Tensor:
        """Where x == u."""
        return state.tokens == _noise_of(state)

    def renoise(self, state: State, s: Tensor, t: Tensor, u: Tensor) -> State:
        """A token survives with probability alpha_t / alpha_s, else it shows its u."""
        kept = self._survives(s, t, u[..., 0])
        return state._replace(tokens=torch.where(kept, state.tokens, _noise_of(state)))

    def hidden(self, state: State) -> Tensor:
        """Where x == u."""
        return self.active(state)

    def blank(self, state: State, where: Tensor) -> State:
        """u is shown."""
        return state._replace(tokens=torch.where(where, _noise_of(state), state.tokens))

    def view_time(self, t: Tensor) -> Tensor:
        """Next to alpha = 0: earlier, x == u might be a clean token that happens to be u."""
        return self.schedule.inverse(torch.full_like(t, VIEW_ALPHA))

    def on(self, schedule: Schedule) -> Self:
        """The same process on another schedule."""
        return replace(self, schedule=schedule)

    def from_denoiser(self, log_probs: Tensor, state: State, t: Tensor) -> Prediction:
        """As it stands where x == u; the token itself elsewhere."""
        return Prediction(self, state, t, log_denoiser=self._carried(log_probs, state))

    def from_score(self, logits: Tensor, state: State, t: Tensor) -> Prediction:
        """log m(y) / m(u) = logits - log K - log(1 - alpha + alpha / K) + log alpha; zero at u.

        An even leave-one-out posterior is logits of zero. Nothing is normalised: the bound holds
        for any positive ratios.
        """
        log_alpha, log_noise = self._levels(t, logits.dtype)
        log_k = math.log(self.num_states)
        ratios = logits - log_k + log_alpha - torch.logaddexp(log_noise, log_alpha - log_k)
        ratios = ratios.scatter(-1, _noise_of(state)[..., None], 0.0)
        return Prediction(self, state, t, log_ratios=ratios)

    def evidence(self, state: State, t: Tensor) -> Tensor:
        """-log(1 - alpha) where x == u, infinite elsewhere."""
        log_noise = self.schedule.log_one_minus_alpha(t).clamp(min=LOG_FLOOR)
        return torch.where(self.active(state), -log_noise, torch.inf)

    def to_denoiser(self, log_loo: Tensor, state: State, t: Tensor) -> Tensor:
        """Bayes where x == u, the token itself elsewhere (carry-over)."""
        return self._carried(super().to_denoiser(log_loo, self._seen(state), t), state)

    def to_loo(self, log_denoiser: Tensor, state: State, t: Tensor) -> Tensor:
        """Bayes where x == u; elsewhere it cannot be recovered, and the denoiser is returned."""
        loo = super().to_loo(log_denoiser, self._seen(state), t)
        return torch.where(self.active(state)[..., None], loo, log_denoiser)

    def log_denoiser_at(self, prediction: Prediction, index: Tensor) -> Tensor:
        """One entry of the denoiser."""
        state = prediction.state
        known = torch.where(index == state.tokens, 0.0, -torch.inf).double()
        if prediction.made_of != "loo":
            entry = pick(prediction.log_denoiser, index).double()
        else:
            seen = Prediction(self, self._seen(state), prediction.t, log_loo=prediction.log_loo)
            entry = super().log_denoiser_at(seen, index)
        return torch.where(self.active(state), entry, known)

    def ratios_to_loo(self, log_ratios: Tensor, state: State, t: Tensor) -> Tensor:
        """denoiser(y) ~ ratio(y) (1 - alpha) / alpha, the rest at u; then Bayes.

        Inexact ratios can leave nothing for u: it keeps the rounding of the dtype.
        """
        log_alpha, log_noise = self._levels(t, log_ratios.dtype)
        noise = _noise_of(state)[..., None]
        others = (log_ratios - (log_alpha - log_noise)).scatter(-1, noise, -torch.inf)
        rest = 1 - others.exp().sum(-1, keepdim=True)
        log_rest = rest.clamp(min=torch.finfo(rest.dtype).eps).log()
        denoiser = others.scatter(-1, noise, log_rest).log_softmax(-1)
        return self.to_loo(self._carried(denoiser, state), state, t)

    def log_marginal(self, log_loo: Tensor, state: State, t: Tensor) -> Tensor:
        """alpha loo, and 1 - alpha more at u."""
        log_alpha, log_noise = self._levels(t, log_loo.dtype)
        return torch.logaddexp(
            log_loo + log_alpha, log_point(_noise_of(state), log_loo) + log_noise
        )

    def posterior(self, prediction: Prediction, s: Tensor) -> Tensor:
        """u stays with probability 1 - c, else the denoiser; a token x != u stays."""
        log_denoiser, state = prediction.log_denoiser, prediction.state
        c = self.coupling_chance(prediction.t, s).to(log_denoiser.dtype)[..., None]
        stays = torch.log1p(-c) + log_point(state.tokens, log_denoiser)
        opened = log_add(torch.log(c) + log_denoiser, stays)
        return self._carried(opened, state)

    def move_bound(self, state: State, t: Tensor, s: Tensor) -> Tensor:
        """c = (alpha_s - alpha_t) / (1 - alpha_t)."""
        return self.coupling_chance(t, s).expand(state.tokens.shape)

    def moved_given(self, x0: Tensor, state: State, t: Tensor, s: Tensor, u: Tensor) -> Tensor:
        """x0."""
        return x0

    def rate_into(self, state: State, t: Tensor) -> Tensor:
        """beta: all jumps lead to u."""
        return self._jump_rate(t).expand(state.tokens.shape)

    def jump_bound(self, state: State, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha)."""
        return self.reveal_rate(t).expand(state.tokens.shape)

    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """The denoiser."""
        return prediction.log_denoiser

    def nelbo(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """The integrand above; a score's p = ratios (1 - alpha) / alpha need not sum to one."""
        if prediction.made_of != "ratios":
            return self.coupling_nelbo(prediction, x0)
        state, t = prediction.state, prediction.t
        noise = _noise_of(state)
        log_alpha, log_noise = self._levels(t, prediction.log_ratios.dtype)
        log_p = prediction.log_ratios - (log_alpha - log_noise)
        left = log_p.scatter(-1, noise[..., None], -torch.inf).exp().sum(-1)
        loss = left - torch.where(x0 != noise, 1 + pick(log_p, x0), 0.0)
        return torch.where(self.active(state), loss.double() * self.reveal_rate(t), 0.0)

    def elbo_weight(self, state: State, x0: Tensor, t: Tensor) -> Tensor:
        """Where x == u: beta / (1 - alpha), or beta where x0 == u too; 0 elsewhere."""
        log_noise = self.schedule.log_one_minus_alpha(t).clamp(min=LOG_FLOOR)
        seen = torch.where(x0 == _noise_of(state), 0.0, log_noise)
        return torch.where(self.active(state), self._jump_rate(t) * (-seen).exp(), 0.0)

    def bridge_kl(self, prediction: Prediction, x0: Tensor, s: Tensor) -> Tensor:
        """That of the coupled step, which is the posterior here: two entries of the denoiser."""
        return self.coupling_kl(prediction, x0, s)

    def _noise(self, length: int, key: Key) -> Tensor:
        return (key.uniform(length) * self.num_states).long()

    def _seen(self, state: State) -> State:
        """The same u, shown everywhere: what conversions read, so that no entry is infinite."""
        return State(_noise_of(state), state.noise)

    def _carried(self, log_probs: Tensor, state: State) -> Tensor:
        known = log_point(state.tokens, log_probs)
        return torch.where(self.active(state)[..., None], log_probs, known)


def _noise_of(state: State) -> Tensor:
    assert state.noise is not None, "a state of the lifted process needs its noise token"
    return state.noise
