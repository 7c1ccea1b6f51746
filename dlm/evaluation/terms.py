"""Which tokens a bound is spent on: its integral, split by what the noise shows of a position.

    hidden      MASK, or a noise token of lifted noise, which the network is told
    replaced    another token than the text has, which looks like text
    kept        the token of the text, which the network cannot know to be right

plus the prior term, KL of the noise at t = 1 from the prior under the model's own schedule; the
last step to alpha = 1 is the reconstruction, which needs no term of its own. Under masks all of it
is `hidden`. Under uniform noise most positions are kept at low noise, and what the bound spends on
them it spends on telling them from the replaced ones.

Levels are stratified over the bins of `dlm.times.bin_edges`, which are fine at both ends, where the
integrand of uniform noise is not bounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dlm.data import Batch
from dlm.denoiser import Context, Denoiser
from dlm.errors import UserError
from dlm.evaluation.likelihood import STEP_ENTRIES, autocast, noised, stratified, to_device
from dlm.processes import Process, State
from dlm.schedules import Linear
from dlm.times import T_MIN, bin_edges

TERMS = ("hidden", "replaced", "kept")
_BINS = 32


@final
@dataclass(frozen=True, eq=False)
class BoundTerms:
    """Nats per token of each term.

    Args:
        nats: mean over sequences, float64 (3,), in the order of `TERMS`.
        stderr: their standard errors, float64 (3,).
        positions: the share of the positions that each is about, mean over noise levels, (3,).
        prior: nats per token, exact.
    """

    nats: Tensor
    stderr: Tensor
    positions: Tensor
    prior: float

    @property
    def share(self) -> Tensor:
        """Of the bound without the prior term, float64 (3,)."""
        return self.nats / self.nats.sum()


@torch.no_grad()
def measure_terms(
    denoiser: Denoiser,
    batches: Iterable[Batch],
    *,
    draws: int = 8,
    seed: int = 0,
    precision: str = "32",
) -> BoundTerms:
    """Measure a model on sequences, on the device of the denoiser.

    Args:
        denoiser: the model; put in evaluation mode here, and back afterwards.
        batches: sequences; positions that are not valid are kept clean and not counted.
        draws: levels a sequence.
        seed: of levels and noise, together with the rows.
        precision: of the network: 32, bf16-mixed or 16-mixed (GPU).

    Raises:
        UserError: draws below 1, or fewer than two sequences with tokens.
    """
    if draws < 1:
        raise UserError(f"draws must be at least 1, got {draws}")
    device = next(denoiser.parameters()).device
    linear, edges = denoiser.on(Linear()), bin_edges(_BINS).to(device)
    nats, places, sizes = [], [], []
    training = denoiser.training
    denoiser.eval()
    try:
        for batch in batches:
            batch = to_device(batch, device)
            total = torch.zeros(2, len(TERMS), len(batch.rows), dtype=torch.float64, device=device)
            for place, key in stratified(batch.rows, draws, seed, "terms"):
                where = (place * _BINS).long().clamp(max=_BINS - 1)
                width = edges[where + 1] - edges[where]
                t = (edges[where] + (place * _BINS - where) * width).clamp(T_MIN, 1 - T_MIN)
                state = noised(linear.process, batch, t, key)
                with autocast(precision, device):
                    rows = _rows(linear, batch, state, t)
                for number, shown in enumerate(shown_by(linear.process, state, batch.tokens)):
                    inside = shown & batch.valid
                    parts = torch.stack([(rows * inside).sum(-1), inside.sum(-1).double()])
                    total[:, number] += parts * width * _BINS / draws
            nats.append(total[0].cpu())
            places.append(total[1].cpu())
            sizes.append(batch.valid.sum(-1).double().cpu())
    finally:
        denoiser.train(training)
    return _summed(denoiser.process, nats, places, sizes)


def shown_by(process: Process, state: State, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bool (B, L) of each term: what a noisy position shows."""
    hidden = torch.zeros_like(x0, dtype=torch.bool)
    if process.noise_conditioned:
        hidden = process.active(state)
    elif process.mask_id is not None:
        hidden = state.tokens == process.mask_id
    kept = ~hidden & (state.tokens == x0)
    return hidden, ~hidden & ~kept, kept


def _rows(denoiser: Denoiser, batch: Batch, state: State, t: Tensor) -> Tensor:
    """The integrand of every valid position, nats, float64 (B, L)."""
    context = Context(documents=batch.documents, condition=batch.condition)
    features = denoiser.hidden(state, t, context)
    rows = torch.zeros(batch.tokens.shape, dtype=torch.float64, device=batch.tokens.device)
    for part in batch.valid.nonzero().split(max(1, STEP_ENTRIES // denoiser.process.num_states)):
        row, column = part.unbind(-1)
        here = state.at((row, column))
        prediction = denoiser.predict(features[row, column], here, t[row])
        rows[row, column] = denoiser.process.nelbo(prediction, batch.tokens[row, column]).double()
    return rows


def _summed(
    process: Process, nats: list[Tensor], places: list[Tensor], sizes: list[Tensor]
) -> BoundTerms:
    """Ratios of sums over sequences, and the errors of ratios."""
    tokens = torch.cat(sizes) if sizes else torch.zeros(0)
    count = int((tokens > 0).sum())
    if count < 2:
        raise UserError(f"the terms of a bound need two sequences with tokens, got {count}")
    values, total = torch.cat(nats, -1), tokens.sum()
    mean = values.sum(-1) / total
    residual = values - mean[:, None] * tokens
    stderr = (residual.square().sum(-1) * count / (count - 1)).sqrt() / total
    end = process.schedule.alpha(torch.ones((), dtype=torch.float64)).item()
    prior = process.prior_kl(end) if end > 0 else 0.0
    about = torch.cat(places, -1).sum(-1)
    return BoundTerms(mean, stderr, about / about.sum(), prior)
