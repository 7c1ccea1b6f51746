"""Splits the arguments of a command into overrides and folders of configs; no heavy imports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlm.errors import UserError

_OPTION = "--config-dir"


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Overrides (`key=value`) and the folders given with `--config-dir`.

    Raises:
        UserError: an unknown option, a folder that does not exist, an argument without `=`.
    """
    overrides: list[str] = []
    folders: list[Path] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == _OPTION or argument.startswith(f"{_OPTION}="):
            value = next(rest, "") if argument == _OPTION else argument.partition("=")[2]
            folders.append(_folder(value))
        elif argument.startswith("-"):
            name, _, value = argument.lstrip("-").partition("=")
            raise UserError(f"there is no option {argument!r}; write {name}={value or 'VALUE'}")
        elif "=" not in argument and not argument.startswith("~"):
            raise UserError(f"{argument!r} is not an override; write key=value")
        else:
            overrides.append(argument)
    return overrides, folders


def _folder(value: str) -> Path:
    folder = Path(value).expanduser()
    if not value or not folder.is_dir():
        raise UserError(f"{_OPTION} must name an existing folder, got {value!r}")
    return folder.resolve()
