"""Uniform diffusion's sibling with a given noise law: alpha_t x0 + (1 - alpha_t) pi.

`pi` is any law with full support over the tokens, say their frequencies in the training data: noise
then looks like text out of order rather than like even draws. With even weights it is the uniform
process.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self, final

import numpy as np
import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.processes.base import LOG_FLOOR
from dlm.processes.mixture import Masses, Mixture
from dlm.processes.prediction import State
from dlm.random import Key
from dlm.schedules import Schedule


def pack_weights(weights: Sequence[float] | Tensor) -> str:
    """Positive weights as one line of text, so that a whole vocabulary fits in a spec."""
    values = np.asarray(weights, dtype="<f4")
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()


def _log_law(weights: str) -> Tensor:
    """Normalised log-weights, float64 (K,)."""
    try:
        values = np.frombuffer(zlib.decompress(base64.b64decode(weights, validate=True)), "<f4")
    except (binascii.Error, zlib.error, ValueError) as error:
        raise UserError(
            "the weights of a prior are what dlm.processes.pack_weights makes of a list of "
            f"positive numbers; these cannot be read ({error})"
        ) from error
    law = torch.from_numpy(values.astype("float64"))
    if not (law.isfinite().all() and (law > 0).all()):
        raise UserError("every weight of a prior must be positive and finite; add 1 to counts of 0")
    return law.log() - law.sum().log()


@final
@dataclass(frozen=True)
class Prior(Mixture):
    """Diffusion towards a given law of single tokens.

    Args:
        num_states: K.
        weights: K positive weights, as `pack_weights` writes them; need not sum to one.
        schedule: alpha.

    Raises:
        UserError: for fewer than two states, or weights that are not K positive numbers.
    """

    num_states: int
    weights: str = field(repr=False)
    schedule: Schedule
    mask_id: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.num_states < 2:
            raise UserError(f"num_states must be at least 2, got {self.num_states}")
        object.__setattr__(self, "log_base", _log_law(self.weights))
        if len(self.log_base) != self.num_states:
            raise UserError(
                f"a prior over {self.num_states} states needs as many weights, got "
                f"{len(self.log_base)}"
            )

    def masses(self, t: Tensor) -> Masses:
        """All noise is from pi: 1 - alpha."""
        log_noise = self.schedule.log_one_minus_alpha(t).clamp(min=LOG_FLOOR)
        return _all_data(log_noise)

    def arrived(self, t: Tensor, s: Tensor) -> Masses:
        """1 - alpha_t / alpha_s."""
        log_rho = self._log_alpha(t) - self.schedule.log_alpha(s)
        return _all_data(torch.log(-torch.expm1(log_rho)))

    def rates(self, t: Tensor) -> Masses:
        """beta = -alpha' / alpha."""
        return _all_data(self._jump_rate(t).log())

    def noise_law(self, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """pi."""
        return self.log_base.exp().to(t.device)

    def prior(self, shape: tuple[int, int], *, key: Key) -> State:
        """Independent draws from pi."""
        return State(self._draw(shape[-1], key))

    def corrupt(self, x0: Tensor, t: Tensor, *, key: Key) -> State:
        """Replace each token with probability 1 - alpha_t by a draw from pi, which may equal it."""
        length = x0.shape[-1]
        noisy = key.fold("move").uniform(length) < self.schedule.log_one_minus_alpha(t).exp()
        return State(torch.where(noisy, self._draw(length, key.fold("value")), x0))

    def prior_kl(self, alpha: float) -> float:
        """KL of alpha 1[x0] + (1 - alpha) pi from pi, averaged over x0 from pi."""
        if alpha == 0:
            return 0.0
        pi = self.log_base.exp()
        hit = (alpha + (1 - alpha) * pi) * (torch.log(alpha + (1 - alpha) * pi) - pi.log())
        miss = (1 - alpha) * (1 - pi) * (math.log1p(-alpha) if alpha < 1 else 0.0)
        return float((pi * (hit + miss)).sum())

    def on(self, schedule: Schedule) -> Self:
        """The same process on another schedule."""
        return replace(self, schedule=schedule)

    def _draw(self, length: int, key: Key) -> Tensor:
        return self._base_draw(key.uniform(length))


def _all_data(log_mass: Tensor) -> Masses:
    return Masses(log_mass, torch.full_like(log_mass, -torch.inf))
