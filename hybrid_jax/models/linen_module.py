"""A Linen module as pure functions."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

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
    name = type(module).__name__
    switches = with_usual(switches)
    parameters = call_parameters(module)
    fields = {field.name for field in dataclasses.fields(module)} - {"name", "parent"}
    told = {switch for switch in switches if switch in parameters or switch in fields}
    check_call(module, len(example_args), told & parameters.keys())

    def in_its_mode(training: bool) -> tuple[linen.Module, dict[str, Any]]:
        values = {k: v for k, v in in_mode(switches, training=training).items() if k in told}
        attributes: dict[str, Any] = {k: v for k, v in values.items() if k not in parameters}
        return module.clone(**attributes), {k: v for k, v in values.items() if k in parameters}

    modes = {training: in_its_mode(training) for training in (True, False)}

    def init_boxed(key: jax.Array, *args: Any) -> PyTree:
        module, arguments = modes[False]
        return unfreeze(module.init(key, *args, **arguments))

    boxed = jax.eval_shape(init_boxed, jax.random.key(0), *example_args)
    remedy = "use LayerNorm, RMSNorm or GroupNorm instead of batch statistics"
    refuse_state(name, sorted(boxed.keys() - {"params"}), remedy)

    def init(key: jax.Array) -> Params:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example_args)
        return masters(_unbox(init_boxed(key, *zeros).get("params", {})), name)

    def call(params: Params, args: tuple, rngs: dict[str, jax.Array], *, training: bool) -> Any:
        module, arguments = modes[training]
        return module.apply({"params": params}, *args, rngs=rngs, **arguments)

    def apply(params: Params, *args: Any, key: jax.Array | None = None) -> Any:
        return call(params, args, {} if key is None else _streams(key), training=key is not None)

    def trace(training: bool, key: jax.Array | None = None) -> dict[str, bool]:
        rngs = {} if key is None else _streams(key)
        with linen.intercept_methods(_note_dropouts(seen := {})):
            run = lambda params, *args: check_output(
                call(params, args, rngs, training=training), name
            )
            jax.eval_shape(run, _unbox(boxed.get("params", {})), *example_args)
        return seen

    def draws(training: bool) -> bool:
        try:
            trace(training)
        except errors.InvalidRngError:
            return True
        return False

    dropouts = trace(training=True, key=jax.random.key(0))
    silent = [what for what, is_off in dropouts.items() if is_off]
    refuse_silent_dropout(name, silent, _candidates(module, told))
    if draws(training=False):
        active = trace(training=False, key=jax.random.key(0))
        refuse_random_evaluation(name, [what for what, is_off in active.items() if not is_off])
    axes = jax.tree.map(_boxed_names, boxed.get("params", {}), is_leaf=_is_boxed)
    return Functional(name, init, axes, apply, draws(training=True), frozenset(told))


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
