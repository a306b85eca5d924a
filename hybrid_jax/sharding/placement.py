"""Where every parameter lives: tensor-parallel rules, stages, and the ZeRO shard on `data`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
from jax.sharding import Mesh, PartitionSpec

from hybrid_jax.errors import UserError
from hybrid_jax.sharding.constrain import check_divisible, entry_axes
from hybrid_jax.sharding.rules import Axes, AxisRules, as_entry


@dataclass(frozen=True)
class Placement:
    """The placement of one parameter.

    Attributes:
      spec: over all mesh axes, as the state is stored.
      zero_dim: the dim that ZeRO splits, or None when the parameter is whole on `zero_axes`.
      zero_axes: the mesh axes, outermost first, over which `zero_dim` is split; a parameter that
        every stage holds is split over `stage` too, which for it is one more data axis.
    """

    spec: PartitionSpec
    zero_dim: int | None = None
    zero_axes: tuple[str, ...] = ()


def place_param(
    shape: tuple[int, ...], names: Axes, rules: AxisRules, mesh: Mesh, *, zero: int, path: str
) -> Placement:
    """Returns the placement of one parameter.

    Args:
      names: one logical axis (or None) for each dim.
      zero: 0 keeps parameters and optimizer state whole on `data`; 1 and 3 split them
        (Rajbhandari et al. 2020, arXiv:1910.02054).
      path: of the parameter, for errors.

    Raises:
      UserError: rank mismatch, indivisible dim, or a rule that puts a parameter on a mesh axis
        that parameters cannot use.
    """
    if len(names) != len(shape):
        raise UserError(
            f"{path}: {len(names)} logical axes {names} for shape {shape}: "
            "give one name (or None) for each dim."
        )
    spec = rules.to_spec(names, path=path)
    _check_parameter_axes(spec, names, zero, path)
    check_divisible(shape, spec, mesh, path=path)
    if zero == 0:
        return Placement(spec)
    on_stage = any("stage" in entry_axes(entry) for entry in spec)
    candidates = ("data",) if on_stage else ("stage", "data")
    everything = tuple(axis for axis in candidates if mesh.shape[axis] > 1)
    for zero_axes in (everything, tuple(axis for axis in everything if axis == "data")):
        zero_dim = _zero_dim(shape, spec, names, zero_axes, mesh)
        if zero_axes and zero_dim is not None:
            entries = list(spec)
            entries[zero_dim] = as_entry(zero_axes)
            return Placement(PartitionSpec(*entries), zero_dim, zero_axes)
    return Placement(spec)


def _zero_dim(
    shape: tuple[int, ...],
    spec: PartitionSpec,
    names: Axes,
    zero_axes: tuple[str, ...],
    mesh: Mesh,
) -> int | None:
    """The dim a rule puts on `data`, else the largest free dim that `zero_axes` divide."""
    parts = math.prod(mesh.shape[axis] for axis in zero_axes)
    wanted = [dim for dim, entry in enumerate(spec) if entry_axes(entry) == ("data",)]
    free = [
        dim
        for dim, entry in enumerate(spec)
        if names[dim] != "layers" and not any(mesh.shape[axis] > 1 for axis in entry_axes(entry))
    ]
    divisible = [dim for dim in (wanted or free) if shape[dim] % parts == 0]
    return max(divisible, key=lambda dim: shape[dim], default=None)


def _check_parameter_axes(spec: PartitionSpec, names: Axes, zero: int, path: str) -> None:
    for name, entry in zip(names, spec, strict=True):
        if "data" in entry_axes(entry) and len(entry_axes(entry)) > 1:
            raise UserError(
                f"{path}: a rule puts {name!r} on {entry_axes(entry)}, but a dim that 'data' "
                "splits can be split by no other axis: give 'data' a dim of its own."
            )
        for axis in entry_axes(entry):
            if axis == "data" and zero == 0:
                raise UserError(
                    f"{path}: a rule puts {name!r} on 'data', but zero=0 keeps parameters whole "
                    "there: set zero=1 or zero=3, or drop the rule."
                )
            allowed = {"layers": ("stage",)}.get(name or "", ("model", "data"))
            if axis not in allowed:
                raise UserError(
                    f"{path}: a rule puts {name!r} on {axis!r}, but this dim of a parameter can "
                    f"only be split over {' or '.join(allowed)}: change the rule."
                )


def path_name(key_path) -> str:
    """A pytree key path as `blocks/attention/query`."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")
