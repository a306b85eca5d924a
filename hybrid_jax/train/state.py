"""The training state and where each of its arrays lives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid_jax.sharding.placement import Placement
from hybrid_jax.train.guard import Guard

PyTree = Any

DEPTH_ORDER = "depth"
"""All layers by depth, and nothing else: what checkpoints hold, and most layouts."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a run needs to go on.

    Attributes:
      step: int32 scalar, the number of batches so far; all of them updates, but for those skipped.
      params: f32 master parameters {"embed", "blocks", "head"}.
      opt_state: optax state.
      guard: which updates were skipped, and what is needed to judge the next.
      order: of the layers in every stacked array: `DEPTH_ORDER`, or that of a pipeline which is
        interleaved, or pads the depth (`LayerOrder.name`). Interleaved arrays have the shapes and
        shardings of those by depth, so the state itself must say which they are. Part of the
        tree's structure, not a leaf.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    guard: Guard = field(default_factory=Guard.fresh)
    order: str = field(default=DEPTH_ORDER, metadata={"static": True})


def state_shardings(
    tx: optax.GradientTransformation,
    shapes: PyTree,
    placements: PyTree,
    mesh: Mesh,
    order: str = DEPTH_ORDER,
) -> TrainState:
    """Returns a `TrainState` of `NamedSharding`: optimizer state lies where its parameters lie.

    An optimizer leaf belongs to a parameter when its path ends in the parameter's path and their
    shapes are equal (the moments of Adam, Lion, Muon); any other leaf (counters, the factored
    moments of Adafactor) is small and lies whole on every device.
    """
    is_leaf = lambda node: isinstance(node, Placement)
    shardings = jax.tree.map(lambda p: NamedSharding(mesh, p.spec), placements, is_leaf=is_leaf)
    by_path = {
        path: (shape.shape, sharding)
        for (path, shape), sharding in zip(
            jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(shardings), strict=True
        )
    }
    whole = NamedSharding(mesh, PartitionSpec())

    def place(path, leaf):
        for start in range(len(path)):
            shape, sharding = by_path.get(path[start:], (None, whole))
            if shape == leaf.shape:
                return sharding
        return whole

    opt_state = jax.tree_util.tree_map_with_path(place, jax.eval_shape(tx.init, shapes))
    guard = jax.tree.map(lambda _: whole, jax.eval_shape(Guard.fresh))
    return TrainState(whole, shardings, opt_state, guard, order)  # pyright: ignore[reportArgumentType]
