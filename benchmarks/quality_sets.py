"""Sets of samples on disk, for `quality.py`: a folder a model, a file a set, its scores beside it.

    RUNS/NAME/tokenizer.json     of the model, so that the later stages need no checkpoint
    RUNS/NAME/held_out.npz       validation text in blocks of the length of the samples
    RUNS/NAME/reference.npz      test text, or what was asked for: the divergence is taken from it
    RUNS/NAME/<setting>-<calls>.npz    tokens (N, L), calls (N,), meta: how they were drawn
    RUNS/NAME/*.scores.npz       nats, tokens and bytes by the judge, meta: which judge

A file is written whole or not at all, so a run that was cut off keeps what it has. New samples
throw the scores of the old ones away.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dlm.checkpoint import Loaded
from dlm.data import batches, prepare
from dlm.errors import UserError
from dlm.evaluation.judge import Scores
from dlm.spec import build

HELD_OUT, REFERENCE = "held-out text", "reference"
_SCORES = ".scores.npz"


class Set(NamedTuple):
    """Samples of one model and setting under one budget; held-out text has a budget of 0."""

    path: Path
    meta: dict[str, Any]

    @property
    def model(self) -> str:
        return self.path.parent.name

    @property
    def setting(self) -> str:
        return self.meta["setting"]

    @property
    def steps(self) -> int:
        return self.meta["steps"]

    def array(self, name: str) -> np.ndarray:
        """`tokens` or `calls`."""
        with np.load(self.path) as file:
            return file[name]

    def scores(self, judge: str | None = None) -> Scores | None:
        """Scores of a judge by its name, or of any; None: there are none."""
        found = scores_meta(self)
        if found is None or judge not in (None, found["judge"]):
            return None
        with np.load(self.path.with_suffix(_SCORES)) as file:
            return Scores(*(torch.from_numpy(file[name]) for name in Scores._fields))


def scores_meta(samples: Set) -> dict[str, Any] | None:
    """How a set was scored; None: it was not."""
    path = samples.path.with_suffix(_SCORES)
    return _meta(path) if path.exists() else None


def sets(folder: Path) -> Iterator[Set]:
    """All sets of a folder of models, or of the folder of one."""
    for path in sorted([*folder.glob("*/*.npz"), *folder.glob("*.npz")]):
        meta = None if path.name.endswith(_SCORES) else _meta(path)
        if meta is not None:
            yield Set(path, meta)


def is_there(folder: Path, setting: str, steps: int, num: int) -> bool:
    """Whether the folder of a model holds this set, with as many samples."""
    return any(
        (found.setting, found.steps, len(found.array("calls"))) == (setting, steps, num)
        for found in sets(folder)
    )


def path_of(folder: Path, setting: str, steps: int) -> Path:
    name = re.sub(r"[^a-z0-9]+", "_", setting.replace("sampler", "").lower()).strip("_")
    return folder / f"{name}-{steps:03d}.npz"


def save(path: Path, tokens: np.ndarray, calls: np.ndarray, meta: dict[str, Any]) -> None:
    """Write a set."""
    _write(path, meta, tokens=tokens.astype(np.int32), calls=calls.astype(np.int32))
    path.with_suffix(_SCORES).unlink(missing_ok=True)


def save_scores(samples: Set, scores: Scores, meta: dict[str, Any]) -> None:
    """Write the scores of a set beside it."""
    _write(samples.path.with_suffix(_SCORES), meta, **scores._asdict())


def save_text(folder: Path, loaded: Loaded, num: int, reference: str) -> None:
    """Held-out text and a reference split, in blocks as the model was trained on, evenly picked.

    A split with fewer than `num` blocks is taken whole; a data set without a test split has no
    reference.
    """
    meta = loaded.meta
    source, packing = (build(meta[part], path=part) for part in ("data", "packing"))
    for setting, split in ((HELD_OUT, "validation"), (REFERENCE, reference)):
        path = folder / f"{setting.replace('-', '_').removesuffix(' text')}.npz"
        wanted = {"setting": setting, "steps": 0, "split": split, "asked": num}
        if path.exists() and _meta(path) == wanted:
            continue
        try:
            blocks = prepare(source, split, loaded.tokenizer, packing, meta["length"])
        except UserError as error:
            print(f"{folder.name}: no {setting}: {error}")
            continue
        rows = torch.cat([batch.tokens[batch.valid.all(-1)] for batch in batches(blocks, 64)])
        picked = np.unique(np.linspace(0, len(rows) - 1, num).round().astype(int))
        save(path, rows[picked].numpy(), np.zeros(len(picked)), wanted)


def _meta(path: Path) -> dict[str, Any] | None:
    with np.load(path) as file:
        return json.loads(str(file["meta"])) if "meta" in file else None


def _write(path: Path, meta: dict[str, Any], **arrays: Any) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")  # two runs may share a folder
    with part.open("wb") as file:
        np.savez_compressed(file, meta=json.dumps(meta), **arrays)
    part.replace(path)
