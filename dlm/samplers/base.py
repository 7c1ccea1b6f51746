"""What every sampler shares: the call, what it takes and what it gives back.

A sampler holds settings only. It reads the process from the predictor it is handed, draws every
number from a key (so a sequence is the same alone or in a batch), and counts the network
evaluations of each sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dlm.denoiser import Context, Predictor
from dlm.errors import UserError
from dlm.processes import Process, State
from dlm.random import Key

PADDING = -1  # the document of padding, as `dlm.denoiser.Context` has it


class Prompt(NamedTuple):
    """Tokens that are given: prefix, suffix, any spans.

    tokens: int64 (B, L), read where frozen.
    frozen: bool (B, L), positions that keep their token.
    allowed: bool, broadcastable to (B, L, K): tokens that may stand at each free position; None:
        any.
    """

    tokens: Tensor
    frozen: Tensor
    allowed: Tensor | None = None


class Samples(NamedTuple):
    """What a sampler made.

    tokens: int64 (B, L).
    calls: int64 (B,), network evaluations that each sequence took part in; a predictor that runs
        several networks, or one of them several times, counts each (`Predictor.passes`).
    """

    tokens: Tensor
    calls: Tensor


class Step(NamedTuple):
    """One step of a sampler, as `on_step` sees it.

    index: 0, 1, ...: how many steps came before.
    state: of the whole batch after the step, tokens (B, L).
    alpha: float64 (B,), the level that each sequence has reached: 0 is noise, 1 is data.
    confidence: float32 (B, L), log-probability that the model gave a token when it drew it; NaN
        where it drew none (noise, prompts).
    calls: int64 (B,), network evaluations so far.
    kind: what was done: "predict" is a step towards the data, "correct" one of a corrector.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  (of tuple, which nobody asks)
    state: State
    alpha: Tensor
    confidence: Tensor
    calls: Tensor
    kind: Literal["predict", "correct"] = "predict"


OnStep = Callable[[Step], None]


class Sampler(ABC):
    """Draws token sequences from a predictor."""

    @abstractmethod
    def calls(self, length: int) -> int:
        """Runs of the predictor that a sequence of this length takes at most."""

    @abstractmethod
    def refusal(self, process: Process) -> str | None:
        """Why this sampler is not defined for a process, and what to use instead; or None."""

    @abstractmethod
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
        """Sample.

        Args:
            predictor: a denoiser, an oracle, ...
            shape: (B, L).
            key: its rows, (B,), number the sequences; they decide every draw.
            prompt: tokens that are given.
            context: documents, condition, as far as there are some.
            on_step: called after every step.
        """


def check_prompt(prompt: Prompt, shape: tuple[int, int], process: Process) -> None:
    """Refuse a prompt that does not fit.

    Raises:
        UserError: for another shape than (B, L), a frozen token that is no clean token of the
            process, or a free position where no clean token is allowed.
    """
    if prompt.tokens.shape != shape or prompt.frozen.shape != shape:
        raise UserError(f"the prompt has shape {tuple(prompt.tokens.shape)}, the samples {shape}")
    given, size = prompt.tokens[prompt.frozen], process.num_states
    if given.numel() and not (int(given.min()) >= 0 and int(given.max()) < size):
        raise UserError(
            f"the prompt holds a token outside [0, {size}): was it made by another tokenizer?"
        )
    if process.mask_id is not None and (given == process.mask_id).any():
        raise UserError("the prompt gives MASK as a token; leave positions to fill in not frozen")
    if prompt.allowed is None:
        return
    try:
        prompt.allowed.expand(*shape, size)
    except RuntimeError as error:
        raise UserError(
            f"the allowed tokens have shape {tuple(prompt.allowed.shape)}, which does not fit "
            f"{(*shape, size)}"
        ) from error
    clean = torch.arange(size, device=prompt.allowed.device) != (
        -1 if process.mask_id is None else process.mask_id
    )
    possible = (prompt.allowed & clean).any(-1).expand(shape)  # not (B, L, K) for one set of all
    if not possible[~prompt.frozen].all():
        raise UserError("a position to fill in has no allowed token")


def is_text(context: Context | None, tokens: Tensor) -> Tensor:
    """Bool (B, L): the positions of tokens (B, L) that are not padding."""
    if context is None or context.documents is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    return context.documents != PADDING


def with_prompt(context: Context | None, prompt: Prompt, key: Key) -> Context:
    """The context that tells the predictor which positions are given, and lets it draw for them."""
    told = context or Context()
    return told._replace(frozen=prompt.frozen, key=key.fold("predictor"))
