"""The header of a corpus: written last, checked field by field when it is read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_jax.data.bytes import ByteTokenizer
from hybrid_jax.data.entries import kind
from hybrid_jax.errors import UserError, nearest

VERSION = 2
HEADER, TOKENS, STARTS = "header.json", "tokens.bin", "starts.bin"
START_DTYPE = np.dtype("<i8")
# The paths of some millions of sources fit; what is larger was not written by `prepare`.
MAX_BYTES = 1 << 28
# Batches are int32.
MAX_VOCAB = 1 << 31
AGAIN = "copy the corpus again, or prepare it again with overwrite=True (--overwrite)."


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
      starts_fingerprint: the SHA-256 of `starts.bin`.
      tokenizer_fingerprint: the SHA-256 of the tokenizer's file, "" for "bytes".
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
    starts_fingerprint: str
    tokenizer_fingerprint: str = ""
    sources: tuple[str, ...] = ()
    job: str = ""
    version: int = VERSION

    @property
    def corpus_fingerprint(self) -> str:
        """Changes with the tokens and with where documents start: with every batch."""
        both = f"{self.fingerprint} {self.starts_fingerprint}"
        return hashlib.sha256(both.encode()).hexdigest()

    @property
    def token_dtype(self) -> np.dtype:
        """The type of `tokens.bin`."""
        return np.dtype(self.dtype).newbyteorder("<")

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of each file that belongs to this header."""
        return {
            TOKENS: self.num_tokens * self.token_dtype.itemsize,
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


def smallest_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest little-endian unsigned type that holds every token.

    >>> [smallest_dtype(size).name for size in (256, 259, 70_000)]
    ['uint8', 'uint16', 'uint32']
    """
    return np.dtype(np.min_scalar_type(vocab_size - 1)).newbyteorder("<")


def read_header(folder: Path) -> Header:
    """Returns the header of the corpus in `folder`.

    Raises:
      UserError: no such folder, no header in it, a damaged one, or one of another version.
    """
    file = folder / HEADER
    if kind(file) == "nothing":
        what = {
            "folder": "is unfinished or no corpus",
            "file": "is a file",
            "nothing": "does not exist",
        }[kind(folder)]
        raise UserError(
            f"{folder} {what}: give a folder written by `hybrid-jax data prepare` ({HEADER}, "
            f"{TOKENS}, {STARTS})."
        )
    values = _load(file)
    version = values.get("version")
    if type(version) is int and version != VERSION:
        raise UserError(
            f"{file} has version {reprlib.repr(version)}, but this hybrid_jax reads version "
            f"{VERSION}: prepare the corpus again with overwrite=True (--overwrite)."
        )
    return _parse(file, values)


def _load(file: Path) -> dict[str, Any]:
    if kind(file) == "folder":
        raise UserError(f"{file} is a folder, but must be a file: {AGAIN}")
    try:
        with file.open("rb") as opened:
            if os.fstat(opened.fileno()).st_size > MAX_BYTES:
                raise _damaged(file, f"more than {MAX_BYTES >> 20} MiB")
            data = opened.read()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    try:
        values = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise _damaged(file, "no JSON, or a field twice") from None
    if not isinstance(values, dict):
        raise _damaged(file, "no JSON object")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a field twice")
    return values


def _parse(file: Path, values: dict[str, Any]) -> Header:
    names = [field.name for field in fields(Header)]
    for name in values:
        if name not in names:
            raise _damaged(file, f"unknown field {reprlib.repr(name)}{nearest(name, names)}")
    for name in names:
        if name not in values:
            raise _damaged(file, f"no field {name!r}")
        wanted, holds = _RULES[name]
        if not holds(values[name]):
            raise _damaged(file, f"{name}={reprlib.repr(values[name])} must be {wanted}")
    header = Header(**{**values, "sources": tuple(values["sources"])})
    if header.dtype != smallest_dtype(header.vocab_size).name:
        raise _damaged(file, f"dtype={header.dtype!r} is not that of {header.vocab_size} tokens")
    tokens, documents = header.num_tokens, header.num_documents
    if documents > tokens or (tokens and not documents):
        raise _damaged(file, f"num_documents={documents} cannot have num_tokens={tokens}")
    if (header.tokenizer == ByteTokenizer.name) != (not header.tokenizer_fingerprint):
        raise _damaged(file, f"tokenizer={header.tokenizer!r} without its fingerprint")
    if documents and not header.num_bytes:  # losses are reported in bits per byte
        raise _damaged(file, "num_bytes=0 with documents")
    return header


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(f"{file} is damaged ({reason}): {AGAIN}")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_file_name(value: object) -> bool:
    """Nothing that leads out of the folder, or that is one of the corpus' own files."""
    if not isinstance(value, str) or value in ("", ".", "..", HEADER, TOKENS, STARTS):
        return False
    return value == ByteTokenizer.name or re.fullmatch(r"[^/\\\x00-\x1f]{1,255}", value) is not None


_COUNT = ("a whole number, at least 0", _is_count)
_DIGEST = ("a SHA-256 in hexadecimal", _is_digest)
# What each field must be, in words and as a test; JSON has booleans and floats for numbers too.
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "num_tokens": _COUNT,
    "num_documents": _COUNT,
    "num_bytes": _COUNT,
    "num_skipped": _COUNT,
    "vocab_size": (
        f"a whole number from 1 to {MAX_VOCAB}",
        lambda value: type(value) is int and 1 <= value <= MAX_VOCAB,
    ),
    "dtype": (
        "uint8, uint16 or uint32",
        lambda value: isinstance(value, str) and value in ("uint8", "uint16", "uint32"),
    ),
    "tokenizer": ("'bytes' or the name of a file in the same folder", _is_file_name),
    "fingerprint": _DIGEST,
    "starts_fingerprint": _DIGEST,
    "tokenizer_fingerprint": (
        "a SHA-256 in hexadecimal or empty",
        lambda value: value == "" or _is_digest(value),
    ),
    "sources": (
        "a list of paths",
        lambda value: isinstance(value, list) and all(isinstance(path, str) for path in value),
    ),
    "job": (
        "16 hexadecimal digits or empty",
        lambda value: isinstance(value, str) and bool(re.fullmatch("([0-9a-f]{16})?", value)),
    ),
    "version": (f"{VERSION}", lambda value: type(value) is int and value == VERSION),
}
