"""The checks of a single value that every section of a configuration needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from hybrid_jax.errors import UserError, nearest


def shown(value: Any, longest: int = 80) -> str:
    """Returns `repr(value)` on one line, cut in its middle where it is longer than `longest`.

    >>> shown("x" * 100, longest=20)
    "'xxxxxxxx…xxxxxxxxx'"
    >>> shown(10**5000)
    'a number of about 5001 digits'
    """
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write whole numbers of more than 4300 digits
        digits = int(value.bit_length() * math.log10(2)) + 1 if isinstance(value, int) else None
        return f"a number of about {digits} digits" if digits else f"a {type(value).__name__}"
    text = text if text.isprintable() else ascii(text)[1:-1]
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[:half]}…{text[len(text) - (longest - 1 - half) :]}"


def check_int(name: str, value: Any, *, at_least: int) -> None:
    """Raises a UserError unless `value` is a whole number of at least `at_least`.

    >>> check_int("data.seq_len", 0, at_least=1)
    Traceback (most recent call last):
    hybrid_jax.errors.UserError: data.seq_len=0 must be a whole number, at least 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise UserError(f"{name}={value!r} must be a whole number, at least {at_least}.")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises a UserError unless `value` is one of `choices`."""
    choices = tuple(choices)
    if value not in choices or isinstance(value, bool):
        texts = [str(choice) for choice in choices]
        raise UserError(
            f"{name}={value!r} must be one of {', '.join(texts)}.{nearest(str(value), texts)}"
        )


def check_number(name: str, value: float, interval: str) -> None:
    """Raises a UserError unless the finite `value` lies in `interval`.

    >>> check_number("optimizer.b1", 1.0, "[0, 1)")
    Traceback (most recent call last):
    hybrid_jax.errors.UserError: optimizer.b1=1.0 must lie in [0, 1).
    """
    low, high = map(float, interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below and math.isfinite(value)):
        raise UserError(f"{name}={value} must lie in {interval}.")


def multiples_near(value: int, unit: int) -> str:
    """Returns the positive multiples of `unit` on both sides of `value`, for a remedy.

    >>> multiples_near(6, 4), multiples_near(3, 4)
    ('4 or 8', '4')
    """
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)


def check_weights(name: str, weights: Sequence[float]) -> None:
    """Raises a UserError unless all `weights` are positive and sum to 1, within 1e-6.

    >>> check_weights("weights", [1, 3])
    Traceback (most recent call last):
    hybrid_jax.errors.UserError: weights 1, 3 sum to 4, but must sum to 1: use 0.25, 0.75.
    """
    shown = ", ".join(f"{weight:g}" for weight in weights)
    for weight in weights:
        if not (weight >= 1e-6 and math.isfinite(weight)):
            raise UserError(
                f"{name} {shown}: {weight:g} must be at least 1e-6; leave a source out instead."
            )
    total = math.fsum(weights)
    if abs(total - 1) > 1e-6:
        normalised = ", ".join(f"{weight / total:.7g}" for weight in weights)
        raise UserError(f"{name} {shown} sum to {total:.7g}, but must sum to 1: use {normalised}.")
