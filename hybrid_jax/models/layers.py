"""The layers of a decoder: projection, norms, rotary positions, dropout."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid_jax.config.model import DecoderConfig
from hybrid_jax.models.contract import Axes

INIT_STD = 0.02  # Radford et al. 2019


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
        self.contracted = contracted
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape), out_sharding=names)
        if bias:
            self.bias = nnx.Param(jnp.zeros(shape[contracted:]), out_sharding=names[contracted:])

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.tensordot(x, self.kernel[...], axes=self.contracted)
        return y + self.bias[...][None, None] if hasattr(self, "bias") else y


class LayerNorm(nnx.Module):
    """Ba et al. 2016; statistics in float32."""

    def __init__(self, dim: int, eps: float, *, bias: bool):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(dim), out_sharding=("embed",))
        if bias:
            self.bias = nnx.Param(jnp.zeros(dim), out_sharding=("embed",))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        y = y * self.scale[...][None, None].astype(jnp.float32)
        if hasattr(self, "bias"):
            y = y + self.bias[...][None, None].astype(jnp.float32)
        return y.astype(x.dtype)


class RMSNorm(nnx.Module):
    """Zhang and Sennrich 2019; statistics in float32."""

    def __init__(self, dim: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(dim), out_sharding=("embed",))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...][None, None].astype(jnp.float32)).astype(x.dtype)


def make_norm(config: DecoderConfig) -> LayerNorm | RMSNorm:
    """Returns the normalisation that `config` names."""
    if config.norm == "layernorm":
        return LayerNorm(config.embed_dim, config.norm_eps, bias=config.bias)
    return RMSNorm(config.embed_dim, config.norm_eps)


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary positions (Su et al. 2021): turns the pair (x[i], x[i + H/2]) by position / theta^(2i/H).

    Args:
      x: queries or keys [B, T, N, H].
      positions: [B, T], or [1, T] where all sequences count alike.
      theta: base of the wavelengths.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


Dropout = Callable[[jax.Array], jax.Array]


def make_dropout(rate: float, key: jax.Array | None, examples: jax.Array) -> Dropout:
    """Returns x [B, T, D] -> x with entries zeroed at `rate`, the others scaled by 1 / (1 - rate).

    The mask of an example depends on (key, its global index) only, not on how the batch is cut.

    Args:
      key: None for none (evaluation).
      examples: global example indices [B].
    """
    if key is None or rate == 0:
        return lambda x: x

    def keep(example: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, example), 1 - rate, shape)

    def dropout(x: jax.Array) -> jax.Array:
        mask = jax.vmap(lambda example: keep(example, x.shape[1:]))(examples)
        return jnp.where(mask, x / (1 - rate), jnp.zeros_like(x))

    return dropout
