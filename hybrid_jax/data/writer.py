"""Writes token files, one document after the other, in bounded memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from hybrid_jax.data.header import (
    HEADER,
    MAX_VOCAB,
    START_DTYPE,
    STARTS,
    TOKENS,
    Header,
    smallest_dtype,
)
from hybrid_jax.data.source import TokenSource
from hybrid_jax.errors import UserError

BLOCK_TOKENS = 1 << 20


class TokenWriter:
    """Writes documents to a new corpus; the header, which makes it one, comes last.

    >>> import tempfile
    >>> from hybrid_jax.data.tokens import open_tokens
    >>> folder = Path(tempfile.mkdtemp())
    >>> with TokenWriter(folder, vocab_size=300) as writer:
    ...     writer.append([72, 105, 299], num_bytes=2)
    ...     _ = writer.finish()
    >>> open_tokens(folder).tokens
    memmap([ 72, 105, 299], dtype=uint16)

    Args:
      folder: where to write; made if it is missing.
      vocab_size: every token must be below it.
      tokenizer: "bytes", or the name of a file in `folder`.

    Raises:
      UserError: the folder holds a corpus already, or a vocabulary that batches cannot hold.
    """

    def __init__(self, folder: Path, *, vocab_size: int, tokenizer: str = "bytes") -> None:
        if (folder / HEADER).exists():
            raise UserError(f"{folder} holds a corpus already: write to another folder.")
        if not 1 <= vocab_size <= MAX_VOCAB:
            raise UserError(f"vocab_size={vocab_size}: must be from 1 to {MAX_VOCAB}.")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.vocab_size, self.tokenizer = folder, vocab_size, tokenizer
        self.num_tokens = self.num_documents = self.num_bytes = self.num_skipped = 0
        self._dtype = smallest_dtype(vocab_size)
        self._hash, self._starts_hash = hashlib.sha256(), hashlib.sha256()
        self._tokens = (folder / TOKENS).open("wb")
        self._starts = (folder / STARTS).open("wb")

    def append(
        self, tokens: ArrayLike, *, num_bytes: int, where: Callable[[], str] | None = None
    ) -> None:
        """Writes one document: its tokens [T], the last of them its end-of-text token.

        Args:
          tokens: integers.
          num_bytes: of its text, at least 1.
          where: says where the document is from, for messages.

        Raises:
          UserError: no token, no integers, a token outside the vocabulary, or no bytes.
        """
        array = np.asarray(tokens)
        name = where or (lambda: f"document {self.num_documents}")
        if not array.size:
            raise UserError(f"{name()}: no tokens; leave the document out.")
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise UserError(
                f"{name()}: tokens are {array.dtype} of shape {array.shape}: give integers in one "
                "dimension."
            )
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self.vocab_size:
            raise UserError(
                f"{name()}: token {low if low < 0 else high} is outside the vocabulary, 0 to "
                f"{self.vocab_size - 1}: use the tokenizer that belongs to these tokens."
            )
        if num_bytes < 1:
            raise UserError(f"{name()}: num_bytes={num_bytes}: must be at least 1.")
        self._write(array, np.zeros(1, START_DTYPE))
        self.num_bytes += num_bytes

    def extend(self, source: TokenSource) -> None:
        """Writes all documents of another corpus with the same vocabulary."""
        assert source.vocab_size == self.vocab_size, source.name
        self._write(source.tokens, source.starts)
        self.num_bytes += source.num_bytes

    def _write(self, tokens: np.ndarray, starts: np.ndarray) -> None:
        for i in range(0, len(starts), BLOCK_TOKENS):
            written = (starts[i : i + BLOCK_TOKENS] + self.num_tokens).tobytes()
            self._starts.write(written)
            self._starts_hash.update(written)
        for i in range(0, len(tokens), BLOCK_TOKENS):
            block = np.ascontiguousarray(tokens[i : i + BLOCK_TOKENS], self._dtype).data
            self._tokens.write(block)
            self._hash.update(block)
        self.num_tokens += len(tokens)
        self.num_documents += len(starts)

    def finish(self, *, sources: tuple[str, ...] = (), job: str = "") -> Header:
        """Writes the header and returns it; the files are on disk when it is."""
        for file in (self._tokens, self._starts):
            file.flush()
            os.fsync(file.fileno())
        header = Header(
            num_tokens=self.num_tokens,
            num_documents=self.num_documents,
            num_bytes=self.num_bytes,
            num_skipped=self.num_skipped,
            vocab_size=self.vocab_size,
            dtype=self._dtype.name,
            tokenizer=self.tokenizer,
            fingerprint=self._hash.hexdigest(),
            starts_fingerprint=self._starts_hash.hexdigest(),
            sources=sources,
            job=job,
        )
        header.write(self.folder)
        return header

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tokens.close()
        self._starts.close()
