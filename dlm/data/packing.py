"""Packing: how documents become rows of equal length L, and rows become batches.

The tokens of all documents stand one after the other, each document closed by one EOS. A packing
cuts this stream into rows:

* `Wrap`: every L tokens; a row may hold the end of one document and the start of the next, and
  attention sees both.
* `Document`: the same rows, but attention stays inside a document: `documents` numbers them from 0
  in each row.
* `Pad`: every document starts a row of its own; one that is longer than L goes on in further rows.

Where documents have classes they come class by class, and a row never holds two of them: `Wrap` and
`Document` join documents of one class only.

A row that is not full is padded: the token is EOS, `valid` is False, `documents` is -1. EOS itself
counts as a token. A batch whose rows need no attention mask (no padding, one document id each) has
`documents` None.
"""

from abc import ABC
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple, Protocol, final

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """What a step sees.

    Attributes:
        tokens: int64 [B, L].
        valid: bool [B, L], counts in the loss.
        documents: int64 [B, L], or None when no row needs an attention mask; -1 is padding.
        rows: int64 [B]. Training: the sample counter of the run (0, 1, 2, ... across epochs and
            ranks). Evaluation: the index of the row in its split.
        condition: int64 [B], the class of each row, -1 for none; None when no row has one.
    """

    tokens: Tensor
    valid: Tensor
    documents: Tensor | None
    rows: Tensor
    condition: Tensor | None = None


class Row(NamedTuple):
    """One row: `tokens` int64 [L], `valid` bool [L], `documents` int64 [L], its class or -1."""

    tokens: Tensor
    valid: Tensor
    documents: Tensor
    condition: int = -1


class Rows(Protocol):
    """Rows that can be looked up, such as `prepare.Blocks`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Row: ...


class Packing(ABC):
    """A rule that cuts documents into rows; its two facts say all there is to know."""

    joins: ClassVar[bool]  # a row goes on with the next document
    separate: ClassVar[bool]  # documents in a row do not see each other


@final
class Wrap(Packing):
    """Documents joined by EOS, cut every L tokens."""

    joins = True
    separate = False


@final
class Document(Packing):
    """Like `Wrap`, with attention inside documents only."""

    joins = True
    separate = True


@final
class Pad(Packing):
    """One document a row, the rest is padding."""

    joins = False
    separate = False


def row_spans(
    offsets: np.ndarray, length: int, packing: Packing, ends: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Where rows start and stop in the token stream.

    Args:
        offsets: int64 [N + 1], document n has the tokens `offsets[n] .. offsets[n + 1] - 1`.
        length: L.
        packing: the rule.
        ends: int64 [C], where the tokens of each class end, increasing; None: there are no classes.

    Returns:
        Two int64 arrays, one entry a row; a row has between 1 and L tokens.
    """
    if packing.joins:  # what is cut is a class, else a document
        offsets = np.append(0, offsets[-1:] if ends is None else ends).astype(np.int64)
    sizes = np.diff(offsets)
    rows_of = -(-sizes // length)
    first = np.repeat(np.cumsum(rows_of) - rows_of, rows_of)
    within = np.arange(len(first), dtype=np.int64) - first
    starts = np.repeat(offsets[:-1], rows_of) + within * length
    return starts, np.minimum(starts + length, np.repeat(offsets[1:], rows_of))


def padded_row(
    tokens: np.ndarray, documents: np.ndarray, length: int, eos_id: int, condition: int = -1
) -> Row:
    """A row from its n <= L tokens, their document numbers and their class."""
    n = len(tokens)
    row = Row(
        torch.full((length,), eos_id, dtype=torch.int64),
        torch.arange(length) < n,
        torch.full((length,), -1, dtype=torch.int64),
        condition,
    )
    row.tokens[:n] = torch.from_numpy(tokens.astype(np.int64))
    row.documents[:n] = torch.from_numpy(documents.astype(np.int64))
    return row


def collate(rows: Sequence[Row], counters: Sequence[int]) -> Batch:
    """Rows to a batch; `counters` become `Batch.rows`."""
    documents = torch.stack([row.documents for row in rows])
    condition = torch.tensor([row.condition for row in rows], dtype=torch.int64)
    return Batch(
        torch.stack([row.tokens for row in rows]),
        torch.stack([row.valid for row in rows]),
        documents if documents.any() else None,
        torch.tensor(counters, dtype=torch.int64),
        condition if (condition >= 0).any() else None,
    )


def batches(
    blocks: Rows, batch_size: int, *, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Every row once, in order: rank r has rows r, r + W, ...; the last batch may be smaller."""
    mine = range(rank, len(blocks), world_size)
    for start in range(0, len(mine), batch_size):
        part = mine[start : start + batch_size]
        yield collate([blocks[i] for i in part], part)
