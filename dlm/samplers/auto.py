"""What a user gets who chooses nothing: for each kind of noise, what did best when measured.

On the Austen models (docs/samplers.md), at equal calls and temperature 1:

    noise that shows itself (masks, lifted)   opening positions in the order of confidence drawn at
                                              temperature 0.5, an even number a step: no setting was
                                              judged better beyond the intervals
    other noise (uniform, hybrid)             the ancestral step on even levels: none without a
                                              corrector was, at up to 128 calls

Other priors were not measured and get what uniform noise gets. The order of confidence does not
draw from the law of the model, a random one does (`sampler=reveal`).
"""

from __future__ import annotations

from typing import final

from dlm.denoiser import Context, Predictor
from dlm.processes import Process
from dlm.random import Key
from dlm.samplers.base import OnStep, Prompt, Sampler, Samples
from dlm.samplers.bending import Bent
from dlm.samplers.grid_sampler import GridSampler
from dlm.samplers.grids import EvenGrid
from dlm.samplers.kernels import Ancestral
from dlm.samplers.orders import Confidence
from dlm.samplers.plans import Even
from dlm.samplers.reveal import RevealSampler


@final
class Auto(Sampler):
    """The default of `dlm generate`; see the module.

    Args:
        steps: network calls of a sequence at most.
        order_temperature: of the choice of positions.
        temperature, top_k, top_p, min_p, typical_p, repetition_penalty, no_repeat_ngram, filter_on:
            see `Bending`.

    Raises:
        UserError: for steps < 1 or a setting out of its range.
    """

    def __init__(
        self,
        steps: int = 64,
        order_temperature: float = 0.5,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int | None = None,
        filter_on: Bent = "loo",
    ) -> None:
        bent = (temperature, top_k, top_p, min_p, typical_p, repetition_penalty, no_repeat_ngram)
        order = Confidence(order_temperature)
        self.steps = steps
        self.showing = RevealSampler(Even(), order, steps, "share", *bent, filter_on)
        grid = (Ancestral(), EvenGrid(), steps, None, 1, 0.0, 1.0)
        self.other = GridSampler(*grid, *bent, filter_on)

    def calls(self, length: int) -> int:
        """`steps`."""
        return self.steps

    def refusal(self, process: Process) -> str | None:
        """Defined for every process."""
        return None

    def chosen(self, process: Process) -> Sampler:
        """The sampler for this noise."""
        return self.showing if process.shows_noise else self.other

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
        sampler = self.chosen(predictor.process)
        return sampler(predictor, shape, key=key, prompt=prompt, context=context, on_step=on_step)
