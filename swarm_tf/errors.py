"""The one exception for what a user can mend."""


class UsageError(ValueError):
    """A value the user gave breaks a rule.

    The message is one line: the key or argument, the value, and what is allowed.
    `train.py` prints it and ends every rank with exit code 2.
    """
