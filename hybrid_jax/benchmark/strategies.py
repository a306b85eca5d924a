"""The layouts that `bench` times, from a YAML file."""

from __future__ import annotations

from pathlib import Path

from hybrid_jax.config.checks import shown
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.config.yaml_text import read_yaml
from hybrid_jax.errors import UserError

_EXAMPLE = "- {stage: 4, microbatches: 8}"


def read_strategies(path: str | Path, base: Strategy | None = None) -> list[Strategy]:
    """Returns the strategies of a YAML list such as `[{stage: 4, microbatches: 8}, {data: 8}]`.

    Args:
      path: of the YAML file.
      base: where fields that an entry does not name come from; `Strategy()` by default.

    Raises:
      UserError: no such file, no list of mappings, or fields that `Strategy` refuses; one line,
        with the number of the entry.
    """
    path, base = Path(path), base or Strategy()
    entries = read_yaml(path, "strategies file")
    what = f"strategies file {shown(str(path), 200)}"
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"{what} must be a list of at least one strategy, such as '{_EXAMPLE}', not "
            f"{shown(entries, 60)}."
        )
    strategies = []
    for number, fields in enumerate(entries, 1):
        try:
            strategies.append(base.with_fields(fields))
        except UserError as error:
            raise UserError(f"{what}, entry {number}: {error}") from None
    return strategies
