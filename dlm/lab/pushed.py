"""The law of a sampler on a small space, by pushing every state through it: nothing is drawn.

`exact` pushes kernels that look at tokens alone. Here are whole samplers: grids with correctors,
kernels that remember how sure the model was or change the noise a state keeps, and reveal samplers
with any order, also one that draws its choice. Float64 where the predictor is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor

from dlm.denoiser import Predictor
from dlm.errors import UserError
from dlm.lab import exact
from dlm.processes import Prediction, State
from dlm.processes.prediction import Filter
from dlm.samplers import (
    Corrector,
    ForwardBackward,
    Gibbs,
    GridSampler,
    Kernel,
    Random,
    RefreshedBridge,
    RevealSampler,
)
from dlm.samplers.correctors import most
from dlm.samplers.kernels import Ancestral


class _Mass(NamedTuple):
    """Distinct states and their probabilities.

    tokens (N, L), noise (N, L) or None, extra (N, L): confidence or what is hidden; chance (N,).
    """

    tokens: Tensor
    noise: Tensor | None
    extra: Tensor
    chance: Tensor

    def merged(self) -> _Mass:
        """Equal states put together, impossible ones left out."""
        kept = self.chance > 0
        parts = [self.tokens[kept].double(), self.extra[kept].double().nan_to_num(nan=9.0)]
        if self.noise is not None:
            parts.append(self.noise[kept].double())
        rows, where = torch.unique(torch.cat(parts, -1), dim=0, return_inverse=True)
        chance = torch.zeros(len(rows), dtype=torch.float64).index_add(0, where, self.chance[kept])
        length = self.tokens.shape[1]
        extra = rows[:, length : 2 * length]
        noise = None if self.noise is None else rows[:, 2 * length :].long()
        extra = torch.where(extra == 9.0, torch.nan, extra).to(self.extra.dtype)
        return _Mass(rows[:, :length].long(), noise, extra, chance)

    @property
    def state(self) -> State:
        """All of them as one batch."""
        return State(self.tokens, self.noise)


def grid_law(sampler: GridSampler, predictor: Predictor, length: int) -> Tensor:
    """The law of what a grid sampler draws, flat float64 (K^L,).

    Its filters are left out; wrap the predictor to see what they do.

    Raises:
        UserError: for an informed corrector with a temperature, whose choice is a draw.
    """
    process = predictor.process
    levels, corrected = sampler.plan(process.schedule)
    times = process.schedule.inverse(levels)
    mass = _start(predictor, length)
    for k, correct in enumerate(corrected):
        mass = _stepped(predictor, sampler.kernel, mass, times[k], times[k + 1])
        for _ in range(sampler.sweeps if correct else 0):
            mass = corrected_mass(predictor, sampler.corrector, mass, times[k + 1])
    return _tokens_law(mass, process.num_states)


def reveal_law(
    sampler: RevealSampler,
    predictor: Predictor,
    length: int,
    sizes: Sequence[tuple[float, Sequence[int]]],
) -> Tensor:
    """The law of what a reveal sampler draws, flat float64 (K^L,).

    Args:
        sampler: any plan and order.
        predictor: an oracle.
        length: L.
        sizes: the law of the plan: probabilities and sizes of the steps.
    """
    total = torch.zeros(predictor.process.num_states**length, dtype=torch.float64)
    for chance, counts in sizes:
        start = _start(predictor, length)
        everywhere = torch.ones_like(start.tokens, dtype=torch.bool)
        state = predictor.process.blank(start.state, everywhere)
        mass = start._replace(tokens=state.tokens, extra=everywhere.double())
        left = length
        for count in counts:
            if count and left:
                mass = _revealed(sampler, predictor, mass, min(count, left), 1 - left / length)
                left -= count
        total += chance * _tokens_law(mass, predictor.process.num_states)
    return total


def corrected_law(
    predictor: Predictor,
    corrector: Corrector,
    law: Tensor,
    t: Tensor,
    noise: Tensor | None = None,
    bend: Filter | None = None,
) -> Tensor:
    """A law over all states (K^L,) after one application of a corrector at time t.

    Args:
        predictor: an oracle.
        corrector: one that chooses without a temperature.
        law: flat float64 (K^L,), at time t.
        t: float64 scalar.
        noise: of lifted noise, (L,).
        bend: a filter of the leave-one-out posterior.
    """
    size = predictor.process.num_states
    length = round(math.log(len(law), size))
    states = exact.with_noise(exact.all_states(size, length), noise)
    extra = torch.full(states.tokens.shape, torch.nan)
    mass = _Mass(states.tokens, states.noise, extra, law)
    return _tokens_law(corrected_mass(predictor, corrector, mass, t, bend), size)


def corrected_mass(
    predictor: Predictor,
    corrector: Corrector,
    mass: _Mass,
    t: Tensor,
    bend: Filter | None = None,
) -> _Mass:
    """States after one application of a corrector."""
    process, length = predictor.process, mass.tokens.shape[1]
    if isinstance(corrector, ForwardBackward):
        later = process.schedule.inverse((1 - corrector.size) * process.schedule.alpha(t))
        noised = _noised(predictor, mass, t, later)
        return _stepped(predictor, Ancestral(), noised, later, t, bend)
    free = torch.ones_like(mass.tokens, dtype=torch.bool)
    informed = isinstance(corrector, Gibbs) and corrector.selection != "random"
    if informed:
        assert isinstance(corrector, Gibbs)
        if corrector.temperature > 0:
            raise UserError("a selection at a temperature is a draw; its law is not pushed")
        laws = corrector.site_law(_asked(predictor, mass.state, t, bend))
        flat = laws.flatten(0, 1)
        chosen = corrector.choose(flat, mass.state, free, torch.zeros(free.shape))
        return _moved(mass, torch.where(chosen[..., None], laws.exp(), _stay(mass, laws)))
    positions = min(corrector.positions, length)  # pyright: ignore[reportAttributeAccessIssue]
    parts = []
    for subset in combinations(range(length), positions):
        chosen = torch.zeros_like(free)
        chosen[:, list(subset)] = True
        blank = isinstance(corrector, Gibbs)
        state = process.blank(mass.state, chosen) if blank else mass.state
        laws = corrector.site_law(_asked(predictor, state, t, bend))
        share = mass._replace(chance=mass.chance / comb(length, positions))
        parts.append(_moved(share, torch.where(chosen[..., None], laws.exp(), _stay(mass, laws))))
    return _joined(parts)


def _start(predictor: Predictor, length: int) -> _Mass:
    """The prior, exactly."""
    process = predictor.process
    states = exact.all_states(process.num_states, length)
    first = process.schedule.inverse(torch.zeros((), dtype=torch.float64))
    parts, noises = [], exact.every_noise(process, length)
    for noise in noises:
        pi = process.noise_law(first, noise)
        law = exact.product_law(pi.expand(1, length, -1))[0] / len(noises)
        extra = torch.full(states.shape, torch.nan)
        shared = None if noise is None else noise.expand_as(states)
        parts.append(_Mass(states, shared, extra, law))
    return _joined(parts)


def _asked(predictor: Predictor, state: State, t: Tensor, bend: Filter | None = None) -> Prediction:
    times = t.expand(state.tokens.shape)
    prediction = predictor.predict(predictor.hidden(state, t[None]), state, times)
    return prediction if bend is None else prediction.map(bend, on="loo")


def _stepped(
    predictor: Predictor,
    kernel: Kernel,
    mass: _Mass,
    t: Tensor,
    s: Tensor,
    bend: Filter | None = None,
) -> _Mass:
    process = predictor.process
    prediction = _asked(predictor, mass.state, t, bend)
    if isinstance(kernel, RefreshedBridge):
        return _moved_together(mass, kernel.joint(prediction, s))
    bound = kernel.bound(process, mass.state, t, s, mass.extra)
    moved = kernel.moved(prediction, s).exp()
    law = (1 - bound)[..., None] * _stay(mass, moved) + bound[..., None] * moved
    if not kernel.remembers:
        return _moved(mass, law)
    sure = prediction.log_denoiser
    hides = lambda tokens, noise: process.active(State(tokens, noise))  # noqa: E731
    return _moved(mass, law, sure.float(), hides)


def _noised(predictor: Predictor, mass: _Mass, t: Tensor, later: Tensor) -> _Mass:
    kernels = [
        exact.transition(predictor.process, t, later, None if mass.noise is None else noise)
        for noise in (mass.tokens[:1] if mass.noise is None else mass.noise)
    ]
    if mass.noise is None:
        return _moved(mass, exact.rows_of(kernels[0], mass.tokens))
    laws = [exact.rows_of(kernel, row) for kernel, row in zip(kernels, mass.tokens, strict=True)]
    return _moved(mass, torch.stack(laws))


def _stay(mass: _Mass, like: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(mass.tokens, like.shape[-1]).to(like.dtype)


def _moved(
    mass: _Mass,
    law: Tensor,
    sure: Tensor | None = None,
    hides: Callable[[Tensor, Tensor | None], Tensor] | None = None,
) -> _Mass:
    """Independent moves with laws (N, L, K); `sure` is the confidence in each token."""
    count, length, size = law.shape
    states = exact.all_states(size, length)
    chance = mass.chance[:, None] * exact.product_law(law.double())
    tokens = states.expand(count, -1, -1)
    noise = None if mass.noise is None else mass.noise[:, None].expand_as(tokens)
    extra = mass.extra[:, None].expand(tokens.shape)
    if sure is not None and hides is not None:
        given = sure[:, None].expand(-1, len(states), -1, -1).gather(-1, tokens[..., None])[..., 0]
        extra = torch.where(tokens == mass.tokens[:, None], extra, given)
        extra = extra.masked_fill(hides(tokens, noise), torch.nan)
    flat = [None if x is None else x.flatten(0, 1) for x in (tokens, noise, extra)]
    assert flat[0] is not None
    assert flat[2] is not None
    return _Mass(flat[0], flat[1], flat[2], chance.flatten()).merged()


def _moved_together(mass: _Mass, joint: Tensor) -> _Mass:
    """Independent moves of (token, noise) pairs with laws (N, L, K, K)."""
    count, length, size, _ = joint.shape
    pairs = exact.all_states(size * size, length)
    chance = mass.chance[:, None] * exact.product_law(joint.double().flatten(-2))
    shape = (count * len(pairs), length)
    tokens, noise = (x.expand(count, -1, -1).reshape(shape) for x in (pairs // size, pairs % size))
    extra = torch.full(shape, torch.nan)
    return _Mass(tokens, noise, extra, chance.flatten()).merged()


def _joined(parts: Sequence[_Mass]) -> _Mass:
    noise = [part.noise for part in parts if part.noise is not None]
    return _Mass(
        torch.cat([part.tokens for part in parts]),
        torch.cat(noise) if noise else None,
        torch.cat([part.extra for part in parts]),
        torch.cat([part.chance for part in parts]),
    ).merged()


def _revealed(
    sampler: RevealSampler, predictor: Predictor, mass: _Mass, count: int, share: float
) -> _Mass:
    """One step of a reveal sampler: `extra` is 1 where a position is hidden."""
    process = predictor.process
    time = process.hidden_time(torch.tensor(1 - share, dtype=torch.float64))
    t = time if sampler.level == "share" else process.view_time(time)
    log_probs = _asked(predictor, mass.state, t).log_loo
    hidden = mass.extra > 0
    parts = []
    for subset, chance in _subsets(sampler, log_probs, hidden, count):
        laws = torch.where(subset[..., None], log_probs.exp(), _stay(mass, log_probs))
        for tokens, probability in _outcomes(laws, mass):
            state = process.pin(mass.state, tokens, subset)
            left = (hidden & ~subset).double()
            parts.append(_Mass(state.tokens, state.noise, left, chance * probability))
    return _joined(parts)


def _outcomes(laws: Tensor, mass: _Mass):
    joint = mass.chance[:, None] * exact.product_law(laws.double())
    states = exact.all_states(laws.shape[-1], laws.shape[1])
    for column, tokens in enumerate(states):
        yield tokens.expand_as(mass.tokens), joint[:, column]


def _subsets(sampler: RevealSampler, log_probs: Tensor, hidden: Tensor, count: int):
    """Subsets bool (N, L) that a step may open, with their probabilities (N,)."""
    order, (number, length) = sampler.order, hidden.shape
    if isinstance(order, Random):
        for places in combinations(range(length), count):
            subset = torch.zeros_like(hidden)
            subset[:, list(places)] = True
            possible = (subset & ~hidden).sum(-1) == 0
            ways = torch.tensor([comb(int(n), count) for n in hidden.sum(-1)]).double()
            yield subset, torch.where(possible, 1 / ways.clamp(min=1), 0.0)
        return
    column = torch.arange(length).expand(number, -1).flatten()
    silent = torch.full((number * length,), math.exp(-1), dtype=torch.float64)  # no Gumbel noise
    rows = log_probs.flatten(0, 1) if order.informed else log_probs.new_zeros(number * length, 0)
    priority = order.priority(rows, column, silent).reshape(number, length)
    entropy = torch.special.entr(log_probs.exp()).sum(-1)
    planned = torch.full((number,), count)
    counts = order.count(entropy, hidden, planned) if order.informed else planned
    if getattr(order, "temperature", 0) == 0:
        yield most(priority, hidden, counts), torch.ones(number, dtype=torch.float64)
        return
    weights = torch.where(hidden, priority, -torch.inf).softmax(-1)
    for size in counts.unique().tolist():
        for places in permutations(range(length), min(size, length)):
            subset = torch.zeros_like(hidden)
            subset[:, list(places)] = True
            chance, left = (counts == size).double(), torch.ones(number, dtype=torch.float64)
            for place in places:  # without replacement: each in proportion to what is left
                chance = chance * weights[:, place] / left.clamp(min=1e-300)
                left = left - weights[:, place]
            yield subset, chance


def _tokens_law(mass: _Mass, size: int) -> Tensor:
    length = mass.tokens.shape[1]
    place = (mass.tokens * size ** torch.arange(length - 1, -1, -1)).sum(-1)
    return torch.zeros(size**length, dtype=torch.float64).index_add(0, place, mass.chance)
