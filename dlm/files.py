"""Writing files whole or not at all: killed at any moment, the old content or the new one is there.

A temporary file in the folder of the target, flushed to disk, then renamed over it: a rename within
one folder is atomic, and the folder is flushed too, so that it survives a power cut. Temporary
names are unique, so that several writers of one target do not disturb each other.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically; of several writers at once the last one wins.

    Args:
        path: the target; its folder is made.
        write: writes the path it is given; what it raises leaves the target as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.tmp-")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files for the owner alone
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
