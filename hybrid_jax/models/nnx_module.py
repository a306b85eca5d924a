"""An NNX module as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from hybrid_jax.errors import UserError
from hybrid_jax.models.contract import Params, PyTree
from hybrid_jax.models.functional import Functional, check_output, masters, nest, refuse_state
from hybrid_jax.models.nnx_constants import (
    Constants,
    Filter,
    constants_filter,
    flat_values,
    mark_arrays,
    path_name,
    read_constants,
    refuse_assignments,
)
from hybrid_jax.models.nnx_streams import Draws, reseed, watch
from hybrid_jax.models.switches import (
    Switches,
    call_parameters,
    check_call,
    in_mode,
    refuse_random_evaluation,
    refuse_silent_dropout,
    with_usual,
)

Make = Callable[[nnx.Rngs], nnx.Module]


def from_nnx(
    make: Make,
    *example_args: Any,
    switches: Switches | None = None,
    constants: Sequence[type[nnx.Variable]] = (),
) -> Functional:
    """Returns the NNX module that `make` builds as pure functions.

    A switch is a parameter of the module's call, or else an attribute of any of its submodules.

    >>> linear = from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    >>> params = linear.init(jax.random.key(0))
    >>> linear.apply(params, jax.numpy.ones((1, 3))).shape
    (1, 2)

    Args:
      make: builds the module; it is traced, so that no parameter is ever whole on one device.
      example_args: what the module will be called with; only shapes and dtypes matter. Without
        them the call is not tried.
      switches, constants: as for `from_flax`.

    Raises:
      UserError: the module holds variables that are neither parameters nor random streams nor
        constants; its call assigns one, or draws random numbers in the wrong mode.
    """
    template = nnx.eval_shape(lambda key: _build(make, key), jax.random.key(0))
    name, is_constant = type(template).__name__, constants_filter(constants)
    split = nnx.split(template, is_constant, nnx.Param, nnx.RngState, ...)
    graphdef, fixed, params, streams, others = split
    _refuse_others(name, [type(variable) for _, variable in nnx.to_flat_state(others)])
    values = Constants({}, {})
    if nnx.to_flat_state(fixed):
        values = read_constants(lambda key: _build(make, key), is_constant, name)
    switches = with_usual(switches)
    parts = _Parts(graphdef, dict(nnx.to_flat_state(streams)), switches, call_parameters(template))

    def init(key: jax.Array) -> Params:
        _, _, params, _ = nnx.split(_build(make, key), is_constant, nnx.Param, ...)
        return masters(nnx.to_pure_dict(params), name)

    def apply(params: Params, *args: Any, key: jax.Array | None = None) -> Any:
        return parts.call(parts.merge(params, values.tree(), key), args, key is not None)

    axes = nest({path: _names(variable) for path, variable in nnx.to_flat_state(params)})
    told = {switch for _, switch, _ in _attributes(template, switches)}
    told |= switches.keys() & parts.parameters.keys()
    stochastic = bool(parts.streams)
    if example_args:
        check_call(template, len(example_args), switches.keys() & parts.parameters.keys())
        shapes = jax.eval_shape(init, jax.random.key(0))
        trial = lambda training: _try(
            parts, is_constant, shapes, values, example_args, name, training=training
        )
        in_training, in_evaluation = trial(True), trial(False)
        refuse_silent_dropout(name, in_training.silent(), _candidates(template, told))
        if in_evaluation.drawn:
            refuse_random_evaluation(name, in_evaluation.active())
        stochastic = bool(in_training.drawn)
    return Functional(name, init, axes, apply, stochastic, frozenset(told))


@dataclass(frozen=True)
class _Parts:
    """A module without its arrays, and how it is told its mode.

    Attributes:
      streams: the random streams' variables by path.
      parameters: those of its call.
    """

    graphdef: nnx.GraphDef
    streams: dict[tuple, Any]
    switches: Switches
    parameters: Mapping[str, Any]

    def merge(self, params: Params, constants: PyTree, key: jax.Array | None) -> nnx.Module:
        """Returns the module in training mode, with its streams at `key`, or in evaluation mode."""
        states = (params, constants, reseed(self.streams, key))
        module = nnx.merge(self.graphdef, *(state for state in states if state))
        module.eval() if key is None else module.train()
        told = in_mode(self.switches, training=key is not None)
        for node, switch, value in list(_attributes(module, told)):
            if switch not in self.parameters:
                setattr(node, switch, value)
        return module

    def call(self, module: nnx.Module, args: Sequence[Any], training: bool) -> Any:
        """Calls the module with the switches that its call takes."""
        told = in_mode(self.switches, training=training)
        return module(*args, **{k: v for k, v in told.items() if k in self.parameters})


def _build(make: Make, key: jax.Array) -> nnx.Module:
    # Parameters carry logical names, not mesh axes: Flax must not place them by itself.
    with nnx.use_eager_sharding(False):
        module = make(nnx.Rngs(key))
    if not isinstance(module, nnx.Module):
        raise UserError(
            f"{getattr(make, '__name__', make)} builds a {type(module).__name__}: pass a function "
            "of nnx.Rngs that returns an nnx.Module, or a Linen module."
        )
    mark_arrays(module)
    return module


def _try(
    parts: _Parts,
    is_constant: Filter,
    params: PyTree,
    constants: Constants,
    args: tuple[Any, ...],
    name: str,
    *,
    training: bool,
) -> Draws:
    """Traces a call in one mode; returns what it draws, and refuses what it assigns."""
    draws = Draws()
    key = jax.random.key(0) if training else None

    def run(params: PyTree, values: list[jax.Array], *args: Any) -> tuple[PyTree, list[jax.Array]]:
        nonlocal draws
        known = dict(zip(constants.jax, values, strict=True))
        module = parts.merge(params, nest(known | constants.numpy), key)
        draws = watch(module)
        check_output(parts.call(module, args, training), name)
        _, known, params, _ = nnx.split(module, is_constant, nnx.Param, ...)
        known = flat_values(known)
        return nnx.to_pure_dict(params), [known[path] for path in constants.jax]

    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    names += map(path_name, constants.jax)
    traced = jax.jit(run).trace(params, list(constants.jax.values()), *args)
    refuse_assignments(traced, names, name)
    return draws


def _refuse_others(name: str, kinds: list[type]) -> None:
    remedy = "use LayerNorm, RMSNorm or GroupNorm instead of batch statistics"
    if not any(issubclass(kind, nnx.BatchStat) for kind in kinds):
        names = ", ".join(sorted({kind.__name__ for kind in kinds}))
        remedy = f"declare what never changes as constant, constants=({names},)"
    refuse_state(name, [kind.__name__ for kind in kinds], remedy)


def _attributes(module: nnx.Module, told: Switches) -> Iterator[tuple[nnx.Module, str, bool]]:
    """Submodules with an attribute that is a switch, its name and its value in `told`."""
    for _, node in nnx.iter_modules(module):
        for switch, value in told.items():
            if isinstance(getattr(node, switch, None), bool):
                yield node, switch, value


def _candidates(module: nnx.Module, told: set[str]) -> dict[str, bool]:
    """What looks like a switch that nobody has named; what it is by default is not training."""
    defaults = {name: parameter.default for name, parameter in call_parameters(module).items()}
    return {
        name: not value
        for name, value in {**vars(module), **defaults}.items()
        if isinstance(value, bool) and name not in told
    }


def _names(variable: Any) -> tuple[str | None, ...]:
    names = variable.get_metadata("out_sharding", None)
    return (None,) * len(variable.shape) if names is None else tuple(names)
