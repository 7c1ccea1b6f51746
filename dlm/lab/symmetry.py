"""Exact errors for large vocabularies and long sequences, where a symmetry makes the space small.

The repeated token X_1 = ... = X_L ~ Uniform(V) under uniform noise: given the symbol, noisy tokens
are independent, so everything depends on how often each symbol occurs. The types (count of the true
symbol; partition of the others) are enumerated: for V = 2 there are L + 1, for short sequences few
whatever V. With r = 1 + V alpha / (1 - alpha) the posterior of symbol v is r^{n_v} / Z.

Pairs and single tokens: renaming symbols changes nothing, so the law of a pair is that of a few
classes (equal, different, one hidden, both hidden), and the kernel is run on one state of each. The
kernels are those of `dlm.samplers`, on V or V + 1 states: nothing is simplified.

Source: derived here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from dlm.lab.exact import noise_mass
from dlm.processes import Prediction, Process, State
from dlm.samplers import Kernel


class _Types(NamedTuple):
    """counts (T, P): the true symbol first, then the others that occur; log_ways (T,)."""

    counts: np.ndarray
    log_ways: np.ndarray


@final
class RepeatedUniform:
    """Path KL of the leave-one-out sampler for the repeated token under uniform noise.

    Args:
        symbols: V.
        length: L.
    """

    def __init__(self, symbols: int, length: int) -> None:
        self.symbols, self.length = symbols, length

    def path_kl(self, levels: np.ndarray) -> float:
        """Nats lost on these levels, from noise to data; the first may be above 0."""
        pairs = list(pairwise(np.asarray(levels, dtype=np.float64).tolist()))
        return float(sum(self.step_cost(after, before) for before, after in pairs))

    def step_cost(self, after: float, before: float) -> float:
        """H(X_t) - H(X_s) + sum_i (H(X_s^i | X_t^-i) - H(X_t^i | X_t^-i)), alphas s > t."""
        gained = self.entropy(before) - self.entropy(after)
        others = self._others(before)
        return gained + self.length * (self._mixed(after, *others) - self._mixed(before, *others))

    def entropy(self, alpha: float) -> float:
        """H(X_t), nats."""
        v, log_v = self.symbols, math.log(self.symbols)
        if alpha == 1:
            return log_v
        if alpha == 0:
            return self.length * log_v
        log_z = _log_sum(self._whole.counts * _log_ratio(v, alpha), v)
        chance = self._chance(self._whole, alpha)
        return float(log_v - self.length * math.log((1 - alpha) / v) - chance @ log_z)

    def _others(self, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the L - 1 other tokens: chance (T,), posterior (T, P) and that of a symbol unseen."""
        powers = self._rest.counts * _log_ratio(self.symbols, alpha)
        log_z = _log_sum(powers, self.symbols)
        return self._chance(self._rest, alpha), np.exp(powers - log_z[:, None]), np.exp(-log_z)

    def _mixed(self, alpha: float, chance: np.ndarray, seen: np.ndarray, not_seen: np.ndarray):
        """Mean entropy of alpha loo + (1 - alpha) / V."""
        flat = (1 - alpha) / self.symbols
        left = self.symbols - seen.shape[1]
        rows = _entropy(alpha * seen + flat).sum(1) + left * _entropy(alpha * not_seen + flat)
        return float(chance @ rows)

    def _chance(self, types: _Types, alpha: float) -> np.ndarray:
        total, true = types.counts.sum(1), types.counts[:, 0]
        other = (1 - alpha) / self.symbols
        return np.exp(
            types.log_ways + true * math.log(alpha + other) + (total - true) * math.log(other)
        )

    @cached_property
    def _whole(self) -> _Types:
        return _types(self.length, self.symbols)

    @cached_property
    def _rest(self) -> _Types:
        return _types(self.length - 1, self.symbols)


def _log_ratio(symbols: int, alpha: float) -> float:
    return math.log1p(symbols * alpha / (1 - alpha))


def _log_sum(powers: np.ndarray, symbols: int) -> np.ndarray:
    """log of sum_v exp(powers_v), symbols without a column counting 1 each."""
    top = powers.max(1)
    rest = symbols - powers.shape[1]
    return top + np.log(np.exp(powers - top[:, None]).sum(1) + rest * np.exp(-top))


def _entropy(p: np.ndarray) -> np.ndarray:
    return -p * np.log(np.where(p > 0, p, 1.0))


def _types(draws: int, symbols: int) -> _Types:
    width = min(symbols, draws + 1)
    counts, log_ways = [], []
    for true in range(draws + 1):
        for parts in _partitions(draws - true, draws - true, symbols - 1):
            row = [true, *parts] + [0] * (width - 1 - len(parts))
            counts.append(row[:width])
            log_ways.append(_log_ways(true, parts, draws, symbols))
    return _Types(np.array(counts, dtype=np.float64).reshape(-1, width), np.array(log_ways))


def _log_ways(true: int, parts: tuple[int, ...], draws: int, symbols: int) -> float:
    """log of the number of sequences of a type."""
    orders = math.lgamma(draws + 1) - sum(math.lgamma(c + 1) for c in (true, *parts))
    names = sum(math.log(symbols - 1 - i) for i in range(len(parts)))
    alike = sum(math.lgamma(parts.count(c) + 1) for c in set(parts))
    return orders + names - alike


