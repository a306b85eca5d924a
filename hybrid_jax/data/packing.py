"""Documents packed into rows of one length, found by their number and made many at once."""

from __future__ import annotations

import numpy as np

from hybrid_jax.data.source import TokenSource

Batch = dict[str, np.ndarray]


class Rows:
    """The documents of a source end to end, cut into rows of `seq_len` tokens.

    Row i holds tokens[i * seq_len : (i + 1) * seq_len] and, as targets, the tokens that follow each
    of them, so every token but the first is a target in exactly one row. Where several documents
    are packed, a row says which token is of which: `segment_ids` count documents from 0 and
    `positions` restart at 0, both anew in each row, and the weight of a target that belongs to the
    next document is 0.

    >>> source = TokenSource("x", np.arange(9), np.array([0, 3]), vocab_size=9, num_bytes=9)
    >>> rows = Rows(source, seq_len=4)
    >>> rows.num_full, rows.num_rows
    (2, 2)
    >>> {name: array.tolist() for name, array in rows.take(np.array([0])).items()}
    ... # doctest: +NORMALIZE_WHITESPACE
    {'tokens': [[0, 1, 2, 3]], 'targets': [[1, 2, 3, 4]], 'weights': [[1.0, 1.0, 0.0, 1.0]],
     'segment_ids': [[0, 0, 0, 1]], 'positions': [[0, 1, 2, 0]]}

    Args:
      source: read where a row needs it, never copied.
      seq_len: tokens in a row.
      packed: whether rows have `segment_ids` and `positions`; None: if there are several documents.

    Attributes:
      num_full: rows whose every token has a target.
      num_rows: rows with any target; the last may have tokens 0 of weight 0 at its end.
    """

    def __init__(self, source: TokenSource, seq_len: int, packed: bool | None = None) -> None:
        self.seq_len = seq_len
        self.packed = source.num_documents > 1 if packed is None else packed
        self.num_full = (source.num_tokens - 1) // seq_len
        self.num_rows = -(-(source.num_tokens - 1) // seq_len)
        # A plain view: indexing a memmap makes every result one, at a cost.
        self._tokens, self._starts = np.asarray(source.tokens), np.asarray(source.starts)

    def take(self, rows: np.ndarray) -> Batch:
        """Returns tokens, targets, weights and, if packed, segment_ids and positions of `rows` [B].

        All are [B, seq_len], weights float32, the others int32. A row past the last has weight 0.
        """
        indices = rows[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        exists = indices < len(self._tokens)
        if exists.all():
            spans = self._tokens[indices].astype(np.int32)
        else:
            spans = np.where(exists, self._tokens[np.where(exists, indices, 0)], 0).astype(np.int32)
        batch = {"tokens": spans[:, :-1], "targets": spans[:, 1:]}
        if not self.packed:
            return batch | {"weights": exists[:, 1:].astype(np.float32)}
        begins = self._begins(rows * self.seq_len)
        columns = np.arange(self.seq_len, dtype=np.int32)
        latest = np.maximum.accumulate(np.where(begins[:, :-1], columns, np.int32(0)), axis=1)
        return batch | {
            "weights": (exists & ~begins)[:, 1:].astype(np.float32),
            "segment_ids": np.cumsum(begins[:, :-1], axis=1, dtype=np.int32),
            "positions": columns - latest,
        }

    def _begins(self, firsts: np.ndarray) -> np.ndarray:
        """Whether another document begins at a token, [B, seq_len + 1], in rows from `firsts` [B].

        The document that a row begins with is not another one, wherever it began.
        """
        low = np.searchsorted(self._starts, firsts, side="right")
        high = np.searchsorted(self._starts, firsts + self.seq_len, side="right")
        counts = high - low
        row = np.repeat(np.arange(len(firsts)), counts)
        # Documents low[r], ..., high[r] - 1 of every row r, one row after the other.
        documents = np.arange(counts.sum()) + np.repeat(low - (counts.cumsum() - counts), counts)
        begins = np.zeros((len(firsts), self.seq_len + 1), bool)
        begins[row, self._starts[documents] - firsts[row]] = True
        return begins
