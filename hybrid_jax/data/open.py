"""From a name in a configuration to tokens, checked against each other and the model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hybrid_jax.data.source import TokenSource
from hybrid_jax.data.text import BUNDLED, read_text
from hybrid_jax.data.tokens import open_tokens
from hybrid_jax.errors import UserError


def open_source(name: str = BUNDLED) -> TokenSource:
    """Returns a bundled text, a text file or a corpus that `hybrid-jax data prepare` wrote.

    >>> open_source("kjv").num_tokens
    4153272

    Args:
      name: "kjv", or the path of a file or of a folder with a `header.json`.

    Raises:
      UserError: nothing there, or nothing that can be read.
    """
    if name != BUNDLED and (Path(name).expanduser() / "header.json").is_file():
        return open_tokens(name)
    return read_text(name)


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
    tokens = source.tokens
    # Whoever wrote a file counted its vocabulary; small types cannot break the rule.
    if isinstance(tokens, np.memmap) or np.iinfo(tokens.dtype).max < source.vocab_size:
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= source.vocab_size:
        raise UserError(
            f"{source.name!r} has token {low if low < 0 else high}, but tokens must be from 0 to "
            f"{source.vocab_size - 1} (vocab_size={source.vocab_size}): give it the vocab_size of "
            "the tokenizer that made it."
        )


def _identity(tokenizer: str) -> str:
    """What two names of one tokenizer share: every prepared corpus has a copy of its own."""
    file = Path(tokenizer)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else tokenizer
