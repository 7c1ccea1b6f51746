"""From documents to rows: tokenize once, keep the tokens on disk, cut rows when they are asked for.

The cache holds, for one split of one source under one tokenizer and one text transform, all tokens
(documents closed by EOS) and where documents begin. Packing and length are not part of it: rows are
cut from the memory-mapped tokens on the fly, so another context length costs nothing. Its key
hashes the fingerprint of the split, the tokenizer's, the detokenizer's, the name of the label and
the format below; see `dlm.data.cache` for how it is written. Documents keep their order, except
that those with classes stand class by class, in the order of the classes' names.

    tokens.bin    uint16 if size <= 65,536, else uint32
    offsets.bin   int64 [documents + 1]
    meta.json     dtype, documents, tokens, bytes (UTF-8 of the original documents), unknown, and
                  where there are classes the documents of each, by name
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np

from dlm.data import cache
from dlm.data.cache import digest, new_folder
from dlm.data.packing import Packing, Row, padded_row, row_spans
from dlm.data.sources import LabelledSource, Source, StreamingSource
from dlm.data.tokenizers import Tokenizer
from dlm.errors import UserError, nearest

log = logging.getLogger(__name__)

_FORMAT = 1
_BATCH = 2**22  # characters tokenized at once
_MANY_CLASSES = 1000  # more are documents with a name each, not classes
_REPORT_EVERY = 10.0  # seconds between lines of progress


@final
class Blocks:
    """The rows of a split: `len(blocks)`, `blocks[i] -> Row`. Cheap to pickle; reads from disk."""

    def __init__(
        self,
        folder: Path,
        packing: Packing,
        length: int,
        eos_id: int,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Open a folder that `prepare` wrote.

        Args:
            folder: the cached tokens.
            packing: how to cut rows.
            length: L.
            eos_id: fills the padding.
            classes: names that class 0, 1, ... stand for; None: those of the folder, sorted.

        Raises:
            UserError: a length below 1, or a class of the folder that is not among `classes`.
        """
        if length < 1:
            raise UserError(f"length must be at least 1, got {length}")
        self._arguments = (folder, packing, length, eos_id, classes)
        self.length = length
        self._meta = _read_meta(folder)
        self._offsets = np.memmap(folder / "offsets.bin", dtype=np.int64, mode="r")
        counts: dict[str, int] = self._meta.get("classes", {})
        self.classes = list(counts) if classes is None else list(classes)
        self._ids = [_class_id(name, self.classes) for name in counts]
        ends = self._offsets[np.cumsum([*counts.values()])] if counts else None
        self._ends = np.empty(0, dtype=np.int64) if ends is None else ends
        self._starts, self._stops = row_spans(self._offsets, length, packing, ends)

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
        _, packing, length, eos_id, _ = self._arguments
        start, stop = int(self._starts[index]), int(self._stops[index])
        if packing.separate:
            where = np.arange(start, stop)
            documents = np.searchsorted(self._offsets, where, side="right")
            documents = documents - documents[0]
        else:
            documents = np.zeros(stop - start, dtype=np.int64)
        place = int(np.searchsorted(self._ends, start, side="right"))
        condition = self._ids[place] if self._ids else -1
        return padded_row(self._tokens[start:stop], documents, length, eos_id, condition)


def prepare(
    source: Source,
    split: str,
    tokenizer: Tokenizer,
    packing: Packing,
    length: int,
    cache_dir: Path | None = None,
    classes: Sequence[str] | None = None,
) -> Blocks:
    """The rows of a split, tokenized now or found in the cache.

    Args:
        source: where documents come from.
        split: train, validation, test or all.
        tokenizer: text to states.
        packing: how documents become rows.
        length: tokens a row.
        cache_dir: the cache folder, None for the user's.
        classes: what the classes of the model are called; None: as the split calls them.

    Raises:
        UserError: no such split, no text in it, data that cannot be read, or an unknown class.
    """
    folder = _cached(source, split, tokenizer, cache_dir)
    blocks = Blocks(folder, packing, length, tokenizer.eos_id, classes)
    if unknown := _read_meta(folder)["unknown"]:
        log.warning(
            "%s: %d of %d tokens are unknown to the tokenizer; the text does not come back from "
            "its tokens, so bits per byte is too low to be compared",
            split,
            unknown,
            blocks.num_tokens,
        )
    return blocks


