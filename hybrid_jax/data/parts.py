"""The finished parts of an unfinished corpus, kept so that a killed run can go on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hybrid_jax.data.contents import read_blocks
from hybrid_jax.data.files import InputFile
from hybrid_jax.data.header import VERSION, read_header
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


def fingerprint_contents(files: Sequence[InputFile], threads: int) -> list[str]:
    """Returns the SHA-256 of each file as it is on disk, several at a time.

    Raises:
      UserError: a file that cannot be read, or has changed since it was found.
    """
    stopped = threading.Event()  # by Ctrl-C or an error, without waiting for the end of large files

    def fingerprint(file: InputFile) -> str:
        digest = hashlib.sha256()
        with file.open(packed=True) as opened:
            for block in read_blocks(opened):
                if stopped.is_set():
                    break
                digest.update(block)
        return digest.hexdigest()

    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(fingerprint, files))
        finally:
            stopped.set()


def check_contents(files: Sequence[InputFile], contents: Sequence[str], found_ns: int) -> None:
    """Raises a UserError for a file with other contents than when it was found, at `found_ns`.

    A mere touch is no change.
    """
    for file, content in zip(files, contents, strict=True):
        now = file.now()
        if now == file and file.stamp.is_settled(found_ns):
            continue
        if fingerprint_contents([now], threads=1) != [content]:
            raise UserError(
                f"{file.path} changed while it was prepared: let its writer finish and run again."
            )


def fingerprint_job(
    files: Sequence[InputFile],
    contents: Sequence[str],
    tokenizer_files: Sequence[Path],
    options: Mapping[str, object],
) -> str:
    """Returns a hash of all that decides what a job writes: names and contents, but no times."""
    tokenizer = [hashlib.sha256(file.read_bytes()).hexdigest() for file in tokenizer_files]
    inputs = [
        (file.path, file.kind, file.compression, content)
        for file, content in zip(files, contents, strict=True)
    ]
    job = [VERSION, inputs, tokenizer, dict(options)]
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]


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
