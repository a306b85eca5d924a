"""The door for states: one that belongs to another layout, or to another model, is refused."""

from __future__ import annotations

from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding

from hybrid_jax.errors import UserError
from hybrid_jax.sharding.placement import path_name
from hybrid_jax.train.state import DEPTH_ORDER, TrainState

PyTree = Any


def check_state(state: Any, expected: TrainState, *, anywhere: bool = False) -> None:
    """Raises a UserError unless a step can take `state`, and its arrays mean what the step reads.

    Costs about a microsecond per array: nothing is read from the devices.

    Args:
      expected: shapes, dtypes, shardings and order of the layers.
      anywhere: whether the arrays may lie elsewhere, on the host too.
    """
    if not isinstance(state, TrainState):
        raise UserError(
            f"the state is a {type(state).__name__}: give the TrainState that train.init, "
            "train.step or a checkpointer returned."
        )
    if state.order != expected.order:
        raise UserError(
            f"the state has its layers in the order of {state.order!r}, this step in that of "
            f"{expected.order!r}: move it by {_moves(state.order, expected.order)}."
        )
    if jax.tree.structure(state) != jax.tree.structure(expected):
        raise UserError(_structure(state, expected))
    for (path, leaf), want in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected), strict=True
    ):
        if problem := _problem(leaf, want) or (None if anywhere else _misplaced(leaf, want)):
            raise UserError(f"{path_name(path)} of the state {problem}.")


def _moves(there: str, here: str) -> str:
    to_depth = "canonical_state of the step that it comes from"
    if here == DEPTH_ORDER:
        return to_depth
    return "from_canonical" if there == DEPTH_ORDER else f"{to_depth}, then from_canonical"


def _structure(state: TrainState, expected: TrainState) -> str:
    names, wanted = (
        {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (state, expected)
    )
    different = sorted(names ^ wanted)
    name = different[0] if different else "an empty optimizer state"
    there, here = ("the state", "this step") if name in names else ("this step", "the state")
    return (
        f"{there} has {name}, which {here} does not have: the state belongs to another model or "
        "optimizer."
    )


def _problem(leaf: Any, want: jax.ShapeDtypeStruct) -> str | None:
    """What is wrong with an array, and what to do."""
    if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted():
        return (
            "is gone, since a step takes over the memory of the state that it is given: use the "
            "state that it returned"
        )
    if leaf.shape != want.shape or leaf.dtype != want.dtype:
        return (
            f"is {leaf.dtype}{list(leaf.shape)}, but {want.dtype}{list(want.shape)} here: it "
            "belongs to another model or optimizer"
        )
    return None


def _misplaced(leaf: Any, want: jax.ShapeDtypeStruct) -> str | None:
    """Where an array lies, if that is not where the step reads it."""
    if isinstance(leaf, Tracer):
        return None
    there = getattr(leaf, "sharding", None)
    if there is not None:
        # What was never placed, such as a scalar that a user made, JAX places where it is wanted.
        if there == want.sharding or not leaf.committed:
            return None
        if there.is_equivalent_to(want.sharding, leaf.ndim):
            return None
    return (
        f"lies on {_place(there)}, but must lie on {_place(want.sharding)}: move the state by "
        "train.from_canonical(other.canonical_state(state)), where other is the step that it "
        "comes from"
    )


def _place(sharding: Any) -> str:
    """A sharding in a few words."""
    if not isinstance(sharding, NamedSharding):
        return "the host" if sharding is None else " ".join(str(sharding).split())
    sizes = [f"{axis}={size}" for axis, size in sharding.mesh.shape.items() if size > 1]
    return f"{' x '.join(sizes) or 'one device'} as {sharding.spec}"
