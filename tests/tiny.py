"""The models and batches that many tests share: the smallest that still have every part."""

import numpy as np

from hybrid_jax.models import Decoder, preset

VOCAB, LENGTH = 64, 8


def decoder(style: str = "llama", **overrides) -> Decoder:
    """Four layers of width 16: tied "gpt2", or untied "llama" with fewer key than query heads."""
    sizes = {
        "vocab_size": VOCAB,
        "num_layers": 4,
        "embed_dim": 16,
        "num_heads": 4,
        "num_kv_heads": 4 if style == "gpt2" else 2,
        "mlp_dim": 32,
        "max_length": 16,
    }
    return Decoder(preset("nano", style=style, **{**sizes, **overrides}))


def plain_batch(size: int = 8, length: int = LENGTH, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens and targets [size, length], every token of weight one."""
    tokens, targets = np.random.default_rng(seed).integers(0, VOCAB, (2, size, length), np.int32)
    return {"tokens": tokens, "targets": targets}


def ragged_batch(size: int = 8, length: int = LENGTH, seed: int = 0) -> dict[str, np.ndarray]:
    """Two packed documents in each row, cut where it falls; weights that are zero or fractions.

    The last row counts for nothing at all, and the rows before it differ in weight by far, so that
    a mean over rows, microbatches or devices is not the mean over weights.
    """
    rng = np.random.default_rng(seed)
    cut = rng.integers(1, length, (size, 1))
    column = np.arange(length)
    second = column >= cut
    weights = rng.uniform(0.1, 2.0, (size, length)) * (rng.random((size, length)) < 0.7)
    weights *= np.arange(size)[::-1, None] if size > 1 else 1
    return {
        **plain_batch(size, length, seed),
        "weights": weights.astype(np.float32),
        "segment_ids": second.astype(np.int32),
        "positions": np.where(second, column - cut, column).astype(np.int32),
    }
