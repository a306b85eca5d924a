"""The errors a user sees, each one line: a mistake of theirs, or a run that cannot continue."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
from collections.abc import Iterable

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""What the system says of a disk that takes no more, however often it is asked."""

DISK_FAILURES = DISK_FULL | {errno.EROFS}
"""The same of a disk that took data before: a broken one is often mounted anew, read-only."""


class _OneLine(Exception):
    """Its message has one line, whatever names and values with line breaks stand in it.

    >>> print(UserError("no file 'a\\nb': check the path."))
    no file 'a\\nb': check the path.
    """

    found_elsewhere = False
    """Whether another process found it, and is about to report it in its own words."""

    def __str__(self) -> str:
        return super().__str__().replace("\n", "\\n").replace("\r", "\\r")


class UserError(_OneLine, ValueError):
    """A user's mistake, reported in one line: the value, the constraint it broke, the remedy.

    The command line prints it without a traceback and exits with its `status`.
    """

    status = 2


class RunError(_OneLine, RuntimeError):
    """What ended a run through no mistake of the user, reported in one line, with what is left.

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


def unwritable(problem: str, error: OSError, remedy: str) -> UserError | RunError:
    """Returns the error of a file or folder that a run needs and cannot write from its start.

    A full or broken disk is a `RunError`; any other reason is a mistake in the choice of the path.

    >>> unwritable("'/sys/x' cannot be made", PermissionError(1, "Not permitted"), "choose another")
    UserError("'/sys/x' cannot be made: Not permitted; choose another.")
    """
    kind = RunError if error.errno in DISK_FULL else UserError
    return kind(f"{problem}: {error.strerror}; {remedy}.")


def notify(line: str) -> None:
    """Writes a line to stderr at once, from any thread or signal handler, and never raises.

    Stderr may be a file on the very disk that is full.
    """
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="replace"))
