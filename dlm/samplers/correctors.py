"""Correctors: moves at one noise level that leave its law p_t as it is, or nearly.

A corrector mends what factorised steps got wrong. One site at a time is exact: with m_i = alpha
loo_i + (1 - alpha) pi the law of z_i given all the others, replacing z_i by a draw from m_i leaves
p_t invariant if the leave-one-out posterior is exact, if the position was chosen without looking at
the values, and if no other position moves in the same call. What breaks each of these, by how much,
is in docs/samplers.md: several positions at once draw from stale conditionals, informed selection
looks at the values, a temperature changes the law.

Where a noisy token shows that it is noise (masks, u of the lifted process) the posterior of a clean
token cannot be had from its neighbours' prediction: the position is hidden before the network runs.

Source: Gourevitch et al. 2026, arXiv:2605.22765 (leave-one-out Gibbs); Campbell et al. 2022,
arXiv:2205.14987 (forward-backward).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.processes import Prediction, Process, State
from dlm.processes.prediction import pick
from dlm.random import Key, sample_categorical
from dlm.samplers.kernels import Ancestral
from dlm.samplers.network import CountedNetwork

Bend = Callable[[Prediction, State, Tensor], Prediction]  # prediction, state, chosen
Selection = Literal["random", "lowest_probability", "lowest_confidence", "lowest_margin"]


class Corrector(ABC):
    """A move at time t.

    `calls` is the number of network evaluations of one application.
    """

    calls: ClassVar[int] = 1

    def refusal(self, process: Process) -> str | None:
        """Why it is not defined for a process; or None."""
        return None

    def site_law(self, prediction: Prediction) -> Tensor:
        """Log-law (N, K) of a position that is moved, for correctors that move single positions.

        Raises:
            UserError: for the others.
        """
        raise UserError(f"{type(self).__name__} does not move single positions")

    @abstractmethod
    def __call__(
        self,
        network: CountedNetwork,
        state: State,
        t: Tensor,
        *,
        key: Key,
        free: Tensor,
        bend: Bend,
    ) -> State:
        """Move.

        Args:
            network: the predictor, counted.
            state: tokens (B, L) at time t.
            t: a time, float64 scalar, 0 < alpha_t < 1.
            key: decides every draw.
            free: bool (B, L), positions that may move; every row has at least one or none at all.
            bend: temperature, filters and constraints of the sampler.
        """


@final
@dataclass(frozen=True)
class NoCorrector(Corrector):
    """Nothing is moved, nothing is asked."""

    calls: ClassVar[int] = 0

    def __call__(
        self,
        network: CountedNetwork,
        state: State,
        t: Tensor,
        *,
        key: Key,
        free: Tensor,
        bend: Bend,
    ) -> State:
        """The state."""
        return state


@final
@dataclass(frozen=True)
class Gibbs(Corrector):
    """Draws some positions anew from their law given all the others.

    That law is m = alpha loo + (1 - alpha) pi.

    Args:
        positions: how many a call; 1 with selection "random" is exact, more is faster and biased.
        selection: "random"; or those of the largest score: -log m of the token that is there
            ("lowest_probability"), -log m of the likeliest token ("lowest_confidence"), or log m of
            the likeliest other token less that of the one that is there ("lowest_margin").
            Informed selection looks at the values: a heuristic.
        temperature: T of an informed selection; 0 takes the largest scores, above 0 a position is
            drawn with probability ~ exp(score / T), without replacement.

    Raises:
        UserError: for positions < 1, a negative temperature, or informed selection for a process
            whose clean tokens carry no prediction.
    """

    positions: int = 1
    selection: Selection = "random"
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.positions < 1 or not self.temperature >= 0:
            raise UserError(
                "a corrector needs positions >= 1 and temperature >= 0, got "
                f"positions={self.positions}, temperature={self.temperature}"
            )

    def refusal(self, process: Process) -> str | None:
        """Informed selection needs a prediction at every token."""
        if self.selection == "random" or not process.shows_noise:
            return None
        return (
            f"selection={self.selection} needs a prediction at clean tokens, which "
            f"{type(process).__name__} noise does not give; use selection=random"
        )

    def __call__(
        self,
        network: CountedNetwork,
        state: State,
        t: Tensor,
        *,
        key: Key,
        free: Tensor,
        bend: Bend,
    ) -> State:
        """One network call."""
        process, length = network.predictor.process, state.tokens.shape[1]
        u = key.fold("select").uniform(length)
        if self.selection == "random":
            chosen = most(u, free, self.positions)
            state = process.blank(state, chosen)
            network.forget(chosen.any(-1))
            marginal = self.site_law(bend(network(state, t, chosen), state, chosen))
        else:
            everywhere = self.site_law(bend(network(state, t, free), state, free))
            chosen = self.choose(everywhere, state, free, u)
            marginal = everywhere[chosen[free]]
        draws = sample_categorical(marginal, key.fold("value").uniform(length)[chosen])
        return written(state, chosen, draws)

    def site_law(self, prediction: Prediction) -> Tensor:
        """log m: alpha loo + (1 - alpha) pi."""
        process, state = prediction.process, prediction.state
        return process.log_marginal(prediction.log_loo, state, prediction.t)

    def choose(self, log_m: Tensor, state: State, free: Tensor, u: Tensor) -> Tensor:
        """The positions of an informed selection, bool (B, L).

        Args:
            log_m: site laws of the free positions, (N, K).
            state: tokens (B, L).
            free: bool (B, L).
            u: uniforms, float64 (B, L), for a selection at a temperature.
        """
        scores = self._scores(log_m, state.tokens[free]).double()
        if self.temperature > 0:
            gumbel = -torch.log(-torch.log(u[free].clamp(min=2.0**-54)))
            scores = scores / self.temperature + gumbel
        grid = torch.full(free.shape, -torch.inf, dtype=torch.float64, device=free.device)
        grid[free] = scores
        return most(grid, free, self.positions)

    def _scores(self, log_m: Tensor, tokens: Tensor) -> Tensor:
        """Larger is moved first, (N,)."""
        here = pick(log_m, tokens)
        if self.selection == "lowest_probability":
            return -here
        if self.selection == "lowest_confidence":
            return -log_m.amax(-1)
        others = log_m.scatter(-1, tokens[:, None], -torch.inf)
        return others.amax(-1) - here


@final
@dataclass(frozen=True)
class DenoiseRenoise(Corrector):
    """x0 ~ denoiser at some positions, then z ~ q_t(. | x0) there.

    One random position is exact, for every process: it is Gibbs with x0 as helper variable. It
    needs no leave-one-out posterior, and mixes slowly near the data, where the denoiser repeats the
    token.

    Args:
        positions: how many a call, chosen at random.

    Raises:
        UserError: for positions < 1.
    """

    positions: int = 1

    def __post_init__(self) -> None:
        if self.positions < 1:
            raise UserError(f"a corrector needs positions >= 1, got {self.positions}")

    def __call__(
        self,
        network: CountedNetwork,
        state: State,
        t: Tensor,
        *,
        key: Key,
        free: Tensor,
        bend: Bend,
    ) -> State:
        """One network call."""
        length = state.tokens.shape[1]
        chosen = most(key.fold("select").uniform(length), free, self.positions)
        law = self.site_law(bend(network(state, t, chosen), state, chosen))
        return written(
            state, chosen, sample_categorical(law, key.fold("value").uniform(length)[chosen])
        )

    def site_law(self, prediction: Prediction) -> Tensor:
        """alpha denoiser + (1 - alpha) pi: both draws in one."""
        process, state = prediction.process, prediction.state
        return process.log_marginal(prediction.log_denoiser, state, prediction.t)


@final
@dataclass(frozen=True)
class ForwardBackward(Corrector):
    """Noise all positions on to a later time, and take one ancestral step back.

    Exact forward, factorised backward: it errs as a step of that size does, and vanishes with it.

    Args:
        size: how much more noise: alpha_t goes to (1 - size) alpha_t and back.

    Raises:
        UserError: for a size outside (0, 1).
    """

    size: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.size < 1:
            raise UserError(f"size must be between 0 and 1, got {self.size}")

    def __call__(
        self,
        network: CountedNetwork,
        state: State,
        t: Tensor,
        *,
        key: Key,
        free: Tensor,
        bend: Bend,
    ) -> State:
        """One network call."""
        process, length = network.predictor.process, state.tokens.shape[1]
        alpha = (1 - self.size) * process.schedule.alpha(t)
        later = process.schedule.inverse(alpha)
        noised = process.renoise(state, t, later, key.fold("noise").uniform(length, 2))
        state = state._replace(tokens=torch.where(free, noised.tokens, state.tokens))
        network.forget(free.any(-1))
        kernel = Ancestral()
        moves = key.fold("move").uniform(length) < kernel.bound(process, state, later, t)
        chosen = moves & free
        if not chosen.any():
            return state
        prediction = bend(network(state, later, chosen), state, chosen)
        drawn = kernel.draw(prediction, t, key.fold("value").uniform(length, 1)[chosen])
        return written(state, chosen, drawn.tokens)


def most(priority: Tensor, among: Tensor, count: int | Tensor) -> Tensor:
    """The `count` positions of largest priority among some, per row; fewer where there are fewer.

    Args:
        priority: (B, L).
        among: bool (B, L).
        count: one for all rows, or int64 (B,).

    Returns:
        Bool (B, L).
    """
    ranked = priority.double().masked_fill(~among, -torch.inf)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank.scatter_(1, order, places)
    limit = count[:, None] if isinstance(count, Tensor) else count
    return among & (rank < limit)


def written(state: State, where: Tensor, tokens: Tensor) -> State:
    """The state with tokens (N,) written at the N positions of `where`."""
    result = state.tokens.clone()
    result[where] = tokens
    return state._replace(tokens=result)
