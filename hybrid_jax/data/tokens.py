"""Token files: a corpus as one array of tokens on disk, memory-mapped when it is read."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from hybrid_jax.data.bytes import ByteTokenizer
from hybrid_jax.data.entries import expand, kind
from hybrid_jax.data.header import AGAIN, HEADER, START_DTYPE, STARTS, TOKENS, Header, read_header
from hybrid_jax.data.source import TokenSource
from hybrid_jax.data.verify import verify_files, verify_once
from hybrid_jax.errors import UserError


def open_tokens(
    path: str | Path, *, verify: Literal["never", "once", "always"] = "never"
) -> TokenSource:
    """Opens a corpus that `prepare` wrote; its tokens stay on disk until they are used.

    Args:
      path: its folder.
      verify: whether all tokens and starts are read and compared with the checksums in the header,
        at about 1 GiB/s: "never", a look at header and sizes only; "once", unless the same files
        have been verified before (see `verify_once`), as `open_source` does for a run; "always".

    Raises:
      UserError: no such folder, an unfinished one, a missing or damaged file, another version.
    """
    folder = expand(path)
    header = read_header(folder)
    if not header.num_documents:
        raise UserError(f"{folder} holds no documents: prepare it again.")
    tokenizer = _find_tokenizer(folder, header)
    with ExitStack() as stack:
        files = [
            stack.enter_context(_open(folder / name, size)) for name, size in header.sizes().items()
        ]
        if verify != "never":
            (verify_once if verify == "once" else verify_files)(header, *files)
        # The very files that were verified, whatever has been put in their place meanwhile.
        tokens, starts = (
            np.memmap(file, dtype, mode="r")
            for file, dtype in zip(files, (header.token_dtype, START_DTYPE), strict=True)
        )
    if starts[0] != 0 or not 0 <= starts[-1] < header.num_tokens:
        raise UserError(f"{folder / STARTS} does not belong to {TOKENS}: {AGAIN}")
    return TokenSource(
        name=str(path),
        tokens=tokens,
        starts=starts,
        vocab_size=header.vocab_size,
        num_bytes=header.num_bytes,
        tokenizer=tokenizer,
        fingerprint=header.corpus_fingerprint,
        verified=verify != "never",
    )


def _find_tokenizer(folder: Path, header: Header) -> str:
    if header.tokenizer == ByteTokenizer.name:
        return header.tokenizer
    file = folder / header.tokenizer
    if kind(file) != "file":
        raise UserError(f"{folder} lacks {header.tokenizer}: {AGAIN}")
    return str(file)


def _open(file: Path, expected: int) -> BinaryIO:
    """Opens a file that has `expected` bytes."""
    if kind(file) != "file":
        raise UserError(
            f"{file} is missing, but {HEADER} beside it counts {expected:,} bytes: {AGAIN}"
        )
    try:
        opened = file.open("rb")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    size = os.fstat(opened.fileno()).st_size
    if size != expected:
        opened.close()
        raise UserError(
            f"{file} has {size:,} bytes, but {HEADER} beside it counts {expected:,} bytes: {AGAIN}"
        )
    return opened