def _partitions(total: int, largest: int, parts: int) -> Iterator[tuple[int, ...]]:
    if total == 0:
        yield ()
        return
    if parts == 0:
        return
    for first in range(min(total, largest), -(-total // parts) - 1, -1):
        for rest in _partitions(total - first, first, parts - 1):
            yield (first, *rest)


# -- one pair, one token: kernels on one state of each class -------------------------------------

_EQUAL, _DIFFERENT, _HALF, _HIDDEN = range(4)


def pair_equal(kernel: Kernel, process: Process, levels: Tensor) -> float:
    """The chance that a sampler with the exact posterior draws a pair of equal tokens.

    Args:
        kernel: of the sampler.
        process: over V states, or V and MASK.
        levels: alphas from 0 to 1, float64 (K + 1,).
    """
    masked = process.mask_id is not None
    symbols = process.num_states - masked
    chance = np.zeros(4)
    if masked:
        chance[_HIDDEN] = 1.0
    else:
        chance[[_EQUAL, _DIFFERENT]] = 1 / symbols, 1 - 1 / symbols
    times = process.schedule.inverse(levels)
    for t, s in pairwise(times):
        chance = chance @ _pair_step(kernel, process, t, s, symbols)
    return float(chance[_EQUAL] / chance.sum())


def _pair_step(kernel: Kernel, process: Process, t: Tensor, s: Tensor, symbols: int) -> np.ndarray:
    """Chances of moving between the classes, (4, 4)."""
    hidden = process.mask_id if process.mask_id is not None else 0
    tokens = torch.tensor([[0, 0], [0, 1], [0, hidden], [hidden, hidden]])
    seen = tokens.flip(-1)  # each is known from the other
    mass = noise_mass(process, t)[seen]
    evidence = mass[..., None].expand(*seen.shape, process.num_states).clone()
    kept = process.schedule.alpha(t).expand(*seen.shape, 1)
    evidence.scatter_add_(-1, seen[..., None], kept)
    evidence[..., symbols:] = 0.0
    impossible = evidence.sum(-1, keepdim=True) == 0  # shown, where all is hidden: never reached
    clean = torch.arange(process.num_states) < symbols
    loo = torch.where(impossible & clean, 1.0, evidence).log().log_softmax(-1)
    prediction = Prediction(process, State(tokens), t.expand(tokens.shape), log_loo=loo)
    first, second = kernel.log_probs(prediction, s).exp().unbind(1)
    result = np.zeros((4, 4))
    result[:, _EQUAL] = (first * second)[:, :symbols].sum(-1).numpy()
    shown = [part[:, :symbols].sum(-1).numpy() for part in (first, second)]
    result[:, _DIFFERENT] = shown[0] * shown[1] - result[:, _EQUAL]
    result[:, _HALF] = shown[0] * (1 - shown[1]) + shown[1] * (1 - shown[0])
    result[:, _HIDDEN] = (1 - shown[0]) * (1 - shown[1])
    return result


def pairs_discrepancy(equal: float, length: int, symbols: int, decay: float) -> float:
    """`KernelDiscrepancy` between L / 2 pairs of equal tokens and pairs that are equal by chance.

    Pairs are independent and every symbol is as likely, so the mean of decay^H over independent
    draws of two such laws is the (L / 2)-th power of that of one pair.

    Args:
        equal: the chance that a pair is equal.
        length: L, even.
        symbols: V, at least 2.
        decay: of the kernel.

    Returns:
        The discrepancy; a square below 1e-16 is lost in rounding, so one below 1e-8 is not known.
    """

    def mean(one: float, two: float) -> float:
        both = 1 / symbols + (1 - 1 / symbols) * decay**2  # of two equal pairs
        mixed = 2 / symbols * decay + (1 - 2 / symbols) * decay**2
        pairs = symbols * (symbols - 1)
        once = 2 * (symbols - 2)  # unequal pairs that agree with a given one in one place
        neither = (1 + once * decay + (pairs - 1 - once) * decay**2) / pairs
        return (
            one * two * both
            + (one * (1 - two) + two * (1 - one)) * mixed
            + (1 - one) * (1 - two) * neither
        ) ** (length / 2)

    square = mean(1.0, 1.0) - 2 * mean(1.0, equal) + mean(equal, equal)
    return math.sqrt(max(square, 0.0))


def token_chance(kernel: Kernel, process: Process, levels: Tensor, special: float) -> float:
    """The chance that a sampler draws symbol 0, for one token of a known law.

    The law has `special` at symbol 0 and the rest even over the others; the levels are those of
    `pair_equal`.
    """
    masked = process.mask_id is not None
    symbols = process.num_states - masked
    tokens = torch.tensor([[0], [1], [process.num_states - 1]])
    law = torch.zeros(process.num_states, dtype=torch.float64)
    law[:symbols] = (1 - special) / (symbols - 1)
    law[0] = special
    chance = np.array([0, 0, 1.0] if masked else [1 / symbols, 1 - 1 / symbols, 0])
    for t, s in pairwise(process.schedule.inverse(levels)):
        loo = law.log().expand(3, 1, -1)
        prediction = Prediction(process, State(tokens), t.expand(3, 1), log_loo=loo)
        rows = kernel.log_probs(prediction, s).exp()[:, 0].numpy()
        hidden = rows[:, symbols:].sum(1)
        zero = rows[:, 0]
        chance = chance @ np.stack([zero, 1 - zero - hidden, hidden], 1)
    return float(chance[0] / chance.sum())
