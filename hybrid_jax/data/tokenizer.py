"""What turns text into tokens and back: bytes, or a `tokenizer.json` of Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from hybrid_jax.data.bpe import FILE_NAME, TrainedTokenizer
from hybrid_jax.data.bytes import ByteTokenizer
from hybrid_jax.data.entries import expand, kind
from hybrid_jax.errors import UserError, nearest


class Tokenizer(Protocol):
    """A reversible map from text to tokens.

    Attributes:
      name: "bytes", or the path of the file it was loaded from.
      vocab_size: every token is below it.
      eos: the end-of-text token, which ends every document and is never part of a text.
    """

    @property
    def name(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos(self) -> int: ...

    def encode(self, text: str, /) -> np.ndarray:
        """Returns the tokens of `text`, int32 [T], without special tokens."""
        ...

    def decode(self, tokens: ArrayLike, /) -> str:
        """Returns the text of `tokens` [T], without special tokens."""
        ...


def load_tokenizer(name: str | Path) -> Tokenizer:
    """Loads a tokenizer by name.

    >>> load_tokenizer("bytes").vocab_size
    259

    Args:
      name: "bytes", or the path of a `tokenizer.json` or of a folder that holds one.

    Raises:
      UserError: no such file, a damaged one, one without an end-of-text token, or the package
        `tokenizers` is missing.
    """
    if str(name) == ByteTokenizer.name:
        return ByteTokenizer()
    path = expand(name)
    if kind(path) == "folder":
        path = path / FILE_NAME
    if kind(path) == "nothing":
        raise UserError(
            f"no tokenizer {str(name)!r}: give the path of a {FILE_NAME} or of its folder, or "
            f"{ByteTokenizer.name!r}.{nearest(str(name), [ByteTokenizer.name])}"
        )
    return TrainedTokenizer(path)
