"""Files that a command writes at its end: checked before its work, refused in one line."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybrid_jax.errors import UserError
from hybrid_jax.figures import check_picture_path


def check_outputs(json: str | None, save: str | None = None) -> None:
    """Refuses what could not be written, before the minutes that it takes to know what.

    >>> check_outputs("nowhere/a.json")
    Traceback (most recent call last):
    hybrid_jax.errors.UserError: --json nowhere/a.json: the folder nowhere does not exist; make it.

    Args:
      json, save: values of the options; None: the file is not asked for.
    """
    if json is not None:
        if Path(json).is_dir():
            raise UserError(f"--json {json} is a folder: give the path of a file in it.")
        if not Path(json).parent.is_dir():
            folder = Path(json).parent
            raise UserError(f"--json {json}: the folder {folder} does not exist; make it.")
    if save is not None:
        check_picture_path("--save", save)


def write_outputs(report: Any, json: str | None, save: str | None = None) -> None:
    """Writes a report as JSON and as pictures, where they are asked for.

    Raises:
      UserError: a file cannot be written.
    """
    if json is not None:
        with _telling("--json", json):
            Path(json).write_text(report.to_json() + "\n")
    if save is not None:
        with _telling("--save", save):
            report.save(save)


@contextmanager
def _telling(option: str, path: str) -> Generator[None]:
    """Turns what the disk refuses into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{option} {path} cannot be written: {error.strerror}; choose another path."
        ) from None
