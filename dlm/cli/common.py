"""What the commands share: the screen, the device, requests with checked types, whole files."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, final

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dlm.cli.arguments import split_arguments
from dlm.cli.compose import Config, compose
from dlm.errors import UserError
from dlm.files import replace_text
from dlm.spec import construct

Request = TypeVar("Request")
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")  # as torchrun, Slurm and Lightning set them


def is_main_process() -> bool:
    """Whether this is the process that writes to the screen: the one of rank 0."""
    ranks = [os.environ[name] for name in _RANKS if name in os.environ]
    return not ranks or ranks[0] == "0"


def screen() -> Console:
    """Where results are written; other processes than that of rank 0 are silent."""
    return Console(quiet=not is_main_process())


def say(console: Console, text: str) -> None:
    """Write text as it is: no markup, no emoji names, no colours, no breaking of lines."""
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def compose_arguments(command: str, arguments: Sequence[str]) -> Config:
    """The config of a command from the arguments after its name."""
    overrides, folders = split_arguments(arguments)
    return compose(command, overrides, folders)


def request(cls: type[Request], values: dict[str, Any]) -> Request:
    """The keys of a command as a dataclass, types checked.

    Raises:
        UserError: a value of another type, by its key.
    """
    return construct(cls, values)


def pick_device(name: str | None) -> torch.device:
    """The device of this name; a GPU where there is one if there is no name.

    Raises:
        UserError: an unknown device, or one that this machine lacks.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} is not available here; use cpu or cuda") from error
    return device


@contextmanager
def progress_bar(label: str, tokens: float) -> Iterator[Callable[[float], None]]:
    """A bar on standard error with tokens a second and the time left; silent where no one looks.

    Args:
        label: what is going on.
        tokens: how many there are to do.

    Yields:
        A function to call with the number of tokens done since the last call.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), _Speed(), TimeRemainingColumn())
    hidden = not (sys.stderr.isatty() and is_main_process())
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as progress:
        task = progress.add_task(label, total=tokens)
        yield lambda done: progress.advance(task, done)


@final
class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} tokens/s")


def as_text(value: Any) -> Any:
    """`precision=32` is a number to YAML and a name here."""
    return str(value) if isinstance(value, int) else value


@contextmanager
def writing(path: str) -> Iterator[Path]:
    """The place of a file while it is written: what goes wrong there is a sentence.

    Raises:
        UserError: it cannot be written.
    """
    try:
        yield Path(path).expanduser()
    except OSError as error:
        raise UserError(f"cannot write {path!r}: {error.strerror}") from error


def check_outputs(*paths: str | None) -> None:
    """Refuse files that cannot be written, before the work; nothing is left behind.

    A draft is made and removed where the file, or the first folder on the way to it, will stand:
    permission bits alone do not tell, neither for root nor on file systems that take no files.

    Raises:
        UserError: a file that cannot be written; None is no file.
    """
    for path in (path for path in paths if path is not None):
        with writing(path) as place:
            if place.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            folder = next(above for above in place.absolute().parents if above.exists())
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{place.name}.tmp-"):
                pass


def write_text(path: str, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with writing(path) as place:
        replace_text(place, text)


def table(title: str, rows: dict[str, str]) -> Table:
    """A table of names and values."""
    grid = Table(title=title, show_header=False, title_justify="left")
    grid.add_column(style="bold")
    grid.add_column(justify="left")
    for name, value in rows.items():
        grid.add_row(name, value)
    return grid


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table; a dash for what is not known."""
    return "-" if value is None else f"{value:,.{digits}f}"
