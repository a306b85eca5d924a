"""Token files: a corpus as one array of tokens on disk, memory-mapped when it is read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_jax.data.bytes import ByteTokenizer
from hybrid_jax.data.source import TokenSource
from hybrid_jax.errors import UserError

VERSION = 1
HEADER, TOKENS, STARTS = "header.json", "tokens.bin", "starts.bin"
START_DTYPE = np.dtype("<i8")


@dataclass(frozen=True)
class Header:
    """What `header.json` says about the token files beside it.

    Attributes:
      num_tokens: of all documents together, their end-of-text tokens included.
      num_documents: how many there are.
      num_bytes: of the text, as UTF-8.
      num_skipped: empty documents that were left out.
      vocab_size: every token is below it.
      dtype: of `tokens.bin`, little-endian: "uint8", "uint16" or "uint32".
      tokenizer: "bytes", or the name of the file beside the header.
      fingerprint: the SHA-256 of `tokens.bin`.
      sources: the files that were read.
      job: the fingerprint of all that decided the content; "" for files written by hand.
      version: of this format.
    """

    num_tokens: int
    num_documents: int
    num_bytes: int
    num_skipped: int
    vocab_size: int
    dtype: str
    tokenizer: str
    fingerprint: str
    sources: tuple[str, ...] = ()
    job: str = ""
    version: int = VERSION

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of each file that belongs to this header."""
        return {
            TOKENS: self.num_tokens * np.dtype(self.dtype).itemsize,
            STARTS: self.num_documents * START_DTYPE.itemsize,
        }

    def write(self, folder: Path) -> None:
        """Puts the header into `folder`, whole or not at all."""
        temporary = folder / f".{HEADER}.{os.getpid()}"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self), indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / HEADER)


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest little-endian unsigned type that holds every token.

    >>> token_dtype(256).name, token_dtype(259).name, token_dtype(70_000).name
    ('uint8', 'uint16', 'uint32')
    """
    return np.dtype(np.min_scalar_type(vocab_size - 1)).newbyteorder("<")


def open_tokens(path: str | Path) -> TokenSource:
    """Opens a corpus that `prepare` wrote; its tokens stay on disk until they are used.

    Raises:
      UserError: no such folder, an unfinished one, a missing or cut off file, another version.
    """
    folder = Path(path).expanduser()
    header = read_header(folder)
    for name, expected in header.sizes().items():
        _check_size(folder / name, expected)
    if header.num_documents < 1 or header.num_tokens < 1:
        raise UserError(f"{folder} holds no documents: prepare it again.")
    dtype = np.dtype(header.dtype).newbyteorder("<")
    tokens = np.memmap(folder / TOKENS, dtype, mode="r")
    starts = np.memmap(folder / STARTS, START_DTYPE, mode="r")
    if starts[0] != 0 or not 0 <= starts[-1] < header.num_tokens:
        raise UserError(f"{folder / STARTS} does not belong to {TOKENS}: prepare the corpus again.")
    tokenizer = header.tokenizer
    if tokenizer != ByteTokenizer.name:
        tokenizer = str(folder / tokenizer)
        if not Path(tokenizer).is_file():
            raise UserError(f"{folder} lacks {header.tokenizer}: prepare the corpus again.")
    return TokenSource(
        name=str(path),
        tokens=tokens,
        starts=starts,
        vocab_size=header.vocab_size,
        num_bytes=header.num_bytes,
        tokenizer=tokenizer,
        fingerprint=header.fingerprint,
    )


def read_header(folder: Path) -> Header:
    """Returns the header of the corpus in `folder`.

    Raises:
      UserError: no such folder, no header in it, a damaged one, or one of another version.
    """
    file = folder / HEADER
    if not file.is_file():
        what = "is unfinished or no corpus" if folder.is_dir() else "does not exist"
        raise UserError(
            f"{folder} {what}: give a folder written by `hybrid-jax data prepare` ({HEADER}, "
            f"{TOKENS}, {STARTS})."
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        version = values["version"]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{file} is damaged: prepare the corpus again.") from None
    if version != VERSION:
        raise UserError(
            f"{file} has version {version}, but this hybrid_jax reads version {VERSION}: prepare "
            "the corpus again."
        )
    return _parse(file, values)


def _parse(file: Path, values: dict[str, Any]) -> Header:
    try:
        header = Header(**{**values, "sources": tuple(values["sources"])})
    except (TypeError, KeyError):
        wanted = ", ".join(field.name for field in fields(Header))
        raise UserError(f"{file} must have the fields {wanted}: prepare again.") from None
    numbers = (header.num_tokens, header.num_documents, header.num_bytes, header.vocab_size)
    is_number = all(type(number) is int and number >= 0 for number in numbers)
    if not is_number or header.dtype != token_dtype(header.vocab_size).name:
        raise UserError(
            f"{file} is damaged (dtype={header.dtype!r}, vocab_size={header.vocab_size!r}, "
            f"num_tokens={header.num_tokens!r}): prepare the corpus again."
        )
    return header


def _check_size(file: Path, expected: int) -> None:
    size = file.stat().st_size if file.is_file() else None
    if size != expected:
        found = "is missing" if size is None else f"has {size:,} bytes"
        raise UserError(
            f"{file} {found}, but {HEADER} beside it counts {expected:,} bytes: copy it again or "
            "prepare the corpus again."
        )
