"""A network, the process it was trained for and the meaning of its outputs, as one object.

Everything that evaluates, samples or analyses a model takes a `Predictor` and reads the process
*from it*, so training and sampling cannot disagree. Prediction happens in two parts: `hidden` runs
the network on whole sequences, `predict` applies the head to whichever rows are needed. A sampler
that knows its positions beforehand, and a loss that skips rows, pay for the head only where it
counts.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor, nn

from dlm.errors import UserError
from dlm.parameterizations import Parameterization
from dlm.processes import Prediction, Process, State
from dlm.random import Key
from dlm.schedules import Schedule

# |logit alpha| shown to the network: log(1e5), the levels that training times reach
# (dlm.times.T_MIN).
LEVEL_LIMIT = 11.5


class Context(NamedTuple):
    """What a predictor may know besides the noisy tokens.

    documents: int64 (B, L); attention stays among equal ids. Padding has the id -1.
    condition: int64 (B,), the class of each sequence; -1 is none.
    frozen: bool (B, L), the positions of a prompt; samplers fill it in.
    key: rows (B,), for predictors that draw; samplers fill it in together with `frozen`.
    """

    documents: Tensor | None = None
    condition: Tensor | None = None
    frozen: Tensor | None = None
    key: Key | None = None

    def at(self, rows: Tensor) -> Context:
        """The context of some of the sequences, by a mask or by indices."""
        picked = {name: value[rows] for name, value in self._asdict().items() if value is not None}
        return Context(**picked)


class Backbone(Protocol):
    """A bidirectional network that returns hidden states; loss and sampler apply the head.

    One for the lifted process has `noise_conditioning = True` besides.
    """

    head: nn.Linear
    length: int
    time_conditioning: bool

    def __call__(
        self, tokens: Tensor, *, level: Tensor | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, L, D) of tokens (B, L) at levels (B,), ready for the head.

        A backbone that knows classes takes `condition` besides, int64 (B,) with -1 for none; one
        with noise_conditioning takes `noise`, int64 (B, L).
        """
        ...

    def flops_per_token(self, length: int, training: bool = True) -> float:
        """FLOPs of one position of a sequence, forward and backward, or forward only."""
        ...


class Predictor(Protocol):
    """A denoiser, an oracle or a guidance wrapper: what samplers and evaluations run on."""

    process: Process
    time_conditioning: bool

    def passes(self, length: int) -> int:
        """Network passes over a sequence of this length that one call of `hidden` stands for."""
        ...

    def hidden(self, state: State, t: Tensor, context: Context | None = None) -> Tensor:
        """What the network computes for tokens (B, L) at times (B,): any (B, L, D)."""
        ...

    def predict(self, hidden: Tensor, state: State, t: Tensor) -> Prediction:
        """The prediction at rows of `hidden` (..., D) with tokens (...) and times (...)."""
        ...


@final
class Denoiser(nn.Module):
    """A backbone bound to its process and parameterization.

    Args:
        backbone: the network; its head must have process.num_states outputs.
        process: the noise process.
        parameterization: what the logits mean.
        time_conditioning: whether the network sees the noise level; None: what the process needs.
        noise_conditioning: whether it sees the noise tokens of lifted noise; None: likewise.

    Raises:
        UserError: if the head or the conditioning of the backbone does not fit.
    """

    def __init__(
        self,
        backbone: Backbone,
        process: Process,
        parameterization: Parameterization,
        time_conditioning: bool | None = None,
        noise_conditioning: bool | None = None,
    ) -> None:
        super().__init__()
        noisy = process.noise_conditioned if noise_conditioning is None else noise_conditioning
        wanted = process.time_conditioned if time_conditioning is None else time_conditioning
        if backbone.head.out_features != process.num_states:
            raise UserError(
                f"the head has {backbone.head.out_features} outputs but the process has "
                f"{process.num_states} states; build both from the same vocabulary"
            )
        if wanted != backbone.time_conditioning:
            raise UserError(
                f"time_conditioning is {wanted} but the backbone was built with "
                f"time_conditioning={backbone.time_conditioning}; give both the same value"
            )
        takes = getattr(backbone, "noise_conditioning", False)
        if not noisy == process.noise_conditioned == takes:
            raise UserError(
                f"{type(process).__name__} noise needs "
                f"noise_conditioning={process.noise_conditioned}, got {noisy} and a backbone with "
                f"{takes}; build both from the same config"
            )
        self.backbone = backbone
        self.process = process
        self.parameterization = parameterization
        self.time_conditioning, self.noise_conditioning = wanted, noisy

    def passes(self, length: int) -> int:
        """One."""
        return 1

    def hidden(self, state: State, t: Tensor, context: Context | None = None) -> Tensor:
        """Hidden states (B, L, D) of tokens (B, L) at times t, (B,) or one for all."""
        level = None
        if self.time_conditioning:
            level = shown_level(self.process, t).to(torch.float32).expand(state.tokens.shape[0])
        context = context or Context()
        known = {} if context.condition is None else {"condition": context.condition}
        if state.noise is not None:
            known["noise"] = state.noise
        return self.backbone(state.tokens, level=level, documents=context.documents, **known)

    def predict(self, hidden: Tensor, state: State, t: Tensor) -> Prediction:
        """Head and parameterization at rows of `hidden` (..., D)."""
        return self.parameterization(self.backbone.head(hidden), self.process, state, t)

    def forward(
        self,
        state: State,
        t: Tensor,
        *,
        where: Tensor | None = None,
        context: Context | None = None,
    ) -> Prediction:
        """Predict tokens (B, L) at times (B,).

        Args:
            state: noisy tokens, (B, L).
            t: times, float64 (B,).
            where: bool (B, L): only these positions need the head.
            context: documents, condition, as far as there are some.

        Returns:
            A prediction over (B, L), or over the (N,) positions of `where` in row-major order.
        """
        hidden = self.hidden(state, t, context)
        times = t.reshape(-1, 1).expand(state.tokens.shape)
        if where is None:
            return self.predict(hidden, state, times)
        return self.predict(hidden[where], state.at(where), times[where])

    def on(self, schedule: Schedule) -> Denoiser:
        """The same network on another schedule: it sees only logit alpha, never t."""
        process = self.process.on(schedule)
        made_of = (self.backbone, process, self.parameterization)
        return Denoiser(*made_of, self.time_conditioning, self.noise_conditioning)


def shown_level(process: Process, t: Tensor) -> Tensor:
    """logit alpha at times t as networks see it: within what training reaches, float64."""
    return process.schedule.logit_alpha(t).clamp(-LEVEL_LIMIT, LEVEL_LIMIT)
