"""The cache folder: where it is, how keys are made, how files get into it.

A key is the SHA-256 of everything that the cached thing depends on, so nothing stale can be read: a
change of the data, the tokenizer or the text transform gives another key. A file or folder is
written under a temporary name in the same directory, synced to disk and renamed: readers see all of
it or nothing, also when a run is killed in the middle or two runs write the same key at once (the
second finds the first one's result and drops its own).
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlm.files import sync


def cache_dir() -> Path:
    """`DLM_CACHE` if set, else `dlm` in the user's cache folder (XDG: `~/.cache/dlm`)."""
    if own := os.environ.get("DLM_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "dlm"


def digest(value: Any) -> str:
    """SHA-256 (hex) of a plain value: texts, numbers, lists and mappings of them."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and vanishes when it fails.

    If `path` exists by then (another run was faster), that one stays and ours is dropped: equal
    keys mean equal contents.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{path.name}.tmp-"))
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        try:
            os.replace(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
