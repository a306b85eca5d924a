"""The ring buffer that carries residuals from a microbatch's forward slot to its backward slot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

PyTree = Any


@dataclass(frozen=True)
class ResidualPlan:
    """How the residuals of one `jax.vjp` are taken apart and put together again.

    The function that `jax.vjp` returns is a pytree whose leaves are the residual arrays. Leaves
    that are inputs known in the backward slot too (parameters, the microbatch, the layer ids) are
    not stored: they are recognised by identity and handed in again.

    Attributes:
      treedef: structure of the vjp function.
      known: for every leaf, the index of the known input that it is, or None.
      stored: shape and dtype of the leaves that the ring must hold.
    """

    treedef: Any
    known: tuple[int | None, ...]
    stored: tuple[jax.ShapeDtypeStruct, ...]

    def split(self, vjp: Callable) -> list[jax.Array]:
        """The leaves of `vjp` that the ring must hold."""
        leaves = zip(jax.tree.leaves(vjp), self.known, strict=True)
        return [leaf for leaf, index in leaves if index is None]

    def join(self, stored: list[jax.Array], known: PyTree) -> Callable:
        """The vjp function again, from stored leaves and the known inputs of its microbatch."""
        inputs, rest = jax.tree.leaves(known), iter(stored)
        leaves = [next(rest) if index is None else inputs[index] for index in self.known]
        return jax.tree.unflatten(self.treedef, leaves)


def plan_residuals(forward: Callable, known: PyTree, x: jax.Array) -> ResidualPlan:
    """Traces `forward(known, x) -> (y, vjp)` without running it and plans its residuals."""
    pattern: list[int | None] = []

    def traced(known, x):
        y, vjp = forward(known, x)
        inputs = jax.tree.leaves(known)
        pattern[:] = [
            next((index for index, item in enumerate(inputs) if item is leaf), None)
            for leaf in jax.tree.leaves(vjp)
        ]
        return y, vjp

    _, vjp = jax.eval_shape(traced, known, x)
    leaves, treedef = jax.tree.flatten(vjp)
    stored = tuple(leaf for leaf, index in zip(leaves, pattern, strict=True) if index is None)
    return ResidualPlan(treedef, tuple(pattern), stored)


def allocate(num_slots: int, shapes: PyTree) -> PyTree:
    """Zero-filled buffers [num_slots, ...] for a pytree of shapes."""
    return jax.tree.map(lambda s: jnp.zeros((num_slots, *s.shape), s.dtype), shapes)


def write(ring: PyTree, slot: jax.Array, values: PyTree) -> PyTree:
    """`ring` with `values` in `slot`."""
    return jax.tree.map(
        lambda buffer, value: lax.dynamic_update_index_in_dim(buffer, value, slot, 0), ring, values
    )


def read(ring: PyTree, slot: jax.Array) -> PyTree:
    """The values in `slot`."""
    return jax.tree.map(lambda buffer: lax.dynamic_index_in_dim(buffer, slot, 0, False), ring)
