"""Sampling on a fixed grid of noise levels.

Per step: draw which positions may move, run the network on the sequences that have any, apply the
head there, filter, draw the moves. Exactly the law of the kernel, at a fraction of the work:

- a sequence with nothing to move in a step is not run;
- a network that does not see the noise level is not run again on a sequence that did not change
  since.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

from dlm.denoiser import Context, Predictor
from dlm.errors import UserError
from dlm.processes import Prediction, State
from dlm.random import Key, sample_categorical
from dlm.samplers.base import (
    OnStep,
    Prompt,
    Sampler,
    Samples,
    check_prompt,
    with_prompt,
)
from dlm.samplers.filters import compose
from dlm.samplers.grids import Grid
from dlm.samplers.kernels import Kernel


@final
class GridSampler(Sampler):
    """A kernel applied along a grid.

    Args:
        kernel: the reverse transition.
        grid: where to stop between noise and data.
        steps: transitions, K >= 1.
        temperature, top_k, top_p, min_p: filters of the posterior, in this order; 1.0 and None are
            off. filter_on: which posterior they act on, the leave-one-out posterior or the
            denoiser.

    Raises:
        UserError: for steps < 1 or a filter out of its range.
    """

    def __init__(
        self,
        kernel: Kernel,
        grid: Grid,
        steps: int = 64,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        filter_on: Literal["loo", "denoiser"] = "loo",
    ) -> None:
        if steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        self.kernel, self.grid, self.steps = kernel, grid, steps
        self.filter = compose(temperature, top_k, top_p, min_p)
        self.filter_on: Literal["loo", "denoiser"] = filter_on

    @property
    def calls(self) -> int:
        """One run of the predictor per step."""
        return self.steps

    @torch.no_grad()
    def __call__(
        self,
        predictor: Predictor,
        shape: tuple[int, int],
        *,
        key: Key,
        prompt: Prompt | None = None,
        context: Context | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        """Sample (B, L) tokens; see `Sampler`."""
        process = predictor.process
        state = process.prior(shape, key=key.fold("prior"))
        free = torch.ones(shape, dtype=torch.bool, device=state.tokens.device)
        if prompt is not None:
            check_prompt(prompt, shape, process.num_states)
            state, free = process.pin(state, prompt.tokens, prompt.frozen), ~prompt.frozen
            context = with_prompt(context, prompt, key)
        network = _CountedNetwork(predictor, shape[0], context, state.tokens.device)
        levels = self.grid.levels(self.steps).to(state.tokens.device)
        times = process.schedule.inverse(levels)
        for k in range(self.steps):
            t, s = times[k], times[k + 1]
            draw = key.fold("step", k)
            chosen = draw.fold("move").uniform(shape[1]) < self.kernel.bound(process, state, t, s)
            chosen = chosen & free & process.active(state)
            if chosen.any():
                prediction = self._filtered(network(state, t, chosen))
                u = draw.fold("value").uniform(shape[1])[chosen]
                tokens = state.tokens.clone()
                tokens[chosen] = sample_categorical(self.kernel.moved(prediction, s), u)
                network.forget((tokens != state.tokens).any(-1))
                state = state._replace(tokens=tokens)
            if on_step is not None:
                on_step(k, state)
        return Samples(state.tokens, network.calls)

    def _filtered(self, prediction: Prediction) -> Prediction:
        if self.filter is None:
            return prediction
        return prediction.map(self.filter, on=self.filter_on)


class _CountedNetwork:
    """Runs a predictor on rows that need it, counts, and keeps hidden states that still hold."""

    def __init__(
        self, predictor: Predictor, batch: int, context: Context | None, device: torch.device
    ) -> None:
        self.predictor, self.context = predictor, context
        self.memory: Tensor | None = None
        self.known = torch.zeros(batch, dtype=torch.bool, device=device)
        self.calls = torch.zeros(batch, dtype=torch.int64, device=device)

    def __call__(self, state: State, t: Tensor, chosen: Tensor) -> Prediction:
        """The prediction at the chosen positions (B, L), in row-major order."""
        run = chosen.any(-1) & ~self.known
        if run.any():
            context = None if self.context is None else self.context.at(run)
            hidden = self.predictor.hidden(state.at(run), t[None], context)
            if self.memory is None:
                self.memory = hidden.new_zeros(*state.tokens.shape, hidden.shape[-1])
            self.memory[run] = hidden
            self.calls += run * self.predictor.passes(state.tokens.shape[1])
            self.known |= run
        assert self.memory is not None
        tokens = state.at(chosen)
        return self.predictor.predict(self.memory[chosen], tokens, t.expand(tokens.tokens.shape))

    def forget(self, changed: Tensor) -> None:
        """Drop rows (B,) whose tokens changed; all of them when the network sees the level."""
        if self.predictor.time_conditioning:
            self.known.zero_()
        else:
            self.known &= ~changed
