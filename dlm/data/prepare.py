"""From documents to rows: tokenize once, keep the tokens on disk, cut rows when they are asked for.

The cache holds, for one split of one source under one tokenizer and one text transform, all tokens
(documents closed by EOS) and where documents begin. Packing and length are not part of it: rows are
cut from the memory-mapped tokens on the fly, so another context length costs nothing. Its key
hashes the fingerprint of the split, the tokenizer's, the detokenizer's and the format below; see
`dlm.data.cache` for how it is written.

    tokens.bin    uint16 if size <= 65,536, else uint32
    offsets.bin   int64 [documents + 1]
    meta.json     dtype, documents, tokens, bytes (UTF-8 of the original documents), unknown
"""

import json
import logging
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np

from dlm.data import cache
from dlm.data.cache import digest, new_folder
from dlm.data.packing import Packing, Row, padded_row, row_spans
from dlm.data.sources import Source
from dlm.data.tokenizers import Tokenizer
from dlm.errors import UserError

log = logging.getLogger(__name__)

_FORMAT = 1
_BATCH = 2**22  # characters tokenized at once
_REPORT_EVERY = 10.0  # seconds between lines of progress


@final
class Blocks:
    """The rows of a split: `len(blocks)`, `blocks[i] -> Row`. Cheap to pickle; reads from disk."""

    def __init__(self, folder: Path, packing: Packing, length: int, eos_id: int) -> None:
        """Open a folder that `prepare` wrote.

        Args:
            folder: the cached tokens.
            packing: how to cut rows.
            length: L.
            eos_id: fills the padding.
        """
        if length < 1:
            raise UserError(f"length must be at least 1, got {length}")
        self._arguments = (folder, packing, length, eos_id)
        self.length = length
        self._meta = _read_meta(folder)
        self._offsets = np.memmap(folder / "offsets.bin", dtype=np.int64, mode="r")
        self._starts, self._stops = row_spans(self._offsets, length, packing)

    def __reduce__(self) -> tuple[Any, ...]:
        return Blocks, self._arguments

    @cached_property
    def _tokens(self) -> np.ndarray:
        folder = self._arguments[0]
        return np.memmap(folder / "tokens.bin", dtype=self._meta["dtype"], mode="r")

    @property
    def num_tokens(self) -> int:
        """Valid tokens, EOS of each document included."""
        return self._meta["tokens"]

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the documents as they are stored, without EOS or separators."""
        return self._meta["bytes"]

    @property
    def num_documents(self) -> int:
        """Documents in the split."""
        return self._meta["documents"]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        _, packing, length, eos_id = self._arguments
        start, stop = int(self._starts[index]), int(self._stops[index])
        if packing.separate:
            where = np.arange(start, stop)
            documents = np.searchsorted(self._offsets, where, side="right")
            documents = documents - documents[0]
        else:
            documents = np.zeros(stop - start, dtype=np.int64)
        return padded_row(self._tokens[start:stop], documents, length, eos_id)


def prepare(
    source: Source,
    split: str,
    tokenizer: Tokenizer,
    packing: Packing,
    length: int,
    cache_dir: Path | None = None,
) -> Blocks:
    """The rows of a split, tokenized now or found in the cache.

    Args:
        source: where documents come from.
        split: train, validation, test or all.
        tokenizer: text to states.
        packing: how documents become rows.
        length: tokens a row.
        cache_dir: the cache folder, None for the user's.

    Raises:
        UserError: no such split, no text in it, or data that cannot be read.
    """
    source.check(split)
    transform = source.detokenizer.fingerprint if source.detokenizer else None
    key = digest(["tokens", _FORMAT, source.fingerprint(split), tokenizer.fingerprint, transform])
    folder = (cache_dir or cache.cache_dir()) / "tokens" / key[:32]
    if not folder.is_dir():
        with new_folder(folder) as temporary:
            _tokenize(source, split, tokenizer, temporary)
    blocks = Blocks(folder, packing, length, tokenizer.eos_id)
    if unknown := _read_meta(folder)["unknown"]:
        log.warning(
            "%s: %d of %d tokens are unknown to the tokenizer; the text does not come back from "
            "its tokens, so bits per byte is too low to be compared",
            split,
            unknown,
            blocks.num_tokens,
        )
    return blocks


def _tokenize(source: Source, split: str, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the three files, one batch of documents after the other."""
    dtype = "uint16" if tokenizer.size <= 2**16 else "uint32"
    eos = np.array([tokenizer.eos_id], dtype=dtype)
    marked = -1 if tokenizer.unknown_id is None else tokenizer.unknown_id
    documents = tokens = size = unknown = 0
    begin = reported = time.monotonic()
    with (folder / "tokens.bin").open("wb") as out, (folder / "offsets.bin").open("wb") as marks:
        marks.write(np.int64(0).tobytes())
        for batch in _text_batches(source.documents(split)):
            for states in tokenizer.encode_arrays([source.detokenize(text) for text in batch]):
                unknown += int(np.equal(states, marked).sum())
                out.write(states.astype(dtype).tobytes())
                out.write(eos.tobytes())
                tokens += len(states) + 1
                marks.write(np.int64(tokens).tobytes())
            documents += len(batch)
            size += sum(len(text.encode()) for text in batch)
            if time.monotonic() - reported > _REPORT_EVERY:
                reported = time.monotonic()
                rate = tokens / (reported - begin)
                log.info("tokenizing %s: %.0f MB, %.0f tokens/s", split, size / 1e6, rate)
    if not documents:
        raise UserError(f"the split '{split}' holds no text")
    meta = {
        "dtype": dtype,
        "documents": documents,
        "tokens": tokens,
        "bytes": size,
        "unknown": unknown,
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    log.info("tokenized %s: %d documents, %d tokens, %d bytes", split, documents, tokens, size)


def _text_batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_meta(folder: Path) -> dict[str, Any]:
    """The facts of a cached split, after checking that the files have the size they should have."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        expected = {
            "tokens.bin": meta["tokens"] * np.dtype(meta["dtype"]).itemsize,
            "offsets.bin": (meta["documents"] + 1) * 8,
        }
        damaged = any((folder / name).stat().st_size != size for name, size in expected.items())
    except (OSError, ValueError, KeyError):
        damaged, meta = True, {}
    if damaged:
        raise UserError(f"the cached tokens in {folder} are damaged; delete that folder")
    return meta
