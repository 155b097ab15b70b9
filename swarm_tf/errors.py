"""Errors: a value that a user can correct, and a collective that failed."""


class CollectiveError(RuntimeError):
    """A collective failed: not all ranks took part in it, or not in the same one."""


class UsageError(ValueError):
    """A value the user gave breaks a rule.

    The message is one line: the key or argument, the value, and what is allowed.
    `train.py` prints it and ends every rank with exit code 2.
    """
