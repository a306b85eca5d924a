"""Whether token files are what their header says: read whole, once, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import time
from typing import BinaryIO

import numpy as np

from hybrid_jax.data.contents import read_blocks
from hybrid_jax.data.entries import stamp
from hybrid_jax.data.header import AGAIN, HEADER, START_DTYPE, Header
from hybrid_jax.data.verified import find_record, has_record, write_record
from hybrid_jax.errors import UserError


def verify_once(header: Header, tokens: BinaryIO, starts: BinaryIO) -> None:
    """Verifies files that have not been verified before, and remembers those that hold.

    What is remembered are the header and the inode, size and times of both files, in the user's
    cache folder (see `verified.py`): whoever writes to a file or replaces it has it verified again.
    Only decay of the disk itself, which changes none of these, is found by `verify_files` alone.

    Raises:
      UserError: as `verify_files`.
    """
    stamps = [stamp(os.fstat(file.fileno())) for file in (tokens, starts)]
    record = find_record(header, stamps)
    if has_record(record):
        return
    now = time.time_ns()
    verify_files(header, tokens, starts)
    if all(stamp.is_settled(now) for stamp in stamps):
        write_record(record)


def verify_files(header: Header, tokens: BinaryIO, starts: BinaryIO) -> None:
    """Reads `tokens.bin` and `starts.bin` whole.

    Raises:
      UserError: another checksum, a token outside the vocabulary, starts that do not rise from 0
        to the last token, or a file that someone writes to.
    """
    _verify(starts, header.starts_fingerprint, _Starts(header))
    _verify(tokens, header.fingerprint, _Tokens(header, starts))


class _Starts:
    """Looks through the starts, block by block, for the first that cannot be."""

    dtype = START_DTYPE

    def __init__(self, header: Header) -> None:
        self._header = header
        self._index, self._last, self.problem = 0, -1, ""

    def look(self, block: memoryview) -> None:
        starts = np.frombuffer(block, self.dtype)
        before = np.concatenate([[self._last], starts[:-1]])
        wrong = (starts <= before) | (starts >= self._header.num_tokens)
        if self._index == 0:
            wrong[0] |= starts[0] != 0
        if wrong.any() and not self.problem:
            i = int(wrong.argmax())
            self.problem = (
                f"lets document {self._index + i:,} start at token {starts[i]:,}, but starts must "
                f"rise from 0 and stay below num_tokens={self._header.num_tokens:,}"
            )
        self._index, self._last = self._index + len(starts), int(starts[-1])


class _Tokens:
    """Looks through the tokens, block by block, for the first outside the vocabulary."""

    def __init__(self, header: Header, starts: BinaryIO) -> None:
        self._size, self._starts = header.vocab_size, starts
        self.dtype = header.token_dtype
        self._index, self.problem = 0, ""

    def look(self, block: memoryview) -> None:
        tokens = np.frombuffer(block, self.dtype)
        if not self.problem and tokens.max() >= self._size:
            i = int((tokens >= self._size).argmax())
            index = self._index + i
            starts = np.memmap(self._starts, START_DTYPE, mode="r")
            document = int(np.searchsorted(starts, index, side="right")) - 1
            self.problem = (
                f"has token {tokens[i]} at index {index:,}, in document {document:,}, but "
                f"vocab_size={self._size} in {HEADER} allows 0 to {self._size - 1}"
            )
        self._index += len(tokens)


def _verify(file: BinaryIO, expected: str, reader: _Starts | _Tokens) -> None:
    before = os.fstat(file.fileno())
    digest = hashlib.sha256()
    file.seek(0)
    for block in read_blocks(file):
        if len(block) % reader.dtype.itemsize:
            break  # of a file that has changed its size since it was opened
        digest.update(block)
        reader.look(block)
    if stamp(os.fstat(file.fileno())) != stamp(before):
        raise UserError(f"{file.name} changed while it was verified: let its writer finish first.")
    if digest.hexdigest() != expected:
        raise UserError(
            f"{file.name} is damaged (SHA-256 {digest.hexdigest()[:12]}…, but {HEADER} beside it "
            f"has {expected[:12]}…): {AGAIN}"
        )
    if reader.problem:
        raise UserError(f"{file.name} {reader.problem}: {AGAIN}")
