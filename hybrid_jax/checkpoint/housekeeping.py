"""What only the run that saves does to its folder: it makes and tidies it, deletes and renames."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from hybrid_jax.checkpoint.folder import step_number

_HALF_WRITTEN = ".orbax-checkpoint-tmp"
_DAMAGED = ".damaged"
_DELETED = ".deleted"


def make_writable(path: Path, process: int) -> str | None:
    """Makes the folder where it is missing; returns why it cannot be written to, if so.

    Args:
      process: index of this one, for the probe that it writes.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable.{process}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        return (
            f"checkpoint folder {str(path)!r} cannot be written to: {error.strerror}; choose "
            "another folder."
        )
    return None


def tidy(path: Path) -> None:
    """Removes what a killed run left behind, and names once what is ignored.

    Nobody else may be saving here: a half-written step would be taken for a leftover.
    """
    strays = []
    for entry in sorted(path.iterdir()):
        number, dot, rest = entry.name.partition(".")
        is_step, suffix = step_number(number) is not None, dot + rest
        if is_step and suffix.startswith(_HALF_WRITTEN):
            _warn(f"checkpoint step {number} in {path} is half-written: removed.")
            _remove(entry)
        elif is_step and suffix == _DELETED:
            _remove(entry)
        elif _is_stray(entry, is_step, suffix):
            strays.append(entry.name)
    if strays:
        _warn(
            f"checkpoint folder {path} has entries that are no steps, which are ignored: "
            f"{', '.join(map(repr, strays))}."
        )


def delete(path: Path, step: int) -> None:
    """Deletes a step so that it is there whole or not at all, whenever the process is killed."""
    target = path / f"{step}{_DELETED}"
    if target.exists():  # could not be removed earlier
        _remove(target)
    try:
        (path / str(step)).rename(target)
    except OSError as error:
        _warn(f"checkpoint step {step} in {path} cannot be deleted: {error.strerror}.")
        return
    _remove(target)


def set_aside(path: Path, step: int) -> None:
    """Renames a damaged step, so that it is there for a person and gone for a program."""
    target, number = path / f"{step}{_DAMAGED}", 1
    while target.exists():
        number += 1
        target = path / f"{step}{_DAMAGED}.{number}"
    (path / str(step)).rename(target)


def _is_stray(entry: Path, is_step: bool, suffix: str) -> bool:
    """Whether someone could take it for a step: a folder of another name, or a file of a step's."""
    if entry.name.startswith("."):
        return False
    if entry.is_dir():
        return not (is_step and (not suffix or suffix.startswith(_DAMAGED)))
    return is_step and not suffix


def _remove(entry: Path) -> None:
    try:
        if entry.is_symlink():
            entry.unlink()
        else:
            shutil.rmtree(entry)
    except OSError as error:
        _warn(f"{entry} cannot be removed: {error.strerror}; remove it by hand.")


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
