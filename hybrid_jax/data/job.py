"""All that decides what a corpus holds: the contents of its inputs, its tokenizer, the options."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hybrid_jax.data.assemble import few
from hybrid_jax.data.contents import read_blocks, sha256
from hybrid_jax.data.files import InputFile, find_files
from hybrid_jax.data.header import VERSION
from hybrid_jax.data.progress import Progress
from hybrid_jax.errors import UserError

# More than this takes so long to read that it is reported.
LARGE_BYTES = 1 << 30


@dataclass(frozen=True)
class Job:
    """The inputs of a corpus and how they are read.

    Attributes:
      files: in their order.
      contents: the SHA-256 of each file as it is on disk.
      options: all that decides what documents are and how they are cut into pieces.
      found_ns: the time before the files were found.
    """

    files: tuple[InputFile, ...]
    contents: tuple[str, ...]
    options: Mapping[str, object]
    found_ns: int

    def fingerprint(self, tokenizer_files: Sequence[Path]) -> str:
        """Returns a hash of all this and a tokenizer: of names and contents, but of no times."""
        tokenizer = [sha256(file) for file in tokenizer_files]
        inputs = [
            (file.path, file.kind, file.compression, content)
            for file, content in zip(self.files, self.contents, strict=True)
        ]
        all_of_it = [VERSION, inputs, tokenizer, dict(self.options)]
        return hashlib.sha256(json.dumps(all_of_it, sort_keys=True).encode()).hexdigest()[:16]

    def check_unchanged(self) -> None:
        """Raises a UserError for a file that has other contents by now; a mere touch is none."""
        for file, content in zip(self.files, self.contents, strict=True):
            now = file.now()
            if now == file and file.stamp.is_settled(self.found_ns):
                continue
            if _fingerprints([now], threads=1) != (content,):
                raise UserError(
                    f"{file.path} changed while it was prepared: let its writer finish and run "
                    "again."
                )


def read_job(
    inputs: Sequence[str | Path], options: Mapping[str, object], threads: int, progress: Progress
) -> Job:
    """Finds the files that `inputs` mean and reads each of them whole, once.

    Raises:
      UserError: no such files, one that cannot be read, or one that changes meanwhile.
    """
    found_ns = time.time_ns()
    files, ignored = find_files(inputs)
    if ignored:
        progress.say(f"{len(ignored)} files of other kinds are left out: {few(ignored)}")
    num_bytes = sum(file.num_bytes for file in files)
    if num_bytes >= LARGE_BYTES:
        progress.say(f"reading {num_bytes / 2**30:,.1f} GiB of input once, to fingerprint it")
    return Job(tuple(files), _fingerprints(files, threads), options, found_ns)


def _fingerprints(files: Sequence[InputFile], threads: int) -> tuple[str, ...]:
    """The SHA-256 of each file, several at a time."""
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
            return tuple(pool.map(fingerprint, files))
        finally:
            stopped.set()
