"""Batches of packed rows as pure functions of (sources, seed, step): no iterator state to save."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hybrid_jax.config.checks import check_weights
from hybrid_jax.data.order import row_order
from hybrid_jax.data.packing import Batch, Rows
from hybrid_jax.data.source import TokenSource
from hybrid_jax.errors import UserError


class Batches:
    """Training batches: rows of `seq_len` tokens, each seen once per epoch in a random order.

    `Rows` says what a row is. A source that does not fill its last row gives one row less. With
    several sources, each has epochs of its own and its weight is its share of the rows.

    The global batch of a step depends on nothing but (sources, weights, seed, step), so a resumed
    run, on any number of processes, sees what an uninterrupted one would have seen.

    >>> source = TokenSource("x", np.arange(9), np.array([0]), vocab_size=9, num_bytes=9)
    >>> batches = Batches(source, global_batch=1, seq_len=4)
    >>> sorted(batches.batch(step)["tokens"].tolist() for step in range(2))
    [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    >>> batches.fingerprint
    'seed=0 global_batch=1 seq_len=4 x[9]*1.0'

    Args:
      sources: one, or those of a mixture.
      global_batch: rows in a batch, over all devices and microbatches.
      seq_len: tokens in a row.
      seed: of the order of the rows, at least 0.
      weights: share of each source, together 1; may be left out for one source.

    Attributes:
      dataset: the same batches as a `grain.MapDataset`.
      num_rows: rows in an epoch of each source.

    Raises:
      UserError: too few tokens for a row, or weights that do not fit the sources.
    """

    def __init__(
        self,
        sources: TokenSource | Sequence[TokenSource],
        *,
        global_batch: int,
        seq_len: int,
        seed: int = 0,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.sources = _as_tuple(sources)
        if weights is None:
            weights = (1.0,) if len(self.sources) == 1 else ()
        self.weights = tuple(weights)
        _check_sizes(self.sources, global_batch, seq_len, needed=seq_len + 1)
        if seed < 0:
            raise UserError(f"seed={seed}: must be at least 0.")
        if len(self.weights) != len(self.sources):
            raise UserError(
                f"{len(self.sources)} sources have {len(self.weights)} weights: give one for each."
            )
        check_weights("weights", self.weights)
        self.global_batch, self.seq_len, self.seed = global_batch, seq_len, seed
        parts = _make_rows(self.sources, seq_len)
        self.num_rows = tuple(part.num_full for part in parts)
        # grain decides which rows; to fetch all rows of a batch at once is ours, and much faster
        # than one by one.
        order = row_order(self.num_rows, self.weights, seed)
        firsts = _firsts(self.num_rows)
        self.dataset = order.batch(global_batch).map(lambda rows: _take(parts, firsts, rows))

    def batch(self, step: int) -> Batch:
        """Returns tokens, targets, weights and, if packed, segment_ids and positions.

        All are [global_batch, seq_len], weights float32, the others int32. They are packed if any
        of the sources has several documents.
        """
        assert step >= 0, step
        batch = self.dataset[int(step)]
        assert batch is not None  # no row is ever filtered out
        return batch

    @property
    def fingerprint(self) -> str:
        """All that the batches depend on, in one line; runs with the same one see the same data."""
        sources = " ".join(
            f"{source.fingerprint or source.name}[{source.num_tokens}]*{weight}"
            for source, weight in zip(self.sources, self.weights, strict=True)
        )
        sizes = f"global_batch={self.global_batch} seq_len={self.seq_len}"
        return f"seed={self.seed} {sizes} {sources}"


class EvaluationBatches:
    """Held-out batches: all that follows a token is a target of weight 1 exactly once, in order.

    That is every token but the first of a source, or of a document where several are packed. The
    last row of a source and the last batch are filled up with token 0 of weight 0, so that all
    batches have one shape. Iterating gives the `len(batches)` batches, the same each time.

    >>> source = TokenSource("x", np.arange(8), np.array([0]), vocab_size=8, num_bytes=8)
    >>> batches = EvaluationBatches(source, global_batch=2, seq_len=3)
    >>> len(batches)
    2
    >>> batches.batch(1)["targets"].tolist(), batches.batch(1)["weights"].tolist()
    ([[7, 0, 0], [0, 0, 0]], [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])

    Args:
      sources: one, or several, which come one after the other.
      global_batch: rows in a batch.
      seq_len: tokens in a row.

    Raises:
      UserError: a source with fewer than 2 tokens.
    """

    def __init__(
        self, sources: TokenSource | Sequence[TokenSource], *, global_batch: int, seq_len: int
    ) -> None:
        self.sources = _as_tuple(sources)
        _check_sizes(self.sources, global_batch, seq_len, needed=2)
        self.global_batch = global_batch
        self._parts = _make_rows(self.sources, seq_len)
        num_rows = [part.num_rows for part in self._parts]
        self._firsts, self._num_rows = _firsts(num_rows), sum(num_rows)

    def __len__(self) -> int:
        return -(-self._num_rows // self.global_batch)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, range(len(self)))

    def batch(self, index: int) -> Batch:
        """Returns a batch with the keys, shapes and dtypes of `Batches.batch`."""
        assert 0 <= index < len(self), index
        rows = np.arange(index * self.global_batch, (index + 1) * self.global_batch)
        return _take(self._parts, self._firsts, rows)


def _as_tuple(sources: TokenSource | Sequence[TokenSource]) -> tuple[TokenSource, ...]:
    return (sources,) if isinstance(sources, TokenSource) else tuple(sources)


def _make_rows(sources: Sequence[TokenSource], seq_len: int) -> list[Rows]:
    packed = any(source.num_documents > 1 for source in sources)
    return [Rows(source, seq_len, packed) for source in sources]


def _firsts(num_rows: Sequence[int]) -> np.ndarray:
    """The number of each source's first row where rows are numbered through."""
    return np.cumsum([0, *num_rows[:-1]])


def _take(parts: Sequence[Rows], firsts: np.ndarray, rows: np.ndarray) -> Batch:
    """The batch of `rows` [B], numbered through all parts; rows past the end are empty ones."""
    owners = np.searchsorted(firsts, rows, side="right") - 1
    batch: Batch = {}
    for owner in np.unique(owners):
        mine = owners == owner
        for name, array in parts[owner].take(rows[mine] - firsts[owner]).items():
            whole = batch.setdefault(name, np.empty((len(rows), array.shape[1]), array.dtype))
            whole[mine] = array
    return batch


def _check_sizes(
    sources: Sequence[TokenSource], global_batch: int, seq_len: int, *, needed: int
) -> None:
    if global_batch < 1 or seq_len < 1:
        raise UserError(f"global_batch={global_batch}, seq_len={seq_len}: both must be at least 1.")
    if not sources:
        raise UserError("no sources: give at least one.")
    for source in sources:
        if source.num_tokens < needed:
            raise UserError(
                f"{source.name!r} has {source.num_tokens} tokens, but one row with "
                f"seq_len={seq_len} needs {needed}: use a longer text or a smaller seq_len."
            )
