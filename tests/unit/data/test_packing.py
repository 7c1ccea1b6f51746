import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlm.data.packing import Document, Pad, Row, Wrap, batches, collate, padded_row, row_spans

SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=12)


def spans(sizes, length, packing):
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return [(int(a), int(b)) for a, b in zip(*row_spans(offsets, length, packing), strict=True)]


@given(SIZES, st.integers(1, 8))
def test_wrap_rows_are_full_but_for_the_last(sizes, length):
    found = spans(sizes, length, Wrap())
    assert [i for a, b in found for i in range(a, b)] == list(range(sum(sizes)))
    assert all(b - a == length for a, b in found[:-1])
    assert spans(sizes, length, Document()) == found


@given(SIZES, st.integers(1, 8))
def test_pad_rows_hold_one_document_each(sizes, length):
    expected, start = [], 0
    for size in sizes:
        for first in range(start, start + size, length):
            expected.append((first, min(first + length, start + size)))
        start += size
    assert spans(sizes, length, Pad()) == expected


def row(tokens, documents, length=4, eos=9) -> Row:
    return padded_row(np.array(tokens), np.array(documents), length, eos)


def test_padding_is_eos_invalid_and_document_minus_one():
    found = row([1, 2], [0, 0])
    assert found.tokens.tolist() == [1, 2, 9, 9]
    assert found.valid.tolist() == [True, True, False, False]
    assert found.documents.tolist() == [0, 0, -1, -1]
    assert (found.tokens.dtype, found.documents.dtype) == (torch.int64, torch.int64)


@pytest.mark.parametrize(
    ("rows", "needed"),
    [
        ([row([1] * 4, [0] * 4)] * 2, False),
        ([row([1] * 4, [0] * 4), row([1], [0])], True),
        ([row([1] * 4, [0, 0, 1, 1])], True),
    ],
)
def test_documents_are_given_only_when_attention_needs_them(rows, needed):
    batch = collate(rows, range(5, 5 + len(rows)))
    assert (batch.documents is not None) == needed
    assert batch.rows.tolist() == list(range(5, 5 + len(rows)))


def test_batches_deal_rows_to_ranks_without_repeats():
    rows = [row([i] * 4, [0] * 4) for i in range(7)]
    seen = [[b.rows.tolist() for b in batches(rows, 2, rank=r, world_size=2)] for r in (0, 1)]
    assert seen == [[[0, 2], [4, 6]], [[1, 3], [5]]]
    assert [b.tokens[0, 0].item() for b in batches(rows, 1)] == list(range(7))