def token_counts(source: Source, tokenizer: Tokenizer, cache_dir: Path | None = None) -> np.ndarray:
    """How often each state stands in the training split, EOS included, int64 (tokenizer.size,).

    Raises:
        UserError: a stream, which is not counted.
    """
    if isinstance(source, StreamingSource) and source.streaming:
        raise UserError(
            "the frequencies of a streamed data set are not known beforehand; use "
            "data.streaming=false, or give process.weights"
        )
    folder = _cached(source, "train", tokenizer, cache_dir)
    tokens = np.memmap(folder / "tokens.bin", dtype=_read_meta(folder)["dtype"], mode="r")
    counts = np.zeros(tokenizer.size, dtype=np.int64)
    for part in np.array_split(tokens, 1 + len(tokens) // 2**24):
        counts += np.bincount(part, minlength=tokenizer.size)
    return counts


def class_names(source: Source, tokenizer: Tokenizer, cache_dir: Path | None = None) -> list[str]:
    """The classes of the training split, sorted; none where the source has no labels.

    Raises:
        UserError: see `prepare`; or there is only one class, or more than 1,000.
    """
    if not (isinstance(source, LabelledSource) and source.label):
        return []
    names = list(_read_meta(_cached(source, "train", tokenizer, cache_dir))["classes"])
    if len(names) < 2:
        raise UserError(f"data.label={source.label} has a single class, {names[0]!r}; give another")
    return names


def _class_id(name: str, classes: Sequence[str]) -> int:
    if name not in classes:
        raise UserError(f"the model knows no class {name!r}; {nearest(name, classes)}")
    return list(classes).index(name)


def _cached(source: Source, split: str, tokenizer: Tokenizer, cache_dir: Path | None) -> Path:
    """The folder of the tokens, which are made if they are not there."""
    source.check(split)
    transform = source.detokenizer.fingerprint if source.detokenizer else None
    parts = ["tokens", _FORMAT, source.fingerprint(split), tokenizer.fingerprint, transform]
    if isinstance(source, LabelledSource) and source.label:
        parts += ["label", source.label]
    folder = (cache_dir or cache.cache_dir()) / "tokens" / digest(parts)[:32]
    if not folder.is_dir():
        with new_folder(folder) as temporary:
            _tokenize(source, split, tokenizer, temporary)
    return folder


def _tokenize(source: Source, split: str, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the three files, one batch of documents after the other."""
    dtype = "uint16" if tokenizer.size <= 2**16 else "uint32"
    eos = np.array([tokenizer.eos_id], dtype=dtype)
    marked = -1 if tokenizer.unknown_id is None else tokenizer.unknown_id
    labels: list[str] = []
    documents = tokens = size = unknown = 0
    begin = reported = time.monotonic()
    with (folder / "tokens.bin").open("wb") as out, (folder / "offsets.bin").open("wb") as marks:
        marks.write(np.int64(0).tobytes())
        for batch in _text_batches(_with_classes(source, split, labels)):
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
    meta: dict[str, Any] = {
        "dtype": dtype,
        "documents": documents,
        "tokens": tokens,
        "bytes": size,
        "unknown": unknown,
    }
    if labels:
        meta["classes"] = _group(folder, np.dtype(dtype), labels)
    (folder / "meta.json").write_text(json.dumps(meta))
    log.info("tokenized %s: %d documents, %d tokens, %d bytes", split, documents, tokens, size)


def _with_classes(source: Source, split: str, labels: list[str]) -> Iterator[str]:
    """The documents of a split; the names of their classes are appended to `labels`."""
    if not (isinstance(source, LabelledSource) and source.label):
        yield from source.documents(split)
        return
    known: dict[str, str] = {}  # one object a name
    for text, name in source.labelled(split):
        assert name is not None
        labels.append(known.setdefault(name, name))
        if len(known) > _MANY_CLASSES:
            raise UserError(
                f"data.label={source.label} has more than {_MANY_CLASSES} classes; is it the right "
                "field?"
            )
        yield text


def _group(folder: Path, dtype: np.dtype, labels: list[str]) -> dict[str, int]:
    """Put the documents of one class together; how many documents each class has, by name."""
    names, ids = np.unique(np.array(labels), return_inverse=True)
    order = np.argsort(ids, kind="stable")
    offsets = np.fromfile(folder / "offsets.bin", dtype=np.int64)
    tokens = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r")
    with (folder / "grouped.bin").open("wb") as out:
        for n in order:
            out.write(tokens[offsets[n] : offsets[n + 1]].tobytes())
    del tokens
    (folder / "grouped.bin").replace(folder / "tokens.bin")
    np.append(0, np.cumsum(np.diff(offsets)[order])).astype(np.int64).tofile(folder / "offsets.bin")
    return dict(zip(names.tolist(), np.bincount(ids).tolist(), strict=True))


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
