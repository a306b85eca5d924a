"""Layers that are not there: what fills the last places of a depth that stages do not divide.

The parameters of padding are zeros. Its layers run, for every stage runs the same program, but
nothing of them is used. A product with zero would not do: whatever a model makes of parameters that
are zero, 0 * NaN included, stops at a select.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from hybrid_jax.config.depth import num_places
from hybrid_jax.pipeline.program import layer_ids
from hybrid_jax.sharding.constrain import entry_axes
from hybrid_jax.sharding.rules import as_entry

PyTree = Any


def padded_shapes(shapes: PyTree, num_layers: int, parts: int) -> PyTree:
    """Returns the shapes of parameters [L, ...] with one place more for each layer of padding.

    Args:
      shapes: tree of `jax.ShapeDtypeStruct` of {"embed", "blocks", "head"}.
      parts: stages x chunks.
    """
    padding = num_places(num_layers, parts) - num_layers
    grow = lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0] + padding, *leaf.shape[1:]), leaf.dtype)
    return {**shapes, "blocks": jax.tree.map(grow, shapes["blocks"])}


def canonical_placements(placements: PyTree, shapes: PyTree, mesh: Mesh) -> PyTree:
    """Returns placements of parameters [L, ...], whose layers `stage` may not divide.

    It then splits another dim of the stacked blocks, where one divides: no array of several stages
    should be whole on a device.

    Args:
      placements: tree of `Placement` of the padded {"embed", "blocks", "head"}.
      shapes: of the canonical parameters.
    """
    stages = mesh.shape["stage"]

    def off_layers(shape, placement):
        if shape.shape[0] % stages == 0:
            return placement
        entries = [None, *placement.spec[1:]]
        parts = lambda dim: math.prod(mesh.shape[axis] for axis in entry_axes(entries[dim]))
        free = [
            dim for dim in range(1, shape.ndim) if shape.shape[dim] % (parts(dim) * stages) == 0
        ]
        if free:
            dim = max(free, key=lambda dim: shape.shape[dim] // parts(dim))
            entries[dim] = as_entry((*entry_axes(entries[dim]), "stage"))
        return replace(placement, spec=PartitionSpec(*entries))

    return {
        **placements,
        "blocks": jax.tree.map(off_layers, shapes["blocks"], placements["blocks"]),
    }


def skip_padding(layer: Callable[..., PyTree], num_layers: int) -> Callable[..., PyTree]:
    """Returns a layer that hands on its input, and its output's gradient, where it is padding.

    Args:
      layer: (layer_params, carry, microbatch, layer_id, key_data) -> carry.
    """

    def real_layer(params, carry, microbatch, layer_id, key_data):
        is_real = layer_id < num_layers
        select = lambda yes, no: jax.tree.map(lambda y, n: jnp.where(is_real, y, n), yes, no)
        # The value is `carry` either way; the gradient that comes back through a layer of padding
        # is dropped here.
        seen = select(carry, lax.stop_gradient(carry))
        return select(layer(params, seen, microbatch, layer_id, key_data), carry)

    return real_layer


def zero_padding(block_grads: PyTree, num_layers: int, stages: int) -> PyTree:
    """Sets the gradients of padding to zero, which they are but for what NaN made of them.

    Args:
      block_grads: of this device's layers, leaves [chunks, Lc, ...].
    """

    def zero(grad):
        chunks, per_chunk = grad.shape[:2]
        stage = lax.axis_index("stage")
        depths_of = lambda chunk: layer_ids(chunk, stage, stages, per_chunk)
        depths = jax.vmap(depths_of)(jnp.arange(chunks))
        is_real = (depths < num_layers).reshape(chunks, per_chunk, *[1] * (grad.ndim - 2))
        return jnp.where(is_real, grad, jnp.zeros_like(grad))

    return jax.tree.map(zero, block_grads)
