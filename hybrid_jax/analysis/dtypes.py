"""Operations of a traced step that compute or send f32, where a narrower dtype was meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from hybrid_jax.analysis.op_names import Source, source

# Reductions are not among them: gradients and statistics are summed in f32 by design.
_NARROW = (
    "dot_general",
    "ragged_dot",
    "conv_general_dilated",
    "all_gather",
    "all_to_all",
    "ppermute",
)

Jaxpr = Any


def wide_operations(jaxpr: Jaxpr) -> Counter[Source]:
    """Returns where matmuls and hand-written transfers inside the step's `shard_map` are f32.

    The optimizer, outside of it, may compute as it likes; so may a Pallas kernel.

    Args:
      jaxpr: of the whole step.
    """
    found: Counter[Source] = Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "shard_map":
            found.update(_wide(equation.params["jaxpr"], ""))
        elif equation.primitive.name != "pallas_call":
            for inner in _inner(equation):
                found.update(wide_operations(inner))
    return found


def _wide(jaxpr: Jaxpr, above: str) -> Iterator[Source]:
    for equation in jaxpr.eqns:
        name = f"{above}/{equation.source_info.name_stack}"
        if equation.primitive.name in _NARROW:
            if _is_wide(equation) and not _is_elementwise(equation):
                yield source(f"{name}/{equation.primitive.name}")
        elif equation.primitive.name != "pallas_call":
            for inner in _inner(equation):
                yield from _wide(inner, name)


def _is_wide(equation: Any) -> bool:
    operands = (variable.aval for variable in equation.invars)
    return any(operand.dtype == jnp.float32 and operand.ndim > 0 for operand in operands)


def _is_elementwise(equation: Any) -> bool:
    """Whether it is a dot that only multiplies entry by entry, or then sums each row too."""
    if equation.primitive.name != "dot_general":
        return False
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    free = [variable.aval.ndim - len(contracted) - len(batch) for variable in equation.invars]
    return free == [0, 0] or not contracted


def _inner(equation: Any) -> Iterator[Jaxpr]:
    """The jaxprs that an equation runs: bodies of loops, branches, calls."""
    for value in equation.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(part, "jaxpr", part)  # closed or open
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
