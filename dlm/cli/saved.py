"""A saved model and the text to measure it on, for `dlm evaluate`, `dlm fit` and `dlm profile`.

What their keys leave open is what the checkpoint says: data, packing, length and precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch

from dlm.checkpoint import Loaded, load
from dlm.cli.common import pick_device
from dlm.data import Batch, Blocks, collate, prepare
from dlm.data.packing import Rows
from dlm.spec import build


class _Keys(Protocol):
    """The keys that these commands share."""

    @property
    def checkpoint(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def precision(self) -> str | None: ...
    @property
    def device(self) -> str | None: ...
    @property
    def trust(self) -> Sequence[str]: ...
    @property
    def data(self) -> Mapping[str, Any] | None: ...


@final
@dataclass(frozen=True)
class Saved:
    """A loaded checkpoint on its device, and the keys of a command."""

    keys: _Keys
    loaded: Loaded
    device: torch.device

    @classmethod
    def of(cls, keys: _Keys) -> Saved:
        """Load what the keys name.

        Raises:
            UserError: a device that is not here, or a checkpoint that cannot be loaded.
        """
        device = pick_device(keys.device)
        loaded = load(keys.checkpoint, trust=keys.trust)
        loaded.denoiser.to(device)
        return cls(keys, loaded, device)

    @property
    def precision(self) -> str:
        """Of the network."""
        given = self.keys.precision
        return self.loaded.meta["precision"] if given is None else given

    @property
    def data(self) -> Mapping[str, Any]:
        """The documents, as a spec."""
        return self.loaded.meta["data"] if self.keys.data is None else self.keys.data

    @property
    def classes(self) -> list[str]:
        """The classes of the model in the order of their ids, which a split need not show."""
        return self.loaded.meta.get("classes", [])

    def blocks(self, classes: Sequence[str] | None) -> Blocks:
        """The rows of the split, with the tokenizer, the packing and the length of the model.

        Args:
            classes: names of the ids; None: those of the split.

        Raises:
            UserError: data, a split or a class that is not there.
        """
        keys, (_, tokenizer, meta) = self.keys, self.loaded
        trust = keys.trust if keys.data is None else ("dlm", *keys.trust)
        source = build(self.data, trust=trust, path="data")
        packing = build(meta["packing"], trust=keys.trust, path="packing")
        return prepare(source, keys.split, tokenizer, packing, meta["length"], classes=classes)


def chosen(blocks: Rows, count: int, batch_size: int) -> Iterator[Batch]:
    """Sequences evenly over a split, all of them where there are fewer.

    Their numbers are 0, 1, ...: stratified draws are spread over consecutive numbers, and those of
    a split with gaps can fall on each other.
    """
    count = min(count, len(blocks))
    rows = [i * len(blocks) // count for i in range(count)]
    for start in range(0, count, batch_size):
        part = rows[start : start + batch_size]
        yield collate([blocks[i] for i in part], range(start, start + len(part)))
