"""The parameter table: what every parameter is and what one device stores of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
from jax.sharding import PartitionSpec

from hybrid_jax.sharding.placement import path_name

if TYPE_CHECKING:
    from hybrid_jax.train.step import TrainStep


@dataclass(frozen=True)
class ParameterRow:
    """One parameter; `device_bytes` is what one device stores of its `bytes`."""

    path: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    spec: PartitionSpec
    bytes: int
    device_bytes: int


def parameter_table(train: TrainStep) -> tuple[ParameterRow, ...]:
    """Returns one row for each parameter of `train`, in the order of the tree."""

    def row(path, shape, stored, axes) -> ParameterRow:
        itemsize = shape.dtype.itemsize
        return ParameterRow(
            path=path_name(path),
            shape=shape.shape,
            axes=tuple(axes),
            spec=stored.sharding.spec,
            bytes=shape.size * itemsize,
            device_bytes=math.prod(stored.sharding.shard_shape(stored.shape)) * itemsize,
        )

    rows = jax.tree_util.tree_map_with_path(
        row, train.shapes, train.abstract_state().params, train.model.axes()
    )
    return tuple(jax.tree.leaves(rows, is_leaf=lambda node: isinstance(node, ParameterRow)))
