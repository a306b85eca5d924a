"""What is at a path: a file, a folder, or something that must not be opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from hybrid_jax.errors import UserError

# To open one of these waits for a writer, never ends, or does something to a device.
_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def expand(name: str | Path) -> Path:
    """Returns `name` as a path, with `~` replaced by a home folder.

    >>> expand("texts/a.txt").parts
    ('texts', 'a.txt')

    Raises:
      UserError: the home folder of a user who does not exist.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(
            f"{str(name)!r} names a home folder that cannot be found: write the path out."
        ) from None


def kind(path: Path) -> Literal["file", "folder", "nothing"]:
    """Returns what is at `path`, links followed; only looks, opens nothing.

    >>> kind(Path("/")), kind(Path("/none"))
    ('folder', 'nothing')

    Raises:
      UserError: a named pipe, socket or device, a broken link, or a place that cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise UserError(
                f"{path} is a broken link, to {str(path.readlink())!r}: correct or remove it."
            ) from None
        return "nothing"
    except (OSError, ValueError) as error:  # a ValueError is a null character
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{_short(path)} cannot be looked at: {reason}.") from None
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISREG(mode):
        return "file"
    what = _SPECIAL.get(stat.S_IFMT(mode), "no regular file")
    raise UserError(f"{path} is {what}: give a file on disk, or take it out of the folder.")


def stamp(status: os.stat_result) -> tuple[int, ...]:
    """Returns numbers of which at least one changes whenever a file is written to or replaced."""
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _short(path: Path) -> str:
    text = repr(str(path))
    return text if len(text) <= 200 else f"{text[:100]}…{text[-100:]}"
