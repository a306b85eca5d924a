"""Plain text as tokens: the bundled one or any file, byte by byte."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hybrid_jax.data.bytes import NUM_BYTES
from hybrid_jax.data.contents import read_blocks
from hybrid_jax.data.entries import expand, kind, stamp
from hybrid_jax.data.header import HEADER, STARTS, TOKENS
from hybrid_jax.data.source import TokenSource
from hybrid_jax.errors import UserError, nearest

BUNDLED = "kjv"
# How far from where it was asked for a text may be cut: more than any book of the bundled one.
_FAR_BYTES = 1 << 20
# What begins so has bytes that a model cannot learn, and would train on them without a word.
_PACKED = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "bzip2": re.compile(rb"BZh[1-9]1AY&SY"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
    "zip": re.compile(rb"PK\x03\x04"),
    "parquet": re.compile(rb"PAR1"),
}


@dataclass(frozen=True)
class TextSource(TokenSource):
    """A text as one document of byte tokens, split where a piece of it ends.

    Attributes:
      boundary: what a piece ends with: a line break, or the blank lines between two books.
    """

    boundary: bytes = b"\n"

    def cut_near(self, target: int) -> int:
        """Returns the start of the piece nearest to `target`, or `target` if none is near."""
        low = max(0, target - _FAR_BYTES)
        around = self.tokens[low : target + _FAR_BYTES].tobytes()
        here, length = target - low, len(self.boundary)
        # What ends with the text itself is followed by no piece.
        last = len(around) - (length if low + len(around) == self.num_tokens else 0)
        before = around.rfind(self.boundary, 0, min(here, last))
        found = (before, around.find(self.boundary, here, last))
        starts = [low + index + length for index in found if index >= 0]
        return min(starts, key=lambda start: abs(start - target), default=target)


def read_text(name: str = BUNDLED) -> TextSource:
    """Returns a text as byte tokens.

    It is split (`TokenSource.split`) between two books of the bundled text, between two lines of
    any other, as near to the fraction as these allow; in a file without line breaks, exactly there.

    >>> train, held_out = read_text("kjv").split(0.05)
    >>> train.num_tokens, held_out.num_tokens
    (3943953, 209319)
    >>> held_out.tokens[:12].tobytes()
    b'Colossians 1'

    Args:
      name: "kjv" (see `README.md` in this folder) or the path of a file. Any bytes are text, but
        for those of a compressed file or of a prepared corpus.

    Raises:
      UserError: no such file, nothing in it, or one whose bytes are no text.
    """
    if name == BUNDLED:
        packed = resources.files("hybrid_jax.data").joinpath("kjv.txt.xz").read_bytes()
        text = lzma.decompress(packed)
        tokens, boundary = np.frombuffer(text, np.uint8), b"\n\n\n"
        fingerprint = hashlib.blake2b(text, digest_size=8).hexdigest()
    else:
        (tokens, fingerprint), boundary = _map(name), b"\n"
    return TextSource(
        name=name,
        tokens=tokens,
        starts=np.zeros(1, np.int64),
        vocab_size=NUM_BYTES,
        num_bytes=len(tokens),
        fingerprint=fingerprint,
        boundary=boundary,
        verified=True,  # no byte can be wrong
    )


def _map(name: str) -> tuple[np.ndarray, str]:
    """The bytes of a file and their fingerprint."""
    path = expand(name)
    found = kind(path)
    if found == "folder":
        raise UserError(
            f"{name!r} is a folder, and no prepared corpus: give the path of one text file in it, "
            "or of a folder that `hybrid-jax data prepare` wrote."
        )
    if found == "nothing":
        raise UserError(_missing(name, path))
    if path.name in (TOKENS, STARTS) and kind(path.with_name(HEADER)) == "file":
        raise UserError(f"{name!r} is a file of a prepared corpus: give its folder.")
    try:
        with path.open("rb") as file:
            _check_unpacked(name, file)
            fingerprint = _fingerprint(name, file)
            return np.memmap(file, np.uint8, mode="r"), fingerprint
    except OSError as error:
        raise UserError(
            f"the text {name!r} cannot be read: {error.strerror}; choose another."
        ) from None


def _check_unpacked(name: str, file: BinaryIO) -> None:
    first = file.read(16)
    for packing, pattern in _PACKED.items():
        if pattern.match(first):
            raise UserError(
                f"the text {name!r} is a {packing} file, whose bytes are no text: unpack it, or "
                "give .gz, .xz and .parquet files to `hybrid-jax data prepare`."
            )


def _fingerprint(name: str, file: BinaryIO) -> str:
    before = os.fstat(file.fileno())
    digest, blank = hashlib.blake2b(digest_size=8), True
    file.seek(0)
    for block in read_blocks(file):
        digest.update(block)
        blank = blank and not bytes(block).strip()
    if stamp(os.fstat(file.fileno())) != stamp(before):
        raise UserError(
            f"the text {name!r} changed while it was read: let its writer finish first."
        )
    if blank:
        raise UserError(f"the text {name!r} is empty ({before.st_size} bytes): choose another.")
    return digest.hexdigest()


def _missing(name: str, path: Path) -> str:
    remedy = (
        f"give the path of a text file or of a prepared corpus, or {BUNDLED!r} for the bundled "
        "text."
    )
    if kind(path.parent) != "folder":
        return f"no text {name!r}: the folder {str(path.parent)!r} does not exist; {remedy}"
    names = sorted(entry.name for entry in path.parent.iterdir())
    return f"no text {name!r}: {remedy}{nearest(path.name, [*names, BUNDLED])}"
