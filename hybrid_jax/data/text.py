"""Text corpora: the bundled one or any file, as byte tokens with a held-out part."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from hybrid_jax.data.bytes import NUM_BYTES
from hybrid_jax.errors import UserError, nearest

BUNDLED = "kjv"


@dataclass(frozen=True)
class Corpus:
    """A text as tokens, the end of it held out.

    Attributes:
      name: what `load_corpus` was asked for.
      train: byte tokens, uint8 [num_train].
      validation: the held-out byte tokens, uint8 [num_validation].
    """

    name: str
    train: np.ndarray
    validation: np.ndarray


def load_corpus(source: str = BUNDLED, validation_fraction: float = 0.05) -> Corpus:
    """Loads a text and holds out its end.

    The cut falls between two books of the bundled text, between two lines of any other text, as
    near to the fraction as these allow; in a file without line breaks, exactly there.

    >>> corpus = load_corpus("kjv")
    >>> corpus.train.size, corpus.validation.size
    (3943953, 209319)
    >>> corpus.validation[:12].tobytes()
    b'Colossians 1'

    Args:
      source: "kjv" (see `README.md` in this folder) or the path of a file. Any bytes are text.
      validation_fraction: share of the bytes to hold out, more than 0 and less than 1.

    Raises:
      UserError: no such file, too little in it to be split, or a fraction out of range.
    """
    if not 0 < validation_fraction < 1:
        raise UserError(
            f"validation_fraction={validation_fraction}: must be more than 0 and less than 1, "
            "the share of the text to hold out."
        )
    if source == BUNDLED:
        packed = resources.files("hybrid_jax.data").joinpath("kjv.txt.xz").read_bytes()
        text, boundary = lzma.decompress(packed), b"\n\n\n"
    else:
        text, boundary = _read(source), b"\n"
    cut = _nearest_boundary(text, boundary, round(len(text) * (1 - validation_fraction)))
    tokens = np.frombuffer(text, np.uint8)
    if min(cut, len(text) - cut) < 2:
        raise UserError(
            f"{source!r} has {len(text)} bytes, split into {cut} to train on and "
            f"{len(text) - cut} held out (validation_fraction={validation_fraction}); each part "
            "needs at least 2: use a longer text or another fraction."
        )
    return Corpus(source, tokens[:cut], tokens[cut:])


def unigram_loss(train: np.ndarray, validation: np.ndarray) -> float:
    """Returns the held-out loss, in nats per byte, of byte frequencies alone.

    The frequencies are those of `train` plus one of each byte, so that a byte first met in
    `validation` costs much but not infinitely. A language model has to do better than this.

    >>> corpus = load_corpus("kjv")
    >>> round(unigram_loss(corpus.train, corpus.validation), 3)
    3.015
    """
    counts = np.bincount(train, minlength=NUM_BYTES) + 1.0
    nll = np.log(counts.sum()) - np.log(counts)
    return float(nll[validation].mean())


def _read(source: str) -> bytes:
    path = Path(source).expanduser()
    if path.is_file():
        text = path.read_bytes()
        if not text.strip():
            raise UserError(f"the text {source!r} is empty ({len(text)} bytes): choose another.")
        return text
    if path.is_dir():
        raise UserError(f"{source!r} is a folder: give the path of one text file in it.")
    if not path.parent.is_dir():
        raise UserError(
            f"no text {source!r}: the folder {str(path.parent)!r} does not exist. Give the path of "
            f"a text file, or {BUNDLED!r} for the bundled text."
        )
    files = sorted(file.name for file in path.parent.iterdir() if file.is_file())
    raise UserError(
        f"no text {source!r}: give the path of a text file, or {BUNDLED!r} for the bundled text."
        f"{nearest(path.name, [*files, BUNDLED])}"
    )


def _nearest_boundary(text: bytes, boundary: bytes, target: int) -> int:
    """Returns the start of the piece nearest to `target`, or `target` where there is only one."""
    before = text.rfind(boundary, 0, target)
    after = text.find(boundary, target, len(text) - len(boundary))
    starts = [found + len(boundary) for found in (before, after) if found >= 0]
    return min(starts, key=lambda start: abs(start - target), default=target)
