"""Templates of different lengths in one batch.

A `Template` is one sequence with what is given of it: a prefix, a suffix, a text with holes, any
spans. `pack` lays templates side by side, left-aligned, and fills the shorter ones up: such padding
is frozen and belongs to the document -1, so that attention keeps it and the text apart. `cut` takes
the samples back to their lengths.

Draws belong to rows and positions, so a sequence draws the same numbers alone as beside longer
ones. The network's sums run in another order there: its outputs agree to about 1e-6, and a token
that was drawn at the very edge between two can differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dlm.denoiser import Context
from dlm.errors import UserError
from dlm.samplers.base import PADDING, Prompt


class Template(NamedTuple):
    """One sequence and what is given of it.

    tokens: int64 (L,), read where frozen.
    frozen: bool (L,).
    allowed: bool, broadcastable to (L, K), tokens that may stand at each free position; None: any.
    """

    tokens: Tensor
    frozen: Tensor
    allowed: Tensor | None = None


class Packed(NamedTuple):
    """Templates as samplers take them.

    prompt: (B, L) for the longest L.
    context: its documents are -1 at padding and 0 elsewhere; None where all lengths agree.
    lengths: int64 (B,).
    """

    prompt: Prompt
    context: Context
    lengths: Tensor


def pack(
    templates: Sequence[Template], *, pad: int, device: torch.device | str | None = None
) -> Packed:
    """Templates side by side, left-aligned.

    Args:
        templates: B of them, of any lengths.
        pad: a clean token to fill up with; it is shown to no one.
        device: where the batch is to be; None: on the CPU.

    Raises:
        UserError: for no template, an empty one, or parts that do not fit together.
    """
    if not templates:
        raise UserError("there is no template to pack; give at least one")
    for template in templates:
        _check(template)
    lengths = torch.tensor([len(template.tokens) for template in templates])
    length = int(lengths.max())
    real = torch.arange(length) < lengths[:, None]
    tokens = torch.full((len(templates), length), pad, dtype=torch.int64)
    frozen = torch.ones_like(real)
    tokens[real] = torch.cat([template.tokens for template in templates])
    frozen[real] = torch.cat([template.frozen for template in templates])
    allowed = _allowed(templates, length)
    documents = None
    if not real.all():
        documents = torch.where(real, 0, PADDING).to(device)
    allowed = None if allowed is None else allowed.to(device)
    prompt = Prompt(tokens.to(device), frozen.to(device), allowed)
    return Packed(prompt, Context(documents=documents), lengths.to(device))


def cut(tokens: Tensor, lengths: Tensor) -> list[Tensor]:
    """Samples (B, L) as B sequences of their own lengths (B,)."""
    return [row[:length] for row, length in zip(tokens, lengths.tolist(), strict=True)]


def _check(template: Template) -> None:
    tokens, frozen, allowed = template
    if tokens.ndim != 1 or not len(tokens) or tokens.shape != frozen.shape:
        raise UserError(
            "a template holds tokens and frozen of one shape (L,) with L >= 1, got "
            f"{tuple(tokens.shape)} and {tuple(frozen.shape)}"
        )
    if allowed is not None and (
        allowed.ndim not in (1, 2) or (allowed.ndim == 2 and len(allowed) not in (1, len(tokens)))
    ):
        raise UserError(
            f"the allowed tokens of a template of length {len(tokens)} have the shape (K,), (1, K) "
            f"or ({len(tokens)}, K), got {tuple(allowed.shape)}"
        )


def _allowed(templates: Sequence[Template], length: int) -> Tensor | None:
    """Bool, broadcastable to (B, L, K); as small as the templates let it be."""
    sets = [template.allowed for template in templates]
    some = next((allowed for allowed in sets if allowed is not None), None)
    if some is None:
        return None
    if all(allowed is some for allowed in sets):
        return some.reshape(1, -1, some.shape[-1])
    size = some.shape[-1]
    result = torch.ones(len(sets), length, size, dtype=torch.bool)
    for row, template in zip(result, templates, strict=True):
        if template.allowed is not None:
            row[: len(template.tokens)] = template.allowed
    return result
