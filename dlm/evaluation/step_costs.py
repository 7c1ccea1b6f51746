"""What the finite steps of the ancestral sampler cost a model, measured: for a grid of levels.

For every process, those without hidden positions among them. In a step from level a to b the
sampler uses the leave-one-out posteriors r of its state at a all the way. Path and end point of a
token determine each other's divergence alike for every r, so the excess of that term of the K-step
bound over the ELBO's share of (a, b) is an integral over the levels in between of

    D(a, x) = E sum_i [l_x(r(z_a); z_x) - l_x(r(z_x); z_x)],    E(a, b) = int_a^b D(a, x) dx

l_x the ELBO's integrand per unit of alpha at the state z_x, with posteriors that are stale or
fresh. Both terms see one state, and z_a is z_x with more noise, so the difference varies little. A
network call at each of M levels gives all D. The excess of a grid is the sum of E over its steps,
in nats per sequence: what its sampler's bound exceeds the ELBO by, whether or not the model is
right. Between the levels E(a, b) / (b - a)^2 is read linearly. With c the slope of D at x = a,

    loss(alpha) = int_alpha^1 c,    whose left Riemann error on a grid is its excess

for small steps: the form in which `dlm.samplers.grids.ProfileGrid` reads a profile. For masks it is
the loss of all positions if hidden, up to a constant, and the identity holds for steps of any size.

Source: Austin et al. 2021, arXiv:2107.03006 (the K-step bound); the rest is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor

from dlm.data import Batch
from dlm.denoiser import Context, Predictor
from dlm.errors import UserError
from dlm.evaluation.likelihood import autocast, noised, to_device
from dlm.processes import Prediction, Process, State
from dlm.random import Key
from dlm.times import T_MIN

ENTRIES = 2**21  # of the posteriors of a level that are held at a time
EVEN, HALVINGS = 16, 6  # gaps of even size, and how often the last is halved towards the data
FINE = 128  # levels of `loss`


def candidate_levels() -> Tensor:
    """The levels between which steps are measured, float64 (M,), rising from 0 to 1."""
    even = torch.linspace(0, 1, EVEN + 1, dtype=torch.float64)[:-1]
    near = 1 - 0.5 ** torch.arange(1, HALVINGS + 1, dtype=torch.float64) / EVEN
    return torch.cat([even, near, torch.ones(1, dtype=torch.float64)])


@final
@dataclass(frozen=True, eq=False)
class StepCosts:
    """Costs of steps between candidate levels.

    Args:
        levels: float64 (M,), from 0 to 1.
        stale: float64 (N, M, M), D(levels[i], levels[j]) of each sequence for i < j, else 0, nats
            per unit of alpha.

    Raises:
        UserError: fewer than two sequences, or a cost that is not finite.
    """

    levels: Tensor
    stale: Tensor

    def __post_init__(self) -> None:
        if len(self.stale) < 2:
            raise UserError(f"step costs need two sequences with tokens, got {len(self.stale)}")
        if not self.stale.isfinite().all():
            raise UserError("the step costs of this model are not finite")

    @cached_property
    def mean(self) -> Tensor:
        """D, float64 (M, M)."""
        return self.stale.mean(0)

    def excess(self, grid: Tensor) -> float:
        """Nats per sequence that a grid (K + 1,) costs more than infinitely many steps."""
        return _excess(self.mean[None], self.levels, grid).item()

    def excess_interval(self, grid: Tensor, times: int, seed: int) -> tuple[float, float]:
        """Its central 95 % over sequences drawn with replacement so many times."""
        resampled = self._resampled(times, seed)
        low, high = np.quantile(_excess(resampled, self.levels, grid).numpy(), (0.025, 0.975))
        return float(low), float(high)

    def loss(self) -> tuple[Tensor, Tensor]:
        """Levels and the loss whose left Riemann error is the excess of small steps, float64.

        The last levels are geometric, as the candidates are; the loss is 0 at alpha = 1.
        """
        even = torch.linspace(0, 1, FINE + 1, dtype=torch.float64)
        levels = torch.cat([even, self.levels]).unique()
        bend = _slope(self.mean[None], self.levels)[0]
        at = torch.from_numpy(np.interp(levels.numpy(), self.levels.numpy(), bend.numpy()))
        parts = levels.diff() * (at[1:] + at[:-1]) / 2
        falling = parts.flip(0).cumsum(0).flip(0)
        return levels, torch.cat([falling, torch.zeros(1, dtype=torch.float64)])

    def _resampled(self, times: int, seed: int) -> Tensor:
        count = len(self.stale)
        u = Key(seed, torch.arange(times, device="cpu")).fold("bootstrap").uniform(count)
        weights = torch.zeros(times, count, dtype=torch.float64)
        weights.scatter_add_(1, (u * count).long(), torch.full_like(u, 1 / count))
        return torch.einsum("rn,nij->rij", weights, self.stale)


def _slope(stale: Tensor, levels: Tensor) -> Tensor:
    """c at the levels, (R, M), for D (R, M, M): from neighbours, the mean of the gaps beside."""
    i = torch.arange(len(levels) - 2)
    gaps = (stale[:, i, i + 1] / levels.diff()[:-1]).clamp(min=0)
    gaps = torch.cat([gaps, gaps[:, -1:]], -1)  # nothing is measured at alpha = 1 itself
    inner = (gaps[:, 1:] + gaps[:, :-1]) / 2
    return torch.cat([gaps[:, :1], inner, gaps[:, -1:]], -1)


def _excess(stale: Tensor, levels: Tensor, grid: Tensor) -> Tensor:
    """Excess of a grid (K + 1,) for D (R, M, M): (R,)."""
    gaps = levels.diff()
    parts = (stale[:, :, 1:] + stale[:, :, :-1]) / 2 * gaps  # trapezoids over each gap
    over = torch.nn.functional.pad(parts.cumsum(-1), (1, 0)).triu(1)
    size = (levels[None, :] - levels[:, None]).triu(1)
    ratio = torch.where(size > 0, over / size.clamp(min=1e-300) ** 2, 0.0)
    ratio[:, -2, -1] = _slope(stale, levels)[:, -1] / 2
    ratio = ratio + ratio.mT + torch.diag_embed(_slope(stale, levels) / 2)
    (i, u), (j, v) = _between(levels, grid[:-1]), _between(levels, grid[1:])
    read = (
        (1 - u) * (1 - v) * ratio[:, i, j]
        + u * (1 - v) * ratio[:, i + 1, j]
        + (1 - u) * v * ratio[:, i, j + 1]
        + u * v * ratio[:, i + 1, j + 1]
    )
    return (read * grid.diff() ** 2).sum(-1)


def _between(levels: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The gap in which each value lies, and how far in it."""
    gap = (torch.searchsorted(levels, at, right=True) - 1).clamp(0, len(levels) - 2)
    return gap, (at - levels[gap]) / levels.diff()[gap]


