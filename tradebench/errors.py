"""What a user can do wrong: one line each, never a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave us; the message is one line that says how to mend it.

    The command line prints it on standard error and ends with exit code 2.
    """

    exit_code = 2


class NothingToCompareError(UserError):
    """What was asked for holds nothing that can be compared or reported; exit code 3."""

    exit_code = 3
