"""A text as tokens: what every reader produces and every batch is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hybrid_jax.config.checks import check_number
from hybrid_jax.errors import UserError


@dataclass(frozen=True)
class TokenSource:
    """A sequence of tokenized documents, in memory or memory-mapped.

    >>> source = TokenSource("x", np.arange(6), np.array([0, 4]), vocab_size=6, num_bytes=6)
    >>> source.num_tokens, source.num_documents
    (6, 2)
    >>> train, held_out = source.split(1 / 3)
    >>> train.tokens.tolist(), held_out.tokens.tolist()
    ([0, 1, 2, 3], [4, 5])

    Attributes:
      name: for messages: a path, or the name of a bundled text.
      tokens: integers [num_tokens]; never copied.
      starts: int64 [num_documents], the index of every document's first token; the first is 0.
      vocab_size: every token is below it.
      num_bytes: of the text, for losses in bits per byte.
      tokenizer: "bytes", or the path of the `tokenizer.json` that made the tokens.
      fingerprint: changes with the tokens; a resumed run must find the one it was started with.
      verified: whether tokens and starts have been read whole and are what they should be.
    """

    name: str
    tokens: np.ndarray
    starts: np.ndarray
    vocab_size: int
    num_bytes: int
    tokenizer: str = "bytes"
    fingerprint: str = ""
    verified: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents together."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Documents, at least one."""
        return len(self.starts)

    def split(self, fraction: float) -> tuple[TokenSource, TokenSource]:
        """Returns (train, held out), cut where about `fraction` of the tokens is left.

        A document is never cut, unless there is only one.

        Raises:
          UserError: a fraction out of (0, 1), or a part with fewer than 2 tokens.
        """
        check_number("validation_fraction", fraction, "(0, 1)")
        cut = self.cut_near(round(self.num_tokens * (1 - fraction)))
        if min(cut, self.num_tokens - cut) < 2:
            raise UserError(
                f"{self.name!r} has {self.num_tokens} tokens, split into {cut} to train on and "
                f"{self.num_tokens - cut} held out (data.validation_fraction={fraction}); each "
                "part needs at least 2: use a longer text or another fraction."
            )
        inner = self.starts[np.searchsorted(self.starts, cut, side="right") :]
        train = self.first(cut)
        held_out = replace(
            self,
            tokens=self.tokens[cut:],
            starts=np.concatenate([[0], inner - cut]),
            num_bytes=self.num_bytes - train.num_bytes,
        )
        return train, held_out

    def cut_near(self, target: int) -> int:
        """Returns the index, near `target`, of a token where the source may be split in two."""
        inner = self.starts[1:]
        return int(inner[np.abs(inner - target).argmin()]) if len(inner) else target

    def first(self, num_tokens: int) -> TokenSource:
        """Returns the first `num_tokens` tokens, or all; bytes are counted in proportion."""
        tokens = self.tokens[:num_tokens]
        return replace(
            self,
            tokens=tokens,
            starts=self.starts[: np.searchsorted(self.starts, len(tokens))],
            num_bytes=round(self.num_bytes * len(tokens) / self.num_tokens),
        )
