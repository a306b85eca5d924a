"""The order of the layers in memory: canonical on disk, by stage in a run."""

from __future__ import annotations

from typing import Any

import jax

PyTree = Any


def to_stage_order(blocks: PyTree, stages: int, chunks: int) -> PyTree:
    """Reorders leaves [L, ...] from depth order to the order in which stages own them.

    Stage d owns chunks c = 0 … v-1, and chunk c of stage d is the (c S + d)-th group of layers, so
    that with several chunks a stage's layers are not neighbours in depth.

    >>> import numpy as np
    >>> to_stage_order(np.arange(8), stages=2, chunks=2).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    """
    return jax.tree.map(lambda leaf: _swap(leaf, chunks, stages), blocks)


def to_depth_order(blocks: PyTree, stages: int, chunks: int) -> PyTree:
    """The inverse of `to_stage_order`.

    >>> import numpy as np
    >>> to_depth_order(np.array([0, 1, 4, 5, 2, 3, 6, 7]), stages=2, chunks=2).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    return jax.tree.map(lambda leaf: _swap(leaf, stages, chunks), blocks)


def _swap(leaf, major: int, minor: int):
    if major == 1 or minor == 1:
        return leaf
    grid = leaf.reshape(major, minor, -1, *leaf.shape[1:])
    return grid.swapaxes(0, 1).reshape(leaf.shape)
