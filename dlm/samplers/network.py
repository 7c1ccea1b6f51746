"""A predictor as samplers run it: on the sequences that need it, counted, and not twice for
nothing.

Hidden states of a sequence are kept until its tokens change; a network that sees the noise level is
asked again whenever the level moves. The head is applied to the chosen positions only.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dlm.denoiser import Context, Predictor
from dlm.processes import Prediction, State


@final
class CountedNetwork:
    """Runs a predictor on rows that need it, counts, and keeps hidden states that still hold.

    Args:
        predictor: what is run.
        batch: B.
        context: documents, condition, ... of the batch.
        device: where the tokens are.

    Attributes:
        calls: int64 (B,), network evaluations of each sequence so far.
    """

    def __init__(
        self, predictor: Predictor, batch: int, context: Context | None, device: torch.device
    ) -> None:
        self.predictor, self.context = predictor, context
        self.calls = torch.zeros(batch, dtype=torch.int64, device=device)
        self._memory: Tensor | None = None
        self._known = torch.zeros(batch, dtype=torch.bool, device=device)

    def __call__(self, state: State, t: Tensor, chosen: Tensor) -> Prediction:
        """The prediction at chosen positions, in row-major order.

        Args:
            state: tokens (B, L).
            t: times, float64, one for all or (B,).
            chosen: bool (B, L), at least one true.
        """
        run = chosen.any(-1) & ~self._known
        if run.any():
            context = None if self.context is None else self.context.at(run)
            times = t[None] if t.ndim == 0 else t[run]
            hidden = self.predictor.hidden(state.at(run), times, context)
            if self._memory is None:
                self._memory = hidden.new_zeros(*state.tokens.shape, hidden.shape[-1])
            self._memory[run] = hidden
            self.calls += run * self.predictor.passes(state.tokens.shape[1])
            self._known |= run
        assert self._memory is not None
        times = t if t.ndim == 0 else t[:, None]
        places = times.expand(state.tokens.shape)[chosen]
        return self.predictor.predict(self._memory[chosen], state.at(chosen), places)

    def forget(self, changed: Tensor) -> None:
        """Drop rows (B,) whose tokens changed; all of them when the network sees the level."""
        if self.predictor.time_conditioning:
            self._known.zero_()
        else:
            self._known &= ~changed
