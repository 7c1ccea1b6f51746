"""Training objectives: row losses of a prediction, summed over a batch in chunks.

An objective maps a prediction and the clean token to nats per row; the base class runs the network
once, sends only rows whose loss is not known to be zero through the head, and never holds the
logits of the batch. Losses are SUMS over tokens: who trains divides once by the number of tokens of
the whole step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from dlm.denoiser import Context, Denoiser
from dlm.ops.fused_head import fused_head
from dlm.processes import Prediction, State
from dlm.processes.base import pick


class BatchLoss(NamedTuple):
    """Loss of a batch.

    loss: scalar, weighted sum over tokens in nats, differentiable.
    rows: float64 (B,), the same sum per sequence, detached.
    """

    loss: Tensor
    rows: Tensor


class Objective(ABC):
    """A row-wise loss and the driver that sums it."""

    @abstractmethod
    def rows(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """Loss in nats of each row, shape (...), for clean tokens x0 (...)."""

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        state: State,
        t: Tensor,
        weight: Tensor,
        context: Context | None = None,
    ) -> BatchLoss:
        """Sum of the row losses of one batch.

        Args:
            denoiser: run once on the noisy tokens.
            x0: clean tokens, int64 (B, L).
            state: noisy tokens (B, L).
            t: times, float64 (B,).
            weight: (B, L) factors; rows with weight 0 cost nothing.
            context: documents, if rows hold several.
        """
        batch, length = x0.shape
        hidden = denoiser.hidden(state, t, context)
        needed = denoiser.process.active(state) & (weight != 0)
        index = needed.flatten().nonzero().squeeze(-1)
        sequence = torch.div(index, length, rounding_mode="floor")
        clean, noisy, times = x0.flatten()[index], state.tokens.flatten()[index], t[sequence]
        weights = weight.flatten()[index].double()

        def row_loss(logits: Tensor, at: slice) -> Tensor:
            prediction = denoiser.parameterization(
                logits, denoiser.process, State(noisy[at]), times[at]
            )
            return self.rows(prediction, clean[at])

        loss, rows = fused_head(
            hidden.flatten(0, 1)[index], denoiser.backbone.head.weight, row_loss, weights
        )
        sums = torch.zeros(batch, dtype=torch.float64, device=x0.device)
        return BatchLoss(loss, sums.index_add(0, sequence, rows * weights))


@final
@dataclass(frozen=True)
class Elbo(Objective):
    """The negative ELBO: its expectation over t is a bound on -log p(x0)."""

    def rows(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """The integrand of the bound."""
        return prediction.process.nelbo(prediction, x0)


@final
@dataclass(frozen=True)
class CrossEntropy(Objective):
    """-log denoiser(x0), unweighted in t: minimised by the denoiser, not a likelihood bound."""

    def rows(self, prediction: Prediction, x0: Tensor) -> Tensor:
        """Cross-entropy of the denoiser, in whichever currency the network speaks."""
        return -pick(prediction.log_denoiser, x0)
