"""A mistake of the user: one sentence, and no traceback on the command line."""

import difflib
from collections.abc import Sequence


class UserError(ValueError):
    """A mistake in a value that the user gave: what is wrong, what was given, what to do."""


def nearest(name: str, choices: Sequence[str]) -> str:
    """The end of a sentence about a wrong name: `did you mean 'lr'?`, or what there is."""
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"choose from: {', '.join(sorted(choices)) or 'nothing'}"
