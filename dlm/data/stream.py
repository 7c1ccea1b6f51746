"""Rows of a stream: the same rows as packing a stored split gives, made while reading.

Row i of a stream is the i-th row of its documents, packed one after the other and started over when
they end. A row that is not full when the documents end goes on with the first of them (`Wrap`,
`Document`), so rows are a function of their number alone.

A `Point` is the place where a row begins: the state of the source before a document, and how many
of that document's tokens are already used. It is plain and small, and starting from it reads
nothing that lies before, so a run resumes by storing the point of its next row.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, TypedDict

import numpy as np

from dlm.data.packing import Packing, Row, padded_row
from dlm.data.sources import StreamingSource
from dlm.data.tokenizers import Tokenizer
from dlm.errors import UserError

_READ_AHEAD = 64  # documents tokenized in one call


class Point(TypedDict):
    """Where a row begins: `state` of the source (None: at the start) and tokens to pass over."""

    state: dict[str, Any] | None
    offset: int


START: Point = {"state": None, "offset": 0}


class _Document(NamedTuple):
    tokens: np.ndarray  # with EOS
    state: dict[str, Any] | None


def stream_rows(
    source: StreamingSource,
    tokenizer: Tokenizer,
    packing: Packing,
    length: int,
    point: Point = START,
) -> Iterator[tuple[Row, Point]]:
    """Training rows from a point on, without end, each with the point where the *next* one begins.

    Raises:
        UserError: the stream holds no text.
    """
    parts: list[np.ndarray] = []
    filled = 0
    skip = point["offset"]
    for document in _endless(source, tokenizer, point["state"]):
        position, skip = skip, 0
        while position < len(document.tokens):
            part = document.tokens[position : position + length - filled]
            parts.append(part)
            position += len(part)
            filled += len(part)
            ended = position == len(document.tokens) and not packing.joins
            if filled == length or ended:
                numbers = [np.full(len(p), n * packing.separate) for n, p in enumerate(parts)]
                row = padded_row(
                    np.concatenate(parts), np.concatenate(numbers), length, tokenizer.eos_id
                )
                yield row, {"state": document.state, "offset": position}
                parts, filled = [], 0


def _endless(
    source: StreamingSource, tokenizer: Tokenizer, state: dict[str, Any] | None
) -> Iterator[_Document]:
    documents = source.stream("train", state)
    fresh = state is None
    while True:
        seen = False
        while ahead := list(islice(documents, _READ_AHEAD)):
            seen = True
            encoded = tokenizer.encode_arrays([source.detokenize(text) for text, _ in ahead])
            for tokens, (_, before) in zip(encoded, ahead, strict=True):
                yield _Document(np.append(tokens, tokenizer.eos_id), before)
        if fresh and not seen:
            raise UserError("the stream holds no text; check data.name and data.splits")
        documents, fresh = source.stream("train", None), True
