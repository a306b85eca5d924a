"""The contents of a file, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

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
