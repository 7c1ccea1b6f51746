"""What a network says, and what it says it about: `Prediction` and `State`.

A `Prediction` is what flows from the network to the loss and to the sampler. It is made in one of
three currencies (leave-one-out posterior, denoiser, ratios of the noisy marginal) and converts only
when a formula asks, because near t = 0 the conversion from the denoiser cancels digits.

Shapes: tokens (...), times broadcast against tokens, log-probabilities (..., K), all in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dlm.processes.base import Process

Filter = Callable[[Tensor], Tensor]
Index = Tensor | slice | tuple[Tensor, ...]
Currency = Literal["loo", "denoiser", "ratios"]
Posterior = Literal["loo", "denoiser"]


class State(NamedTuple):
    """What the noise process holds.

    tokens: noisy tokens, int64 (..., L).
    noise: of the lifted process, the token that stands for "noise" at each position; else None.
    """

    tokens: Tensor
    noise: Tensor | None = None

    def at(self, where: Index) -> State:
        """The positions that an index or a mask selects."""
        return State(self.tokens[where], None if self.noise is None else self.noise[where])


@final
class Prediction:
    """What a network (or an oracle) says about every position, carrying its own meaning.

    Give exactly one of the three currencies; each of the others is computed once, on demand.

    Args:
        process: whose formulas convert.
        state: the noisy tokens it was made from, shape (...).
        t: times, broadcastable to (...).
        log_loo: log p(x0^i = v | z^{-i}), normalised, (..., K).
        log_denoiser: log p(x0^i = v | z), normalised, (..., K).
        log_ratios: log m_t(y) / m_t(z), zero at y = z, (..., K); for any positive m.
    """

    def __init__(
        self,
        process: Process,
        state: State,
        t: Tensor,
        *,
        log_loo: Tensor | None = None,
        log_denoiser: Tensor | None = None,
        log_ratios: Tensor | None = None,
    ) -> None:
        if sum(given is not None for given in (log_loo, log_denoiser, log_ratios)) != 1:
            raise ValueError("a Prediction is made from exactly one of its three currencies")
        self.process, self.state, self.t = process, state, t
        self.made_of: Currency = (
            "loo" if log_loo is not None else "ratios" if log_ratios is not None else "denoiser"
        )
        self._loo, self._denoiser, self._ratios = log_loo, log_denoiser, log_ratios

    @property
    def log_loo(self) -> Tensor:
        """Log leave-one-out posterior, (..., K)."""
        if self._loo is None:
            if self._denoiser is not None:
                self._loo = self.process.to_loo(self._denoiser, self.state, self.t)
            else:
                assert self._ratios is not None
                self._loo = self.process.ratios_to_loo(self._ratios, self.state, self.t)
        return self._loo

    @property
    def log_denoiser(self) -> Tensor:
        """Log denoiser, (..., K)."""
        if self._denoiser is None:
            self._denoiser = self.process.to_denoiser(self.log_loo, self.state, self.t)
        return self._denoiser

    @property
    def log_ratios(self) -> Tensor:
        """Log concrete score: m_t(y) / m_t(z), (..., K)."""
        if self._ratios is None:
            log_marginal = self.process.log_marginal(self.log_loo, self.state, self.t)
            self._ratios = log_marginal - pick(log_marginal, self.state.tokens)[..., None]
        return self._ratios

    def map(self, f: Filter, *, on: Literal["loo", "denoiser"]) -> Prediction:
        """The prediction with a filter (temperature, ...) applied to one of its posteriors."""
        if on == "loo":
            return Prediction(self.process, self.state, self.t, log_loo=f(self.log_loo))
        return Prediction(self.process, self.state, self.t, log_denoiser=f(self.log_denoiser))


def pick(values: Tensor, index: Tensor) -> Tensor:
    """values[..., index[...]]: one entry of the last axis per row."""
    return values.gather(-1, index[..., None]).squeeze(-1)


def log_add(a: Tensor, b: Tensor) -> Tensor:
    """logaddexp whose gradient is 0, not NaN, where both are -inf."""
    nothing = (a == -torch.inf) & (b == -torch.inf)
    return torch.logaddexp(a.masked_fill(nothing, 0.0), b).masked_fill(nothing, -torch.inf)


def add_at(values: Tensor, index: Tensor, amount: Tensor) -> Tensor:
    """A copy of values (..., K) with `amount` (..., 1) added to one entry per row."""
    amount = amount.expand(*index.shape, 1).to(values.dtype)
    return values.scatter_add(-1, index[..., None], amount)


def log_point(index: Tensor, like: Tensor) -> Tensor:
    """Log of the point mass at index (...), shape (..., K) of `like`."""
    return torch.full_like(like, -torch.inf).scatter(-1, index[..., None], 0.0)
