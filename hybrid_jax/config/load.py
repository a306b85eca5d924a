"""A run's configuration from a YAML file and `section.field=value` overrides, checked strictly."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_origin, get_type_hints

from hybrid_jax.config.checkpoint import CheckpointConfig
from hybrid_jax.config.checks import did_you_mean, shown
from hybrid_jax.config.data import DataConfig
from hybrid_jax.config.draft import Draft
from hybrid_jax.config.fields import base_types, checked_value
from hybrid_jax.config.model import DecoderConfig, Style, preset
from hybrid_jax.config.optimizer import OptimizerConfig
from hybrid_jax.config.run import RunConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.config.train import TrainConfig
from hybrid_jax.config.yaml_text import parse_yaml, read_yaml
from hybrid_jax.errors import UserError

_AUTO = "auto"
_SECTIONS = {
    "strategy": Strategy,
    "optimizer": OptimizerConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "checkpoint": CheckpointConfig,
}


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Returns the run that a YAML file describes, with single fields replaced.

    The file must say the strategy; `load_draft` reads those that leave it to the planner too.

    >>> load_config("configs/quickstart.yaml", ["optimizer.learning_rate=3e-4"]).strategy.stage
    2

    Raises:
      UserError: as `load_draft`, and fields that do not fit each other.
    """
    return load_draft(path, overrides).laid_out()


def load_draft(path: str | Path, overrides: Iterable[str] = ()) -> Draft:
    """Returns the run that a YAML file describes, but for its layout if it says `strategy: auto`.

    The section `model` takes `preset` ("nano" by default), `style` and any field of
    `DecoderConfig`; `strategy`, `optimizer`, `data`, `train`, `checkpoint` and the top level take
    the fields of `Strategy`, `OptimizerConfig`, `DataConfig`, `TrainConfig`, `CheckpointConfig` and
    `RunConfig`. What is absent has its default. `strategy: auto` leaves the strategy to the
    planner, all but the fields that are set beside it (`strategy: {auto: true, zero: 3}`).

    >>> load_draft("configs/quickstart.yaml", ["strategy=auto", "strategy.stage=4"]).given
    {'precision': 'f32', 'stage': 4}

    Args:
      path: of the YAML file.
      overrides: "section.field=value"; later ones win, all win over the file. "strategy=auto"
        drops what was said of the strategy before, but for the precision.

    Raises:
      UserError: no such file, no YAML (as `parse_yaml` reads it), a field that is unknown or given
        twice, or a value that its field cannot hold; one line that names the value, the constraint
        and the remedy.
    """
    values, types = _flatten(_read(Path(path))), field_types()
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise UserError(
                f"{shown(override)} is no override: write section.field=value, such as "
                "train.steps=100."
            )
        if name == "strategy" and text == _AUTO:
            values = _without_layout(values)
            name, text = "strategy.auto", "true"
        values[name] = _from_text(text, types[name]) if name in types else text
    for name in values:
        if name not in types:
            raise UserError(f"unknown config field {shown(name)}.{_suggest(name, types)}")
    return _build(values)


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path, "config file")
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(
            f"config file {shown(str(path), 200)} must be a mapping of sections "
            f"({', '.join(_SECTIONS)}, model), not {shown(values, 60)}."
        )
    return values


def _flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    """{"train": {"steps": 5}} as {"train.steps": 5}."""
    values: dict[str, Any] = {}
    for name, section in content.items():
        if name not in (*_SECTIONS, "model"):
            found = {name: section}
        elif name == "strategy" and section == _AUTO:
            found = {"strategy.auto": True}
        elif isinstance(section, dict):
            found = {f"{name}.{field}": value for field, value in section.items()}
        elif section is None:
            found = {}
        else:
            raise UserError(
                f"{name}={shown(section)} must be a section: a mapping of its fields, such as "
                f"{_example(name)}{', or auto' if name == 'strategy' else ''}."
            )
        for twice in found.keys() & values.keys():
            raise UserError(
                f"{shown(twice)} is given twice, in its section and beside it: remove one of them."
            )
        values |= found
    return values


def _from_text(text: str, hint: Any) -> Any:
    """The value of an override: YAML, unless its field takes text, which is taken as it is."""
    bases = base_types(hint)
    try:
        value = parse_yaml(text, "an override")
    except UserError:
        return text  # which the field refuses, if it takes no text
    if value is None:
        # An empty text is no null: `train.steps=$STEPS` with the variable not set.
        return None if type(None) in bases and text.strip() == "null" else text
    as_list = isinstance(value, list) and any(get_origin(base) is tuple for base in bases)
    return text if str in bases and not as_list else value


def _without_layout(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in values.items()
        if not name.startswith("strategy.") or name == "strategy.precision"
    }


@functools.cache
def field_types() -> Mapping[str, Any]:
    """Returns every name that a configuration may set, dotted, with its type.

    >>> field_types()["train.steps"]
    <class 'int'>
    """
    types: dict[str, Any] = {"model.preset": str, "model.style": Style | None}
    for section, cls in {"model": DecoderConfig, **_SECTIONS}.items():
        types |= {f"{section}.{name}": hint for name, hint in get_type_hints(cls).items()}
    types["strategy.auto"] = bool
    types["cpu_devices"] = get_type_hints(RunConfig)["cpu_devices"]
    return MappingProxyType(types)


def _suggest(name: str, names: Iterable[str]) -> str:
    """What was meant: a field of another section, or the nearest spelling."""
    name = name[:80]
    section, _, field = name.rpartition(".")
    if name in _SECTIONS or name == "model":
        planned = ", or strategy=auto to have it planned" if name == "strategy" else ""
        return f" It is a section: set one of its fields, such as {_example(name)}{planned}."
    by_field = {valid.rpartition(".")[2]: valid for valid in names}
    if field in by_field:
        return f" Did you mean {by_field[field]!r}?"
    siblings = [valid for valid in names if section and valid.startswith(f"{section}.")]
    hint = did_you_mean(name, siblings) or did_you_mean(name, names)
    if hint:
        return hint
    if siblings:
        fields = ", ".join(valid.removeprefix(f"{section}.") for valid in siblings)
        return f" The fields of {section!r} are {fields}."
    return f" The sections are model, {', '.join(_SECTIONS)}."


def _example(section: str) -> str:
    return next(name for name in field_types() if name.startswith(f"{section}."))


def _build(values: Mapping[str, Any]) -> Draft:
    def section(name: str) -> dict[str, Any]:
        prefix = f"{name}."
        return {
            field.removeprefix(prefix): value
            for field, value in values.items()
            if field.startswith(prefix)
        }

    model, strategy = section("model"), section("strategy")
    others = {name: cls for name, cls in _SECTIONS.items() if name != "strategy"}
    auto = checked_value("strategy.auto", strategy.pop("auto", False), bool)
    return Draft(
        model=preset(model.pop("preset", "nano"), **model),
        **{name: cls(**section(name)) for name, cls in others.items()},
        cpu_devices=values.get("cpu_devices"),
        auto=auto,
        given=strategy,
    )
