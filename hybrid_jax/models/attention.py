"""Attention behind one function: the best implementation for the platform that will run it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from hybrid_jax.models import kernels

Attend = Callable[..., jax.Array]
Implementation = Literal["xla", "splash", "cudnn"]
MASKED = -1e30  # finite, so that no row of scores can turn into NaN


def dot_product_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    causal: bool = True,
    implementation: Implementation | None = None,
    platform: str | None = None,
    heads_axis: str | None = None,
) -> jax.Array:
    """Returns softmax(q kᵀ / √H) v for each head, [B, T, N, H].

    With fewer key heads than query heads, each key head serves N / K consecutive query heads.

    Args:
      q: queries [B, T, N, H].
      k, v: keys and values [B, T, K, H]; K divides N.
      segment_ids: documents [B, T]; a token sees tokens of its own document only.
      causal: a token sees no later ones.
      implementation: "splash" (Pallas, TPU), "cudnn" (GPU) or "xla" (any platform). None takes
        the kernel of `platform` where it supports shape and dtype, otherwise "xla".
      platform: "cpu", "gpu" or "tpu", which will run it; None: this machine's.
      heads_axis: the mesh axis over which the compiler splits heads; None: they are whole here.
    """
    match implementation or _best(platform or jax.default_backend(), q, segment_ids):
        case "splash":
            return kernels.splash(q, k, v, segment_ids, causal, heads_axis)
        case "cudnn":
            return kernels.cudnn(q, k, v, causal, heads_axis)
        case _:
            return _attention(q, k, v, segment_ids, causal)


def _best(platform: str, q: jax.Array, segment_ids: jax.Array | None) -> Implementation:
    match platform:
        case "tpu" if kernels.supports_splash(q):
            return "splash"
        case "gpu" if kernels.supports_cudnn(q, segment_ids):
            return "cudnn"
        case _:
            return "xla"


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, segment_ids, causal):
    return _forward(q, k, v, segment_ids, causal)[0]


def _forward(q, k, v, segment_ids, causal):
    scores = _scores(q, k, segment_ids, causal)
    normalizer = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    probabilities = jnp.exp(scores - normalizer)
    out = jnp.einsum("bkgts,bskh->btkgh", probabilities.astype(v.dtype), v).reshape(q.shape)
    return out, (q, k, v, segment_ids, out, normalizer)


def _backward(causal, residuals, dout):
    # The backward pass of FlashAttention (Dao et al. 2022, section 3.1) without its tiles: the
    # probabilities [T, S] are computed anew, so what is kept for it grows with T, not its square.
    q, k, v, segment_ids, out, normalizer = residuals
    probabilities = jnp.exp(_scores(q, k, segment_ids, causal) - normalizer)
    q, out, dout = (_group(x, k) for x in (q, out, dout))
    dv = jnp.einsum("bkgts,btkgh->bskh", probabilities.astype(v.dtype), dout)
    dprobabilities = jnp.einsum("btkgh,bskh->bkgts", dout, v, preferred_element_type=jnp.float32)
    mean = jnp.einsum("btkgh,btkgh->bkgt", dout, out, preferred_element_type=jnp.float32)
    dscores = probabilities * (dprobabilities - mean[..., None]) * q.shape[-1] ** -0.5
    dscores = dscores.astype(q.dtype)
    dq = jnp.einsum("bkgts,bskh->btkgh", dscores, k).reshape(*q.shape[:2], -1, q.shape[-1])
    dk = jnp.einsum("bkgts,btkgh->bskh", dscores, q)
    return dq, dk, dv, None


_attention.defvjp(_forward, _backward)


def _group(x, k):
    """Splits the heads of x [B, T, N, H] by the key head that serves them: [B, T, K, G, H]."""
    return x.reshape(*x.shape[:2], k.shape[2], -1, x.shape[3])


def _scores(q, k, segment_ids, causal):
    """Masked scores [B, K, G, T, S], float32, of G query heads for each key head."""
    scores = jnp.einsum("btkgh,bskh->bkgts", _group(q, k), k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    visible = jnp.ones((1, q.shape[1], k.shape[1]), bool)
    if causal:
        visible = jnp.tril(visible)
    if segment_ids is not None:
        visible = visible & (segment_ids[:, :, None] == segment_ids[:, None, :])
    return jnp.where(visible[:, None, None], scores, MASKED)
