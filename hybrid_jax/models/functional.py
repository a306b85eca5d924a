"""A Flax module as three pure functions: init, axes, apply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from hybrid_jax.models.contract import Params, PyTree


class Functional(NamedTuple):
    """A module without its arrays.

    Attributes:
      init: key -> params, a nested dict of arrays.
      axes: () -> the same dict with a tuple of logical names for each array.
      apply: (params, *args, **kwargs) -> what the module's call returns.
    """

    init: Callable[[jax.Array], Params]
    axes: Callable[[], PyTree]
    apply: Callable[..., Any]


def functional(make: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
    """Returns the NNX module that `make` builds as pure functions.

    >>> linear = functional(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    >>> params = linear.init(jax.random.key(0))
    >>> linear.apply(params, jax.numpy.ones((1, 3))).shape
    (1, 2)
    """

    def build(key: jax.Array) -> nnx.Module:
        # Parameters carry logical names, not mesh axes: Flax must not place them by itself.
        with nnx.use_eager_sharding(False):
            return make(nnx.Rngs(key))

    graphdef, state = nnx.split(nnx.eval_shape(build, jax.random.key(0)))

    def init(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(build(key)))

    def axes() -> PyTree:
        flat = nnx.to_flat_state(state)
        return nest({path: logical_names(variable) for path, variable in flat})

    def apply(params: Params, *args: Any, **kwargs: Any) -> Any:
        return nnx.merge(graphdef, params)(*args, **kwargs)

    return Functional(init, axes, apply)


def logical_names(variable: Any) -> tuple[str | None, ...]:
    """The names a variable was declared with, one per dim; all None if it has none."""
    names = variable.get_metadata("out_sharding", None)
    return (None,) * len(variable.shape) if names is None else tuple(names)


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


def stack_init(init: Callable[[jax.Array], Params], num: int) -> Callable[[jax.Array], Params]:
    """Returns the init of `num` layers: leaves [num, ...], one key for each layer."""
    return lambda key: jax.vmap(init)(jax.random.split(key, num))


def stack_axes(axes: PyTree) -> PyTree:
    """Puts "layers" in front of every tuple of names."""
    return jax.tree.map(lambda names: ("layers", *names), axes, is_leaf=is_names)


def is_names(leaf: Any) -> bool:
    """Whether a node of a tree of axes is a leaf, a tuple of logical names."""
    return isinstance(leaf, tuple)
