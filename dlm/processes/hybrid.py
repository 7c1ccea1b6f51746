"""Hybrid noise: MASK and even tokens together, in a mixture that moves with the noise level.

With r = (1 - alpha) / alpha, B = 2 f / (1 - f) and y the positive root of y^2 + B y = r,

    b_t = alpha (B y Uniform + y^2 1[MASK])

so early noise is mostly even tokens and late noise mostly MASK; the prior is all MASK. f =
`uniform_fraction` is the largest probability of an even token, reached where y = 1. This is the
mixture of GIDD (gamma = 1) written in alpha, so that any schedule runs through it: its time is t =
y^2 / (1 + y^2). A model trained on it learns to find wrong tokens as well as to open masks.

Source: von Rutte et al. 2025, arXiv:2503.04482 (GIDD).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.processes.base import LOG_FLOOR
from dlm.processes.mixture import Masses, Mixture
from dlm.processes.prediction import State
from dlm.random import Key
from dlm.schedules import Schedule

VIEW_TIME = 1e-15  # noise that no float64 sum notices, but not none: masks must stay possible


@final
@dataclass(frozen=True)
class Hybrid(Mixture):
    """Masked and uniform diffusion in one, over `num_states` states, MASK among them.

    Args:
        num_states: K, MASK counted.
        mask_id: which of them is MASK.
        uniform_fraction: f, in (0, 1): the largest share of even tokens on the way.
        schedule: alpha.

    Raises:
        UserError: if mask_id is not one of the states, there are fewer than three, or the fraction
            is not strictly between 0 and 1.
    """

    num_states: int
    mask_id: int  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen: narrowing is safe)
    uniform_fraction: float
    schedule: Schedule
    coupled: ClassVar[bool] = False
    reveals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_states < 3 or not 0 <= self.mask_id < self.num_states:
            raise UserError(
                f"mask_id must be one of at least 3 states, got mask_id {self.mask_id} "
                f"and num_states {self.num_states}"
            )
        if not 0 < self.uniform_fraction < 1:
            raise UserError(
                f"uniform_fraction must be between 0 and 1, got {self.uniform_fraction}; "
                "use process=absorbing for 0 and process=uniform for 1"
            )
        even = torch.zeros(self.num_states, dtype=torch.float64, device="cpu")
        even -= math.log(self.num_states - 1)
        even[self.mask_id] = 0.0
        object.__setattr__(self, "log_base", even)

    def masses(self, t: Tensor) -> Masses:
        """alpha B y and alpha y^2."""
        log_alpha, log_y = self._log_alpha(t), self._log_y(t)
        return Masses(log_alpha + self._log_b + log_y, log_alpha + 2 * log_y)

    def arrived(self, t: Tensor, s: Tensor) -> Masses:
        """alpha_t B (y_t - y_s) and alpha_t (y_t^2 - y_s^2)."""
        log_alpha, y_t, y_s = self._log_alpha(t), self._log_y(t), self._log_y(s)
        log_gain = y_t + torch.log(-torch.expm1(y_s - y_t))
        return Masses(
            log_alpha + self._log_b + log_gain, log_alpha + log_gain + torch.logaddexp(y_t, y_s)
        )

    def rates(self, t: Tensor) -> Masses:
        """beta, shared out as B : 2 y."""
        log_beta = self._jump_rate(t).log()
        log_two_y = math.log(2.0) + self._log_y(t)
        norm = torch.logaddexp(log_two_y, torch.full_like(log_two_y, self._log_b))
        return Masses(log_beta + self._log_b - norm, log_beta + log_two_y - norm)

    def noise_law(self, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """B : y between even tokens and MASK."""
        y = self._log_y(t).exp()
        even = torch.full((self.num_states,), 1 / (self.num_states - 1), dtype=torch.float64)
        even[self.mask_id] = 0.0
        mask = torch.zeros_like(even)
        mask[self.mask_id] = 1.0
        b = math.exp(self._log_b)
        return (b * even.to(t.device) + y * mask.to(t.device)) / (b + y)

    def prior(self, shape: tuple[int, int], *, key: Key) -> State:
        """All MASK."""
        return State(torch.full(shape, self.mask_id, dtype=torch.int64, device=key.rows.device))

    def corrupt(self, x0: Tensor, t: Tensor, *, key: Key) -> State:
        """With probability 1 - alpha a token is replaced, by MASK or evenly."""
        length = x0.shape[-1]
        u = key.fold("move").uniform(length)
        masses = self.masses(t)
        even = (key.fold("value").uniform(length) * (self.num_states - 1)).long()
        even = even + (even >= self.mask_id)
        masked = u < masses.mask.exp()
        noisy = u < masses.mask.exp() + masses.data.exp()
        return State(torch.where(masked, self.mask_id, torch.where(noisy, even, x0)))

    def prior_kl(self, alpha: float) -> float:
        """0 at alpha = 0; infinite otherwise, since the prior never shows a clean token."""
        return math.inf if alpha > 0 else 0.0

    def dynamic_weight(self, state: State, x0: Tensor, t: Tensor) -> Tensor:
        """2 at MASK, 1 at other noise, B / (K - 1) exp(-logit(alpha) / 2) at a clean token."""
        log_r = self.schedule.log_one_minus_alpha(t) - self._log_alpha(t)
        clean = torch.exp(self._log_b + log_r / 2) / (self.num_states - 1)
        noise = torch.where(state.tokens == self.mask_id, 2.0, 1.0).double()
        return torch.where(state.tokens == x0, clean, noise)

    def hidden(self, state: State) -> Tensor:
        """The masked positions; other tokens are taken for clean in the absorbing view."""
        return state.tokens == self.mask_id

    def blank(self, state: State, where: Tensor) -> State:
        """MASK."""
        return State(torch.where(where, self.mask_id, state.tokens))

    def hidden_time(self, share: Tensor) -> Tensor:
        """Where alpha y^2 is the share: (1 - share) y^2 - share B y - share = 0."""
        share = share.double()
        b, left = math.exp(self._log_b), 1 - share
        y = (share * b + (share * share * b * b + 4 * share * left).sqrt()) / (2 * left)
        alpha = torch.where(left > 0, 1 / (1 + y * y + b * y), 0.0)
        return self.schedule.inverse(alpha)

    def view_time(self, t: Tensor) -> Tensor:
        """Next to t = 0: later, a revealed token might be noise."""
        return torch.full_like(t, VIEW_TIME)

    def on(self, schedule: Schedule) -> Self:
        """The same process on another schedule."""
        return replace(self, schedule=schedule)

    @property
    def _log_b(self) -> float:
        f = self.uniform_fraction
        return math.log(2 * f) - math.log1p(-f)

    def _log_y(self, t: Tensor) -> Tensor:
        """y = 2 r / (B + sqrt(B^2 + 4 r)), float64."""
        log_noise = self.schedule.log_one_minus_alpha(t).clamp(min=2 * LOG_FLOOR)
        log_r = log_noise - self._log_alpha(t)
        log_four_r = math.log(4.0) + log_r
        root = torch.logaddexp(log_four_r, torch.full_like(log_r, 2 * self._log_b)) / 2
        return math.log(2.0) + log_r - torch.logaddexp(root, torch.full_like(root, self._log_b))
