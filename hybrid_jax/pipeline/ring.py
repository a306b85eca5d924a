"""The ring buffer that carries residuals from a microbatch's forward slot to its backward slot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

PyTree = Any


@dataclass(frozen=True)
class ResidualPlan:
    """How the residuals of one `jax.vjp` are taken apart and put together again.

    The function that `jax.vjp` returns is a pytree whose leaves are the residual arrays. Not all
    of them need storing: constants, and inputs that the backward slot can look up too (parameters,
    the microbatch, the layer ids), recognised by identity, are put in again.

    Attributes:
      treedef: structure of the vjp function.
      sources: for every leaf, where it comes from: the index of a recomputable input, a `Constant`,
        or None for the ring.
      stored: shape and dtype of the leaves that the ring must hold.
    """

    treedef: Any
    sources: tuple[int | Constant | None, ...]
    stored: tuple[jax.ShapeDtypeStruct, ...]

    def split(self, vjp: Callable) -> list[jax.Array]:
        """The leaves of `vjp` that the ring must hold."""
        leaves = zip(jax.tree.leaves(vjp), self.sources, strict=True)
        return [leaf for leaf, source in leaves if source is None]

    def join(self, stored: list[jax.Array], recomputable: PyTree) -> Callable:
        """The vjp function again, from stored leaves and the inputs that are there again."""
        inputs, rest = jax.tree.leaves(recomputable), iter(stored)

        def leaf(source: int | Constant | None):
            if source is None:
                return next(rest)
            return source.value if isinstance(source, Constant) else inputs[source]

        return jax.tree.unflatten(self.treedef, [leaf(source) for source in self.sources])


@dataclass(frozen=True, eq=False)
class Constant:
    """A residual that is the same in every slot, such as the mask table of an attention kernel."""

    value: Any


def plan_residuals(forward: Callable, recomputable: PyTree, carry: PyTree) -> ResidualPlan:
    """Traces `forward(recomputable, carry) -> (y, vjp)` without running it; plans its residuals."""
    sources: list[int | Constant | None] = []

    def traced(recomputable, carry):
        y, vjp = forward(recomputable, carry)
        inputs = {id(leaf): index for index, leaf in enumerate(jax.tree.leaves(recomputable))}
        sources[:] = [
            inputs.get(id(leaf)) if isinstance(leaf, Tracer) else Constant(leaf)
            for leaf in jax.tree.leaves(vjp)
        ]
        return y, vjp

    _, vjp = jax.eval_shape(traced, recomputable, carry)
    leaves, treedef = jax.tree.flatten(vjp)
    stored = tuple(leaf for leaf, source in zip(leaves, sources, strict=True) if source is None)
    return ResidualPlan(treedef, tuple(sources), stored)


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
