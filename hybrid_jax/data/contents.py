"""The contents of files, read in blocks and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

# A multiple of every token's size: a block never cuts a token.
BLOCK_BYTES = 1 << 22


def read_blocks(file: BinaryIO) -> Iterator[memoryview]:
    """Yields what is left of `file` in blocks; a block is only good until the next one.

    Reading, unlike a memory map, survives a file that is cut off meanwhile.
    """
    block = memoryview(bytearray(BLOCK_BYTES))
    while size := file.readinto(block):  # pyright: ignore[reportAttributeAccessIssue]
        yield block[:size]


def sha256(file: BinaryIO) -> str:
    """Returns the SHA-256 of what is left of `file`, in hexadecimal.

    >>> import io
    >>> sha256(io.BytesIO(b"abc"))[:8]
    'ba7816bf'
    """
    digest = hashlib.sha256()
    for block in read_blocks(file):
        digest.update(block)
    return digest.hexdigest()
