"""What `dlm generate` leaves: one record a sample, every sample that was drawn, as JSON lines.

A record says how to make the sample again: the checkpoint, the sampler, the seed and the row. A
sample is a function of these and of the prompt, not of how many others were drawn beside it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dlm.files import replace_text
from dlm.random import Key
from dlm.samplers import Samples

Record = dict[str, Any]


class Decoder(Protocol):
    """The part of a tokenizer that turns ids back into text."""

    def decode(self, tokens: Sequence[int], /) -> str:
        """Text of token ids."""
        ...


def record_samples(
    samples: Samples,
    key: Key,
    tokenizer: Decoder,
    *,
    prompt: str | None,
    sampler: Mapping[str, Any],
    checkpoint: str,
    condition: str | None = None,
    guidance: Mapping[str, Any] | None = None,
) -> list[Record]:
    """One JSON-ready record a sample.

    Args:
        samples: tokens (B, L) and network calls (B,).
        key: the key they were drawn with: its seed, and the row of each sample.
        tokenizer: decodes the tokens.
        prompt: what the user gave, None for nothing.
        sampler: the sampler as a plain `_target_` dict.
        checkpoint: name or hash of the model.
        condition: name of the class that was asked for.
        guidance: its settings.
    """
    fields = zip(samples.tokens.tolist(), samples.calls.tolist(), key.rows.tolist(), strict=True)
    return [
        {
            "text": tokenizer.decode(tokens),
            "tokens": tokens,
            "prompt": prompt,
            "seed": key.seed,
            "row": row,
            "calls": calls,
            "sampler": dict(sampler),
            "checkpoint": checkpoint,
            "condition": condition,
            "guidance": None if guidance is None else dict(guidance),
        }
        for tokens, calls, row in fields
    ]


def write_records(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines in UTF-8, whole or not at all.

    Raises:
        ValueError: for a NaN or an infinity in a record; an older file then stays as it was.
    """
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    replace_text(Path(path), "".join(f"{line}\n" for line in lines))
