"""Sharding constraints by logical name, for model code that must not know the mesh."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from hybrid_jax.errors import UserError
from hybrid_jax.sharding.rules import Axes, AxisRules, as_entry

Constrain = Callable[[jax.Array, Axes], jax.Array]

MANUAL_AXES = ("replica", "stage", "data", "context", "expert")
"""The mesh axes whose communication the train step writes by hand; `model` is left to XLA."""


def make_constrain(rules: AxisRules, mesh: Mesh) -> Constrain:
    """Returns `constrain(x, names)`: a hint to XLA about the `model` axis, for use in the step.

    Inside the step's `shard_map` only `model` is an automatic axis, so only its part of the rules
    is handed on; the manual axes have already split the array.

    Raises (when called):
      UserError: there is no rule for a name, or a dim is not divisible by the mesh axes its name
        asks for.
    """

    def constrain(x: jax.Array, names: Axes) -> jax.Array:
        if len(names) != x.ndim:
            raise UserError(
                f"activation {names}: {len(names)} logical axes for shape {x.shape}: give one "
                "name (or None) for each dim."
            )
        spec = automatic_part(rules.to_spec(names, path="activation"))
        if mesh.shape["model"] == 1:
            return x
        check_divisible(x.shape, spec, mesh, path=f"activation {names}")
        return lax.with_sharding_constraint(x, spec)

    return constrain


def manual_part(spec: PartitionSpec) -> PartitionSpec:
    """The entries of `spec` on manual axes, as `shard_map` wants them.

    >>> tuple(manual_part(PartitionSpec(("stage", "model"), "data", "model")))
    ('stage', 'data', None)
    """
    return _keep(spec, lambda axis: axis in MANUAL_AXES)


def automatic_part(spec: PartitionSpec) -> PartitionSpec:
    """The entries of `spec` that XLA partitions by itself."""
    return _keep(spec, lambda axis: axis not in MANUAL_AXES)


def entry_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """One entry of a `PartitionSpec` as a tuple of mesh axes."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def check_divisible(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh, *, path: str) -> None:
    """Raises a UserError when a dim of `shape` cannot be split evenly as `spec` asks."""
    for dim, entry in enumerate(spec):
        axes = entry_axes(entry)
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if shape[dim] % parts:
            wanted = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
            raise UserError(
                f"{path}: dim {dim} of shape {tuple(shape)} is {shape[dim]}, not divisible by "
                f"{wanted}: make it a multiple of {parts} (the next is "
                f"{-(-shape[dim] // parts) * parts}), shrink the axis, or change the rule for it."
            )


def _keep(spec: PartitionSpec, wanted: Callable[[str], bool]) -> PartitionSpec:
    entries = []
    for entry in spec:
        entries.append(as_entry(tuple(axis for axis in entry_axes(entry) if wanted(axis))))
    return PartitionSpec(*entries)