@torch.no_grad()
def measure_step_costs(
    predictor: Predictor,
    batches: Iterable[Batch],
    *,
    positions: int = 32,
    seed: int = 0,
    precision: str = "32",
    device: torch.device | None = None,
) -> StepCosts:
    """Measure a model on sequences.

    Args:
        predictor: in evaluation mode.
        batches: sequences; positions that are not valid are kept clean and not counted.
        positions: of each sequence, drawn evenly, whose terms are computed; they stand for all.
        seed: of positions and noise, together with the rows; the batches change nothing.
        precision: of the network: 32, bf16-mixed or 16-mixed (GPU).
        device: of the predictor; None: the CPU.

    Raises:
        UserError: positions below 1, too few sequences, or a cost that is not finite.
    """
    if positions < 1:
        raise UserError(f"positions must be at least 1, got {positions}")
    device, levels = device or torch.device("cpu"), candidate_levels()
    parts = []
    for batch in batches:
        batch = to_device(batch, device)
        with autocast(precision, device):
            parts.append(sequence_step_costs(predictor, batch, levels, positions, seed).cpu())
    return StepCosts(levels, torch.cat(parts) if parts else torch.empty(0, 1, 1))


def sequence_step_costs(
    predictor: Predictor, batch: Batch, levels: Tensor, positions: int, seed: int
) -> Tensor:
    """D of each sequence, float64 (B, M, M); see `measure_step_costs`."""
    process, key = predictor.process, Key(seed, batch.rows).fold("step costs")
    length, device = batch.tokens.shape[1], batch.tokens.device
    order = key.fold("positions").uniform(length).masked_fill(~batch.valid, 2.0).argsort(-1)
    chosen = (order.argsort(-1) < positions) & batch.valid
    levels = levels.to(device)
    path = _noise_path(process, batch, levels, key)
    context = Context(documents=batch.documents, condition=batch.condition)
    rows, last = len(batch.rows), len(levels) - 2
    stale = torch.zeros(rows, len(levels), len(levels), dtype=torch.float64, device=device)
    features = [predictor.hidden(z, t.expand(rows), context) for z, t in path]
    scale = batch.valid.sum(-1) / chosen.sum(-1).clamp(min=1)
    for part in chosen.nonzero().split(max(1, ENTRIES // process.num_states)):
        row, column = part.unbind(-1)
        x0 = batch.tokens[row, column]
        here = [z.at((row, column)) for z, _ in path]
        known = []  # posteriors at the levels so far
        for j, (_, t) in enumerate(path):
            times = t.expand(len(row))
            known.append(predictor.predict(features[j][row, column], here[j], times).log_loo)
            told = [Prediction(process, here[j], times, log_loo=loo) for loo in known]
            nats = torch.stack([process.nelbo(each, x0).double() for each in told])
            extra = (nats[:-1] - nats[-1]) / -process.schedule.dalpha(t)
            stale[:, :j, j].index_add_(0, row, extra.mT)
    stale[:, :last, -1] = stale[:, :last, last]
    return stale * scale[:, None, None]


def _noise_path(
    process: Process, batch: Batch, levels: Tensor, key: Key
) -> list[tuple[State, Tensor]]:
    """One path of the noise through the levels below 1, and their times: from noise to data."""
    length, near = batch.tokens.shape[1], torch.tensor(T_MIN, device=levels.device)
    times = process.schedule.inverse(levels[:-1]).clamp(max=1 - near)
    state = noised(process, batch, times[-1].expand(len(batch.rows)), key.fold("noise"))
    path = [(state, times[-1])]
    for i in reversed(range(len(times) - 1)):
        u = key.fold("noise", i).uniform(length, 2)
        state = process.renoise(state, times[i + 1], times[i], u)
        state = process.pin(state, batch.tokens, ~batch.valid)
        path.append((state, times[i]))
    return path[::-1]
