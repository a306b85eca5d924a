"""Which device holds which part of a parameter, told by mesh coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jax.sharding import PartitionSpec


@dataclass(frozen=True)
class Shards:
    """An array cut into equal parts.

    Attributes:
      parts: number of parts along each dim.
      held: int `[devices, dims]`, the part along each dim that a device holds, devices in mesh
        order.
      axes: the mesh axes that cut the array.
    """

    parts: tuple[int, ...]
    held: np.ndarray
    axes: tuple[str, ...]

    @property
    def num_parts(self) -> int:
        """Different parts in all."""
        return math.prod(self.parts)

    @property
    def copies(self) -> int:
        """Devices that hold the same part."""
        return len(self.held) // self.num_parts

    @property
    def numbers(self) -> np.ndarray:
        """int `[devices]`, the held part, numbered through in row-major order."""
        if not self.parts:
            return np.zeros(len(self.held), int)
        return np.asarray(np.ravel_multi_index(tuple(self.held.T), self.parts))


def shards(rank: int, spec: PartitionSpec, axis_sizes: Mapping[str, int]) -> Shards:
    """Returns how `NamedSharding` cuts an array of `rank` dims on a mesh of these axes.

    >>> found = shards(2, PartitionSpec(None, ("stage", "data")), {"stage": 2, "data": 2})
    >>> found.parts, found.numbers.tolist()
    ((1, 4), [0, 1, 2, 3])
    >>> shards(1, PartitionSpec("data"), {"stage": 2, "data": 2}).numbers.tolist()
    [0, 1, 0, 1]
    """
    names, sizes = list(axis_sizes), tuple(axis_sizes.values())
    coordinates = np.indices(sizes).reshape(len(sizes), -1)
    entries = [*spec, *[None] * (rank - len(spec))]
    parts, held, axes = [], [], []
    for entry in entries:
        cutting = entry if isinstance(entry, tuple) else (entry,) if entry else ()
        part = np.zeros(coordinates.shape[1], int)
        for axis in cutting:  # the first is the slowest
            part = part * axis_sizes[axis] + coordinates[names.index(axis)]
        parts.append(math.prod(axis_sizes[axis] for axis in cutting))
        held.append(part)
        axes += [axis for axis in cutting if axis_sizes[axis] > 1]
    stacked = np.stack(held, axis=1) if held else np.zeros((coordinates.shape[1], 0), int)
    return Shards(tuple(parts), stacked, tuple(axes))
