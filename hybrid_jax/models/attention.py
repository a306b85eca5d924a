"""Causal attention."""

from __future__ import annotations

import jax


def dot_product_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    causal: bool = True,
    implementation: str | None = None,
) -> jax.Array:
    """Returns softmax(q kᵀ / √H) v [B, T, N, H] of queries [B, T, N, H], keys and values [B, S, K, H]."""
    mask = None
    if segment_ids is not None:
        mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="xla")
