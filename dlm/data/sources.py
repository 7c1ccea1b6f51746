"""Sources: where documents come from. A document is a non-empty text; a split is a list of them.

A `Source` yields the documents of a split in a fixed order and names their contents by a
fingerprint, the part of every cache key that stands for the data. Splits are `train`,
`validation`, `test` and `all` (the three one after the other). Documents come as they are stored;
`detokenizer`, where there is one, is applied on the way to the tokenizer, because bits per byte
counts the bytes of the original.

A fingerprint of files is the SHA-256 of their contents where they are at most 256 MiB together.
Above that hashing would take longer than looking: size, time of change and the first and last
64 KiB of each file stand for it.
"""

import glob
import hashlib
import json
import lzma
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, final

from dlm.data.cache import digest
from dlm.data.detokenize import Detokenizer
from dlm.data.files import READERS, read_documents
from dlm.errors import UserError, nearest

SPLITS = ("train", "validation", "test", "all")
_HASH_ALL = 256 * 2**20  # about a second of SHA-256
_HASH_ENDS = 64 * 2**10


class Source(ABC):
    """Documents by split. Give `detokenizer` a value in the constructor."""

    detokenizer: Detokenizer | None

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The splits there are, out of `SPLITS`."""

    @abstractmethod
    def documents(self, split: str) -> Iterator[str]:
        """The non-empty documents of a split, in a fixed order, as they are stored.

        Raises:
            UserError: a split that there is not, or data that cannot be read.
        """

    @abstractmethod
    def fingerprint(self, split: str) -> str:
        """A text that changes when the documents of the split change (without the detokenizer)."""

    @final
    def detokenize(self, text: str) -> str:
        """The text that is tokenized."""
        return self.detokenizer(text) if self.detokenizer else text

    @final
    def check(self, split: str) -> None:
        """Raise a `UserError` if there is no such split."""
        if split not in self.splits:
            raise UserError(f"there is no split '{split}'; {nearest(split, self.splits)}")


class LabelledSource(Source):
    """A source whose documents may have classes. Give `label` a value in the constructor."""

    label: str | None  # which of them; None: none

    @abstractmethod
    def labelled(self, split: str) -> Iterator[tuple[str, str | None]]:
        """The documents of a split, as `documents` gives them, each with the name of its class.

        Raises:
            UserError: as `documents`, or a document without a class.
        """


class StreamingSource(Source):
    """A source that can be read from the middle, for data that is never stored as a whole."""

    streaming: bool

    @abstractmethod
    def stream(self, split: str, state: dict[str, Any] | None) -> Iterator[tuple[str, dict]]:
        """Pairs of document and state: passing the state starts with this document again.

        States are plain values (they go into checkpoints). None starts at the beginning.
        """


@final
class Austen(LabelledSource):
    """Jane Austen's six novels, which come with the package; a document is a chapter."""

    detokenizer = None

    def __init__(self, label: str | None = None) -> None:
        """Nothing is read yet.

        Args:
            label: "novel": the class of a chapter is the title of its novel; None: no classes.
        """
        if label not in (None, "novel"):
            raise UserError(f"data.label of austen must be novel or null, got {label!r}")
        self.label = label

    @property
    def splits(self) -> tuple[str, ...]:
        """All of them."""
        return SPLITS

    def documents(self, split: str) -> Iterator[str]:
        """The chapters of a split, in the order of the books; see `corpus/README.md`."""
        return (chapter for chapter, _ in self.labelled(split))

    def labelled(self, split: str) -> Iterator[tuple[str, str | None]]:
        """See `LabelledSource.labelled`."""
        self.check(split)
        folder = resources.files("dlm.data") / "corpus"
        text = lzma.decompress((folder / "austen.txt.xz").read_bytes()).decode()
        facts = json.loads((folder / "splits.json").read_text())
        split_of = {i: name for name in ("validation", "test") for i in facts[name]}
        titles = [novel["title"] for novel in facts["novels"] for _ in range(novel["chapters"])]
        for i, chapter in enumerate(text.strip("\n").split("\n\n")):
            if split in ("all", split_of.get(i, "train")):
                yield chapter, titles[i] if self.label else None

    def fingerprint(self, split: str) -> str:
        """Contents of the two files, and the split."""
        folder = resources.files("dlm.data") / "corpus"
        files = [(folder / name).read_bytes() for name in ("austen.txt.xz", "splits.json")]
        return digest(["austen", split, *(hashlib.sha256(data).hexdigest() for data in files)])


