"""Which mesh axes a collective crosses: from its device groups in HLO text to axis names.

XLA writes device groups in four ways: listed, as a reshaped and transposed range, and as axes of a
mesh whose devices are in order or listed. Permutes list (source, target) pairs. Ids are partition
ids: positions in the flattened device mesh of the jitted function.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

_LISTED = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_RANGE = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_MESH_AXIS = re.compile(r"'?([^',=]+)'?=(\d+)")
_SUB_AXIS = re.compile(r"'?([^',:]+)'?(?::\((\d+)\)(\d+))?'?(?:,|$)")

Groups = list[list[int]]


def device_groups(attributes: str, num_devices: int) -> Groups:
    """Returns the device groups of a collective, or the pairs of a permute.

    >>> device_groups("replica_groups=[2,2]<=[2,2]T(1,0)", 4)
    [[0, 2], [1, 3]]
    >>> device_groups("replica_groups=mesh['data'=2,'model'=2] {'data'}", 4)
    [[0, 2], [1, 3]]

    Args:
      attributes: what follows the operands in the line of the instruction.
      num_devices: of the whole program; a collective without groups spans all of them.
    """
    if found := _PAIRS.search(attributes) or _LISTED.search(attributes):
        groups = [_integers(group) for group in re.findall(r"\{([\d,]*)\}", found[1])]
        return groups or [list(range(num_devices))]
    if found := _RANGE.search(attributes):
        return _range(found[2], found[3]).reshape(_integers(found[1])).tolist()
    if found := _MESH.search(attributes):
        return _mesh_groups(axes=found[1], devices=found[2], grouped=found[3])
    assert "replica_groups" not in attributes, f"unknown device groups: {attributes}"
    return [list(range(num_devices))]


def crossed_axes(groups: Groups, axis_sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes along which the members of any group differ.

    >>> crossed_axes([[0, 2], [1, 3]], {"data": 2, "model": 2})
    ('data',)
    """
    sizes = tuple(axis_sizes.values())
    varies = np.zeros(len(sizes), bool)
    for group in groups:
        coordinates = np.stack(np.unravel_index(np.array(group), sizes))
        varies |= (coordinates != coordinates[:, :1]).any(axis=1)
    return tuple(name for name, differs in zip(axis_sizes, varies, strict=True) if differs)


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _range(dims: str, permutation: str | None) -> np.ndarray:
    """The ids 0, 1, … in the given dims, transposed and flattened."""
    sizes = _integers(dims)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose(_integers(permutation)) if permutation else ids).reshape(-1)


def _mesh_groups(*, axes: str, devices: str | None, grouped: str) -> Groups:
    """Groups along axes of a mesh; `'x':(2)4` is the part of `x` of size 4 below a part of size 2.

    Two devices are in one group when their coordinates agree after the grouped parts are zeroed.
    """
    sizes = {name: int(size) for name, size in _MESH_AXIS.findall(axes)}
    coordinates = np.indices(tuple(sizes.values())).reshape(len(sizes), -1)
    rest = coordinates.copy()
    for name, above, width in _SUB_AXIS.findall(grouped):
        above, width = (int(above), int(width)) if width else (1, sizes[name])
        axis, stride = list(sizes).index(name), sizes[name] // (above * width)
        rest[axis] -= coordinates[axis] // stride % width * stride
    members: dict[tuple[int, ...], list[int]] = {}
    for device, key in zip(_mesh_devices(devices, coordinates.shape[1]), rest.T, strict=True):
        members.setdefault(tuple(key.tolist()), []).append(device)
    return list(members.values())


def _mesh_devices(devices: str | None, num_devices: int) -> list[int]:
    """The ids in mesh order: a range when none are written, else a list or a transposed range."""
    if devices is None:
        return list(range(num_devices))
    if found := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", devices):
        return _range(found[1], found[2]).tolist()
    return _integers(devices)
