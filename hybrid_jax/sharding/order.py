"""An order for collectives that XLA would run at the same time.

XLA:CPU runs what does not depend on each other concurrently, and confuses two collectives of one
kind that do: all that are written in a `shard_map` share one channel. It drops
`optimization_barrier` before it schedules, so a dependence must be one of numbers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def depend_on(tree: PyTree, others: PyTree) -> PyTree:
    """Returns `tree`, whose values exist only once those of `others` do.

    Added is whether an entry of each of `others` exceeds infinity, which is 0 for NaN too.

    >>> depend_on(jnp.arange(3.0), jnp.ones(2)).tolist()
    [0.0, 1.0, 2.0]
    """
    zero = sum(leaf[(0,) * leaf.ndim] > jnp.inf for leaf in jax.tree.leaves(others))
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(zero, leaf.dtype), tree)


def depend_smallest_on(tree: PyTree, others: PyTree) -> PyTree:
    """The same for a `tree` that is used as a whole, by a loop: its smallest leaf has to wait."""
    leaves, structure = jax.tree.flatten(tree)
    if leaves:
        smallest = min(range(len(leaves)), key=lambda index: leaves[index].size)
        leaves[smallest] = depend_on(leaves[smallest], others)
    return jax.tree.unflatten(structure, leaves)
