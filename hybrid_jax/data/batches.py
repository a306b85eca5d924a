"""Batches of token windows as pure functions of (seed, step): no iterator state to save."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hybrid_jax.errors import UserError

Batch = dict[str, np.ndarray]


class Batches:
    """Training batches: windows of `seq_len` tokens, each seen once per epoch in a random order.

    Window i holds tokens[i * seq_len : (i + 1) * seq_len] and, as targets, the tokens that follow
    each of them. Epochs join without a gap: a batch may hold the last windows of one and the
    first of the next. The global batch of a step depends on nothing but (tokens, seed, step), so a
    resumed run, on any number of processes, sees what an uninterrupted one would have seen.

    >>> batches = Batches(np.arange(9), global_batch=1, seq_len=4, seed=0)
    >>> batches.num_windows
    2
    >>> sorted(batches.batch(step)["tokens"].tolist() for step in range(2))
    [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]

    Args:
      tokens: integers [num_tokens]; never copied, so it may be a memory map.
      global_batch: number of windows in a batch, over all devices and microbatches.
      seq_len: tokens per window.
      seed: of the order of the windows, at least 0.

    Raises:
      UserError: fewer tokens than one window and the target of its last token.
    """

    def __init__(self, tokens: np.ndarray, global_batch: int, seq_len: int, seed: int) -> None:
        _check_sizes(tokens, global_batch, seq_len, needed=seq_len + 1)
        if seed < 0:
            raise UserError(f"seed={seed}: must be at least 0.")
        self.tokens = tokens
        self.global_batch = global_batch
        self.seq_len = seq_len
        self.seed = seed
        self.num_windows = (len(tokens) - 1) // seq_len
        # The order of the latest epoch: a cache only, `batch` is a pure function all the same.
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def batch(self, step: int) -> Batch:
        """Returns tokens and targets, int32, and weights, f32, all [global_batch, seq_len]."""
        assert step >= 0, step
        epochs, positions = np.divmod(
            np.arange(step * self.global_batch, (step + 1) * self.global_batch), self.num_windows
        )
        windows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            windows[rows] = self._epoch_order(int(epoch))[positions[rows]]
        spans = self.tokens[windows[:, None] * self.seq_len + np.arange(self.seq_len + 1)]
        return _as_batch(spans, np.ones((self.global_batch, self.seq_len), np.float32))

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.num_windows)
            self._epoch, self._order = epoch, order
        return self._order


class EvaluationBatches:
    """Held-out batches: every token but the first is a target of weight 1 exactly once, in order.

    The last window and the last batch are filled up with token 0 of weight 0, so that all batches
    have one shape. Iterating gives the `len(batches)` batches, the same each time.

    >>> batches = EvaluationBatches(np.arange(8), global_batch=2, seq_len=3)
    >>> len(batches)
    2
    >>> batches.batch(1)["targets"].tolist(), batches.batch(1)["weights"].tolist()
    ([[7, 0, 0], [0, 0, 0]], [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])

    Args:
      tokens: integers [num_tokens].
      global_batch: number of windows in a batch.
      seq_len: tokens per window.

    Raises:
      UserError: fewer than 2 tokens.
    """

    def __init__(self, tokens: np.ndarray, global_batch: int, seq_len: int) -> None:
        _check_sizes(tokens, global_batch, seq_len, needed=2)
        self.tokens = tokens
        self.global_batch = global_batch
        self.seq_len = seq_len

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // (self.global_batch * self.seq_len))

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, range(len(self)))

    def batch(self, index: int) -> Batch:
        """Returns tokens and targets, int32, and weights, f32, all [global_batch, seq_len]."""
        assert 0 <= index < len(self), index
        windows = np.arange(index * self.global_batch, (index + 1) * self.global_batch)
        indices = windows[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        exists = indices < len(self.tokens)
        spans = np.where(exists, self.tokens[np.where(exists, indices, 0)], 0)
        return _as_batch(spans, exists[:, 1:].astype(np.float32))


def _as_batch(spans: np.ndarray, weights: np.ndarray) -> Batch:
    """Cuts spans [B, T + 1] into tokens and the targets one place further."""
    spans = spans.astype(np.int32)
    return {"tokens": spans[:, :-1], "targets": spans[:, 1:], "weights": weights}


def _check_sizes(tokens: np.ndarray, global_batch: int, seq_len: int, *, needed: int) -> None:
    if global_batch < 1 or seq_len < 1:
        raise UserError(f"global_batch={global_batch}, seq_len={seq_len}: both must be at least 1.")
    if len(tokens) < needed:
        raise UserError(
            f"the text has {len(tokens)} tokens, but one window with seq_len={seq_len} needs "
            f"{needed}: use a longer text or a smaller seq_len."
        )
