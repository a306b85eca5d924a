"""The files that texts are read from: found, told apart and opened."""

from __future__ import annotations

import glob
import gzip
import lzma
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from hybrid_jax.data.entries import Stamp, expand, kind, stamp
from hybrid_jax.data.walk import walk
from hybrid_jax.errors import UserError, nearest

KINDS = ("txt", "jsonl", "parquet")
OPENERS = {"": Path.open, "gz": gzip.open, "xz": lzma.open}


@dataclass(frozen=True)
class InputFile:
    """A file with documents, as it was when it was found.

    Attributes:
      path: absolute.
      kind: "txt", "jsonl" or "parquet".
      compression: "gz", "xz" or "" for none.
      num_bytes: on disk.
      stamp: what changes when it is written to or replaced (`entries.stamp`).
    """

    path: str
    kind: str
    compression: str
    num_bytes: int
    stamp: Stamp

    @contextmanager
    def open(self, *, packed: bool = False) -> Iterator[BinaryIO]:
        """Opens the file, uncompressed unless `packed`.

        Raises:
          UserError: it cannot be read, or is not the file that was found, before or afterwards.
        """
        opener = Path.open if packed else OPENERS[self.compression]
        try:
            self._check_unchanged()
            with opener(Path(self.path), "rb") as file:
                try:
                    yield cast(BinaryIO, file)
                except Exception:  # what was read before may not fit what was read after
                    self._check_unchanged()
                    raise
            self._check_unchanged()
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise UserError(
                f"{self.path} cannot be decompressed ({error}): it is damaged or cut off."
            ) from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror or error}.") from None

    def now(self) -> InputFile:
        """Returns the file as it is now.

        Raises:
          UserError: it is gone.
        """
        status = _status(Path(self.path))
        return replace(self, num_bytes=status.st_size, stamp=stamp(status))

    def _check_unchanged(self) -> None:
        if self.now() != self:
            raise UserError(
                f"{self.path} has changed since it was found: let its writer finish and run again."
            )


@dataclass(frozen=True)
class Span:
    """Whole documents of a file, one after the other: what one reader reads.

    Attributes:
      file: the file.
      start: the first byte, or row group.
      stop: one after the last; for a compressed file, and one that is a single document, its end.
      num_bytes: that are read, for progress.
    """

    file: InputFile
    start: int
    stop: int
    num_bytes: int


def find_files(inputs: Sequence[str | Path]) -> tuple[list[InputFile], list[str]]:
    """Expands files, folders and patterns, each sorted by path, in the order they are given.

    A folder means all files in it, and in folders in it, whose ending is known; links are
    followed; what is hidden, with a name that begins with a dot, does not count.

    Returns:
      (files, ignored): `ignored` are the other files in the folders.

    Raises:
      UserError: nothing found, an unknown ending, the same file twice, a folder that cannot be read
        or leads back to itself, a broken link, a named pipe, socket or device.
    """
    if not inputs:
        raise UserError("no input: give text files, folders or patterns such as 'texts/*.jsonl'.")
    files: dict[object, Path] = {}
    found: list[InputFile] = []
    ignored: list[str] = []
    for name in inputs:
        if not str(name):
            raise UserError("an input is '': give the path of a file or folder, '.' for this one.")
        paths, others = _expand(expand(name))
        ignored += others
        for path in paths:
            file, identities = _describe(path)
            for identity in identities:
                if identity in files:
                    raise UserError(_twice(file.path, path, files[identity]))
                files[identity] = path
            found.append(file)
    return found, ignored


def _expand(path: Path) -> tuple[list[Path], list[str]]:
    match kind(path):
        case "folder":
            return _in_folder(path)
        case "file":
            return [path], []
    if glob.has_magic(str(path)):
        return _matching(path)
    if kind(path.parent) != "folder":
        raise UserError(f"no file {str(path)!r}: the folder {str(path.parent)!r} does not exist.")
    names = [other.name for other in path.parent.iterdir()]
    raise UserError(f"no file {str(path)!r}: check the path.{nearest(path.name, names)}")


def _in_folder(folder: Path) -> tuple[list[Path], list[str]]:
    paths = list(walk(folder))
    for path in paths:
        kind(path)  # raises for what is no file either
    found = [path for path in paths if _kind(path) is not None]
    if not found:
        raise UserError(f"no texts in {folder}: files end in {_endings()}.")
    return found, [str(path) for path in paths if _kind(path) is None]


def _matching(pattern: Path) -> tuple[list[Path], list[str]]:
    recursive = "**" in pattern.parts
    if recursive:
        # glob leaves out folders that cannot be read, and goes round in those that hold themselves.
        magic = [glob.has_magic(part) for part in pattern.parts]
        base = Path(*pattern.parts[: magic.index(True)])
        if kind(base) == "folder":
            for _ in walk(base):
                pass
    found: list[Path] = []
    ignored: list[str] = []
    for path in map(Path, sorted(glob.glob(str(pattern), recursive=True))):  # noqa: PTH207 (absolute patterns)
        if kind(path) != "folder":
            found.append(path)
        elif not recursive:  # as if the shell had expanded the pattern
            inner, others = _in_folder(path)
            found += inner
            ignored += others
    if not found:
        raise UserError(f"no file matches {str(pattern)!r}: correct the pattern.")
    return found, ignored


def _describe(path: Path) -> tuple[InputFile, list[object]]:
    """The file at `path` and what it has in common with itself under any other name."""
    known = _kind(path)
    if known is None:
        raise UserError(f"{path}: its ending says no known kind; files end in {_endings()}.")
    status = _status(path)
    file = InputFile(str(path.resolve()), *known, status.st_size, stamp(status))
    # Some file systems give several files one number; more than one name says that it is real.
    linked = [(status.st_dev, status.st_ino)] if status.st_nlink > 1 else []
    return file, [file.path, *linked]


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _twice(real: str, path: Path, other: Path) -> str:
    names = f" (as {other} and as {path})" if path != other else ""
    return f"{real} is among the inputs twice{names}: give it once."


def _kind(path: Path) -> tuple[str, str] | None:
    """(kind, compression) by the ending, None for any other file."""
    *_, kind, last = ["", "", *path.name.lower().split(".")]
    if last in KINDS:
        return last, ""
    return (kind, last) if kind in ("txt", "jsonl") and last in OPENERS else None


def _endings() -> str:
    return ".txt, .jsonl, .txt.gz, .txt.xz, .jsonl.gz, .jsonl.xz or .parquet"
