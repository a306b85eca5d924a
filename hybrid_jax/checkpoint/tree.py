"""States as nested dicts of arrays with plain names: what any reader of a checkpoint finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from hybrid_jax.sharding.placement import path_name

PyTree = Any


def to_nested(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of `tree` in nested dicts, keyed by what their containers call them.

    Empty containers, of which optax states have many, leave no trace.

    >>> to_nested({"opt": ((), {"mu": 1}), "step": 2})
    {'opt': {'1': {'mu': 1}}, 'step': 2}
    """
    return nest(by_name(tree))


def from_nested(nested: Mapping[str, Any], like: PyTree) -> PyTree:
    """The inverse of `to_nested`: a tree of the structure of `like`."""

    def find(path, leaf):
        del leaf
        node: Any = nested
        for key in path:
            node = node[jax.tree_util.keystr((key,), simple=True)]
        return node

    return jax.tree_util.tree_map_with_path(find, like)


def by_name(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Returns {"params/embed/tokens": leaf, …} of a tree.

    >>> by_name({"opt": {"1": {"mu": 1}}, "step": 2})
    {'opt/1/mu': 1, 'step': 2}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {path_name(path): leaf for path, leaf in leaves}


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `by_name`, in nested dicts.

    >>> nest({"opt/1/mu": 1, "step": 2})
    {'opt': {'1': {'mu': 1}}, 'step': 2}
    """
    nested: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = nested
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return nested
