"""Cross entropy of next-token prediction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns -log softmax(logits)[target] in float32, one for each token.

    Written without a gather along the vocabulary, so that a vocabulary sharded over devices needs
    two small reductions and no exchange of logits (Shoeybi et al. 2019, section 3).

    Args:
      logits: [B, T, V] float32.
      targets: [B, T] integers in [0, V); of any other the result is meaningless.
    """
    # Counted in int32: an 8-bit iota would start again at 256.
    is_target = lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[:, :, None]
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - target_logit
