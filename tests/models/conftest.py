"""Tiny decoders with random parameters, in both styles."""

import jax
import numpy as np
import pytest

from hybrid_jax.models import Decoder, preset

BATCH, LENGTH, VOCAB = 3, 12, 29


def decoder(style, **overrides):
    """A decoder of 2 layers with grouped heads and sizes that are all different."""
    sizes = {
        "vocab_size": VOCAB,
        "num_layers": 2,
        "embed_dim": 16,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 6,
        "mlp_dim": 20,
        "max_length": LENGTH,
    }
    return Decoder(preset("nano", style, **{**sizes, **overrides}))


def random_params(model, seed=0):
    """Parameters of order one, biases and scales too, so that every one of them matters."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape, scale=0.4).astype("f4"), shapes)


def random_batch(seed=1, batch=BATCH, length=LENGTH):
    """Random tokens and targets with ragged weights."""
    rng = np.random.default_rng(seed)
    return {
        "tokens": rng.integers(0, VOCAB, (batch, length), dtype=np.int32),
        "targets": rng.integers(0, VOCAB, (batch, length), dtype=np.int32),
        "weights": rng.uniform(size=(batch, length)).astype("f4"),
        "example": np.arange(batch, dtype=np.int32),
    }


@pytest.fixture(params=["gpt2", "llama"])
def style(request):
    """Both families."""
    return request.param
