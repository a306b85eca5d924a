"""The finished parts of an unfinished corpus, kept so that a killed run can resume."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hybrid_jax.data.header import read_header
from hybrid_jax.data.tokens import open_tokens
from hybrid_jax.errors import UserError

FOLDER = ".parts"


@dataclass(frozen=True)
class Parts:
    """The parts of one job: each a small corpus of its own.

    Attributes:
      folder: of this job and no other.
      anew: whether parts of another job were thrown away.
    """

    folder: Path
    anew: bool

    def part(self, index: int) -> Path:
        """Returns the folder of a part, which exists when it is finished."""
        return self.folder / f"{index:06d}"

    def is_finished(self, index: int) -> bool:
        """Tells whether a part is there and whole (a crash of the machine may have cut files)."""
        part = self.part(index)
        try:
            if read_header(part).num_documents:
                open_tokens(part, verify="always")
        except UserError:
            return False
        return True


@contextmanager
def open_parts(output: Path, job: str) -> Iterator[Parts]:
    """Makes `output` and its folder of parts, and holds them alone.

    Raises:
      UserError: the folder cannot be made, or another process is preparing into it.
    """
    folder = output / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise UserError(f"{str(output)!r} cannot be written to: {error.strerror}.") from None
    with lock:  # released when the process ends, however it does
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is preparing into {output}: wait for it, or choose another "
                "folder."
            ) from None
        others = [path for path in folder.iterdir() if path.is_dir() and path.name != job]
        for path in others:
            shutil.rmtree(path)
        (folder / job).mkdir(exist_ok=True)
        for unfinished in (folder / job).glob(".*"):
            shutil.rmtree(unfinished)
        yield Parts(folder / job, anew=bool(others))


def remove_parts(output: Path) -> None:
    """Throws away all parts of all jobs."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)
