"""What is wrong, or wasteful, about a sharding: reported before anything is compiled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from hybrid_jax.errors import UserError, nearest
from hybrid_jax.sharding.constrain import entry_axes
from hybrid_jax.sharding.placement import Placement, path_name, place_param
from hybrid_jax.sharding.rules import ACTIVATION_NAMES, FIXED_NAMES, AxisRules

PyTree = Any

LARGE_BYTES = 2**20
"""A replicated parameter of at least this many bytes (f32) is worth a word."""


@dataclass(frozen=True)
class Finding:
    """One thing the doctor found.

    Attributes:
      kind: "error" stops the run, "warning" wastes memory.
      path: the parameter's path, or the rule.
      message: value, constraint and remedy on one line.
    """

    kind: str
    path: str
    message: str


def examine(
    shapes: PyTree, axes: PyTree, rules: AxisRules, mesh: Mesh, *, zero: int
) -> tuple[PyTree | None, tuple[Finding, ...]]:
    """Places every parameter and returns (tree of `Placement`, findings).

    The placements are None when there is an error. Errors: an unknown logical name, a mesh axis
    used twice in an array, a dim that does not divide, names that do not match the rank, a rule of
    the user's that nothing uses or that contradicts the step. Warnings: a large parameter that is
    whole on every device of an axis that could split it.

    Args:
      shapes: pytree of `jax.ShapeDtypeStruct`.
      axes: the same structure with tuples of logical names as leaves.
    """
    findings = list(_examine_rules(axes, rules))

    def place(key_path, shape, names):
        path = path_name(key_path)
        try:
            placement = place_param(shape.shape, names, rules, mesh, zero=zero, path=path)
        except UserError as error:
            findings.append(Finding("error", path, str(error)))
            return Placement(jax.P())
        findings.extend(_examine_size(path, shape, placement, mesh, zero))
        return placement

    placements = jax.tree_util.tree_map_with_path(place, shapes, axes)
    has_errors = any(finding.kind == "error" for finding in findings)
    return (None if has_errors else placements), tuple(findings)


def place_params(
    shapes: PyTree, axes: PyTree, rules: AxisRules, mesh: Mesh, *, zero: int
) -> tuple[PyTree, tuple[Finding, ...]]:
    """Returns (tree of `Placement`, warnings); see `examine`.

    Raises:
      UserError: the first error that `examine` finds, and where the others are.
    """
    placements, findings = examine(shapes, axes, rules, mesh, zero=zero)
    errors = [finding for finding in findings if finding.kind == "error"]
    if errors:
        others = ", ".join(finding.path for finding in errors[1:])
        raise UserError(errors[0].message + (f" (Also wrong: {others}.)" if others else ""))
    return placements, findings


def _examine_rules(axes: PyTree, rules: AxisRules):
    leaves = jax.tree.leaves(axes, is_leaf=lambda node: isinstance(node, tuple))
    names = {name for leaf in leaves for name in leaf if name} | ACTIVATION_NAMES
    for name, mesh_axes in rules.own:
        rule = f"({name!r}, {mesh_axes or None!r})"
        if name in FIXED_NAMES:
            yield Finding(
                "error",
                name,
                f"rule {rule}: the step splits {name!r} over {FIXED_NAMES[name]} by hand, and no "
                "rule can change that: drop the rule.",
            )
        elif name not in names:
            yield Finding(
                "error",
                name,
                f"rule {rule}: no parameter or activation of this model has the logical axis "
                f"{name!r}.{nearest(name, names)} Drop the rule or correct the name.",
            )


def _examine_size(
    path: str, shape: jax.ShapeDtypeStruct, placement: Placement, mesh: Mesh, zero: int
):
    size = math.prod(shape.shape) * 4
    split = {axis for entry in placement.spec for axis in entry_axes(entry)}
    candidates = ("model", "data") if zero else ("model",)
    replicated = [axis for axis in candidates if mesh.shape[axis] > 1 and axis not in split]
    if size >= LARGE_BYTES and replicated:
        sizes = " and ".join(f"{axis}={mesh.shape[axis]}" for axis in replicated)
        yield Finding(
            "warning",
            path,
            f"{path} of shape {shape.shape} ({size / 2**20:.1f} MiB) is whole on every device of "
            f"{sizes}: give one of its dims a rule for that axis, or a size that it divides.",
        )
