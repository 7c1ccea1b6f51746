"""Where in the noise the loss of a model lies: the integrand of its bound by noise level.

The bound is the integral over the noise level a = 1 - alpha in (0, 1) of an expected integrand that
does not depend on the schedule: a schedule says how long t stays at a level, and moves loss between
times without changing the integral. Measured in the bins of `dlm.times.bin_edges`, read as levels:
the mean, in nats per token and unit of a, and the moments of a sequence's loss. Two things follow:

    schedule   t(a) = int_0^a mean / int_0^1 mean has an even integrand: equal loss in equal times
    density    under a given schedule, p(t) ~ sd of l(t) = l(a) |da/dt|, the loss of a sequence, is
               the best for stratified times, and sqrt(E l(t)^2) for independent ones (`dlm.times`)

Source: Kingma et al. 2021, arXiv:2107.00630, section 5 (the schedule changes the variance of the
estimate and not the bound).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from dlm.data import Batch
from dlm.denoiser import Context, Denoiser
from dlm.errors import UserError
from dlm.evaluation.likelihood import autocast, noised, stratified, to_device
from dlm.objectives import Elbo
from dlm.schedules import Linear, Piecewise, Schedule
from dlm.times import T_MIN, bin_edges, root

POINTS = 200  # of the midpoint rule in t, a bin of times
FLOOR = 1e-6  # of the largest mean: a bin that showed no loss still takes some time


class Bound(NamedTuple):
    """An integral over all levels, nats per token, and its standard error."""

    nelbo: float
    stderr: float


@final
@dataclass(frozen=True, eq=False)
class Profile:
    """Sums over sequences by bin of the noise level, and what follows from them.

    Attributes:
        sums: float64 (6, bins): sequences n, their valid tokens k, their losses x in nats and unit
            of noise level, x^2, x k, k^2.
    """

    sums: Tensor

    @property
    def edges(self) -> Tensor:
        """Of the bins of the noise level, float64 (bins + 1,)."""
        return bin_edges(self.sums.shape[1])

    @property
    def mean(self) -> Tensor:
        """The integrand of the bound, nats per token and unit of noise level, float64 (bins,)."""
        return self.sums[2] / self.sums[1]

    @property
    def stderr(self) -> Tensor:
        """Standard error of `mean` over sequences, as a ratio of sums, float64 (bins,)."""
        n, k, _, xx, xk, kk = self.sums
        residual = (xx - 2 * self.mean * xk + self.mean.square() * kk).clamp(min=0)
        return (residual * n / (n - 1)).sqrt() / k

    def moment(self, centred: bool) -> Tensor:
        """Variance of the loss of a sequence, or its mean square, nats^2, float64 (bins,)."""
        n, _, x, xx, _, _ = self.sums
        return (xx / n - (x / n).square()).clamp(min=0) if centred else xx / n

    def bound(self) -> Bound:
        """The integral of the mean: the negative ELBO."""
        widths = self.edges.diff()
        stderr = (widths * self.stderr).square().sum().sqrt()
        return Bound((widths * self.mean).sum().item(), stderr.item())

    def at(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The integrand at times (...) of a schedule, nats per token and unit of t, float64."""
        return self.mean[self._bin(schedule, t)] * -schedule.dalpha(t)

    def spread_in_time(self, schedule: Schedule) -> float:
        """Standard deviation over even t of the integrand, as a share of its mean."""
        t = _midpoints(torch.linspace(0, 1, 101, dtype=torch.float64)).flatten()
        loss = self.at(schedule, t)
        return (loss.std(correction=0) / loss.mean()).item()

    def flat_schedule(self) -> Piecewise:
        """The schedule on which the integrand is even, with as many lines as there are bins."""
        mean = self.mean.clamp(min=FLOOR * self.mean.max().item())
        t = torch.cat([torch.zeros(1), (mean * self.edges.diff()).cumsum(0)])
        even = np.linspace(0, 1, len(t))
        noise = np.interp(even, (t / t[-1]).numpy(), self.edges.numpy())
        return Piecewise((1.0, *(1 - noise[1:-1]).tolist(), 0.0))

    def density(self, schedule: Schedule, *, centred: bool = True) -> list[float]:
        """The best density of training times under a schedule, by bin of t, of mean 1."""
        edges = bin_edges(self.sums.shape[1])
        t = _midpoints(edges)
        moment = self.moment(centred)[self._bin(schedule, t)] * schedule.dalpha(t).square()
        wanted = root(moment.mean(-1))
        return (wanted / (wanted * edges.diff()).sum()).tolist()

    def _bin(self, schedule: Schedule, t: Tensor) -> Tensor:
        noise = schedule.log_one_minus_alpha(t).exp()
        return torch.bucketize(noise, self.edges[1:-1], right=True)


@torch.no_grad()
def measure_profile(
    denoiser: Denoiser,
    batches: Iterable[Batch],
    *,
    bins: int = 32,
    draws: int = 1,
    seed: int = 0,
    precision: str = "32",
) -> Profile:
    """Measure a model on sequences, as many to each bin, on the device of the denoiser.

    Args:
        denoiser: the model; put in evaluation mode here, and back afterwards. Its schedule does not
            matter.
        batches: sequences; positions that are not valid are kept clean and not counted.
        bins: of the noise level.
        draws: levels a sequence.
        seed: of levels and noise, together with the rows.
        precision: of the network: 32, bf16-mixed or 16-mixed (GPU).

    Raises:
        UserError: fewer than 4 bins, no draws, fewer than two sequences for some bin, or a loss
            that is not finite.
    """
    if bins < 4 or draws < 1:
        raise UserError(f"a profile needs 4 bins and a draw at least, got bins={bins}, {draws=}")
    device = next(denoiser.parameters()).device
    linear, edges = denoiser.on(Linear()), bin_edges(bins).to(device)
    sums = torch.zeros(6, bins, dtype=torch.float64, device=device)
    training = denoiser.training
    denoiser.eval()
    try:
        for batch in batches:
            batch = to_device(batch, device)
            context = Context(documents=batch.documents, condition=batch.condition)
            for place, key in stratified(batch.rows, draws, seed, "profile"):
                where = (place * bins).long().clamp(max=bins - 1)
                inside = place * bins - where
                t = edges[where] + inside * (edges[where + 1] - edges[where])
                t = t.clamp(T_MIN, 1 - T_MIN)
                state = noised(linear.process, batch, t, key)
                with autocast(precision, device):
                    loss = Elbo()(linear, batch.tokens, state, t, batch.valid, context)
                x, k = loss.rows, batch.valid.sum(-1).double()
                hot = torch.nn.functional.one_hot(where, bins).double()
                sums += torch.stack([torch.ones_like(x), k, x, x * x, x * k, k * k]) @ hot
    finally:
        denoiser.train(training)
    sums = sums.cpu()
    if sums[0].min() < 2 or sums[1].min() < 1:
        raise UserError(
            f"a bin of the profile has fewer than two sequences with tokens: {int(sums[0].sum())} "
            f"draws are too few for {bins} bins; raise draws"
        )
    if not sums.isfinite().all():
        raise UserError("the loss of this model is not finite at some noise level")
    return Profile(sums)


def _midpoints(edges: Tensor) -> Tensor:
    """Points of the midpoint rule in every bin, float64 (bins, POINTS)."""
    shares = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    return edges[:-1, None] + edges.diff()[:, None] * shares
