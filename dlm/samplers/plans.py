"""Plans: how many positions each step of a reveal sampler opens.

A plan knows the number of hidden positions and of steps, never the text. What a plan loses on a law
is a function of the law's information curve (`dlm.samplers.curve`):

    E KL = sum_l (Z_l - Z_{l-1}) E R_l,     R_l: positions from l to the end of its step

so every plan says its E R_l, its `waits`. With at least as many steps as hidden positions, every
plan opens one at a time, which is exact.

Sources: Li & Cai 2025, arXiv:2505.21400 (balanced sizes); Chang et al. 2022, arXiv:2202.04200
(cosine); Zheng et al. 2024, arXiv:2409.02908 (first hitting); Chen, Cong & Li 2026, COLT
(decreasing and increasing sizes, the curve). The random phase, the minimax plan and the equaliser
are ours.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import final

import numpy as np
import torch
from torch import Tensor

from dlm.random import Key, sample_categorical
from dlm.samplers.curve import InformationCurve, waits_of
from dlm.samplers.equaliser import first_size, shares
from dlm.samplers.minimax import (
    Against,
    Outcomes,
    minimax_boundaries,
    systematic,
    systematic_waits,
)


class Plan(ABC):
    """Sizes of the steps, and the level at which the network is asked in each."""

    @abstractmethod
    def sizes(self, hidden: Tensor, steps: int, *, key: Key, total: int | Tensor) -> Tensor:
        """Positions to open in each step, int64 (B, steps); rows sum to `hidden`.

        Args:
            hidden: positions to open in each sequence, int64 (B,).
            steps: K >= 1.
            key: of a random plan; its rows are the sequences.
            total: L, hidden and given positions together, without padding; of each sequence, int64
                (B,), or one for all.
        """

    @abstractmethod
    def waits(self, hidden: int, steps: int, total: int) -> np.ndarray:
        """E R_1..E R_hidden, exact, float64 (hidden,)."""

    def levels(self, sizes: Tensor, *, key: Key) -> Tensor:
        """alpha at which the network is asked in each step, float64 (B, steps).

        The share of the hidden positions that is open before the step.
        """
        opened = sizes.cumsum(-1) - sizes
        return opened.double() / sizes.sum(-1, keepdim=True).clamp(min=1)


class ListedPlan(Plan):
    """A plan whose outcomes can be listed."""

    @abstractmethod
    def outcomes(self, hidden: int, steps: int, total: int) -> Outcomes:
        """The law of the sizes, for 1 <= steps < hidden."""

    @final
    def table(self, hidden: int, steps: int, total: int) -> Outcomes:
        """The law of the sizes, whatever the numbers."""
        if steps >= hidden:
            one_each = (np.arange(steps) < hidden).astype(np.int64)
            return Outcomes(np.ones(1), one_each[None])
        return self.outcomes(hidden, steps, total)

    @final
    def sizes(self, hidden: Tensor, steps: int, *, key: Key, total: int | Tensor) -> Tensor:
        """See `Plan`."""
        result = torch.zeros(len(hidden), steps, dtype=torch.int64, device=hidden.device)
        u = key.fold("outcome").uniform()
        asked = torch.stack([hidden, _each(total, hidden)], -1)
        for count, length in asked.unique(dim=0).tolist():
            chance, sizes = self.table(count, steps, length)
            rows = (asked == asked.new_tensor([count, length])).all(-1)
            log_chance = torch.from_numpy(chance).log().to(hidden.device)
            chosen = sample_categorical(log_chance.expand(int(rows.sum()), -1), u[rows])
            result[rows] = torch.from_numpy(sizes).to(hidden.device)[chosen]
        return result


class TabledPlan(ListedPlan):
    """A plan that says its outcomes and no more."""

    @final
    def waits(self, hidden: int, steps: int, total: int) -> np.ndarray:
        """See `Plan`."""
        chance, sizes = self.table(hidden, steps, total)
        return chance @ waits_of(sizes, hidden)


class SystematicPlan(ListedPlan):
    """A plan that draws where steps begin, by systematic sampling: one random phase a sequence."""

    @abstractmethod
    def chance(self, hidden: int, steps: int) -> np.ndarray:
        """Probabilities that a step begins at positions 2..hidden, for 2 <= steps < hidden."""

    @final
    def outcomes(self, hidden: int, steps: int, total: int) -> Outcomes:
        """One for each phase."""
        return _certain([hidden], 1) if steps == 1 else _phases(self, hidden, steps)

    @final
    def waits(self, hidden: int, steps: int, total: int) -> np.ndarray:
        """See `Plan`; without the outcomes."""
        if steps >= hidden:
            return np.zeros(hidden)
        chance = np.zeros(hidden - 1) if steps == 1 else self.chance(hidden, steps)
        return systematic_waits(chance)


@lru_cache(maxsize=64)  # of up to L K numbers each
def _phases(plan: SystematicPlan, hidden: int, steps: int) -> Outcomes:
    return systematic(plan.chance(hidden, steps), steps)


def _each(total: int | Tensor, hidden: Tensor) -> Tensor:
    """L of each sequence, int64 (B,)."""
    return torch.as_tensor(total, device=hidden.device).expand_as(hidden)


def _certain(sizes: np.ndarray | list[int], steps: int) -> Outcomes:
    padded = np.zeros(steps, dtype=np.int64)
    padded[: len(sizes)] = sizes
    return Outcomes(np.ones(1), padded[None])


def _even(hidden: int, steps: int) -> np.ndarray:
    """Differences of round(k hidden / steps)."""
    edges = (np.arange(steps + 1) * hidden * 2 + steps) // (2 * steps)
    return np.diff(edges)


@final
@dataclass(frozen=True)
class Even(TabledPlan):
    """Sizes that differ by at most one, spread evenly."""

    def outcomes(self, hidden: int, steps: int, total: int) -> Outcomes:
        """One."""
        return _certain(_even(hidden, steps), steps)


@final
@dataclass(frozen=True)
class Cosine(TabledPlan):
    """hidden (1 - cos(pi k / 2 K)) are open after k steps, rounded; at least one a step."""

    def outcomes(self, hidden: int, steps: int, total: int) -> Outcomes:
        """One."""
        k = np.arange(steps + 1)
        opened = np.round(hidden * (1 - np.cos(np.pi * k / (2 * steps)))).astype(np.int64)
        opened = np.clip(opened, k, hidden - (steps - k))
        opened[-1] = hidden
        return _certain(np.diff(opened), steps)


@final
@dataclass(frozen=True)
class Balanced(SystematicPlan):
    """Steps begin everywhere with the same probability (K - 1) / (L - 1), by systematic sampling.

    Inner sizes differ by at most one, the first and the last share what the phase leaves. So every
    increment of information waits equally long on average but near the end, and E KL is about the
    same share of Z_L wherever the law has its information: the rate of the balanced schedule of Li
    & Cai, whose bound for the largest size holds.
    """

    def chance(self, hidden: int, steps: int) -> np.ndarray:
        """The same everywhere."""
        return np.full(hidden - 1, (steps - 1) / (hidden - 1))


@final
@dataclass(frozen=True)
class FirstHitting(TabledPlan):
    """Even sizes, and the exact times at which so many positions have opened.

    With n hidden at noise level A, the m-th next opening is at A B, B ~ Beta(n - m + 1, m), drawn
    as a product of powers of uniforms, for each sequence. One position a step is the exact jump
    chain of the reverse process: no error but that of the network. Times matter only to networks
    that see the level.
    """

    def outcomes(self, hidden: int, steps: int, total: int) -> Outcomes:
        """One."""
        return _certain(_even(hidden, steps), steps)

    def levels(self, sizes: Tensor, *, key: Key) -> Tensor:
        """1 - A at the last opening of each step, 0 where nothing has opened."""
        hidden = sizes.sum(-1, keepdim=True)
        most = max(1, int(hidden.max())) if len(hidden) else 1
        u = 1 - key.fold("times").uniform(most)  # in (0, 1]
        left = (hidden - torch.arange(most, device=sizes.device)).clamp(min=1)
        log_noise = torch.nn.functional.pad((u.log() / left).cumsum(-1), (1, 0))
        return -torch.expm1(log_noise.gather(-1, sizes.cumsum(-1)))


@final
@dataclass(frozen=True)
class Minimax(SystematicPlan):
    """The random sizes with the best guarantee against total correlation, its dual, or both.

    E KL <= c TC, <= c DTC, or <= c times either, for every law, with the smallest such c
    (`dlm.samplers.minimax`). Against tc the sizes fall, against dtc they grow.

    Args:
        against: tc, dtc or both.
    """

    against: Against = "both"

    def chance(self, hidden: int, steps: int) -> np.ndarray:
        """Those of the least c."""
        return minimax_boundaries(hidden, steps, self.against).chance

    def constant(self, length: int, steps: int) -> float:
        """c; 1 for one step against tc, 0 where every position has a step."""
        if steps >= length:
            return 0.0
        if steps == 1:
            waits = self.waits(length, 1, length)[1:]
            down = np.arange(length - 1, 0, -1)
            weight = {"tc": down, "dtc": down[::-1], "both": np.minimum(down, down[::-1])}
            return float((waits / weight[self.against]).max())
        return minimax_boundaries(length, steps, self.against).constant


@final
@dataclass(frozen=True)
class Equaliser(Plan):
    """Random sizes that lose the same share v of the total correlation of every law.

    Sizes are drawn one after the other (`dlm.samplers.equaliser`).
    """

    def sizes(self, hidden: Tensor, steps: int, *, key: Key, total: int | Tensor) -> Tensor:
        """See `Plan`."""
        longest = max(_each(total, hidden).tolist(), default=0)
        share = shares(longest, min(steps, max(1, longest))).to(hidden.device)
        left, drawn = hidden, []
        u = key.fold("sizes").uniform(steps)
        for k in range(steps):
            after = steps - k - 1  # steps that follow
            size = (left > 0).long() if after else left
            if 0 < after < longest - 1:
                law = first_size(share[after - 1], left.clamp(min=2))
                chosen = 1 + sample_categorical(law.log(), u[:, k])
                size = torch.where(left > after + 1, chosen, size)
            drawn.append(size)
            left = left - size
        return torch.stack(drawn, -1)

    def waits(self, hidden: int, steps: int, total: int) -> np.ndarray:
        """v (hidden - l + 1), 0 at l = 1."""
        places = np.arange(1, hidden + 1)
        return np.where(places > 1, self.share(hidden, steps) * (hidden - places + 1), 0.0)

    def share(self, length: int, steps: int) -> float:
        """v."""
        if steps >= length:
            return 0.0
        return float(shares(length, steps)[-1, length])


@final
@dataclass(frozen=True)
class Decreasing(TabledPlan):
    """A fixed share of what is hidden in each step, at last one at a time: for a known TC.

    E KL <= TC / (zeta - 1) with sizes max(1, floor(left / zeta)); zeta is the largest that ends in
    the steps there are.

    Source: Chen, Cong & Li 2026, theorem 9 (with integer zeta).
    """

    def outcomes(self, hidden: int, steps: int, total: int) -> Outcomes:
        """One."""
        return _certain(_shares(hidden, steps), steps)


@final
@dataclass(frozen=True)
class Increasing(TabledPlan):
    """The sizes of `Decreasing` in reverse: for a known dual total correlation.

    Source: Chen, Cong & Li 2026, theorem 9.
    """

    def outcomes(self, hidden: int, steps: int, total: int) -> Outcomes:
        """One."""
        return _certain(_shares(hidden, steps)[::-1], steps)


@lru_cache(maxsize=256)
def _shares(hidden: int, steps: int) -> list[int]:
    low, high = 1.0, float(hidden)  # one step; all one at a time
    for _ in range(50):
        middle = (low + high) / 2
        if len(_by_share(hidden, middle)) <= steps:
            low = middle
        else:
            high = middle
    return _by_share(hidden, low)


def _by_share(hidden: int, zeta: float) -> list[int]:
    sizes, left = [], hidden
    while left / zeta >= 2:
        sizes.append(math.floor(left / zeta))
        left -= sizes[-1]
    return sizes + [1] * left


@final
@dataclass(frozen=True)
class FromProfile(TabledPlan):
    """The sizes of least expected KL for a measured information curve (`dlm profile`).

    Given positions count as known: the sizes are those of the tail of the curve. At another length
    than that of the file the curve is read by the share of known positions. Values that fall are
    made to rise first, weighted by their standard errors.

    Args:
        path: the file that `dlm profile` wrote.

    Raises:
        UserError: the file is missing or holds no curve.
    """

    path: str

    @cached_property
    def curve(self) -> InformationCurve:
        """What the file holds."""
        return InformationCurve.load(self.path)

    @cached_property
    def _rising(self) -> InformationCurve:
        return self.curve.increasing()

    def outcomes(self, hidden: int, steps: int, total: int) -> Outcomes:
        """One."""
        sizes = self._rising.stretched(total).optimal_sizes(steps, known=total - hidden)
        return _certain(list(sizes), steps)
