"""What the train step needs of a model: pure functions, cut where a pipeline cuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax

PyTree = Any
Params = dict[str, Any]
Batch = dict[str, jax.Array]
Axes = tuple[str | None, ...]
Constrain = Callable[[jax.Array, Axes], jax.Array]


def unconstrained(x: jax.Array, names: Axes) -> jax.Array:
    """The `constrain` of a single device: says nothing about where `x` lives."""
    assert x.ndim == len(names), f"{names} for shape {x.shape}"
    return x


@runtime_checkable
class StagedModel(Protocol):
    """A model in three parts: embed, `num_layers` equal blocks, head.

    Parameters are nested dicts {"embed": ..., "blocks": ..., "head": ...} of float32 arrays; every
    leaf of "blocks" is stacked over layers, [L, ...]. `outer` is {"embed": ..., "head": ...}: both
    outer parts see all of it, so they may share a table. Parameters are computed with in the
    dtype in which they are handed in; norms, softmax and loss are float32.

    A batch holds arrays [B, ...]: for token models `tokens`, `targets` [B, T] int32, optionally
    `weights` [B, T] float32 (1), `positions` [B, T] (0, 1, ...), `segment_ids` [B, T] (one
    document). `example` [B] int32 is the index of an example in the global batch: what is random
    depends on (key, example) alone, so that it does not change with the layout.

    `constrain(x, names)` takes one logical name per dim of an activation: batch, length,
    norm_length (the length of the residual stream), act_embed, act_mlp, act_heads, act_kv_heads,
    act_vocab, or None.

    Attributes:
      num_layers: blocks; may be 0, with {} for "blocks".
      head_dims: the dims of x along which `head` may be given one slice at a time and the results
        added: ("batch", "length"), or ("batch",) for a head that looks along the length.
    """

    num_layers: int
    head_dims: tuple[str, ...]

    def init(self, key: jax.Array) -> Params:
        """Returns fresh parameters; a pure function of `key`, whatever their sharding."""
        ...

    def axes(self) -> PyTree:
        """Returns the tree of `init` with a tuple of logical names, one per dim, for each leaf."""
        ...

    def embed(
        self, outer: Params, batch: Batch, *, key: jax.Array | None, constrain: Constrain
    ) -> jax.Array:
        """Returns x [B, T, D], the input of the first block. `key` None: no dropout."""
        ...

    def block(
        self,
        layer_params: Params,
        x: jax.Array,
        batch: Batch,
        *,
        key: jax.Array | None,
        constrain: Constrain,
    ) -> jax.Array:
        """Returns one layer's output [B, T, D]; `layer_params` is its slice of "blocks"."""
        ...

    def head(
        self, outer: Params, x: jax.Array, batch: Batch, *, constrain: Constrain
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (weighted sum of losses, sum of weights) of the tokens given; float32."""
        ...
