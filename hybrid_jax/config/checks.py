"""The checks of a single value that every section of a configuration needs."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from hybrid_jax.errors import UserError, nearest

INT32_MAX = 2**31 - 1
"""What steps, sizes and counts must not exceed: on devices they are 32-bit integers."""

_SMALLEST_SINGLE = 2.0**-126  # devices take what is nearer to 0 for 0


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
    return one_line(text, longest)


def one_line(text: str, longest: int) -> str:
    """Returns `text` with its unprintable characters escaped and its middle cut out if need be."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[:half]}…{text[len(text) - (longest - 1 - half) :]}"


def did_you_mean(value: Any, choices: Iterable[Any]) -> str:
    """Returns `nearest` of what may be no text, or very much of it.

    >>> did_you_mean("stagee", ["stage", 1]), did_you_mean(3, ["stage"])
    (" Did you mean 'stage'?", '')
    """
    texts = [choice for choice in choices if isinstance(choice, str)]
    return nearest(value[:80], texts) if isinstance(value, str) else ""


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number by its type: of Python or NumPy, but no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a real number by its type: of Python or NumPy, but no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_int(name: str, value: Any, *, at_least: int, at_most: int = INT32_MAX) -> int:
    """Returns `value` as an `int`, if it is a whole number from `at_least` to `at_most`.

    >>> check_int("data.seq_len", 0, at_least=1)
    Traceback (most recent call last):
    hybrid_jax.errors.UserError: data.seq_len=0 must be a whole number, at least 1.

    Raises:
      UserError: it is none, or lies outside.
    """
    if not is_whole(value) or value < at_least:
        raise UserError(f"{name}={shown(value)} must be a whole number, at least {at_least}.")
    if value > at_most:
        raise UserError(f"{name}={shown(value)} must be a whole number, at most {at_most}.")
    return int(value)


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """Returns the one of `choices` that `value` is.

    Raises:
      UserError: it is none of them.
    """
    choices = tuple(choices)
    found = matching(value, choices)
    if found is not None:
        return found
    texts = [str(choice) for choice in choices]
    raise UserError(
        f"{name}={shown(value)} must be one of {', '.join(texts)}.{did_you_mean(value, texts)}"
    )


def matching(value: Any, choices: Iterable[Any]) -> Any | None:
    """Returns the one of `choices` that has the value and the kind of type of `value`, if any.

    >>> matching("a", ["a", 1]), matching(True, ["a", 1])
    ('a', None)
    """
    for choice in choices:
        same_type = isinstance(value, str) if isinstance(choice, str) else is_whole(value)
        if same_type and value == choice:
            return choice
    return None


def check_number(name: str, value: Any, interval: str) -> float:
    """Returns `value` as a `float`, if it is finite and lies in `interval`.

    It must lie there in single precision too, with which devices compute: 1 - 1e-9 is 1 for them.

    >>> check_number("optimizer.b1", 1.0, "[0, 1)")
    Traceback (most recent call last):
    hybrid_jax.errors.UserError: optimizer.b1=1.0 must lie in [0, 1).

    Raises:
      UserError: it is no number, or lies outside.
    """
    if not is_number(value):
        raise UserError(f"{name}={shown(value)} must be a number in {interval}.")
    try:
        number = float(value) + 0.0  # without the sign of -0.0
    except OverflowError:
        number = math.inf
    if not _lies_in(number, interval):
        raise UserError(f"{name}={shown(value)} must lie in {interval}.")
    single = _single(number)
    if not _lies_in(single, interval) or (single == 0) != (number == 0):
        raise UserError(
            f"{name}={shown(value)} must lie in {interval} for devices too, which take it for "
            f"{single:g} in single precision."
        )
    return number


def _lies_in(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    return above and below and math.isfinite(value)


def _single(value: float) -> float:
    try:
        (rounded,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        return math.copysign(math.inf, value)
    return rounded if abs(rounded) >= _SMALLEST_SINGLE else 0.0


def check_text(name: str, value: Any) -> str:
    """Returns `value` as a `str`, if it is text that can be written as UTF-8.

    Raises:
      UserError: it is none, or has lone surrogates.
    """
    if not isinstance(value, str):
        raise UserError(f"{name}={shown(value)} must be text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}={shown(value)} must be Unicode text: it has surrogates.") from None
    return str(value)


def check_name(name: str, value: Any) -> str:
    """Returns `value` as a `str`, if it is text that is not blank.

    Raises:
      UserError: it is none, or is blank.
    """
    text = check_text(name, value)
    if not text.strip():
        raise UserError(f"{name}={shown(value)} must not be empty: give a name, or set it to null.")
    return text


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
    listed = _few([f"{weight:g}" for weight in weights])
    for weight in weights:
        if not (weight >= 1e-6 and math.isfinite(weight)):
            raise UserError(
                f"{name} {listed}: {weight:g} must be at least 1e-6; leave a source out instead."
            )
    try:
        total = math.fsum(weights)
    except OverflowError:
        raise UserError(
            f"{name} {listed} must sum to 1, but are larger than numbers get."
        ) from None
    if abs(total - 1) > 1e-6:
        normalised = _few([f"{weight / total:.7g}" for weight in weights])
        raise UserError(f"{name} {listed} sum to {total:.7g}, but must sum to 1: use {normalised}.")


def _few(texts: Sequence[str], most: int = 12) -> str:
    more = f", and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
