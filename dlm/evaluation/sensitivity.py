"""How much a model's leave-one-out posterior of a position looks at the token of that position.

By its name it must not: p(x0^i | z without z^i) is a function of the other tokens, and so it is for
an exact posterior. A network sees all of z. The probe draws the token of one position anew from the
noise, leaves everything else as it is, asks again, and compares what is said of that position:

    tv = 1/2 sum_v |loo_i(v | z) - loo_i(v | z')|,     kl = KL(loo_i(. | z) || loo_i(. | z'))

for z' = z but at i. Both are 0 where the posterior ignores its token. Samplers that treat it as a
leave-one-out posterior (ancestral steps, Gibbs correctors) are off by about that much. Measured on
held-out text at levels of noise. A position that shows MASK is left out, and for lifted noise the
noise token of a position that shows it is drawn anew. Absorbing noise has nothing to probe: MASK
says nothing of its token.
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
    if (refusal := probe_refusal(predictor.process)) is not None:
        raise UserError(refusal)
    if positions < 1:
        raise UserError(f"positions must be at least 1, got {positions}")
    device = device or torch.device("cpu")
    noise = torch.tensor(NOISE_LEVELS, dtype=torch.float64)
    times = predictor.process.schedule.inverse(1 - noise).to(device)
    sums = torch.zeros(5, len(noise), dtype=torch.float64, device=device)
    for batch in batches:
        batch = to_device(batch, device)
        for at, t in enumerate(times):
            key = Key(seed, batch.rows).fold("sensitivity", at)
            with autocast(precision, device):
                count, tv, kl = sequence_sensitivity(predictor, batch, t, positions, key)
            seen = count > 0
            tv, kl = tv[seen] / count[seen], kl[seen] / count[seen]
            parts = (seen.double(), tv, tv * tv, kl, kl * kl)
            sums[:, at] += torch.stack([part.sum() for part in parts])
    sums = sums.cpu()
    if sums[0].min() < 2:
        raise UserError(
            f"the probe found a position to draw anew in {int(sums[0].min())} sequences at some "
            "noise level; it needs two: raise sequences or probe_positions"
        )
    return Sensitivity(noise, sums)


def sequence_sensitivity(
    predictor: Predictor, batch: Batch, t: Tensor, positions: int, key: Key
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions probed at one time, and the sums of tv and kl over them, float64 (B,) each."""
    process, length = predictor.process, batch.tokens.shape[1]
    times = t.expand(len(batch.rows))
    context = Context(documents=batch.documents, condition=batch.condition)
    state = noised(process, batch, times, key)
    shows = batch.valid & (state.tokens != (-1 if process.mask_id is None else process.mask_id))
    if state.noise is not None:
        shows = shows & process.active(state)
    order = key.fold("positions").uniform(length).masked_fill(~shows, 2.0).argsort(-1)
    features = predictor.hidden(state, times, context)
    count = torch.zeros(len(batch.rows), dtype=torch.float64, device=batch.tokens.device)
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
