"""The byte-level tokenizer: nothing to train, nothing to download, no text it cannot represent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

NUM_BYTES = 256


@dataclass(frozen=True)
class ByteTokenizer:
    """Maps text to its UTF-8 bytes: tokens 0 to 255, then the special tokens bos, eos and pad.

    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode("Ω!")
    array([206, 169,  33], dtype=int32)
    >>> tokenizer.decode([tokenizer.bos, 206, 169, 33, tokenizer.eos])
    'Ω!'
    """

    name = "bytes"
    bos = NUM_BYTES
    eos = NUM_BYTES + 1
    pad = NUM_BYTES + 2
    vocab_size = NUM_BYTES + 3

    def encode(self, text: str | bytes) -> np.ndarray:
        """Returns the tokens of `text`, int32 [T], without special tokens."""
        data = text.encode("utf-8") if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def decode_bytes(self, tokens: ArrayLike) -> bytes:
        """Returns the bytes of `tokens` [T]; tokens that are not bytes are left out."""
        array = np.asarray(tokens)
        return array[array < NUM_BYTES].astype(np.uint8).tobytes()

    def decode(self, tokens: ArrayLike) -> str:
        """Returns the text of `tokens` [T]; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")
