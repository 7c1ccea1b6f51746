"""Hugging Face data sets: by name, or by the path of a local folder; loaded or streamed.

What our splits are, in order of preference: what `splits` says; the splits of the data set by their
usual names; the last part of `train` for validation where it has none. A split is written as the
name on the hub, or as a slice of it, counted in rows: `train[:-100000]`. A stream has no known end,
so its slices count from the start only.

Data sets that need a loading script are refused by `datasets` since version 4. Many of them have a
converted twin on the branch `refs/convert/parquet`: give `revision` and `data_files`.
"""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, final

from dlm.data.cache import digest
from dlm.data.detokenize import Detokenizer
from dlm.data.sources import SPLITS, StreamingSource
from dlm.errors import UserError, nearest

_SLICE = re.compile(r"(?P<name>[\w.\-]+)(\[(?P<start>-?\d*):(?P<stop>-?\d*)\])?")
_USUAL = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


@final
class HubDataset(StreamingSource):
    """A data set of the Hugging Face hub, or a local folder that `datasets` can read."""

    def __init__(
        self,
        name: str,
        config: str | None = None,
        field: str = "text",
        splits: Mapping[str, str] | None = None,
        data_files: Mapping[str, str] | None = None,
        revision: str | None = None,
        streaming: bool = False,
        detokenizer: Detokenizer | None = None,
        validation_fraction: float = 0.05,
    ) -> None:
        """Nothing is loaded before it is asked for.

        Args:
            name: `owner/name` on the hub, or a local folder (also one made by `save_to_disk`).
            config: the configuration, where the data set has several.
            field: column that holds the text.
            splits: our split names to theirs, slices allowed: `{validation: "train[:1000]"}`.
            data_files: files inside the data set, by their split name.
            revision: branch, tag or commit. Pin a commit where exact repetition matters.
            streaming: read while training, store nothing; see docs/data.md.
            detokenizer: see `dlm.data.detokenize`.
            validation_fraction: last part of train that is validation where there is none.
        """
        if splits and (wrong := set(splits) - set(SPLITS[:-1])):
            name_wrong = sorted(wrong)[0]
            raise UserError(f"data.splits.{name_wrong}: {nearest(name_wrong, SPLITS[:-1])}")
        if not 0 <= validation_fraction < 1:
            raise UserError(
                f"data.validation_fraction must be in [0, 1), got {validation_fraction}"
            )
        self.name, self.config, self.field, self.revision = name, config, field, revision
        self.given, self.data_files = dict(splits or {}), dict(data_files or {})
        self.streaming, self.detokenizer = streaming, detokenizer
        self.validation_fraction = validation_fraction

    @property
    def splits(self) -> tuple[str, ...]:
        """Our splits, from `splits` or from what the data set has."""
        return (*self._expressions, "all")

    def documents(self, split: str) -> Iterator[str]:
        """See `Source.documents`; rows with an empty text are skipped."""
        return (text for text, _ in self._rows(split, None, track=False))

    def stream(self, split: str, state: dict[str, Any] | None) -> Iterator[tuple[str, dict]]:
        """See `StreamingSource.stream`; continues without reading what lies before."""
        return self._rows(split, state, track=True)

    def fingerprint(self, split: str) -> str:
        """Name, configuration, revision, split; the files in the local cache unless streamed."""
        self.check(split)
        settings = [self.name, self.config, self.revision, self.data_files, self.field]
        if self.given or self.streaming:
            expressions = list(self._parts(split))
        else:
            expressions = [split, self.validation_fraction]
        return digest(["hub", settings, expressions, [] if self.streaming else self._files()])

    def _files(self) -> list[list[Any]]:
        found = [
            Path(file["filename"]) for part in self._loaded.values() for file in part.cache_files
        ]
        looks = [(file, file.stat()) for file in sorted(found) if file.exists()]
        rows = [[name, len(part)] for name, part in sorted(self._loaded.items())]
        return [*rows, *([file.name, s.st_size, s.st_mtime_ns] for file, s in looks)]

    @cached_property
    def _loaded(self) -> Any:
        """The `DatasetDict` (or the streaming one) of the whole data set."""
        import datasets

        try:
            if (Path(self.name) / "dataset_dict.json").is_file():
                return datasets.load_from_disk(self.name)
            if (Path(self.name) / "state.json").is_file():
                return {"train": datasets.load_from_disk(self.name)}
            return datasets.load_dataset(
                self.name,
                self.config,
                data_files=self.data_files or None,
                revision=self.revision,
                streaming=self.streaming,
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"the data set {self.name!r} could not be loaded: {reason}; check data.name and "
                "data.config, and whether the hub can be reached"
            ) from error

    @cached_property
    def _expressions(self) -> dict[str, str]:
        """Our split name to the slice of theirs."""
        if self.given:
            return {name: self.given[name] for name in SPLITS if name in self.given}
        theirs = list(self._loaded)
        found = {
            ours: next((name for name in names if name in theirs), None)
            for ours, names in _USUAL.items()
        }
        expressions = {"train": "train"} if "train" in theirs else {}
        if found["validation"]:
            expressions["validation"] = found["validation"]
        elif expressions and self.validation_fraction and not self.streaming:
            rows = len(self._loaded["train"])
            held_out = min(rows - 1, max(1, round(rows * self.validation_fraction)))
            expressions = {
                "train": f"train[:{rows - held_out}]",
                "validation": f"train[{rows - held_out}:]",
            }
        if found["test"]:
            expressions["test"] = found["test"]
        return expressions

    def _parts(self, split: str) -> dict[str, None]:
        """The slices that make up a split, each once."""
        self.check(split)
        wanted = self._expressions if split == "all" else [split]
        return dict.fromkeys(self._expressions[name] for name in wanted)

    def _slice(self, expression: str) -> Any:
        match = _SLICE.fullmatch(expression)
        if match is None:
            raise UserError(
                f"data.splits: {expression!r} is not a split; write train, train[1000:] or "
                "train[:1000], counted in rows"
            )
        name = match["name"]
        if name not in self._loaded:
            raise UserError(
                f"the data set {self.name!r} has no split {name!r}; "
                f"{nearest(name, list(self._loaded))}"
            )
        data = self._loaded[name]
        if data.column_names is not None and self.field not in data.column_names:
            raise UserError(
                f"the data set {self.name!r} has no field '{self.field}' "
                f"(there: {', '.join(data.column_names)}); set data.field"
            )
        start = int(match["start"]) if match["start"] else 0
        stop = int(match["stop"]) if match["stop"] else None
        if self.streaming:
            return self._slice_stream(data, start, stop, expression)
        return data.select_columns([self.field]).select(
            range(*slice(start, stop).indices(len(data)))
        )

    @staticmethod
    def _slice_stream(data: Any, start: int, stop: int | None, expression: str) -> Any:
        if start < 0 or (stop or 0) < 0:
            raise UserError(
                f"data.splits: {expression!r} counts from the end, which a stream does not know; "
                "count from the start, as in train[1000:], or set data.streaming=false"
            )
        if start:
            data = data.skip(start)
        return data if stop is None else data.take(max(0, stop - start))

    def _rows(
        self, split: str, state: dict[str, Any] | None, *, track: bool
    ) -> Iterator[tuple[str, dict]]:
        """Documents with the state before each (an empty one unless `track`)."""
        parts = list(self._parts(split))
        first = state["part"] if state else 0
        for part in range(first, len(parts)):
            data = self._slice(parts[part])
            if track:  # a copy, because a state that is loaded stays for every later iteration
                data = deepcopy(data) if self.streaming else data.to_iterable_dataset()
            if state and part == first:
                data.load_state_dict(state["rows"])
            before = {"part": part, "rows": data.state_dict()} if track else {}
            for number, row in enumerate(data):
                text = row.get(self.field)
                if not isinstance(text, str):
                    raise UserError(
                        f"{self.name}, {parts[part]}, row {number}: field '{self.field}' is "
                        f"{'missing or null' if text is None else type(text).__name__}, not text"
                    )
                if text:
                    yield text, before
                if track:
                    before = {"part": part, "rows": data.state_dict()}
