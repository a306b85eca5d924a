"""The parameter table: what every parameter is and what one device stores of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid_jax.sharding.placement import path_name

if TYPE_CHECKING:
    from hybrid_jax.train.step import TrainStep


@dataclass(frozen=True)
class ParameterRow:
    """One parameter; `device_bytes` is what one device stores of its `bytes`."""

    path: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    sharding: NamedSharding
    bytes: int
    device_bytes: int

    @property
    def spec(self) -> PartitionSpec:
        """Mesh axes that cut each dim."""
        return self.sharding.spec

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of equal parts along each dim."""
        shard = self.sharding.shard_shape(self.shape)
        return tuple(size // part for size, part in zip(self.shape, shard, strict=True))

    @property
    def num_parts(self) -> int:
        """Different parts in all."""
        return math.prod(self.parts)

    @property
    def copies(self) -> int:
        """Devices that hold the same part."""
        return self.sharding.num_devices // self.num_parts

    @cached_property
    def held(self) -> np.ndarray:
        """int `[devices]`, the part that each device holds, devices in mesh order.

        Parts are numbered in row-major order.
        """
        mesh = self.sharding.mesh
        assert isinstance(mesh, Mesh), "a train step names its devices"
        shard = self.sharding.shard_shape(self.shape)
        strides = [math.prod(self.parts[dim + 1 :]) for dim in range(len(self.shape))]
        indices = self.sharding.devices_indices_map(self.shape)
        return np.array(
            [
                sum(
                    (cut.start or 0) // size * stride
                    for cut, size, stride in zip(indices[device], shard, strides, strict=True)
                )
                for device in mesh.devices.flat
            ]
        )

    def to_fields(self) -> dict[str, Any]:
        """Returns what the report writes as JSON."""
        return {
            "path": self.path,
            "shape": self.shape,
            "axes": self.axes,
            "spec": list(self.spec),
            "bytes": self.bytes,
            "device_bytes": self.device_bytes,
        }


def parameter_table(train: TrainStep) -> tuple[ParameterRow, ...]:
    """Returns one row for each parameter of `train`, in the order of the tree.

    Shapes are those of the state, with the places of padded layers.
    """

    def row(path, stored, axes) -> ParameterRow:
        itemsize = stored.dtype.itemsize
        return ParameterRow(
            path=path_name(path),
            shape=stored.shape,
            axes=tuple(axes),
            sharding=stored.sharding,
            bytes=stored.size * itemsize,
            device_bytes=math.prod(stored.sharding.shard_shape(stored.shape)) * itemsize,
        )

    rows = jax.tree_util.tree_map_with_path(row, train.abstract_state().params, train.model.axes())
    return tuple(jax.tree.leaves(rows, is_leaf=lambda node: isinstance(node, ParameterRow)))
