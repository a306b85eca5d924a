"""From a name in a configuration to tokens, checked against each other and the model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hybrid_jax.data.entries import expand, kind
from hybrid_jax.data.header import HEADER
from hybrid_jax.data.source import TokenSource
from hybrid_jax.data.text import BUNDLED, read_text
from hybrid_jax.data.tokens import open_tokens
from hybrid_jax.errors import UserError

BLOCK_TOKENS = 1 << 20


def open_source(name: str = BUNDLED) -> TokenSource:
    """Returns a bundled text, a text file or a corpus that `hybrid-jax data prepare` wrote.

    A corpus is read whole and compared with its checksums, unless this user has done so before
    (`open_tokens(..., verify="once")`).

    >>> open_source("kjv").num_tokens
    4153272

    Args:
      name: "kjv", or the path of a file or of a folder with a `header.json`.

    Raises:
      UserError: nothing there, nothing that can be read, or a damaged corpus.
    """
    if name != BUNDLED and _is_corpus(expand(name)):
        return open_tokens(name, verify="once")
    return read_text(name)


def _is_corpus(path: Path) -> bool:
    return kind(path) == "folder" and kind(path / HEADER) != "nothing"


def check_sources(sources: Sequence[TokenSource], vocab_size: int) -> None:
    """Raises a UserError unless a model with `vocab_size` tokens can read all `sources` as one.

    >>> check_sources([read_text("kjv")], vocab_size=200)
    Traceback (most recent call last):
    hybrid_jax.errors.UserError: model.vocab_size=200 must be at least 256, the vocabulary of 'kjv'.
    """
    for source in sources:
        if source.vocab_size > vocab_size:
            raise UserError(
                f"model.vocab_size={vocab_size} must be at least {source.vocab_size}, the "
                f"vocabulary of {source.name!r}."
            )
        _check_tokens(source)
    first = sources[0]
    for other in sources[1:]:
        if _identity(other.tokenizer) != _identity(first.tokenizer):
            raise UserError(
                f"{first.name!r} and {other.name!r} were made with different tokenizers, "
                f"{first.tokenizer} and {other.tokenizer}: prepare one of them again with the "
                "tokenizer of the other."
            )


def _check_tokens(source: TokenSource) -> None:
    """What `verify_files` does for files, for arrays that anyone may have made."""
    if source.verified:
        return
    tokens, starts = source.tokens, source.starts
    for name, array in {"tokens": tokens, "starts": starts}.items():
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise UserError(
                f"{source.name!r}: {name} are {array.dtype} of shape {array.shape}, but must be "
                "integers in one dimension."
            )
    if (
        len(starts) < 1
        or starts[0] != 0
        or starts[-1] >= len(tokens)
        or (np.diff(starts) < 1).any()
    ):
        raise UserError(
            f"{source.name!r}: starts must rise from 0 and stay below its {len(tokens):,} tokens: "
            "give the index of each document's first token."
        )
    if np.iinfo(tokens.dtype).max < source.vocab_size and np.iinfo(tokens.dtype).min == 0:
        return
    for first in range(0, len(tokens), BLOCK_TOKENS):
        block = tokens[first : first + BLOCK_TOKENS]
        wrong = (block < 0) | (block >= source.vocab_size)
        if wrong.any():
            i = int(wrong.argmax())
            raise UserError(
                f"{source.name!r} has token {block[i]} at index {first + i:,}, but tokens must be "
                f"from 0 to {source.vocab_size - 1} (vocab_size={source.vocab_size}): give it the "
                "vocab_size of the tokenizer that made it."
            )


def _identity(tokenizer: str) -> str:
    """What two names of one tokenizer share: every prepared corpus has a copy of its own."""
    file = Path(tokenizer)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else tokenizer
