"""The one exception that is the user's to mend: a single sentence, no traceback on the command line."""


class UserError(ValueError):
    """A mistake in a value that the user gave: what is wrong, what was given, what to do."""
