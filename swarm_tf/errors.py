"""What a user can mend, and what ranks could not do together."""


class CollectiveError(RuntimeError):
    """Ranks could not do together what all of them have to do at the same time."""


class UsageError(ValueError):
    """A value the user gave breaks a rule.

    The message is one line: the key or argument, the value, and what is allowed.
    `train.py` prints it and ends every rank with exit code 2.
    """
