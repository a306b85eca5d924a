"""Strategies as text: "stage=4 microbatches=8", one to a line in a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hybrid_jax.config.strategy import Strategy
from hybrid_jax.config.yaml_text import parse_yaml
from hybrid_jax.errors import UserError, nearest


def parse_strategy(text: str, base: Strategy | None = None) -> Strategy:
    """Returns `base` with the fields that `text` names replaced.

    >>> parse_strategy("stage=4 microbatches=8 precision=f32").describe()
    'stage=4 microbatches=8 precision=f32'

    Args:
      text: field=value pairs with spaces between them; "" is `base` itself.
      base: where the other fields come from; `Strategy()` by default.

    Raises:
      UserError: no such field, a value of the wrong type, or fields that contradict each other.
    """
    names = [field.name for field in dataclasses.fields(Strategy)]
    fields = {}
    for pair in text.split():
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(
                f"{pair!r} in strategy {text!r} must be field=value, such as stage=4."
                f"{nearest(name, names)}"
            )
        if name not in names:
            raise UserError(
                f"unknown field {name!r} in strategy {text!r}: the fields are {', '.join(names)}."
                f"{nearest(name, names)}"
            )
        try:
            fields[name] = parse_yaml(value, name)
        except UserError:
            raise UserError(
                f"{pair!r} in strategy {text!r} must be field=value, such as {name}=1: "
                f"{value!r} is no YAML value."
            ) from None
    return dataclasses.replace(base or Strategy(), **fields)


def read_strategies(path: str | Path, base: Strategy | None = None) -> list[Strategy]:
    """Returns the strategies of a text file, one a line; what follows a "#" is a comment.

    Raises:
      UserError: no such file, no strategy in it, or a line that `parse_strategy` refuses.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read strategies from '{path}' ({error}): give a text file with one strategy a "
            'line, such as "stage=4 microbatches=8".'
        ) from None
    texts = [line.partition("#")[0].strip() for line in lines]
    strategies = [parse_strategy(text, base) for text in texts if text]
    if not strategies:
        raise UserError(
            f"'{path}' has no strategy: write one a line, such as \"stage=4 microbatches=8\"."
        )
    return strategies
