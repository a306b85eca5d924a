"""What one device holds of the training state and the batch, part by part, exactly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax

from hybrid_jax.sharding.rules import BATCH_AXES

if TYPE_CHECKING:
    from hybrid_jax.train.step import TrainStep


def state_parts(train: TrainStep, batch_shape: tuple[int, ...]) -> dict[str, int]:
    """Returns part → bytes on one device: parameters, each optimizer moment, scalars, batch.

    A moment is what the optimizer holds under one name in the shape of the parameters, such as
    Adam's `mu` and `nu`. Scalars are the step, the optimizer's counters and the guard.

    Args:
      batch_shape: as of `inspect`.
    """
    state = train.abstract_state()
    paths = {path for path, _ in jax.tree_util.tree_leaves_with_path(state.params)}
    parts = {"parameters": sum(map(_device_bytes, jax.tree.leaves(state.params)))}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        name = f"optimizer: {moment}" if (moment := _moment(path, paths)) else "scalars"
        parts[name] = parts.get(name, 0) + _device_bytes(leaf)
    scalars = parts.pop("scalars", 0)
    parts["scalars"] = scalars + sum(map(_device_bytes, jax.tree.leaves((state.step, state.guard))))
    shards = math.prod(train.mesh.shape[axis] for axis in BATCH_AXES)
    parts["batch"] = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize // shards
        for leaf in train.batch_shapes(batch_shape).values()
    )
    return parts


def _moment(path: tuple, parameter_paths: set[tuple]) -> str | None:
    """The name above the parameter's path in the path of an optimizer leaf; None for a scalar."""
    for start in range(1, len(path)):
        if path[start:] in parameter_paths:
            names = [key.name for key in path[:start] if hasattr(key, "name")]
            return names[-1] if names else "moments"
    return None


def _device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    assert leaf.sharding is not None
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
