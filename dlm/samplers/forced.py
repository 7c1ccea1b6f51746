"""What a reveal sampler pays for a given text: the log-loss of its own steps, no token drawn.

Positions are opened in a random order, as many a step as a plan says; those of one step are asked
for together, given the text at all positions that are open. The sum of -log p is the plan's bound
for that text,

    E [nats] = E [-log q(x | order, sizes)] >= -log q(x),

in expectation its loss at one position a call, the same for every plan, plus what the plan's steps
lose (`dlm.samplers.curve`). Two plans under one key meet the same orders, so their difference is
much better known than either.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlm.denoiser import Context, Predictor
from dlm.errors import UserError
from dlm.processes import State
from dlm.processes.prediction import pick
from dlm.random import Key
from dlm.samplers.plans import Plan

HEAD_ENTRIES = 2**24  # entries of the logits that are held at a time


def hidden_nats(
    predictor: Predictor,
    tokens: Tensor,
    start: State,
    hidden: Tensor,
    asked: Tensor,
    level: Tensor,
    context: Context | None = None,
) -> Tensor:
    """-log loo of tokens at hidden positions, as a reveal sampler asks for them.

    Args:
        predictor: with a process that reveals.
        tokens: the text, int64 (B, L).
        start: what hidden positions show before they are blanked, tokens (B, L).
        hidden: bool (B, L); all others show the text.
        asked: bool (B, L), within `hidden`.
        level: the share of the positions that is open, (B,): what the network is told.
        context: documents, condition.

    Returns:
        Nats, float64 (B, L), 0 where not asked.
    """
    process = predictor.process
    state = process.blank(start, torch.ones_like(hidden))
    state = process.pin(state, tokens, ~hidden)
    t = process.hidden_time(1 - level)
    features = predictor.hidden(state, t, context)
    nats = torch.zeros(hidden.shape, dtype=torch.float64, device=hidden.device)
    for part in asked.nonzero().split(max(1, HEAD_ENTRIES // process.num_states)):
        row, column = part.unbind(-1)
        prediction = predictor.predict(features[row, column], state.at((row, column)), t[row])
        nats[row, column] = -pick(prediction.log_loo, tokens[row, column]).double()
    return nats


@torch.no_grad()
def plan_nats(
    predictor: Predictor,
    tokens: Tensor,
    plan: Plan,
    steps: int,
    *,
    key: Key,
    context: Context | None = None,
) -> Tensor:
    """The loss of a plan on a text, one random order a sequence.

    Args:
        predictor: with a process that reveals.
        tokens: the text, int64 (B, L), without padding.
        plan: how many positions a step.
        steps: K >= 1.
        key: of orders and sizes, rows (B,) on the device of the text.
        context: documents, condition.

    Returns:
        Nats a sequence, float64 (B,).

    Raises:
        UserError: a process that hides no positions, or steps below 1.
    """
    if not predictor.process.reveals:
        raise UserError(
            f"a plan opens hidden positions, and {type(predictor.process).__name__} noise hides "
            "none"
        )
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    rows, length = tokens.shape
    rank = key.fold("order").uniform(length).argsort(-1).argsort(-1)
    total = torch.full((rows,), length, device=tokens.device)
    sizes = plan.sizes(total, steps, key=key.fold("plan"), total=length)
    levels = plan.levels(sizes, key=key.fold("plan"))
    start = predictor.process.prior((rows, length), key=key.fold("prior"))
    nats = torch.zeros(rows, dtype=torch.float64, device=tokens.device)
    opened = torch.zeros_like(total)
    for k in range(steps):
        hidden = rank >= opened[:, None]
        opened = opened + sizes[:, k]
        asked = hidden & (rank < opened[:, None])
        if asked.any():
            loss = hidden_nats(predictor, tokens, start, hidden, asked, levels[:, k], context)
            nats += loss.sum(-1)
    return nats
