"""The loss of token frequencies: what a language model has to do better than."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from hybrid_jax.data.batches import Batches
from hybrid_jax.data.packing import Batch

# A source with more tokens than this is counted in evenly spaced pieces of it.
_SAMPLE_TOKENS, _PIECE_TOKENS = 1 << 24, 1 << 16


def unigram_loss(batches: Batches, held_out: Iterable[Batch]) -> float:
    """Returns the held-out loss, in nats per token, of token frequencies alone.

    The frequencies are those of the training sources, mixed by weight, plus one of each token, so
    that a token first met in `held_out` costs much but not infinitely.

    >>> from hybrid_jax.data.batches import EvaluationBatches
    >>> from hybrid_jax.data.text import read_text
    >>> train, held_out = read_text("kjv").split(0.05)
    >>> sizes = {"global_batch": 16, "seq_len": 128}
    >>> round(unigram_loss(Batches(train, **sizes), EvaluationBatches(held_out, **sizes)), 3)
    3.015

    Args:
      batches: the training batches; their sources are counted.
      held_out: batches with `targets` and `weights` [B, T].
    """
    counts = _counts(batches) + 1.0
    nll = np.log(counts.sum()) - np.log(counts)
    loss_sum = weight_sum = 0.0
    for batch in held_out:
        loss_sum += float((nll[batch["targets"]] * batch["weights"]).sum())
        weight_sum += float(batch["weights"].sum())
    return loss_sum / weight_sum


def _counts(batches: Batches) -> np.ndarray:
    """Occurrences of each token [V], of all tokens counted as many as its source's weight says."""
    size = max(source.vocab_size for source in batches.sources)
    each = [
        np.bincount(_sample(source.tokens).astype(np.int64, copy=False), minlength=size)
        for source in batches.sources
    ]
    total = sum(counts.sum() for counts in each)
    shares = zip(each, batches.weights, strict=True)
    return np.sum([counts / counts.sum() * weight * total for counts, weight in shares], axis=0)


def _sample(tokens: np.ndarray) -> np.ndarray:
    if len(tokens) <= _SAMPLE_TOKENS:
        return np.asarray(tokens)
    firsts = np.linspace(0, len(tokens) - _PIECE_TOKENS, _SAMPLE_TOKENS // _PIECE_TOKENS)
    return np.concatenate([tokens[first : first + _PIECE_TOKENS] for first in firsts.astype(int)])
