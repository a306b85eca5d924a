"""The files that texts are read from: found, told apart and opened."""

from __future__ import annotations

import glob
import gzip
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from hybrid_jax.errors import UserError, nearest

KINDS = ("txt", "jsonl", "parquet")
OPENERS = {"": Path.open, "gz": gzip.open, "xz": lzma.open}


@dataclass(frozen=True)
class InputFile:
    """A file with documents.

    Attributes:
      path: absolute.
      kind: "txt", "jsonl" or "parquet".
      compression: "gz", "xz" or "" for none.
      num_bytes: on disk.
      modified_ns: when it was last changed.
    """

    path: str
    kind: str
    compression: str
    num_bytes: int
    modified_ns: int

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Opens the file, uncompressed; what goes wrong in reading it is a `UserError`."""
        try:
            with OPENERS[self.compression](Path(self.path), "rb") as file:
                yield cast(BinaryIO, file)
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise UserError(
                f"{self.path} cannot be decompressed ({error}): it is damaged or cut off."
            ) from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}.") from None


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

    A folder means all files in it, and in folders in it, whose ending is known; what is hidden,
    with a name that begins with a dot, does not count.

    Returns:
      (files, ignored): `ignored` are the other files in the folders.

    Raises:
      UserError: nothing found, an unknown ending, the same file twice.
    """
    if not inputs:
        raise UserError("no input: give text files, folders or patterns such as 'texts/*.jsonl'.")
    files: dict[str, InputFile] = {}
    ignored: list[str] = []
    for name in inputs:
        path = Path(name).expanduser()
        if path.is_dir():
            found, others = _in_folder(path)
            ignored += others
        elif path.is_file():
            found = [path]
        else:
            found = _matching(path)
        for file in map(_describe, found):
            if file.path in files:
                raise UserError(f"{file.path} is among the inputs twice: give it once.")
            files[file.path] = file
    return list(files.values()), ignored


def _in_folder(folder: Path) -> tuple[list[Path], list[str]]:
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    found = [path for path in paths if _kind(path) is not None]
    if not found:
        raise UserError(f"no texts in {folder}: files end in {_endings()}.")
    return found, [str(path) for path in paths if _kind(path) is None]


def _matching(path: Path) -> list[Path]:
    if glob.has_magic(str(path)):
        found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)
        found = [Path(name) for name in found if Path(name).is_file()]
        if not found:
            raise UserError(f"no file matches {str(path)!r}: correct the pattern.")
        return found
    if not path.parent.is_dir():
        raise UserError(f"no file {str(path)!r}: the folder {str(path.parent)!r} does not exist.")
    names = [other.name for other in path.parent.iterdir()]
    raise UserError(f"no file {str(path)!r}: check the path.{nearest(path.name, names)}")


def _describe(path: Path) -> InputFile:
    kind = _kind(path)
    if kind is None:
        raise UserError(f"{path}: its ending says no known kind; files end in {_endings()}.")
    status = path.stat()
    return InputFile(str(path.resolve()), *kind, status.st_size, status.st_mtime_ns)


def _kind(path: Path) -> tuple[str, str] | None:
    """(kind, compression) by the ending, None for any other file."""
    *_, kind, last = ["", "", *path.name.lower().split(".")]
    if last in KINDS:
        return last, ""
    return (kind, last) if kind in ("txt", "jsonl") and last in OPENERS else None


def _endings() -> str:
    return ".txt, .jsonl, .txt.gz, .txt.xz, .jsonl.gz, .jsonl.xz or .parquet"
