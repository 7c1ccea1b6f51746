"""Which times the sequences of a training batch are noised to.

A time is a function of (seed, global sample counter), so it depends neither on the number of
devices nor on accumulation. `LowDiscrepancy` stratifies over the *global* batch of one optimizer
step: n sequences get the n points of a grid shifted by one uniform, u_i = frac(U + i / n); each is
uniform, together they cover [0, 1] evenly. `ImportanceSampled` folds that grid and sends it through
the inverse of a cumulative density p. A draw comes with its weight 1 / p(t), so the weighted loss
has the mean of the loss at even times under every law.

Let l(t) be the loss of a sequence. For independent times the variance of the weighted loss is least
at p(t) ~ sqrt(E l(t)^2). A stratified batch does not feel how the mean of l moves with t, only its
spread at each t, and there p(t) ~ sd l(t) is best: the default. A law that learns p from the losses
of the run has a `Memory`, which the trainer keeps, updates between optimizer steps and saves: the
draws are functions of (seed, counter, memory).

Source: Kingma et al. 2021, arXiv:2107.00630 (low-discrepancy times); Nichol & Dhariwal 2021,
arXiv:2102.09672 (importance sampling of t by the second moment of the loss); the optimum for
stratified draws is Neyman's allocation (Neyman 1934), the fold the baker's transformation of
lattice rules (Hickernell 2002).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from dlm.errors import UserError
from dlm.random import Key

# Below this noise level float32 losses lose their digits; the bound's integrand grows at most like
# log(1/t) there, so stopping here moves the training loss by about 1e-5 nats.
T_MIN = 1e-5
FINE = 1 / 8  # times below it get half of the bins: there a bin is as wide as one of the others
TINY = 1e-30  # nats^2: losses that are equal or zero leave a density to divide
FADE = 2000  # draws of a bin after which older ones fade: the profile follows the training


class TimeDraw(NamedTuple):
    """Times of some sequences and what their losses count.

    t: float64 (B,) in [T_MIN, 1].
    weight: float64 (B,), 1 / density of t: an unbiased loss is multiplied by it. 1 for even laws.
    """

    t: Tensor
    weight: Tensor


def bin_edges(bins: int) -> Tensor:
    """Edges of bins of [0, 1], float64 (bins + 1,): one half geometric, the other even.

    Near the data a token is noisy with a probability of order t, and then costs of order 1 / t: the
    second moment of the loss grows like 1 / t. So every decade of t adds as much to the variance as
    the next, and the best density grows like t^-1/2: it takes bins that are even in log t, from
    T_MIN to 1/8, to follow it. Above, the loss of a sequence changes slowly, and even bins do.
    """
    half = bins // 2
    fine = T_MIN * (FINE / T_MIN) ** (torch.arange(half + 1, dtype=torch.float64) / half)
    fine[0], fine[-1] = 0.0, FINE
    return torch.cat([fine, torch.linspace(FINE, 1, bins - half + 1, dtype=torch.float64)[1:]])


def root(moment: Tensor) -> Tensor:
    """Square roots of the measured moments (bins,) of the losses in the bins of `bin_edges`.

    In the geometric half they are made not to fall towards the data: losses are rare and large
    there. Of a hundred draws all may show none, and taken at its word that would give the next one
    that does the greatest weight. The truth rises, or falls over little of [0, 1].
    """
    half = len(moment) // 2
    rising = moment[: half + 1].flip(0).cummax(0).values.flip(0)
    return torch.cat([rising, moment[half + 1 :]]).clamp(min=TINY).sqrt()


@final
class Memory:
    """What the losses of a run were so far, by bin of t; it changes only in `update`.

    Args:
        edges: of the bins, float64 (bins + 1,); empty: nothing is remembered.

    Attributes:
        draws: sequences seen in each bin, float64 (bins,), on the CPU.
        mean: running mean of their losses, nats a sequence, float64 (bins,).
        square: running mean of their squared losses, float64 (bins,).
    """

    def __init__(self, edges: Tensor) -> None:
        self._edges = edges
        bins = max(len(edges) - 1, 0)
        self.draws, self.mean, self.square = torch.zeros(3, bins, dtype=torch.float64)

    def sums(self, draw: TimeDraw, rows: Tensor) -> Tensor:
        """What a batch adds, to be summed over batches and devices before `update`.

        Args:
            draw: times and weights of its sequences.
            rows: their losses (B,), weighted, in nats.

        Returns:
            Draws, sums and sums of squares of the losses without weights, float64 (3 bins,).
        """
        if not len(self._edges):
            return rows.new_zeros(0, dtype=torch.float64)
        where = torch.bucketize(draw.t, self._edges[1:-1].to(draw.t.device), right=True)
        # A sum over a one-hot matrix has one order on every device; a scatter may not.
        hot = torch.nn.functional.one_hot(where, len(self.draws)).double()
        loss = (rows / draw.weight).double()
        powers = torch.stack([torch.ones_like(loss), loss, loss.square()])
        return (powers[:, :, None] * hot).sum(1).flatten()

    def update(self, sums: Tensor) -> None:
        """Take in the `sums` of all batches of one optimizer step, on the CPU."""
        count, total, square = sums.reshape(3, -1)
        self.draws = self.draws + count
        share = (count / self.draws.clamp(1, FADE)).clamp(max=1)
        self.mean = self.mean + share * (total / count.clamp(min=1) - self.mean)
        self.square = self.square + share * (square / count.clamp(min=1) - self.square)

    def spread(self, centred: bool) -> Tensor:
        """Standard deviation of the loss in each bin, or, not centred, its root mean square."""
        return root(self.square - self.mean.square() if centred else self.square)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return {"draws": self.draws, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self.draws, self.mean, self.square = (state[k] for k in ("draws", "mean", "square"))


class Times(ABC):
    """Training times."""

    @abstractmethod
    def __call__(
        self, rows: Tensor, *, seed: int, batch_size: int, memory: Memory | None = None
    ) -> TimeDraw:
        """Times of the sequences with these global sample counters.

        Args:
            rows: int64 (B,), global sample counters: 0, 1, 2, ... over the whole run.
            seed: of the run.
            batch_size: sequences of one optimizer step over all devices and accumulation.
            memory: of the run's losses, made by `memory()`; None: nothing is known of them.

        Returns:
            Times and weights, a function of (seed, row, memory) alone.
        """

    def memory(self) -> Memory:
        """An empty memory: one without bins, if the law does not learn from losses."""
        return Memory(torch.zeros(0))


@final
@dataclass(frozen=True)
class UniformTimes(Times):
    """Independent, even times."""

    def __call__(
        self, rows: Tensor, *, seed: int, batch_size: int, memory: Memory | None = None
    ) -> TimeDraw:
        """One uniform per sequence."""
        return _even(Key(seed, rows).fold("times").uniform())


@final
@dataclass(frozen=True)
class LowDiscrepancy(Times):
    """A randomly shifted grid over the global batch."""

    def __call__(
        self, rows: Tensor, *, seed: int, batch_size: int, memory: Memory | None = None
    ) -> TimeDraw:
        """frac(U_step + place in the global batch / batch_size)."""
        return _even(_grid(rows, seed, batch_size))


@final
@dataclass(frozen=True)
class ImportanceSampled(Times):
    """Times from a density that is constant in each of the bins of `bin_edges`.

    A share of even times bounds the weights by 1 / even_share, whatever the density. Without a
    given density it is learned from the losses of the run. Until every bin has `min_draws` draws,
    half of the draws are spread over the bins, as many to each: under even times the finest would
    wait for millions.

    Args:
        density: of t in each bin, up to a factor; None: it is learned.
        bins: their number.
        even_share: share of even times, in (0, 1].
        centred: learn the standard deviation of the loss at each time; false: its root mean square.
        min_draws: draws of each bin before a learned density is used.

    Raises:
        UserError: fewer than 4 bins, a density that does not fit them or is negative or zero
            everywhere, a share outside (0, 1], or no draws.
    """

    density: tuple[float, ...] | None = None
    bins: int = 32
    even_share: float = 0.1
    centred: bool = True
    min_draws: int = 100

    def __post_init__(self) -> None:
        if self.bins < 4:
            raise UserError(f"times.bins must be at least 4, got {self.bins}; try 32")
        if not 0 < self.even_share <= 1:
            raise UserError(
                f"times.even_share must be in (0, 1], got {self.even_share}: weights are bounded "
                "by one over it; try 0.1"
            )
        if self.min_draws < 1:
            raise UserError(f"times.min_draws must be at least 1, got {self.min_draws}; try 100")
        if self.density is None:
            return
        if len(self.density) != self.bins:
            raise UserError(
                f"times.density has {len(self.density)} numbers for {self.bins} bins; "
                f"set times.bins={len(self.density)}"
            )
        if not (all(0 <= d < math.inf for d in self.density) and sum(self.density) > 0):
            raise UserError(
                "times.density must be numbers from 0 on with a finite sum above 0, "
                f"got {list(self.density)}"
            )

    def __call__(
        self, rows: Tensor, *, seed: int, batch_size: int, memory: Memory | None = None
    ) -> TimeDraw:
        """The grid of the global batch, folded, sent through the inverse cumulative density.

        The mean of a shifted grid feels the step between the ends of [0, 1], and a weighted loss
        has a large one: no weight at the data, the greatest at the noise. 1 - |2 u - 1| has none.
        """
        return self.at(1 - (2 * _grid(rows, seed, batch_size) - 1).abs(), memory)

    def at(self, u: Tensor, memory: Memory | None = None) -> TimeDraw:
        """The draws at these values in [0, 1] of the cumulative density, float64 (B,)."""
        edges, mass = bin_edges(self.bins).to(u.device), self.masses(memory).to(u.device)
        ends, widths = mass.cumsum(0), edges.diff()
        where = torch.bucketize(u, ends[:-1], right=True)
        inside = ((u - ends[where]) / mass[where] + 1).clamp(0, 1)
        t = edges[where] + inside * widths[where]
        return TimeDraw(t.clamp(T_MIN, 1), (widths / mass)[where])

    def masses(self, memory: Memory | None = None) -> Tensor:
        """Probability of each bin, float64 (bins,), the even share included."""
        widths, even = bin_edges(self.bins).diff(), self.even_share
        if self.density is not None:
            wanted = torch.tensor(self.density, dtype=torch.float64) * widths
        elif memory is None or memory.draws.min() < self.min_draws:
            wanted, even = torch.ones_like(widths), max(even, 0.5)
        else:
            wanted = memory.spread(self.centred) * widths
        return (1 - even) * wanted / wanted.sum() + even * widths

    def memory(self) -> Memory:
        """One of these bins, unless the density is given."""
        return Memory(bin_edges(self.bins) if self.density is None else torch.zeros(0))


def _grid(rows: Tensor, seed: int, batch_size: int) -> Tensor:
    step = torch.div(rows, batch_size, rounding_mode="floor")
    shift = Key(seed, step).fold("times").uniform()
    return (shift + (rows % batch_size) / batch_size) % 1.0


def _even(t: Tensor) -> TimeDraw:
    return TimeDraw(t.clamp(min=T_MIN), torch.ones_like(t))
