"""The layers of a decoder: projection, norms, rotary positions, dropout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from hybrid_jax.config.model import DecoderConfig
from hybrid_jax.models.context import Axes
from hybrid_jax.models.contract import Batch

INIT_STD = 0.02  # Radford et al. 2019


def matmul(x: jax.Array, kernel: jax.Array, out_dtype: Any = None) -> jax.Array:
    """Contracts the trailing dims of x [B, T, ...] with the leading dims of `kernel`.

    Args:
      out_dtype: of the result, if not that of x.
    """
    # Named, so that a checkpoint policy that keeps matmuls finds the one in the custom vjp.
    return checkpoint_name(_matmul(x, kernel, out_dtype), "matmul")


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x, kernel, out_dtype):
    return jnp.tensordot(x, kernel, axes=x.ndim - 2, preferred_element_type=out_dtype)


def _matmul_forward(x, kernel, out_dtype):
    return _matmul(x, kernel, out_dtype), (x, kernel)


def _matmul_backward(out_dtype, residuals, dy):
    # The transpose that JAX derives contracts the other way round, dy with x, and then transposes
    # the kernel-sized result: three times slower for a vocabulary on XLA:CPU.
    x, kernel = residuals
    dy = dy.astype(x.dtype)
    dy_dims, kernel_dims = tuple(range(2, dy.ndim)), tuple(range(x.ndim - 2, kernel.ndim))
    dx = jnp.tensordot(dy, kernel, axes=(dy_dims, kernel_dims))
    dkernel = jnp.tensordot(x, dy, axes=((0, 1), (0, 1)))
    return dx, dkernel


_matmul.defvjp(_matmul_forward, _matmul_backward)


class Projection(nnx.Module):
    """A matmul over the last `contracted` dims of x, with an optional bias.

    Args:
      shape: of the kernel, contracted dims first.
      names: logical names of the kernel's dims.
      std: standard deviation of the initial kernel.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        names: Axes,
        rngs: nnx.Rngs,
        *,
        bias: bool,
        contracted: int = 1,
        std: float = INIT_STD,
    ):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape), out_sharding=names)
        if bias:
            self.bias = nnx.Param(jnp.zeros(shape[contracted:]), out_sharding=names[contracted:])

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x, self.kernel[...])
        return y + self.bias[...][None, None] if hasattr(self, "bias") else y


# Elementwise work between matmuls is cheap to do again and expensive to store: of these functions
# only the arguments are kept for the backward pass.
recomputed = partial(jax.checkpoint, prevent_cse=False)


@partial(recomputed, static_argnums=3)
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float) -> jax.Array:
    """Ba et al. 2016, over the last dim of x [B, T, D]; statistics in float32."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    y = y * scale[None, None].astype(jnp.float32)
    if bias is not None:
        y = y + bias[None, None].astype(jnp.float32)
    return y.astype(x.dtype)


@partial(recomputed, static_argnums=2)
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Zhang and Sennrich 2019, over the last dim of x [B, T, D]; statistics in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * scale[None, None].astype(jnp.float32)).astype(x.dtype)


class Norm(nnx.Module):
    """The normalisation that the config names."""

    def __init__(self, config: DecoderConfig):
        self.eps = config.norm_eps
        self.centered = config.norm == "layernorm"
        self.scale = nnx.Param(jnp.ones(config.embed_dim), out_sharding=("embed",))
        if self.centered and config.bias:
            self.bias = nnx.Param(jnp.zeros(config.embed_dim), out_sharding=("embed",))

    def __call__(self, x: jax.Array) -> jax.Array:
        if not self.centered:
            return rms_norm(x, self.scale[...], self.eps)
        bias = self.bias[...] if hasattr(self, "bias") else None
        return layer_norm(x, self.scale[...], bias, self.eps)


@recomputed
def gelu(x: jax.Array) -> jax.Array:
    """Hendrycks and Gimpel 2016, in the tanh approximation of GPT-2."""
    return jax.nn.gelu(x, approximate=True)


@recomputed
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Shazeer 2020: silu(gate) * up."""
    return jax.nn.silu(gate) * up


def rotary(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Returns cos and sin [B, T, 1, H / 2] of the angles position / theta^(2i / H), float32.

    Args:
      positions: [B, T], or [1, T] where all sequences count alike.
      theta: base of the wavelengths.
    """
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions[:, :, None, None].astype(jnp.float32) * theta ** -exponents[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary positions (Su et al. 2021): turns the pairs (x[i], x[i + H/2]) of x [B, T, N, H]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


Dropout = Callable[[jax.Array], jax.Array]


def make_dropout(rate: float, key: jax.Array | None, batch: Batch) -> Dropout:
    """Returns x [B, T, D] -> x with entries zeroed at `rate`, the others scaled by 1 / (1 - rate).

    The mask of an example depends on (key, its global index) only, not on how the batch is cut.

    Args:
      key: None for none (evaluation).
      batch: its `example` holds the global index of every example, [B].
    """
    if key is None or rate == 0:
        return lambda x: x

    def keep(example: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, example), 1 - rate, shape)

    def dropout(x: jax.Array) -> jax.Array:
        mask = jax.vmap(lambda example: keep(example, x.shape[1:]))(batch["example"])
        return jnp.where(mask, x / (1 - rate), jnp.zeros_like(x))

    return dropout
