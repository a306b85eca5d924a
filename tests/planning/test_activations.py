"""Residuals by the formula against the leaves that the ring really stores."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.config.model import preset
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.models import Decoder
from hybrid_jax.models.attention import dot_product_attention
from hybrid_jax.pipeline.program import make_chunk
from hybrid_jax.pipeline.ring import plan_residuals
from hybrid_jax.planning.activations import residual_bytes, splits_sequence, widths

LAYERS, BATCH, LENGTH = 3, 2, 128


def stored_bytes(config, remat, implementation) -> int:
    """Bytes of what one chunk's forward keeps, traced as the executor traces it."""
    attention = partial(dot_product_attention, implementation=implementation)
    model = Decoder(config, attention)
    shapes = jax.eval_shape(model.init, jax.random.key(0))["blocks"]
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes)
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    ids = jax.ShapeDtypeStruct((LAYERS,), jnp.int32)
    chunk = make_chunk(lambda params, x, batch, *_: model.layer(params, x, batch), remat)

    def forward(known, x):
        params, *rest = known
        return jax.vjp(lambda params, x: chunk(params, x, *rest), params, x)

    x = jax.ShapeDtypeStruct((BATCH, LENGTH, config.embed_dim), jnp.bfloat16)
    known = (params, {"tokens": tokens}, ids, tokens)
    plan = plan_residuals(forward, known, x)  # pyright: ignore[reportArgumentType]
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in plan.stored)


@pytest.mark.parametrize("remat", ["none", "dots", "layer", "stage"])
@pytest.mark.parametrize("implementation", ["splash", "xla"])
@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_residuals_are_those_of_the_ring(style, implementation, remat):
    kv_heads = 4 if style == "llama" else 8
    sizes = {"embed_dim": 64, "num_heads": 8, "num_kv_heads": kv_heads, "mlp_dim": 160}
    config = preset("nano", style=style, num_layers=LAYERS, max_length=LENGTH, **sizes)
    strategy = Strategy(remat=remat)
    width = widths(config, strategy, BATCH, LENGTH)
    layer, chunk = residual_bytes(config, strategy.remat, width, fused=implementation == "splash")
    assert LAYERS * layer + chunk == stored_bytes(config, remat, implementation)


def test_sequence_parallelism_splits_the_stream_alone():
    config = preset("llama2-7b")
    plain = widths(config, Strategy(model=4), 1, 4096)
    split = widths(config, Strategy(model=4, rules="megatron+sp"), 1, 4096)
    assert split.stream == plain.stream // 4
    assert (split.mlp, split.heads, split.whole) == (plain.mlp, plain.heads, plain.whole)
    assert splits_sequence(Strategy(model=2, rules=(("norm_length", ("context", "model")),)))
    assert not splits_sequence(Strategy(model=2, rules="megatron+fsdp"))


def test_heads_are_padded_to_lanes():
    narrow = preset("gpt2-xl")
    assert widths(narrow, Strategy(), 1, 8, lanes=128).heads == 8 * 25 * 128 * 2
    assert widths(narrow, Strategy(), 1, 8).heads == 8 * 25 * 64 * 2
