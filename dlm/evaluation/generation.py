"""What `dlm generate` leaves: one record a sample, every sample that was drawn, as JSON lines.

A record says how to make the sample again: the checkpoint, the sampler, the seed and the row. A
sample is a function of these and of what was asked for, not of how many others were drawn beside
it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, final

from torch import Tensor

from dlm.files import replace_text
from dlm.random import Key
from dlm.samplers import Samples

Record = dict[str, Any]
_UNFINISHED = "\ufffd"  # what bytes of an unfinished character decode to


class Decoder(Protocol):
    """The part of a tokenizer that turns ids back into text."""

    def decode(self, tokens: Sequence[int], /) -> str:
        """Text of token ids."""
        ...


class Origin(NamedTuple):
    """What a sample answers.

    prompt: what the user gave, None for nothing.
    condition: name of the class that was asked for.
    line: of the file of prompts, from 1; None without one.
    """

    prompt: str | None = None
    condition: str | None = None
    line: int | None = None


def record_samples(
    samples: Samples,
    key: Key,
    tokenizer: Decoder,
    *,
    origins: Sequence[Origin],
    sampler: Mapping[str, Any],
    checkpoint: str,
    lengths: Tensor | None = None,
    guidance: Mapping[str, Any] | None = None,
    allow: str | None = None,
) -> list[Record]:
    """One JSON-ready record a sample.

    Args:
        samples: tokens (B, L) and network calls (B,).
        key: the key they were drawn with: its seed, and the row of each sample.
        tokenizer: decodes the tokens.
        origins: what each sample answers, B of them.
        sampler: the sampler as a plain `_target_` dict.
        checkpoint: name or hash of the model.
        lengths: int64 (B,), where padding begins; None: there is none.
        guidance: its settings.
        allow: the regular expression that tokens had to match.
    """
    rows = samples.tokens.tolist()
    ends = [len(row) for row in rows] if lengths is None else lengths.tolist()
    fields = zip(rows, ends, samples.calls.tolist(), key.rows.tolist(), origins, strict=True)
    return [
        {
            "text": tokenizer.decode(tokens[:length]),
            "tokens": tokens[:length],
            "length": length,
            "prompt": origin.prompt,
            "line": origin.line,
            "seed": key.seed,
            "row": row,
            "calls": calls,
            "sampler": dict(sampler),
            "checkpoint": checkpoint,
            "condition": origin.condition,
            "guidance": None if guidance is None else dict(guidance),
            "allow": allow,
        }
        for tokens, length, calls, row, origin in fields
    ]


@final
class TextStream:
    """Decodes tokens as they come: the parts put together are the text of all of them.

    A character whose last bytes are still to come is held back. For byte-level and character
    tokenizers the parts are exact; decoders that move spaces as they see more may show them
    elsewhere.

    Args:
        tokenizer: decodes the tokens.
    """

    def __init__(self, tokenizer: Decoder) -> None:
        self._tokenizer, self._tokens, self._shown = tokenizer, [], 0

    def push(self, tokens: Sequence[int]) -> str:
        """What can be shown after these tokens too."""
        self._tokens += tokens
        return self._upto(self._tokenizer.decode(self._tokens).rstrip(_UNFINISHED))

    def end(self) -> str:
        """What was held back."""
        return self._upto(self._tokenizer.decode(self._tokens))

    def _upto(self, text: str) -> str:
        fresh, self._shown = text[self._shown :], len(text)
        return fresh


def write_records(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines in UTF-8, whole or not at all.

    Raises:
        ValueError: for a NaN or an infinity in a record; an older file then stays as it was.
    """
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    replace_text(Path(path), "".join(f"{line}\n" for line in lines))
