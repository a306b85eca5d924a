"""Plain text as tokens: the bundled one or any file, byte by byte."""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from hybrid_jax.data.bytes import NUM_BYTES
from hybrid_jax.data.source import TokenSource
from hybrid_jax.errors import UserError, nearest

BUNDLED = "kjv"
# How far from where it was asked for a text may be cut: more than any book of the bundled one.
_FAR_BYTES = 1 << 20


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
      name: "kjv" (see `README.md` in this folder) or the path of a file. Any bytes are text.

    Raises:
      UserError: no such file, or nothing in it.
    """
    if name == BUNDLED:
        packed = resources.files("hybrid_jax.data").joinpath("kjv.txt.xz").read_bytes()
        tokens, boundary = np.frombuffer(lzma.decompress(packed), np.uint8), b"\n\n\n"
    else:
        tokens, boundary = _map(name), b"\n"
    return TextSource(
        name=name,
        tokens=tokens,
        starts=np.zeros(1, np.int64),
        vocab_size=NUM_BYTES,
        num_bytes=len(tokens),
        fingerprint=hashlib.blake2b(tokens.data, digest_size=8).hexdigest(),
        boundary=boundary,
    )


def _map(name: str) -> np.ndarray:
    path = Path(name).expanduser()
    if path.is_dir():
        raise UserError(
            f"{name!r} is a folder, and no prepared corpus: give the path of one text file in it, "
            "or of a folder that `hybrid-jax data prepare` wrote."
        )
    if not path.is_file():
        raise UserError(_missing(name, path))
    try:
        tokens = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0)
    except OSError as error:
        raise UserError(
            f"the text {name!r} cannot be read: {error.strerror}; choose another."
        ) from None
    pieces = (tokens[first : first + 4096] for first in range(0, len(tokens), 4096))
    if not any(piece.tobytes().strip() for piece in pieces):
        raise UserError(f"the text {name!r} is empty ({len(tokens)} bytes): choose another.")
    return tokens


def _missing(name: str, path: Path) -> str:
    remedy = (
        f"give the path of a text file or of a prepared corpus, or {BUNDLED!r} for the bundled "
        "text."
    )
    if not path.parent.is_dir():
        return f"no text {name!r}: the folder {str(path.parent)!r} does not exist; {remedy}"
    names = sorted(entry.name for entry in path.parent.iterdir())
    return f"no text {name!r}: {remedy}{nearest(path.name, [*names, BUNDLED])}"
