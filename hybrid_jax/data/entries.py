"""What is at a path: a file, a folder, or something that must not be opened."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
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

# The coarsest clock of a file system in use (FAT's).
_TICK_NS = 2 * 10**9


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


@dataclass(frozen=True)
class Stamp:
    """What changes whenever a file is written to or replaced, once it `is_settled`.

    Attributes:
      inode: of the file; its device is left out, as a network file system has another on each
        machine.
      size: in bytes.
      modified_ns: when it was last written to; anyone can set it.
      changed_ns: when anything of it was last changed; no one can set it.
    """

    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    def is_settled(self, now_ns: int) -> bool:
        """Tells whether a change after `now_ns` is sure to change a time: clocks tick seldom."""
        return now_ns - max(self.modified_ns, self.changed_ns) > _TICK_NS


def stamp(status: os.stat_result) -> Stamp:
    """Returns the stamp of a file."""
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _short(path: Path) -> str:
    text = repr(str(path))
    return text if len(text) <= 200 else f"{text[:100]}…{text[-100:]}"
