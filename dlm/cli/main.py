"""`dlm COMMAND [key=value ...]`: picks the command, turns a user's mistake into one sentence.

Exit codes: 0 fine, 1 a prediction of `dlm lab` did not come out, 2 a mistake of the user (one
sentence on standard error), 130 interrupted. A crash of ours stays a traceback. Nothing heavy is
imported until a command runs: `dlm --help` loads neither torch nor Hydra.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import final

import dlm
from dlm.cli import help as manual
from dlm.errors import UserError, nearest

OK, MISTAKE, INTERRUPTED = 0, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    log = logging.getLogger("dlm")
    handler = _Screen()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        return _run(arguments)
    except UserError as mistake:
        sentence = " ".join(str(mistake).split())
        sys.stderr.write(f"dlm: {sentence}\n")
        return MISTAKE
    except KeyboardInterrupt:
        sys.stderr.write("dlm: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:  # `dlm generate ... | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    finally:
        log.removeHandler(handler)


@final
class _Screen(logging.Handler):
    """What the library has to say, on standard error as it is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"dlm: {record.getMessage()}\n")


def _run(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("-h", "--help", "help"):
        sys.stdout.write(manual.overview())
        return OK
    if command == "--version":
        sys.stdout.write(f"dlm {dlm.__version__}\n")
        return OK
    if command not in manual.COMMANDS:
        choice = nearest(command, list(manual.COMMANDS))
        raise UserError(f"there is no command {command!r}; {choice} (`dlm --help` lists them)")
    if {"-h", "--help"} & set(rest):
        sys.stdout.write(manual.page(command, rest))
        return OK
    return importlib.import_module(f"dlm.cli.{command}").run(rest) or OK


if __name__ == "__main__":
    sys.exit(main())
