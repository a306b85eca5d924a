"""A Linen module as pure functions."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import errors, linen
from flax.core import meta, unfreeze

from hybrid_jax.models.contract import Params, PyTree
from hybrid_jax.models.functional import Functional, check_output, masters, refuse_state
from hybrid_jax.models.switches import (
    Switches,
    call_parameters,
    check_call,
    in_mode,
    refuse_random_evaluation,
    refuse_silent_dropout,
    with_usual,
)


def from_linen(
    module: linen.Module, *example_args: Any, switches: Switches | None = None
) -> Functional:
    """Returns a Linen module as pure functions.

    A switch is a parameter of the module's call, or else one of its attributes.

    Args:
      example_args: what the module will be called with; only shapes and dtypes matter.
      switches: as for `from_flax`.

    Raises:
      UserError: the module holds collections other than "params", its dropout is off in training
        mode, or on in evaluation mode.
    """
    name, parameters = type(module).__name__, call_parameters(module)
    switches = with_usual(switches)
    fields = {field.name for field in dataclasses.fields(module)} - {"name", "parent"}
    told = {switch for switch in switches if switch in parameters or switch in fields}
    check_call(module, len(example_args), told & parameters.keys())
    modes = _Modes(
        *(
            _in_mode(module, {k: v for k, v in in_mode(switches, training=on).items() if k in told})
            for on in (True, False)
        )
    )
    boxed = jax.eval_shape(modes.init, jax.random.key(0), *example_args)
    _refuse_collections(name, boxed.keys() - {"params"})
    shapes = _unbox(boxed.get("params", {}))

    def init(key: jax.Array) -> Params:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example_args)
        return masters(_unbox(modes.init(key, *zeros).get("params", {})), name)

    def apply(params: Params, *args: Any, key: jax.Array | None = None) -> Any:
        return modes.call(params, args, key, training=key is not None)

    def trial(key: jax.Array | None, training: bool) -> dict[str, bool] | None:
        return _try(modes, shapes, example_args, name, key=key, training=training)

    key = jax.random.key(0)
    dropouts = trial(key, training=True) or {}
    silent = [what for what, is_off in dropouts.items() if is_off]
    refuse_silent_dropout(name, silent, _candidates(module, told))
    if trial(None, training=False) is None:
        dropouts = trial(key, training=False) or {}
        refuse_random_evaluation(name, [what for what, is_off in dropouts.items() if not is_off])
    stochastic = trial(None, training=True) is None
    axes = jax.tree.map(_boxed_names, boxed.get("params", {}), is_leaf=_is_boxed)
    return Functional(name, init, axes, apply, stochastic, frozenset(told))


class _Told(NamedTuple):
    """A module that has been told its mode by attributes, and what its call is told besides."""

    module: linen.Module
    arguments: dict[str, Any]


class _Modes(NamedTuple):
    """A module in its two modes."""

    training: _Told
    evaluation: _Told

    def init(self, key: jax.Array, *args: Any) -> PyTree:
        """Returns fresh variables, boxed with their names."""
        module, arguments = self.evaluation
        return unfreeze(module.init(key, *args, **arguments))

    def call(
        self, params: Params, args: Sequence[Any], key: jax.Array | None, *, training: bool
    ) -> Any:
        """Calls the module, with random streams if there is a key."""
        module, arguments = self.training if training else self.evaluation
        rngs = {} if key is None else _streams(key)
        return module.apply({"params": params}, *args, rngs=rngs, **arguments)


def _in_mode(module: linen.Module, values: Switches) -> _Told:
    parameters = call_parameters(module)
    attributes: dict[str, Any] = {k: v for k, v in values.items() if k not in parameters}
    return _Told(module.clone(**attributes), {k: v for k, v in values.items() if k in parameters})


def _try(
    modes: _Modes,
    params: PyTree,
    args: Sequence[Any],
    name: str,
    *,
    key: jax.Array | None,
    training: bool,
) -> dict[str, bool] | None:
    """Traces a call; returns which dropouts were off, or None if it lacked random streams."""

    def run(params: PyTree, *args: Any) -> Any:
        return check_output(modes.call(params, args, key, training=training), name)

    seen: dict[str, bool] = {}
    try:
        with linen.intercept_methods(_note_dropouts(seen)):
            jax.eval_shape(run, params, *args)
    except errors.InvalidRngError:
        return None
    return seen


def _refuse_collections(name: str, collections: Collection[str]) -> None:
    remedy = "use LayerNorm, RMSNorm or GroupNorm instead of batch statistics"
    if "batch_stats" not in collections:
        remedy = "compute what never changes in the call, or make it an attribute"
    refuse_state(name, sorted(collections), remedy)


def _streams(key: jax.Array) -> dict[str, jax.Array]:
    """Streams of one call; one by another name than "dropout" falls back to "params"."""
    return {"dropout": key, "params": jax.random.fold_in(key, 1)}


def _note_dropouts(seen: dict[str, bool]) -> Any:
    """Returns an interceptor that notes of every dropout, in words, whether it is switched off."""

    def note(call, args, kwargs, context):
        module = context.module
        rate = _rate(module)
        if rate > 0 and context.method_name == "__call__":
            call_signature = inspect.signature(type(module).__call__)
            given = call_signature.bind_partial(module, *args, **kwargs).arguments
            by_call = given.get("deterministic")
            is_off = bool(module.deterministic if by_call is None else by_call)
            what = f"{'/'.join(module.path) or type(module).__name__} (rate {rate})"
            seen[what] = is_off or seen.get(what, False)
        return call(*args, **kwargs)

    return note


def _rate(module: linen.Module) -> float:
    if isinstance(module, linen.Dropout):
        return module.rate
    return getattr(module, "dropout_rate", 0) if isinstance(module, _ATTENTION) else 0


_ATTENTION = linen.MultiHeadDotProductAttention


def _candidates(module: linen.Module, told: set[str]) -> dict[str, bool]:
    """What looks like a switch that nobody has named; what it is by default is not training."""
    defaults = {name: parameter.default for name, parameter in call_parameters(module).items()}
    fields = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
    return {
        name: not value
        for name, value in {**fields, **defaults}.items()
        if isinstance(value, bool) and name not in told
    }


def _boxed_names(leaf: Any) -> tuple[str | None, ...]:
    return tuple(leaf.names) if _is_boxed(leaf) else (None,) * len(leaf.shape)


def _unbox(tree: PyTree) -> PyTree:
    def unbox(leaf):
        return leaf.unbox(apply_constraint=False) if _is_boxed(leaf) else leaf

    return jax.tree.map(unbox, tree, is_leaf=_is_boxed)


def _is_boxed(leaf: Any) -> bool:
    return isinstance(leaf, meta.AxisMetadata)
