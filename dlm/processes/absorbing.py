"""The absorbing (masked) process: a token survives with probability alpha_t, else it is MASK.

`pi` is the point mass at MASK. At a masked position the leave-one-out posterior and the denoiser
are the same; at an unmasked one the denoiser is the point mass at the token, and the leave-one-out
posterior cannot be recovered from it (it is never needed: such positions neither move nor carry
loss).

    bound     (-alpha'_t / (1 - alpha_t)) 1[z = MASK] (-log loo(x0))
    step      with probability 1 - (1 - alpha_s) / (1 - alpha_t) a mask opens, to a draw from loo

K = num_states counts MASK; its entry of any clean posterior has no mass. The network need not see
the noise level.

Source: Sahoo et al. 2024, arXiv:2406.07524 (MDLM).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.ops.triton_rows import CrossEntropyRows
from dlm.processes.base import LOG_FLOOR, Process
from dlm.processes.prediction import Posterior, Prediction, State, log_point, pick
from dlm.random import Key
from dlm.schedules import Schedule


@final
@dataclass(frozen=True)
class Absorbing(Process):
    """Masked diffusion over `num_states` states, MASK among them.

    Raises:
        UserError: if mask_id is not one of the states, or there are fewer than two.
    """

    num_states: int
    mask_id: int  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen: narrowing is safe)
    schedule: Schedule
    time_conditioned: ClassVar[bool] = False
    shows_noise: ClassVar[bool] = True
    reveals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_states < 2 or not 0 <= self.mask_id < self.num_states:
            raise UserError(
                f"mask_id must be one of at least 2 states, got mask_id {self.mask_id} "
                f"and num_states {self.num_states}"
            )

    def noise_law(self, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """The point mass at MASK."""
        mask = torch.tensor(self.mask_id, device=t.device)
        return torch.nn.functional.one_hot(mask, self.num_states).double()

    def prior(self, shape: tuple[int, int], *, key: Key) -> State:
        """All MASK."""
        return State(torch.full(shape, self.mask_id, dtype=torch.int64, device=key.rows.device))

    def corrupt(self, x0: Tensor, t: Tensor, *, key: Key) -> State:
        """Mask each token with probability 1 - alpha_t."""
        noisy = key.fold("move").uniform(x0.shape[-1]) < self.schedule.log_one_minus_alpha(t).exp()
        return State(torch.where(noisy, self.mask_id, x0))

    def prior_kl(self, alpha: float) -> float:
        """0 at alpha = 0; infinite otherwise, since the prior never shows a clean token."""
        return math.inf if alpha > 0 else 0.0

    def active(self, state: State) -> Tensor:
        """The masked positions."""
        return state.tokens == self.mask_id

    def renoise(self, state: State, s: Tensor, t: Tensor, u: Tensor) -> State:
        """A token survives with probability alpha_t / alpha_s, else MASK."""
        return State(torch.where(self._survives(s, t, u[..., 0]), state.tokens, self.mask_id))

    def hidden(self, state: State) -> Tensor:
        """The masked positions."""
        return self.active(state)

    def blank(self, state: State, where: Tensor) -> State:
        """MASK."""
        return State(torch.where(where, self.mask_id, state.tokens))

    def on(self, schedule: Schedule) -> Self:
        """The same process on another schedule."""
        return replace(self, schedule=schedule)

    def from_denoiser(self, log_probs: Tensor, state: State, t: Tensor) -> Prediction:
        """As leave-one-out posterior: equal where masked, and the denoiser is known elsewhere."""
        return Prediction(self, state, t, log_loo=log_probs)

    def from_score(self, logits: Tensor, state: State, t: Tensor) -> Prediction:
        """log m(y) / m(MASK) = logits - log(K - 1) + log(alpha / (1 - alpha)); zero at MASK itself.

        The true ratios of the clean tokens sum to alpha / (1 - alpha); these start near it and need
        not: the bound holds for any, and pays for the difference.
        """
        log_alpha, log_noise = self._levels(t, logits.dtype)
        mask = torch.tensor(self.mask_id, device=logits.device)
        ratios = logits - math.log(self.num_states - 1) + (log_alpha - log_noise)
        return Prediction(self, state, t, log_ratios=ratios.index_fill(-1, mask, 0.0))

    def evidence(self, state: State, t: Tensor) -> Tensor:
        """0 where masked (MASK is no clean token), infinite elsewhere."""
        return torch.where(self.active(state), 0.0, torch.inf).double()

    def to_denoiser(self, log_loo: Tensor, state: State, t: Tensor) -> Tensor:
        """loo where masked, the point mass at the token elsewhere (carry-over)."""
        return torch.where(self.active(state)[..., None], log_loo, log_point(state.tokens, log_loo))

    def to_loo(self, log_denoiser: Tensor, state: State, t: Tensor) -> Tensor:
        """The denoiser itself; at an unmasked position that is the point mass at the token."""
        return log_denoiser

    def log_denoiser_at(self, prediction: Prediction, index: Tensor) -> Tensor:
        """One entry of the denoiser."""
        known = torch.where(index == prediction.state.tokens, 0.0, -torch.inf).double()
        masked = self.active(prediction.state)
        return torch.where(masked, pick(prediction.log_loo, index).double(), known)

    def ratios_to_loo(self, log_ratios: Tensor, state: State, t: Tensor) -> Tensor:
        """The ratios of the clean tokens, normalised."""
        mask = torch.tensor(self.mask_id, device=log_ratios.device)
        return log_ratios.index_fill(-1, mask, -torch.inf).log_softmax(-1)

    def log_marginal(self, log_loo: Tensor, state: State, t: Tensor) -> Tensor:
        """alpha loo on the clean tokens, 1 - alpha on MASK."""
        log_alpha, log_noise = self._levels(t, log_loo.dtype)
        return self._with_mask(log_loo + log_alpha, log_noise)

    def posterior(self, prediction: Prediction, s: Tensor) -> Tensor:
        """MASK stays with probability (1 - alpha_s) / (1 - alpha_t), else loo; a token stays."""
        log_loo = prediction.log_loo
        log_stay = self._log_stay(prediction.t, s)
        log_open = torch.log(-torch.expm1(log_stay)).to(log_loo.dtype)[..., None]
        opened = self._with_mask(log_loo + log_open, log_stay.to(log_loo.dtype)[..., None])
        stays = log_point(prediction.state.tokens, log_loo)
        return torch.where(self.active(prediction.state)[..., None], opened, stays)

    def move_bound(self, state: State, t: Tensor, s: Tensor) -> Tensor:
        """1 - (1 - alpha_s) / (1 - alpha_t): the exact probability that a mask opens."""
        return self.coupling_chance(t, s).expand(state.tokens.shape)

    def moved_given(self, x0: Tensor, state: State, t: Tensor, s: Tensor, u: Tensor) -> Tensor:
        """x0: an opened mask shows it."""
        return x0

    def rate_into(self, state: State, t: Tensor) -> Tensor:
        """beta: all jumps lead to MASK."""
        return self._jump_rate(t).expand(state.tokens.shape)

    def jump_bound(self, state: State, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha), the exact rate at which a mask opens."""
        return self.reveal_rate(t).expand(state.tokens.shape)

    def moved(self, prediction: Prediction, s: Tensor) -> Tensor:
        """The leave-one-out posterior of an opened mask; an unmasked token does not move."""
        return self.to_denoiser(prediction.log_loo, prediction.state, prediction.t)

    def nelbo(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """(-alpha' / (1 - alpha)) (-log loo(x0)) where masked.

        Of a score, p = ratios (1 - alpha) / alpha stands for loo: sum p - 1 - log p(x0).
        """
        state, t = prediction.state, prediction.t
        if prediction.made_of == "ratios":
            log_alpha, log_noise = self._levels(t, prediction.log_ratios.dtype)
            mask = torch.tensor(self.mask_id, device=x0.device)
            log_p = prediction.log_ratios - (log_alpha - log_noise)
            log_p = log_p.index_fill(-1, mask, -torch.inf)
            loss = log_p.exp().sum(-1) - 1 - pick(log_p, x0)
        else:
            loss = -pick(prediction.log_loo, x0)
        return torch.where(self.active(state), loss * self.reveal_rate(t).to(loss.dtype), 0.0)

    def elbo_weight(self, state: State, x0: Tensor, t: Tensor) -> Tensor:
        """-alpha' / (alpha (1 - alpha)) where masked, 0 elsewhere."""
        log_noise = self.schedule.log_one_minus_alpha(t).clamp(min=LOG_FLOOR)
        return torch.where(self.active(state), self._jump_rate(t) * (-log_noise).exp(), 0.0)

    def dynamic_weight(self, state: State, x0: Tensor, t: Tensor) -> Tensor:
        """2 where masked."""
        return torch.where(self.active(state), 2.0, 0.0).double()

    def bridge_kl(self, prediction: Prediction, x0: Tensor, s: Tensor) -> Tensor:
        """(alpha_s - alpha_t) / (1 - alpha_t) (-log loo(x0)) where masked."""
        loss = -pick(prediction.log_loo, x0)
        opens = self.coupling_chance(prediction.t, s).to(loss.dtype)
        return torch.where(self.active(prediction.state), loss * opens, 0.0)

    def nelbo_kernel(
        self, softmax_is: Posterior, state: State, t: Tensor, x0: Tensor
    ) -> CrossEntropyRows:
        """Cross-entropy at the rate of the bound: where masked, both posteriors are the same."""
        return CrossEntropyRows(x0, self.reveal_rate(t), self.mask_id)

    def cross_entropy_kernel(
        self, softmax_is: Posterior, state: State, t: Tensor, x0: Tensor
    ) -> CrossEntropyRows:
        """Cross-entropy among the clean tokens."""
        return CrossEntropyRows(x0, torch.ones_like(t), self.mask_id)

    def _log_stay(self, t: Tensor, s: Tensor) -> Tensor:
        return self.schedule.log_one_minus_alpha(s) - self.schedule.log_one_minus_alpha(t)

    def _with_mask(self, log_clean: Tensor, log_mask: Tensor) -> Tensor:
        index = torch.tensor([self.mask_id], device=log_clean.device)
        return log_clean.index_copy(-1, index, log_mask.expand(*log_clean.shape[:-1], 1))
