"""The errors a user sees, each one line: a mistake of theirs, or a run that cannot go on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A user's mistake, told in one line: the value, the constraint it broke, the remedy.

    The command line prints it without a traceback and exits with its `status`.
    """

    status = 2


class RunError(RuntimeError):
    """What ended a run through no mistake of the user, told in one line, with what is left.

    The command line prints it without a traceback and exits with its `status`.
    """

    status = 1


class TemporaryError(RunError):
    """What may be over at the next try: another process of the run is missing or gone.

    Its status is EX_TEMPFAIL of sysexits.h, at which launchers start a run again.
    """

    status = 75


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest of `choices`, else an empty string.

    >>> nearest("stagee", ["stage", "data"])
    " Did you mean 'stage'?"
    """
    matches = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
