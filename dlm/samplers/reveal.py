"""Reveal samplers: hidden positions are opened step by step and then stay.

For processes with an absorbing view: masks, u of the lifted process, the masks of hybrid noise. A
`Plan` says how many positions each step opens in each sequence, an `Order` which. A position that
is hidden is known to be noise, so its token is drawn from the leave-one-out posterior. In an order
that does not look at predictions the positions are known before the network runs: head and draw
touch only them, and a sequence that opens nothing in a step is not run.

What the network is told. Revealed tokens are clean. A masked network sees just that. The networks
of lifted and hybrid noise were trained at a noise level, where some of what is shown may be noise,
or some of what is hidden clean: `level="share"` asks them at the level at which so many positions
are expected to be hidden, which is where they were trained; `level="exact"` at the one level at
which the oracle's answer is that of the absorbing view. A trained network has hardly seen such
states there; the choice matters for analyses, and for small vocabularies.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

from dlm.denoiser import Context, Predictor
from dlm.errors import UserError
from dlm.processes import Prediction, Process
from dlm.processes.prediction import pick
from dlm.random import Key, sample_categorical
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
from dlm.samplers.correctors import most
from dlm.samplers.network import CountedNetwork
from dlm.samplers.orders import Order
from dlm.samplers.plans import Plan


@final
class RevealSampler(Sampler):
    """Opens hidden positions as a plan and an order say.

    Args:
        plan: how many a step.
        order: which.
        steps: network calls of a sequence at most; None: one for each position.
        level: what the network is told, see the module.
        temperature, top_k, top_p, min_p, typical_p, repetition_penalty, no_repeat_ngram, filter_on:
            see `Bending`.

    Raises:
        UserError: for steps < 1 or a setting out of its range.
    """

    def __init__(
        self,
        plan: Plan,
        order: Order,
        steps: int | None = 64,
        level: Literal["share", "exact"] = "share",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int | None = None,
        filter_on: Bent = "loo",
    ) -> None:
        if steps is not None and steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        self.plan, self.order, self.steps, self.level = plan, order, steps, level
        self.bending = Bending(
            temperature, top_k, top_p, min_p, typical_p, repetition_penalty, no_repeat_ngram,
            filter_on,
        )  # fmt: skip

    def calls(self, length: int) -> int:
        """`steps`, and never more than there are positions."""
        return length if self.steps is None else min(self.steps, length)

    def refusal(self, process: Process) -> str | None:
        """Only where positions are hidden."""
        if process.reveals:
            return None
        return (
            f"a reveal sampler opens hidden positions, and {type(process).__name__} noise hides "
            "none; use sampler=ancestral, or train process=lifted_uniform"
        )

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
        run = _Run(self, predictor, shape, key, prompt, context)
        steps = self.calls(shape[1])
        sizes = self.plan.sizes(run.total, steps, key=key.fold("plan"), total=run.length)
        levels = self.plan.levels(sizes, key=key.fold("plan"))
        for k in range(steps):
            if run.hidden.any():
                run.step(k, sizes[:, k], levels[:, k])
            if on_step is not None:
                on_step(run.told(k))
        return Samples(run.state.tokens, run.network.calls)


@final
class _Run:
    """One call of a reveal sampler: the state of the batch and what goes with it."""

    def __init__(
        self,
        sampler: RevealSampler,
        predictor: Predictor,
        shape: tuple[int, int],
        key: Key,
        prompt: Prompt | None,
        context: Context | None,
    ) -> None:
        process = predictor.process
        self.sampler, self.process, self.key = sampler, process, key
        self.state = process.prior(shape, key=key.fold("prior"))
        device = self.state.tokens.device
        everywhere = torch.ones(shape, dtype=torch.bool, device=device)
        self.state = process.blank(self.state, everywhere)
        self.hidden, self.allowed = everywhere, None
        if prompt is not None:
            check_prompt(prompt, shape, process)
            self.state = process.pin(self.state, prompt.tokens, prompt.frozen)
            self.hidden, self.allowed = ~prompt.frozen, prompt.allowed
            context = with_prompt(context, prompt, key)
        self.total = self.hidden.sum(-1)
        self.text = is_text(context, self.state.tokens)
        self.length = (self.hidden | self.text).sum(-1)  # padding is neither
        self.network = CountedNetwork(predictor, shape[0], context, device)
        self.confidence = torch.full(shape, torch.nan, device=device)
        self.columns = torch.arange(shape[1], device=device).expand(shape)
        self.fixed = None  # priorities of an order that does not look at predictions
        if not sampler.order.informed:
            u = key.fold("order").uniform(shape[1])
            self.fixed = sampler.order.priority(u[..., None][..., :0], self.columns, u)

    def step(self, k: int, planned: Tensor, level: Tensor) -> None:
        """Open the positions of one step."""
        process, draw = self.process, self.key.fold("step", k)
        if self.fixed is None:  # such an order may have gone ahead of the plan
            level = self.reached()
        time = process.hidden_time(1 - level)
        t = time if self.sampler.level == "share" else process.view_time(time)
        if self.fixed is not None:
            chosen = most(self.fixed, self.hidden, planned)
            if not chosen.any():
                return
            prediction = self._bent(self.network(self.state, t, chosen), chosen)
            log_probs = prediction.log_loo
        else:
            asked = self.hidden & (planned > 0)[:, None]
            if not asked.any():
                return
            everywhere = self._bent(self.network(self.state, t, asked), asked).log_loo
            chosen = self._informed(everywhere, asked, planned, draw)
            log_probs = everywhere[chosen[asked]]
        u = draw.fold("value").uniform(self.hidden.shape[1])[chosen]
        self._open(chosen, sample_categorical(log_probs, u), log_probs)

    def reached(self) -> Tensor:
        """The share of the free positions that is open, float64 (B,); 1 where none was free."""
        left = self.hidden.sum(-1).double()
        return torch.where(self.total > 0, 1 - left / self.total.clamp(min=1), 1.0)

    def told(self, k: int) -> Step:
        """What `on_step` gets."""
        sure, calls = self.confidence.clone(), self.network.calls.clone()
        return Step(k, self.state, self.reached(), sure, calls)

    def _informed(self, log_probs: Tensor, asked: Tensor, planned: Tensor, draw: Key) -> Tensor:
        """The positions that an informed order opens, bool (B, L)."""
        order = self.sampler.order
        priority = torch.zeros(asked.shape, dtype=torch.float64, device=asked.device)
        entropy = torch.zeros_like(priority)
        u = draw.fold("order").uniform(asked.shape[1])[asked]
        priority[asked] = order.priority(log_probs, self.columns[asked], u)
        entropy[asked] = torch.special.entr(log_probs.double().exp()).sum(-1)
        return most(priority, asked, order.count(entropy, asked, planned))

    def _open(self, chosen: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        """Write clean tokens (N,), known to be clean from now on."""
        grid = self.state.tokens.clone()
        grid[chosen] = tokens
        self.state = self.process.pin(self.state, grid, chosen)
        self.confidence[chosen] = pick(log_probs, tokens).float()
        self.hidden = self.hidden & ~chosen
        self.network.forget(chosen.any(-1))

    def _bent(self, prediction: Prediction, chosen: Tensor) -> Prediction:
        known = ~self.hidden & self.text
        return self.sampler.bending(prediction, self.state, chosen, known, self.allowed)
