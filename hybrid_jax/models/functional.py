"""A Flax module as pure functions of a nested dict of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hybrid_jax.errors import UserError
from hybrid_jax.models.contract import Params, PyTree


class Functional(NamedTuple):
    """A module without its arrays.

    Attributes:
      name: of the module's class, for messages.
      init: key -> params, a nested dict of float32 arrays.
      axes: the same dict with a tuple of logical names for each array.
      apply: (params, *args, key=None) -> what the module's call returns. With a key, in training
        mode, every random stream a pure function of it; without, in evaluation mode.
      stochastic: whether the call in training mode draws random numbers.
      switches: names of the switches by which the module is told its mode.
    """

    name: str
    init: Callable[[jax.Array], Params]
    axes: PyTree
    apply: Callable[..., Any]
    stochastic: bool
    switches: frozenset[str]


def stack_init(init: Callable[[jax.Array], Params], num: int) -> Callable[[jax.Array], Params]:
    """Returns the init of `num` layers: leaves [num, ...], one key for each layer."""
    return lambda key: jax.vmap(init)(jax.random.split(key, num))


def stack_axes(axes: PyTree) -> PyTree:
    """Puts "layers" in front of every tuple of names."""
    is_names = lambda leaf: isinstance(leaf, tuple)
    return jax.tree.map(lambda names: ("layers", *names), axes, is_leaf=is_names)


def masters(params: PyTree, module: str) -> PyTree:
    """Returns freshly made parameters as float32, whatever float a module's `param_dtype` is."""

    def master(path, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype.itemsize > 4:
            raise UserError(
                f"{module}'s parameter {jax.tree_util.keystr(path, simple=True, separator='/')} is "
                f"{leaf.dtype}: parameters train as float32; make it a float, or a constant."
            )
        return leaf.astype(jnp.float32)

    return jax.tree_util.tree_map_with_path(master, params)


def check_output(output: Any, module: str) -> Any:
    """Returns what a module returned, or raises a UserError unless all of it is arrays."""
    for leaf in jax.tree.leaves(output):
        if not isinstance(leaf, jax.Array):
            raise UserError(
                f"{module} returns a {type(leaf).__name__}: return a JAX array, or a dict or tuple "
                "of them."
            )
    return output


def nest(flat: dict[tuple, Any]) -> PyTree:
    """Turns {("a", "b"): leaf} into {"a": {"b": leaf}}."""
    tree: PyTree = {}
    for path, leaf in flat.items():
        *parents, name = path
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def refuse_state(module: str, kinds: list[str], remedy: str) -> None:
    """Raises a UserError if a module holds arrays of other `kinds` than parameters."""
    if kinds:
        raise UserError(
            f"{module} holds state that is not a parameter ({', '.join(sorted(set(kinds)))}): the "
            f"train step is a pure function of the parameters; {remedy}."
        )
