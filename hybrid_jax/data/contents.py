"""The contents of files, block by block, and what tells them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hybrid_jax.errors import UserError

# A multiple of every token's size: a block never cuts a token.
BLOCK_BYTES = 1 << 22


def read_blocks(file: BinaryIO) -> Iterator[memoryview]:
    """Yields what is left of `file` in blocks; a block is only good until the next one.

    Reading, unlike a memory map, survives a file that is cut off meanwhile.

    >>> import io
    >>> [bytes(block) for block in read_blocks(io.BytesIO(b"abc"))]
    [b'abc']
    """
    block = memoryview(bytearray(BLOCK_BYTES))
    while size := file.readinto(block):  # pyright: ignore[reportAttributeAccessIssue]
        yield block[:size]


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal.

    Raises:
      UserError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for block in read_blocks(file):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    return digest.hexdigest()
