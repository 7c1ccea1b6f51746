"""Text of any length, block by block: semi-autoregressive sampling with a sliding context.

A block of `size` tokens is drawn by any sampler with the last `context` tokens before it frozen,
then the next one, from left to right; all rows of a batch go together. A finished block is final
and is handed over at once (`on_block`).

    p(x) = prod over blocks of p(block | the `context` tokens before it)

That is the law of the model where it is a stationary Markov law of an order up to `context` and the
sampler of a block is exact; otherwise it forgets what lies further back.

The network sees windows: the context and the block, presented as a sequence of their own that
begins at position 0. So it is never asked for more positions than context + size, and the text may
be longer than it was trained for. The first windows are shorter, as far as less text is there. What
is given inside a block is kept and seen by that block; what is given behind it is not seen before
its turn comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from dlm.denoiser import Context, Predictor
from dlm.errors import UserError
from dlm.processes import Process, State
from dlm.random import Key
from dlm.samplers.base import OnStep, Prompt, Sampler, Samples, Step, check_prompt


class Block(NamedTuple):
    """A finished block, as `on_block` sees it.

    start: place of its first token in the text.
    tokens: int64 (B, n), final.
    calls: int64 (B,), network evaluations so far.
    """

    start: int
    tokens: Tensor
    calls: Tensor


OnBlock = Callable[[Block], None]


class Window(NamedTuple):
    """What a block is drawn from: places `left` to `stop`, of which `start` to `stop` are new."""

    left: int
    start: int
    stop: int


@final
class BlockSampler(Sampler):
    """Runs a sampler on one block after the other.

    Args:
        sampler: draws a block; its `steps` are those of a block.
        size: tokens of a block; the last one may be shorter.
        context: tokens before a block that it sees.

    Raises:
        UserError: for size < 1 or context < 0.
    """

    def __init__(self, sampler: Sampler, size: int, context: int) -> None:
        if size < 1 or context < 0:
            raise UserError(
                f"a block needs size >= 1 and context >= 0, got size={size} and context={context}"
            )
        self.sampler, self.size, self.context = sampler, size, context

    def windows(self, length: int) -> list[Window]:
        """The windows of a text of this length, from left to right."""
        starts = range(0, length, self.size)
        return [
            Window(max(0, start - self.context), start, min(start + self.size, length))
            for start in starts
        ]

    def calls(self, length: int) -> int:
        """Those of the sampler, window by window."""
        return sum(self.sampler.calls(stop - left) for left, _, stop in self.windows(length))

    def refusal(self, process: Process) -> str | None:
        """That of the sampler."""
        return self.sampler.refusal(process)

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
        on_block: OnBlock | None = None,
    ) -> Samples:
        """Sample (B, L) tokens; see `Sampler`.

        Args:
            predictor: takes windows of up to context + size tokens; a network that does not refuses
                them.
            shape: (B, L), any L.
            key: its rows number the sequences; block n draws from `key.fold("block", n)`.
            prompt: tokens that are given, anywhere.
            context: documents (cut into windows), condition.
            on_step: called after every step; state and confidence are those of the whole text,
                alpha is the level of the block.
            on_block: called with every finished block.
        """
        if (refusal := self.refusal(predictor.process)) is not None:
            raise UserError(refusal)
        run = _Run(predictor, shape, key, prompt, context, on_step)
        for index, window in enumerate(self.windows(shape[1])):
            run.block(self.sampler, index, window)
            if on_block is not None:
                tokens = run.state.tokens[:, window.start : window.stop].clone()
                on_block(Block(window.start, tokens, run.calls.clone()))
        return Samples(run.state.tokens, run.calls)


@final
class _Run:
    """One call: the text so far, pure noise where nothing was written yet."""

    def __init__(
        self,
        predictor: Predictor,
        shape: tuple[int, int],
        key: Key,
        prompt: Prompt | None,
        context: Context | None,
        on_step: OnStep | None,
    ) -> None:
        self.predictor, self.key, self.on_step = predictor, key, on_step
        self.context = context or Context()
        self.state = predictor.process.prior(shape, key=key.fold("prior"))
        device = self.state.tokens.device
        self.frozen, self.allowed = torch.zeros(shape, dtype=torch.bool, device=device), None
        if prompt is not None:
            check_prompt(prompt, shape, predictor.process)
            self.frozen, self.allowed = prompt.frozen, prompt.allowed
            self.state = predictor.process.pin(self.state, prompt.tokens, prompt.frozen)
        self.calls = torch.zeros(shape[0], dtype=torch.int64, device=device)
        self.confidence = torch.full(shape, torch.nan, device=device)
        self.steps_told = 0

    def block(self, sampler: Sampler, index: int, window: Window) -> None:
        """Draw one block; nothing is run where all of it is given."""
        left, start, stop = window
        if self.frozen[:, start:stop].all():
            return
        frozen = self.frozen[:, left:stop].clone()
        frozen[:, : start - left] = True
        allowed = _columns(self.allowed, left, stop, self.frozen.shape[1])
        documents = self.context.documents
        if documents is not None:
            documents = documents[:, left:stop]
        samples = sampler(
            self.predictor,
            (len(frozen), stop - left),
            key=self.key.fold("block", index),
            prompt=Prompt(self.state.tokens[:, left:stop], frozen, allowed),
            context=self.context._replace(documents=documents),
            on_step=None if self.on_step is None else lambda step: self.tell(step, window),
        )
        tokens, done = self.state.tokens.clone(), torch.zeros_like(self.frozen)
        tokens[:, start:stop], done[:, start:stop] = samples.tokens[:, start - left :], True
        self.state = self.predictor.process.pin(self.state, tokens, done)
        self.calls = self.calls + samples.calls

    def tell(self, step: Step, window: Window) -> None:
        """Report a step of a window as one of the whole text."""
        assert self.on_step is not None
        tokens, noise = self.state.tokens.clone(), self.state.noise
        fresh = slice(window.start - window.left, None)
        tokens[:, window.start : window.stop] = step.state.tokens[:, fresh]
        if noise is not None and step.state.noise is not None:
            noise = noise.clone()
            noise[:, window.start : window.stop] = step.state.noise[:, fresh]
        self.confidence[:, window.start : window.stop] = step.confidence[:, fresh]
        self.on_step(
            step._replace(
                index=self.steps_told,
                state=State(tokens, noise),
                confidence=self.confidence.clone(),
                calls=self.calls + step.calls,
            )
        )
        self.steps_told += 1


def _columns(allowed: Tensor | None, left: int, stop: int, length: int) -> Tensor | None:
    """The allowed tokens of a window, where they are said per position."""
    if allowed is None or allowed.ndim < 2 or allowed.shape[-2] != length:
        return allowed
    return allowed[..., left:stop, :]
