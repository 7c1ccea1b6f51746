"""Sampling on a fixed grid of noise levels, with correctors on the way.

Per step: draw which positions may move, run the network on the sequences that have any, apply the
head there, filter, draw the moves. Exactly the law of the kernel, at a fraction of the work:

- a sequence with nothing to move in a step is not run;
- a network that does not see the noise level is not run again on a sequence that did not change
  since.

Calls of correctors are part of the budget: `steps` is the number of network calls a sequence takes
at most, shared between steps of the kernel and corrections.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

from dlm.denoiser import Context, Predictor
from dlm.errors import UserError
from dlm.processes import Prediction, Process, State
from dlm.random import Key
from dlm.samplers.base import (
    OnStep,
    Prompt,
    Sampler,
    Samples,
    Step,
    check_prompt,
    is_text,
    with_prompt,
)
from dlm.samplers.bending import Bending, Bent
from dlm.samplers.correctors import Corrector, NoCorrector
from dlm.samplers.grids import Grid
from dlm.samplers.kernels import Kernel
from dlm.samplers.network import CountedNetwork
from dlm.schedules import Schedule


@final
class GridSampler(Sampler):
    """A kernel applied along a grid, with a corrector in between.

    Args:
        kernel: the reverse transition.
        grid: where to stop between noise and data.
        steps: network calls of a sequence at most, those of the corrector included.
        corrector: moves at a level after a step; None is `NoCorrector`.
        sweeps: applications of the corrector at a stop.
        correct_from, correct_to: levels alpha between which it is applied.
        temperature, top_k, top_p, min_p, typical_p, repetition_penalty, no_repeat_ngram, filter_on:
            see `Bending`; they hold in the corrector too.

    Raises:
        UserError: for steps < 1 or a setting out of its range.
    """

    def __init__(
        self,
        kernel: Kernel,
        grid: Grid,
        steps: int = 64,
        corrector: Corrector | None = None,
        sweeps: int = 1,
        correct_from: float = 0.0,
        correct_to: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int | None = None,
        filter_on: Bent = "loo",
    ) -> None:
        if steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        if sweeps < 1 or not 0 <= correct_from <= correct_to <= 1:
            raise UserError(
                "sweeps must be at least 1 and 0 <= correct_from <= correct_to <= 1, got "
                f"sweeps={sweeps}, correct_from={correct_from}, correct_to={correct_to}"
            )
        self.kernel, self.grid, self.steps = kernel, grid, steps
        self.corrector, self.sweeps = corrector or NoCorrector(), sweeps
        self.window = (correct_from, correct_to)
        self.bending = Bending(
            temperature, top_k, top_p, min_p, typical_p, repetition_penalty, no_repeat_ngram,
            filter_on,
        )  # fmt: skip

    def calls(self, length: int) -> int:
        """`steps`: no sequence takes more."""
        return self.steps

    def refusal(self, process: Process) -> str | None:
        """That of the kernel or of the corrector."""
        return self.kernel.refusal(process) or self.corrector.refusal(process)

    def plan(self, schedule: Schedule) -> tuple[Tensor, list[bool]]:
        """Levels of the kernel's steps, float64 (n + 1,), and whether each is corrected after.

        As many steps as leave the corrections after them within the budget.
        """
        cost = self.corrector.calls * self.sweeps
        low, high = self.window
        for count in range(self.steps, 0, -1):
            levels = self.grid.levels(count, schedule)
            inside = [low <= a <= high and 0 < a < 1 for a in levels[1:].tolist()]
            corrected = [cost > 0 and here for here in inside]
            if count + cost * sum(corrected) <= self.steps:
                return levels, corrected
        return self.grid.levels(1, schedule), [False]  # one step ends at the data: nothing to mend

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
        if (refusal := self.refusal(predictor.process)) is not None:
            raise UserError(refusal)
        run = _Run(self, predictor, shape, key, prompt, context, on_step)
        levels, corrected = self.plan(predictor.process.schedule)
        levels = levels.to(key.rows.device)
        times = predictor.process.schedule.inverse(levels)
        for k, correct in enumerate(corrected):
            run.step(k, times[k], times[k + 1])
            run.tell(levels[k + 1], "predict")
            for sweep in range(self.sweeps if correct else 0):
                run.correct(k, sweep, times[k + 1])
                run.tell(levels[k + 1], "correct")
        return Samples(run.state.tokens, run.network.calls)


@final
class _Run:
    """One call of a grid sampler: the state of the batch and what goes with it."""

    def __init__(
        self,
        sampler: GridSampler,
        predictor: Predictor,
        shape: tuple[int, int],
        key: Key,
        prompt: Prompt | None,
        context: Context | None,
        on_step: OnStep | None,
    ) -> None:
        process = predictor.process
        self.sampler, self.process, self.key, self.on_step = sampler, process, key, on_step
        self.length = shape[1]
        self.state = process.prior(shape, key=key.fold("prior"))
        self.free = torch.ones(shape, dtype=torch.bool, device=self.state.tokens.device)
        self.allowed = None
        if prompt is not None:
            check_prompt(prompt, shape, process)
            self.state = process.pin(self.state, prompt.tokens, prompt.frozen)
            self.free, self.allowed = ~prompt.frozen, prompt.allowed
            context = with_prompt(context, prompt, key)
        self.text = is_text(context, self.state.tokens)
        self.network = CountedNetwork(predictor, shape[0], context, self.free.device)
        self.confidence = torch.full(shape, torch.nan, device=self.free.device)
        self.steps_told = 0

    def step(self, k: int, t: Tensor, s: Tensor) -> None:
        """One transition of the kernel."""
        kernel, draw = self.sampler.kernel, self.key.fold("step", k)
        bound = kernel.bound(self.process, self.state, t, s, self.confidence)
        chosen = (draw.fold("move").uniform(self.length) < bound) & self.free
        if not chosen.any():
            return
        prediction = self.bend(self.network(self.state, t, chosen), self.state, chosen)
        u = draw.fold("value").uniform(self.length, kernel.uniforms)[chosen]
        self.write(chosen, kernel.draw(prediction, s, u), prediction)

    def write(self, chosen: Tensor, drawn: State, prediction: Prediction) -> None:
        """Put drawn tokens in their places, and how sure the model was of them."""
        tokens, noise = self.state.tokens.clone(), self.state.noise
        changed = torch.zeros_like(chosen)
        changed[chosen] = drawn.tokens != tokens[chosen]
        tokens[chosen] = drawn.tokens
        if noise is not None and drawn.noise is not None:
            noise = noise.clone()
            noise[chosen] = drawn.noise
        self.state = State(tokens, noise)
        sure = self.confidence[chosen]
        given = self.process.log_denoiser_at(prediction, drawn.tokens).float()
        sure = torch.where(drawn.tokens != prediction.state.tokens, given, sure)
        self.confidence[chosen] = sure
        self.confidence.masked_fill_(self.hides(), torch.nan)
        self.network.forget((changed if noise is None else chosen).any(-1))

    def hides(self) -> Tensor:
        """Positions that are known to be noise."""
        active = self.process.active(self.state)
        return active if self.process.shows_noise else self.process.hidden(self.state)

    def correct(self, k: int, sweep: int, t: Tensor) -> None:
        """One application of the corrector."""
        if not self.free.any():
            return
        key = self.key.fold("correct", k, sweep)
        before = self.state
        self.network.forget(self.free.any(-1))
        self.state = self.sampler.corrector(
            self.network, before, t, key=key, free=self.free, bend=self.bend
        )
        self.network.forget(self.free.any(-1))
        changed = self.state.tokens != before.tokens
        self.confidence.masked_fill_(changed, torch.nan)

    def bend(self, prediction: Prediction, state: State, chosen: Tensor) -> Prediction:
        """Filters, penalties and constraints."""
        noise = self.process.active(state) if self.process.shows_noise else self.hides()
        known = ~(noise & self.free) & self.text
        return self.sampler.bending(prediction, state, chosen, known, self.allowed)

    def tell(self, alpha: Tensor, kind: Literal["predict", "correct"]) -> None:
        """Report a step."""
        if self.on_step is not None:
            level = alpha.expand(len(self.state.tokens))
            calls = self.network.calls.clone()
            step = Step(self.steps_told, self.state, level, self.confidence.clone(), calls, kind)
            self.on_step(step)
        self.steps_told += 1
