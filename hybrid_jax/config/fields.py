"""What a field of a section may hold: said once, in its type, and checked wherever it comes from.

A section is a frozen dataclass. The type of a field is a plain one (`bool`, `str`, a `Literal`), or
an `Annotated` one that says the range too; `X | None` is `X` or null.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hybrid_jax.config.checks import (
    INT32_MAX,
    check_int,
    check_name,
    check_number,
    check_text,
    did_you_mean,
    is_number,
    is_whole,
    matching,
    shown,
)
from hybrid_jax.config.paths import folder_text, local_text
from hybrid_jax.errors import UserError


@dataclass(frozen=True)
class Whole:
    """Marks an `int` field: a whole number in this range."""

    at_least: int = 0
    at_most: int = INT32_MAX


@dataclass(frozen=True)
class Interval:
    """Marks a `float` field: a number in this interval, such as "[0, 1)"."""

    text: str = "(-inf, inf)"


Count = Annotated[int, Whole(at_least=1)]
Natural = Annotated[int, Whole(at_least=0)]
Positive = Annotated[float, Interval("(0, inf)")]
Seconds = Annotated[float, Interval("(0, 1e9]")]  # the system's clocks take no more
Name = Annotated[str, check_name]
LocalPath = Annotated[str, local_text]
LocalFolder = Annotated[str, folder_text]


def check_fields(section: str, config: Any) -> None:
    """Checks every field of a section by its type, and stores it as a plain Python value.

    NumPy's numbers become Python's, paths are expanded, lists become tuples. None is what fields
    with the default None may hold, whatever their type.

    Args:
      section: its name, for messages; "" for fields at the top level.
      config: a frozen dataclass.

    Raises:
      UserError: the first value that its field cannot hold.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name, value in checked_values(section, type(config), values).items():
        object.__setattr__(config, name, value)


def checked_values(section: str, cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns some of the values of the dataclass `cls`, as `check_fields` would store them.

    Raises:
      UserError: the first value that its field cannot hold.
    """
    hints, prefix = _hints(cls), f"{section}." if section else ""
    return {
        name: checked_value(prefix + name, value, hints[name]) for name, value in values.items()
    }


def checked_value(name: str, value: Any, hint: Any) -> Any:
    """Returns `value` as a field of the type `hint` holds it.

    >>> checked_value("optimizer.clip_norm", 1, Positive | None)
    1.0

    Raises:
      UserError: it cannot hold it: one line with the name, the value and what it may be.
    """
    for option in options(hint):
        base, mark = _split(option)
        if base is NoneType and value is None:
            return None
        if base is bool and isinstance(value, bool):
            return value
        if base is int and is_whole(value):
            rule = mark or Whole()
            return check_int(name, value, at_least=rule.at_least, at_most=rule.at_most)
        if base is float and is_number(value):
            return check_number(name, value, (mark or Interval()).text)
        if base is str and isinstance(value, str):
            return (mark or check_text)(name, value)
        if get_origin(base) is Literal and matching(value, get_args(base)) is not None:
            return matching(value, get_args(base))
        if get_origin(base) is tuple and mark is not None and value is not None:
            return mark(name, value)
        if _is_object(value, base):
            return value
    words = [word for option in options(hint) for word in _words(option)]
    choices = [choice for option in options(hint) for choice in get_args(option)]
    raise UserError(
        f"{name}={shown(value)} must be {_either(words)}.{did_you_mean(value, choices)}"
    )


def pair_of_whole(name: str, value: Any) -> tuple[int, int]:
    """Returns a list of two whole numbers as a tuple.

    Raises:
      UserError: it is none.
    """
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(is_whole, value)):
        raise UserError(f"{name}={shown(value)} must be a list of two whole numbers or null.")
    return int(value[0]), int(value[1])


def options(hint: Any) -> tuple[Any, ...]:
    """The types that a union allows, or `hint` alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def base_types(hint: Any) -> list[Any]:
    """The types that a field may have, without what is said of their ranges.

    >>> base_types(Count | None)
    [<class 'int'>, <class 'NoneType'>]
    """
    return [_split(option)[0] for option in options(hint)]


def _split(option: Any) -> tuple[Any, Any]:
    """A type and the mark of its range, if it has one."""
    if get_origin(option) is Annotated:
        return get_args(option)[:2]
    return option, None


def _is_object(value: Any, base: Any) -> bool:
    """Whether `value` is of a class of ours, or a mapping, as `base` wants it."""
    cls = get_origin(base) or base
    ours = dataclasses.is_dataclass(cls) or cls is Mapping
    return ours and isinstance(cls, type) and isinstance(value, cls)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    nullable = {field.name for field in dataclasses.fields(cls) if field.default is None}
    hints = get_type_hints(cls, include_extras=True)
    return {name: hint | None if name in nullable else hint for name, hint in hints.items()}


def _words(option: Any) -> list[str]:
    base, mark = _split(option)
    if base is int:
        return [f"a whole number, at least {(mark or Whole()).at_least}"]
    if get_origin(base) is Literal:
        return [f"one of {', '.join(map(str, get_args(base)))}"]
    if dataclasses.is_dataclass(base):
        return [f"a {getattr(base, '__name__', base)}"]
    words = {float: ["a number"], str: ["text"], bool: ["true", "false"], NoneType: ["null"]}
    return words.get(base, ["a list"])


def _either(words: list[str]) -> str:
    if len(words) == 1:
        return words[0]
    comma = "," if any("," in word for word in words) else ""
    return f"{', '.join(words[:-1])}{comma} or {words[-1]}"