@final
class TextFiles(LabelledSource):
    """Local txt, jsonl, csv, tsv or parquet files: one file, a folder (searched), or a glob."""

    def __init__(
        self,
        path: str,
        field: str = "text",
        detokenizer: Detokenizer | None = None,
        validation_fraction: float = 0.05,
        validation_path: str | None = None,
        test_path: str | None = None,
        max_line_mb: float = 256,
        label: str | None = None,
    ) -> None:
        """See `dlm.data.files` for the formats.

        Args:
            path: file, folder or glob of the training text.
            field: column or key that holds the text in jsonl, csv, tsv and parquet.
            detokenizer: see `dlm.data.detokenize`.
            validation_fraction: share of the documents, the last ones, that are validation where
                no `validation_path` is given; 0 for none.
            validation_path: file, folder or glob of the validation text; `path` is all training.
            test_path: file, folder or glob of the test text.
            max_line_mb: longest line and document, in MiB: a guard against filling the memory.
            label: column or key that holds the class of a document; None: no classes.
        """
        if not 0 <= validation_fraction < 1:
            raise UserError(
                f"data.validation_fraction must be in [0, 1), got {validation_fraction}"
            )
        if max_line_mb <= 0:
            raise UserError(f"data.max_line_mb must be positive, got {max_line_mb}")
        self.path, self.validation_path, self.test_path = path, validation_path, test_path
        self.field, self.label, self.detokenizer = field, label, detokenizer
        self.validation_fraction = validation_fraction
        self.max_line = int(max_line_mb * 2**20)

    @property
    def splits(self) -> tuple[str, ...]:
        """Validation needs a path or a fraction, test a path."""
        there = {
            "train": True,
            "validation": self.validation_path is not None or self.validation_fraction > 0,
            "test": self.test_path is not None,
            "all": True,
        }
        return tuple(name for name in SPLITS if there[name])

    def documents(self, split: str) -> Iterator[str]:
        """See `Source.documents`."""
        return (text for text, _ in self._documents(split, None))

    def labelled(self, split: str) -> Iterator[tuple[str, str | None]]:
        """See `LabelledSource.labelled`."""
        return self._documents(split, self.label)

    def _documents(self, split: str, label: str | None) -> Iterator[tuple[str, str | None]]:
        self.check(split)
        if split == "all":
            return self._read(self._files("all"), label)
        if self.validation_path is None and self.validation_fraction and split != "test":
            first = self._num_documents - self._num_validation
            start, stop = (0, first) if split == "train" else (first, None)
            return islice(self._read(self._files("train"), label), start, stop)
        return self._read(self._files(split), label)

    def fingerprint(self, split: str) -> str:
        """Contents (or, when large, size and times) of the files, field and split rule."""
        self.check(split)
        cut = None if split in ("all", "test") or self.validation_path else self.validation_fraction
        name = split if cut else ""
        return digest(["files", self.field, cut, name, _fingerprints(self._files(split))])

    def _files(self, split: str) -> list[Path]:
        paths = {"train": self.path, "validation": self.validation_path, "test": self.test_path}
        if split != "all":
            return find_files(paths[split] or self.path)
        return [file for path in paths.values() if path is not None for file in find_files(path)]

    def _read(self, files: Sequence[Path], label: str | None) -> Iterator[tuple[str, str | None]]:
        for file in files:
            yield from read_documents(file, self.field, self.max_line, label)

    @cached_property
    def _num_documents(self) -> int:
        return sum(1 for _ in self._read(self._files("train"), None))

    @property
    def _num_validation(self) -> int:
        if self._num_documents < 2:
            raise UserError(
                f"{self.path} holds a single document, so no part of it can be validation; give "
                "data.validation_path, separate documents by blank lines, or set "
                "data.validation_fraction=0"
            )
        return max(1, round(self._num_documents * self.validation_fraction))


def find_files(path: str) -> list[Path]:
    """The files that a path, a folder or a glob means, sorted; hidden ones in folders are left out.

    Raises:
        UserError: nothing there.
    """
    where = Path(path).expanduser()
    if where.is_file():
        return [where]
    if where.is_dir():
        inside = sorted(p for p in where.rglob("*") if p.is_file() and p.suffix.lower() in READERS)
        found = [p for p in inside if p.suffix and not _hidden(p.relative_to(where))]
        if not found:
            known = ", ".join(suffix for suffix in READERS if suffix)
            raise UserError(f"the folder {path} holds no data files; known are {known}")
        return found
    found = sorted(p for p in map(Path, glob.glob(str(where), recursive=True)) if p.is_file())
    if not found:
        raise UserError(f"there is no file, folder or match for {path!r}; check data.path")
    return found


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _fingerprints(files: Sequence[Path]) -> list[list[Any]]:
    whole = sum(file.stat().st_size for file in files) <= _HASH_ALL
    return [_contents(file) if whole else _look(file) for file in files]


def _contents(file: Path) -> list[Any]:
    with file.open("rb") as data:
        return [file.suffix, hashlib.file_digest(data, "sha256").hexdigest()]


def _look(file: Path) -> list[Any]:
    stat = file.stat()
    with file.open("rb") as data:
        ends = hashlib.sha256(data.read(_HASH_ENDS))
        data.seek(max(0, stat.st_size - _HASH_ENDS))
        ends.update(data.read(_HASH_ENDS))
    return [file.suffix, stat.st_size, stat.st_mtime_ns, ends.hexdigest()]
