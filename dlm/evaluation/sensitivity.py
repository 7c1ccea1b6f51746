"""How much a model's leave-one-out posterior of a position looks at the token of that position.

By its name it must not: p(x0^i | z without z^i) is a function of the other tokens, and so it is for
an exact posterior. A network sees all of z. The probe draws the token of one position anew from the
noise, leaves everything else as it is, asks again, and compares what is said of that position:

    tv = 1/2 sum_v |loo_i(v | z) - loo_i(v | z')|,     kl = KL(loo_i(. | z) || loo_i(. | z'))

for z' = z but at i. Both are 0 where the posterior ignores its token. Samplers that treat it as a
leave-one-out posterior (ancestral steps, Gibbs correctors) are off by about that much. Measured at
levels of noise, on held-out text (`measure_sensitivity`) and on the states that the ancestral
sampler comes through (`measure_sampled_sensitivity`), which need not look like noisy text. A
position that shows MASK is left out, and for lifted noise the noise token of a position that shows
it is drawn anew. Absorbing noise has nothing to probe: MASK says nothing of its token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dlm.data import Batch
from dlm.denoiser import Context, Predictor
from dlm.errors import UserError
from dlm.evaluation.likelihood import autocast, noised, to_device
from dlm.processes import Process, State
from dlm.random import Key, sample_categorical
from dlm.samplers import Ancestral, EvenGrid, Grid, GridSampler, Step
from dlm.schedules import Schedule

NOISE_LEVELS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # 1 - alpha


@final
@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What the probe found, by noise level.

    Args:
        noise: float64 (T,), 1 - alpha.
        sums: float64 (5, T): sequences n with a position that was probed, and over these the sums
            of x and x^2 for x the mean total variation of a sequence, then of its mean KL in nats.
    """

    noise: Tensor
    sums: Tensor

    @property
    def total_variation(self) -> Tensor:
        """Mean over sequences, float64 (T,)."""
        return self.sums[1] / self.sums[0]

    @property
    def total_variation_stderr(self) -> Tensor:
        """Its standard error, float64 (T,)."""
        return _stderr(*self.sums[:3])

    @property
    def kl(self) -> Tensor:
        """Mean over sequences, nats, float64 (T,)."""
        return self.sums[3] / self.sums[0]

    @property
    def kl_stderr(self) -> Tensor:
        """Its standard error, float64 (T,)."""
        return _stderr(self.sums[0], *self.sums[3:])


def _stderr(n: Tensor, x: Tensor, xx: Tensor) -> Tensor:
    return ((xx / n - (x / n) ** 2).clamp(min=0) / (n - 1)).sqrt()


def probe_refusal(process: Process) -> str | None:
    """Why a process has no token to draw anew, or None."""
    if process.shows_noise and not process.noise_conditioned:
        return (
            f"the sensitivity probe draws a noisy token anew, and {type(process).__name__} noise "
            "shows only MASK; leave out probe=true"
        )
    return None


@torch.no_grad()
def measure_sensitivity(
    predictor: Predictor,
    batches: Iterable[Batch],
    *,
    positions: int = 2,
    seed: int = 0,
    precision: str = "32",
    device: torch.device | None = None,
) -> Sensitivity:
    """Probe a model on sequences.

    Args:
        predictor: in evaluation mode.
        batches: sequences; positions that are not valid are kept clean and not probed.
        positions: probed in each sequence at each level, drawn evenly; each is a network call.
        seed: of positions, noise and new tokens, together with the rows.
        precision: of the network: 32, bf16-mixed or 16-mixed (GPU).
        device: of the predictor; None: the CPU.

    Raises:
        UserError: a process with nothing to probe, positions below 1, or too few sequences.
    """
    probe = _Probe(predictor, positions, seed, precision, device)
    for batch in batches:
        batch = to_device(batch, probe.device)
        context = Context(documents=batch.documents, condition=batch.condition)
        for at, t in enumerate(probe.times):
            times = t.expand(len(batch.rows))
            key = probe.key(batch.rows, at)
            state = noised(predictor.process, batch, times, key)
            probe.add(at, state, batch.valid, key, context)
    return probe.result()


@torch.no_grad()
def measure_sampled_sensitivity(
    predictor: Predictor,
    sequences: int,
    length: int,
    *,
    steps: int = 64,
    positions: int = 2,
    seed: int = 0,
    precision: str = "32",
    device: torch.device | None = None,
    batch_size: int = 16,
) -> Sensitivity:
    """Probe a model on the way of its own samples: the ancestral sampler on even levels.

    Args:
        predictor: in evaluation mode.
        sequences: drawn, at least 2.
        length: of each.
        steps: of the sampler; the levels of the probe are added to its grid.
        positions, seed, precision, device: see `measure_sensitivity`.
        batch_size: sequences at a time; changes no number.

    Raises:
        UserError: as `measure_sensitivity`.
    """
    probe = _Probe(predictor, positions, seed, precision, device)
    places = {alpha: at for at, alpha in enumerate(1 - level for level in NOISE_LEVELS)}
    sampler = GridSampler(Ancestral(), _Through(tuple(places)), steps=steps)
    for rows in torch.arange(sequences, device=probe.device).split(batch_size):
        everywhere = torch.ones(len(rows), length, dtype=torch.bool, device=probe.device)

        def look(step: Step, rows: Tensor = rows, valid: Tensor = everywhere) -> None:
            at = places.get(float(step.alpha[0]))
            if at is not None:
                probe.add(at, step.state, valid, probe.key(rows, at), Context())

        with autocast(precision, probe.device):
            key = Key(seed, rows).fold("sensitivity samples")
            sampler(predictor, (len(rows), length), key=key, on_step=look)
    return probe.result()


