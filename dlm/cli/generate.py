"""`dlm generate checkpoint=P`: texts on the screen, and as JSON lines.

Text n is a function of the checkpoint, the sampler, the prompt, the seed and n: neither `num` nor
`batch_size` changes it. A prompt and a suffix stand at the two ends of the sequence, an infill
template at its beginning; the rest is written by the model, under guidance if that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from dlm.checkpoint import Loaded, load, weights_hash
from dlm.cli.common import compose_arguments, pick_device, progress_bar, request, say, screen
from dlm.cli.guide import Guidance, guided
from dlm.data.tokenizers import Tokenizer
from dlm.denoiser import Context
from dlm.errors import UserError
from dlm.evaluation.generation import Record, record_samples, write_records
from dlm.random import Key
from dlm.samplers import Prompt, Sampler
from dlm.spec import build, construct


@final
@dataclass(frozen=True)
class GenerateRequest:
    """The keys of `configs/generate.yaml`."""

    checkpoint: str
    num: int
    prompt: str | None
    suffix: str | None
    infill: str | None
    condition: str | None
    guidance: Mapping[str, Any]
    length: int | None
    seed: int
    output: str | None
    batch_size: int
    device: str | None
    trust: Sequence[str]
    sampler: Mapping[str, Any]
    grid: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.num < 1 or self.batch_size < 1:
            raise UserError(
                "num and batch_size must be at least 1, "
                f"got num={self.num} and batch_size={self.batch_size}"
            )
        if self.infill is not None and (self.prompt is not None or self.suffix is not None):
            raise UserError("infill is a whole template; give it without prompt and suffix")

    @property
    def given(self) -> str | None:
        """What the user wrote, for the record."""
        if self.infill is not None:
            return self.infill
        parts = [part for part in (self.prompt, self.suffix) if part is not None]
        return " ... ".join(parts) if parts else None


def run(arguments: Sequence[str]) -> None:
    """Generate, show and write.

    Raises:
        UserError: a checkpoint, a prompt or a setting that does not fit.
    """
    keys = request(GenerateRequest, compose_arguments("generate", arguments).plain())
    sampler = build(keys.sampler, trust=("dlm", *keys.trust), path="sampler")
    device = pick_device(keys.device)
    loaded = load(keys.checkpoint, trust=keys.trust)
    loaded.denoiser.to(device)
    records = _generate(loaded, sampler, keys, device)
    console = screen()
    for record in records:
        say(console, f"--- text {record['row']}, {record['calls']} network calls")
        say(console, record["text"])
    if keys.output is not None:
        try:
            write_records(keys.output, records)
        except OSError as error:
            raise UserError(f"cannot write {keys.output!r}: {error.strerror}") from error
        say(console, f"wrote {keys.output}")


def _generate(
    loaded: Loaded, sampler: Sampler, keys: GenerateRequest, device: torch.device
) -> list[Record]:
    limit = loaded.denoiser.backbone.length
    tokens, frozen = (x.to(device) for x in make_template(loaded.tokenizer, keys, limit))
    settings: Guidance = construct(Guidance, keys.guidance, path="guidance")
    predictor, condition = guided(
        loaded, settings, keys.condition, prompted=bool(frozen.any()), device=device
    )
    name = weights_hash(loaded.denoiser)
    records: list[Record] = []
    with progress_bar("generate", keys.num * tokens.numel()) as advance:
        for start in range(0, keys.num, keys.batch_size):
            rows = torch.arange(start, min(start + keys.batch_size, keys.num), device=device)
            key, shape = Key(keys.seed, rows), (len(rows), tokens.numel())
            given = Prompt(tokens.expand(shape), frozen.expand(shape)) if frozen.any() else None
            done = len(rows) * tokens.numel() / sampler.calls
            samples = sampler(
                predictor,
                shape,
                key=key,
                prompt=given,
                context=None if condition is None else Context(condition=rows * 0 + condition),
                on_step=lambda *_, done=done: advance(done),
            )
            records += record_samples(
                samples,
                key,
                loaded.tokenizer,
                prompt=keys.given,
                sampler=keys.sampler,
                checkpoint=name,
                condition=keys.condition,
                guidance=keys.guidance,
            )
    return records


def make_template(tokenizer: Tokenizer, keys: GenerateRequest, limit: int) -> tuple[Tensor, Tensor]:
    """What is given of the sequence.

    Args:
        tokenizer: the one of the model.
        keys: prompt, suffix, infill and length.
        limit: the longest sequence that the network takes.

    Returns:
        Tokens, int64 (L,), and where they are given, bool (L,).

    Raises:
        UserError: a length that the network does not take or that the text does not fit into.
    """
    if keys.infill is not None:
        head, given = tokenizer.encode_template(keys.infill)
        tail: list[int] = []
    else:
        head, tail = tokenizer.encode(keys.prompt or ""), tokenizer.encode(keys.suffix or "")
        given = [True] * len(head)
    shortest = len(head) + len(tail)
    length = keys.length
    if length is None:
        length = limit if keys.infill is None else shortest
    if not 1 <= length <= limit:
        raise UserError(f"length must be from 1 to {limit} for this model, got {length}")
    if shortest > length:
        raise UserError(f"the given text has {shortest} tokens, more than the length {length}")
    tokens = torch.zeros(length, dtype=torch.int64)
    frozen = torch.zeros(length, dtype=torch.bool)
    tokens[: len(head)] = torch.tensor(head, dtype=torch.int64)
    frozen[: len(head)] = torch.tensor(given, dtype=torch.bool)
    tokens[length - len(tail) :] = torch.tensor(tail, dtype=torch.int64)
    frozen[length - len(tail) :] = True
    return tokens, frozen
