"""Files that a command writes at its end: checked before its work, and told in one line."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from hybrid_jax.errors import UserError


def check_file(option: str, path: str | None) -> None:
    """Refuses what could not be written, before the minutes that it takes to know what.

    >>> check_file("--json", "nowhere/a.json")
    Traceback (most recent call last):
    hybrid_jax.errors.UserError: --json nowhere/a.json: the folder nowhere does not exist; make it.

    Args:
      option: as the user wrote it.
      path: its value; None: the file is not asked for.
    """
    if path is None:
        return
    if Path(path).is_dir():
        raise UserError(f"{option} {path} is a folder: give the path of a file in it.")
    if not Path(path).parent.is_dir():
        raise UserError(f"{option} {path}: the folder {Path(path).parent} does not exist; make it.")


@contextmanager
def writing(option: str, path: str) -> Generator[None]:
    """Turns what the disk refuses into one line.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{option} {path} cannot be written: {error.strerror}; choose another path."
        ) from None
