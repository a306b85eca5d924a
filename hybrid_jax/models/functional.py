"""A Flax module, NNX or Linen, as pure functions of a nested dict of arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import errors, linen, nnx
from flax.core import meta, unfreeze

from hybrid_jax.errors import UserError
from hybrid_jax.models.contract import Params, PyTree


class Functional(NamedTuple):
    """A module without its arrays.

    Attributes:
      init: key -> params, a nested dict of arrays.
      axes: the same dict with a tuple of logical names for each array.
      apply: (params, *args, key=None) -> what the module's call returns. With a key, in training
        mode, every random stream a pure function of it; without, in evaluation mode.
      stochastic: whether the call in training mode draws random numbers.
    """

    init: Callable[[jax.Array], Params]
    axes: PyTree
    apply: Callable[..., Any]
    stochastic: bool


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
    """Returns the NNX module that `make` builds as pure functions.

    >>> linear = from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    >>> params = linear.init(jax.random.key(0))
    >>> linear.apply(params, jnp.ones((1, 3))).shape
    (1, 2)

    Raises:
      UserError: the module holds variables that are neither parameters nor random streams.
    """

    def build(key: jax.Array) -> nnx.Module:
        # Parameters carry logical names, not mesh axes: Flax must not place them by itself.
        with nnx.use_eager_sharding(False):
            return make(nnx.Rngs(key))

    module = nnx.eval_shape(build, jax.random.key(0))
    graphdef, params, streams, others = nnx.split(module, nnx.Param, nnx.RngState, ...)
    _refuse_state(type(module).__name__, [type(v).__name__ for _, v in nnx.to_flat_state(others)])
    streams = dict(nnx.to_flat_state(streams))

    def init(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    def apply(params: Params, *args: Any, key: jax.Array | None = None) -> Any:
        if not streams:
            return nnx.merge(graphdef, params)(*args)
        module = nnx.merge(graphdef, params, _reseed(streams, key))
        module.eval() if key is None else module.train()
        return module(*args)

    axes = _nest({path: _names(variable) for path, variable in nnx.to_flat_state(params)})
    return Functional(init, axes, apply, stochastic=bool(streams))


def from_linen(module: linen.Module, *example_args: Any) -> Functional:
    """Returns a Linen module as pure functions.

    A module whose call has a parameter `deterministic` or `train` is told the mode by it.

    Args:
      example_args: what the module will be called with; only shapes and dtypes matter.

    Raises:
      UserError: the module holds collections other than "params".
    """
    call_parameters = inspect.signature(type(module).__call__).parameters

    def mode(train: bool) -> dict[str, Any]:
        flags = {"deterministic": not train, "train": train}
        return {name: value for name, value in flags.items() if name in call_parameters}

    def init_boxed(key: jax.Array, *args: Any) -> PyTree:
        return unfreeze(module.init(key, *args, **mode(train=False)))

    boxed = jax.eval_shape(init_boxed, jax.random.key(0), *example_args)
    _refuse_state(type(module).__name__, sorted(boxed.keys() - {"params"}))

    def init(key: jax.Array) -> Params:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example_args)
        return _unbox(init_boxed(key, *zeros).get("params", {}))

    def apply(params: Params, *args: Any, key: jax.Array | None = None) -> Any:
        rngs = {} if key is None else {"dropout": key}
        return module.apply({"params": params}, *args, rngs=rngs, **mode(train=key is not None))

    def draws_random_numbers() -> bool:
        def call(params: Params, *args: Any) -> Any:
            return module.apply({"params": params}, *args, **mode(train=True))

        try:
            jax.eval_shape(call, _unbox(boxed.get("params", {})), *example_args)
        except errors.InvalidRngError:
            return True
        return False

    axes = jax.tree.map(_boxed_names, boxed.get("params", {}), is_leaf=_is_boxed)
    return Functional(init, axes, apply, stochastic=draws_random_numbers())


def stack_init(init: Callable[[jax.Array], Params], num: int) -> Callable[[jax.Array], Params]:
    """Returns the init of `num` layers: leaves [num, ...], one key for each layer."""
    return lambda key: jax.vmap(init)(jax.random.split(key, num))


def stack_axes(axes: PyTree) -> PyTree:
    """Puts "layers" in front of every tuple of names."""
    return jax.tree.map(lambda names: ("layers", *names), axes, is_leaf=_is_names)


def _reseed(streams: dict[tuple, nnx.RngState], key: jax.Array | None) -> PyTree:
    """The state of a module's random streams at the start of a step, from the step's key alone."""
    key = jax.random.key(0) if key is None else key
    fresh = {}
    for index, (path, variable) in enumerate(streams.items()):
        is_key = jnp.issubdtype(variable.dtype, jax.dtypes.prng_key)
        fresh[path] = jax.random.fold_in(key, index) if is_key else jnp.zeros((), variable.dtype)
    return _nest(fresh)


def _refuse_state(module: str, kinds: list[str]) -> None:
    if kinds:
        raise UserError(
            f"{module} holds state that is not a parameter ({', '.join(sorted(set(kinds)))}): the "
            "train step is a pure function of the parameters; use LayerNorm, RMSNorm or GroupNorm "
            "instead of batch statistics."
        )


def _names(variable: Any) -> tuple[str | None, ...]:
    names = variable.get_metadata("out_sharding", None)
    return (None,) * len(variable.shape) if names is None else tuple(names)


def _boxed_names(leaf: Any) -> tuple[str | None, ...]:
    return tuple(leaf.names) if _is_boxed(leaf) else (None,) * len(leaf.shape)


def _unbox(tree: PyTree) -> PyTree:
    def unbox(leaf):
        return leaf.unbox(apply_constraint=False) if _is_boxed(leaf) else leaf

    return jax.tree.map(unbox, tree, is_leaf=_is_boxed)


def _is_boxed(leaf: Any) -> bool:
    return isinstance(leaf, meta.AxisMetadata)


def _is_names(leaf: Any) -> bool:
    return isinstance(leaf, tuple)


def _nest(flat: dict[tuple, Any]) -> PyTree:
    """Turns {("a", "b"): leaf} into {"a": {"b": leaf}}."""
    tree: PyTree = {}
    for path, leaf in flat.items():
        *parents, name = path
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
