"""The fields of a chip as a user's file gives them."""

from __future__ import annotations

import math
from typing import Any

from hybrid_jax.config.checks import shown
from hybrid_jax.errors import UserError

PLATFORMS = ("tpu", "gpu", "cpu")
TORUS_DIMS = (0, 2, 3)
_COUNTS = ("domain", "host", "wrap")


def chip_field(name: str, value: Any) -> Any:
    """Returns the value of a field of `Chip`, as a number where it is one.

    >>> chip_field("hbm_bytes", "9e10")  # YAML reads it as text
    90000000000.0

    Raises:
      UserError: a value that no chip has.
    """
    number = _number(value)
    if name == "name":
        is_right, constraint = isinstance(value, str) and value != "", "text"
    elif name == "platform":
        is_right, constraint = value in PLATFORMS, f"one of {', '.join(PLATFORMS)}"
    elif name == "torus_dims":
        is_right, constraint = number in TORUS_DIMS, "0 (a switch), 2 or 3"
    elif name in _COUNTS:
        is_right, constraint = number >= 1 and number.is_integer(), "a whole number, at least 1"
    elif name == "latency":
        is_right, constraint = number >= 0, "a finite number, 0 or more"
    else:  # the planner divides by it
        is_right, constraint = number > 0, "a finite number above 0"
    if not is_right:
        raise UserError(f"chip field {name}={shown(value)} must be {constraint}.")
    if name in ("name", "platform"):
        return value
    is_whole = isinstance(value, int) or name == "torus_dims" or name in _COUNTS
    return int(number) if is_whole else number


def _number(value: Any) -> float:
    """The finite number that `value` is or spells, or NaN, which no comparison accepts."""
    if isinstance(value, bool):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