@final
@dataclass(frozen=True)
class _Through(Grid):
    """Even levels, and these."""

    through: tuple[float, ...]

    def levels(self, steps: int, schedule: Schedule) -> Tensor:
        even = EvenGrid().levels(steps, schedule)
        extra = torch.tensor(self.through, dtype=torch.float64)
        return torch.cat([even, extra]).unique()


@final
class _Probe:
    """Sums by noise level, and what goes into them."""

    def __init__(
        self,
        predictor: Predictor,
        positions: int,
        seed: int,
        precision: str,
        device: torch.device | None,
    ) -> None:
        if (refusal := probe_refusal(predictor.process)) is not None:
            raise UserError(refusal)
        if positions < 1:
            raise UserError(f"positions must be at least 1, got {positions}")
        self.predictor, self.positions, self.seed = predictor, positions, seed
        self.precision, self.device = precision, device or torch.device("cpu")
        self.noise = torch.tensor(NOISE_LEVELS, dtype=torch.float64)
        self.times = predictor.process.schedule.inverse(1 - self.noise).to(self.device)
        self.sums = torch.zeros(5, len(NOISE_LEVELS), dtype=torch.float64, device=self.device)

    def key(self, rows: Tensor, at: int) -> Key:
        """Of the sequences, at one level."""
        return Key(self.seed, rows).fold("sensitivity", at)

    def add(self, at: int, state: State, valid: Tensor, key: Key, context: Context) -> None:
        """Probe a batch at a level."""
        with autocast(self.precision, self.device):
            count, tv, kl = state_sensitivity(
                self.predictor, state, valid, self.times[at], self.positions, key, context
            )
        seen = count > 0
        tv, kl = tv[seen] / count[seen], kl[seen] / count[seen]
        parts = (seen.double(), tv, tv * tv, kl, kl * kl)
        self.sums[:, at] += torch.stack([part.sum() for part in parts])

    def result(self) -> Sensitivity:
        """What was found.

        Raises:
            UserError: fewer than two sequences at some level.
        """
        sums = self.sums.cpu()
        if sums[0].min() < 2:
            raise UserError(
                f"the probe found a position to draw anew in {int(sums[0].min())} sequences at "
                "some noise level; it needs two: raise sequences"
            )
        return Sensitivity(self.noise, sums)


def state_sensitivity(
    predictor: Predictor,
    state: State,
    valid: Tensor,
    t: Tensor,
    positions: int,
    key: Key,
    context: Context,
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions probed in noisy sequences, and the sums of tv and kl over them.

    Args:
        predictor: in evaluation mode.
        state: tokens (B, L).
        valid: bool (B, L), where a position may be probed.
        t: the time of all, float64 scalar.
        positions: of each sequence.
        key: rows (B,).
        context: documents, condition.

    Returns:
        Three of float64 (B,).
    """
    process, (size, length) = predictor.process, state.tokens.shape
    times = t.expand(size)
    shows = valid & (state.tokens != (-1 if process.mask_id is None else process.mask_id))
    if state.noise is not None:
        shows = shows & process.active(state)
    order = key.fold("positions").uniform(length).masked_fill(~shows, 2.0).argsort(-1)
    features = predictor.hidden(state, times, context)
    count = torch.zeros(size, dtype=torch.float64, device=valid.device)
    tv, kl = torch.zeros_like(count), torch.zeros_like(count)
    rows = torch.arange(len(count), device=count.device)
    for k in range(min(positions, length)):
        column = order[:, k]
        other = _redrawn(process, state, column, t, key.fold("token", k))
        there = predictor.hidden(other, times, context)
        one, two = (
            predictor.predict(h[rows, column], z.at((rows, column)), times).log_loo.double()
            for h, z in ((features, state), (there, other))
        )
        gap = torch.where(one > -torch.inf, one - two, 0.0)
        probed = shows[rows, column].double()
        count += probed
        tv += probed * (one.exp() - two.exp()).abs().sum(-1) / 2
        kl += probed * (one.exp() * (torch.expm1(-gap) + gap)).sum(-1)  # no cancellation
    return count, tv, kl


def _redrawn(process: Process, state: State, column: Tensor, t: Tensor, key: Key) -> State:
    """The state with the token of one position of each sequence drawn anew from the noise."""
    law = process.noise_law(t).to(column.device)
    if process.mask_id is not None:
        law = law.index_fill(-1, torch.tensor([process.mask_id], device=law.device), 0.0)
    fresh = sample_categorical(law.log().expand(len(column), -1), key.uniform())
    place = torch.nn.functional.one_hot(column, state.tokens.shape[1]).bool()
    tokens = torch.where(place, fresh[:, None], state.tokens)
    noise = None if state.noise is None else torch.where(place, fresh[:, None], state.noise)
    return State(tokens, noise)
