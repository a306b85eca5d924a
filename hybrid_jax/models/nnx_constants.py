"""Arrays of an NNX module that never change: tables, masks, variables declared constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hybrid_jax.errors import UserError
from hybrid_jax.models.contract import PyTree
from hybrid_jax.models.functional import nest

Filter = Callable[[tuple, Any], bool]


class Constants(NamedTuple):
    """Values on the host by path: of JAX arrays, and of NumPy arrays, which stay NumPy's.

    A module may compute shapes or indices from a NumPy array.
    """

    jax: dict[tuple, np.ndarray]
    numpy: dict[tuple, Any]

    def tree(self) -> PyTree:
        """The arrays as the module holds them."""
        return nest({path: jnp.asarray(value) for path, value in self.jax.items()} | self.numpy)


def constants_filter(declared: Sequence[type[nnx.Variable]]) -> Filter:
    """Returns the NNX filter of arrays outside variables and of variables of `declared` types."""
    kinds: tuple[Any, ...] = tuple(declared) if isinstance(declared, Sequence) else (declared,)
    for kind in kinds:
        is_variable = isinstance(kind, type) and issubclass(kind, nnx.Variable)
        if not is_variable or issubclass(nnx.Param, kind) or issubclass(kind, nnx.RngState):
            raise UserError(
                f"constants={declared!r} must list subclasses of nnx.Variable of your own, e.g. "
                "constants=(Table,) after `class Table(nnx.Variable): pass`."
            )
    return lambda path, leaf: isinstance(leaf, kinds) or not isinstance(leaf, nnx.Variable)


def mark_arrays(module: nnx.Module) -> None:
    """Makes arrays that were assigned to attributes while tracing part of the module's state.

    NNX takes an array for state by itself, but a tracer for a static attribute, which would stay
    in the module when its trace is over.

    Raises:
      UserError: arrays lie in a plain dict, list or tuple, which NNX does not look into.
    """
    is_node = lambda value: isinstance(value, nnx.Pytree | nnx.Variable)
    for node in [node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.Pytree)]:
        for name, value in list(vars(node).items()):
            if isinstance(value, jax.Array):
                setattr(node, name, nnx.data(value))
            elif not is_node(value) and any(
                isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value, is_leaf=is_node)
            ):
                raise UserError(
                    f"{type(node).__name__}.{name} holds arrays in a {type(value).__name__}: use "
                    "nnx.Dict or nnx.List, or an attribute for each."
                )


def read_constants(
    build: Callable[[jax.Array], nnx.Module], is_constant: Filter, module: str
) -> Constants:
    """Returns the constants of the module that `build` makes, computed under `jit`.

    Parameters are not among the outputs of that program, so that XLA leaves them out.

    Raises:
      UserError: a constant is a random key, or depends on the key that parameters are drawn from.
    """
    numpy: dict[tuple, Any] = {}

    def read(key: jax.Array) -> list[jax.Array]:
        values = flat_values(nnx.split(build(key), is_constant, ...)[1])
        traced = {path: value for path, value in values.items() if isinstance(value, jax.Array)}
        numpy.update({path: value for path, value in values.items() if path not in traced})
        for path, value in traced.items():
            if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
                raise UserError(
                    f"{module}'s {path_name(path)} is a random key: keep the nnx.Rngs itself, so "
                    "that every update draws other numbers."
                )
        paths.extend(traced)
        return list(traced.values())

    paths: list[tuple] = []
    program = jax.jit(read)
    values, others = (jax.device_get(program(jax.random.key(seed))) for seed in (0, 1))
    for path, value, other in zip(paths, values, others, strict=True):
        if value.tobytes() != other.tobytes():
            raise UserError(
                f"{module}'s constant {path_name(path)} depends on the key that parameters are "
                "drawn from: make it an nnx.Param, or draw it from a key of its own, such as "
                "jax.random.key(0)."
            )
    return Constants(dict(zip(paths, values, strict=True)), numpy)


def refuse_assignments(traced: jax.stages.Traced, names: Sequence[str], module: str) -> None:
    """Raises a UserError if a call assigns parameters or constants, or hides any.

    Args:
      traced: a function whose first arguments are these arrays, which it returns after the call.
      names: theirs.
    """
    jaxpr = traced.jaxpr.jaxpr
    # What is left of another trace, that of `make`, becomes an input that nobody gives.
    if len(jaxpr.invars) > len(jax.tree.leaves(traced.in_avals)):
        raise UserError(
            f"{module} keeps an array where NNX does not look, such as in a function: make it an "
            "attribute of a module."
        )
    for index, source in enumerate(passed_on(jaxpr)):
        if source != index:
            raise UserError(
                f"the call of {module} assigns {names[index]}, but the train step is a pure "
                "function of the parameters: return what it computes, or use a layer without such "
                "state."
            )


def passed_on(jaxpr: Any) -> list[int | None]:
    """For each output the number of the input that it is, through jit, remat and scan."""
    origin = {id(variable): index for index, variable in enumerate(jaxpr.invars)}
    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr")
        inner = getattr(inner, "jaxpr", inner)
        if inner is None or len(inner.invars) != len(equation.invars):
            continue
        for output, source in zip(equation.outvars, passed_on(inner), strict=True):
            known = None if source is None else origin.get(id(equation.invars[source]))
            if known is not None:
                origin[id(output)] = known
    return [origin.get(id(variable)) for variable in jaxpr.outvars]


def flat_values(state: nnx.State) -> dict[tuple, Any]:
    """Returns the arrays of a state by path, those in variables and those outside."""
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)
    return {
        path: leaf.get_value() if is_variable(leaf) else leaf
        for path, leaf in nnx.to_flat_state(state)
    }


def path_name(path: tuple) -> str:
    """A path as a user writes it: self.table, self.layers.0.kernel."""
    keys = [getattr(part, "key", part) for part in path]
    return ".".join(["self", *map(str, keys)])
