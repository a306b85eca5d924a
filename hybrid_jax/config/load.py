"""A run's configuration from a YAML file and `section.field=value` overrides, checked strictly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from hybrid_jax.config.checkpoint import CheckpointConfig
from hybrid_jax.config.data import DataConfig, WeightedSource, parse_sources
from hybrid_jax.config.draft import Draft
from hybrid_jax.config.model import DecoderConfig, Style, preset
from hybrid_jax.config.optimizer import OptimizerConfig
from hybrid_jax.config.run import RunConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.config.train import TrainConfig
from hybrid_jax.errors import UserError, nearest

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
      UserError: no such file, no YAML, an unknown field, or a value of the wrong type; one line
        that names the value, the constraint and the remedy.
    """
    values = _flatten(_read(Path(path)))
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise UserError(
                f"{override!r} is no override: write section.field=value, such as train.steps=100."
            )
        if name == "strategy" and text == _AUTO:
            values = _without_layout(values)
            name, text = "strategy.auto", "true"
        values[name] = text
    return _build(_checked(values))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        siblings = path.parent.glob("*.yaml") if path.parent.is_dir() else ()
        hint = nearest(str(path), [str(file) for file in siblings])
        raise UserError(f"no config file '{path}': give the path of a YAML file.{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read config file '{path}': {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"config file '{path}' is not YAML:{where} {problem}.") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(
            f"config file '{path}' must be a mapping of sections ({', '.join(_SECTIONS)}, model), "
            f"not {content!r:.60}."
        )
    return content


def _flatten(content: Mapping[Any, Any]) -> dict[str, Any]:
    """{"train": {"steps": 5}} as {"train.steps": 5}."""
    values = {}
    for name, section in content.items():
        if name not in (*_SECTIONS, "model"):
            values[str(name)] = section
        elif name == "strategy" and section == _AUTO:
            values["strategy.auto"] = True
        elif isinstance(section, dict):
            values |= {f"{name}.{field}": value for field, value in section.items()}
        elif section is not None:
            raise UserError(
                f"{name}={section!r} must be a section: a mapping of its fields, such as "
                f"{_example(name)}{', or auto' if name == 'strategy' else ''}."
            )
    return values


def _without_layout(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in values.items()
        if not name.startswith("strategy.") or name == "strategy.precision"
    }


def field_types() -> dict[str, Any]:
    """Returns every name that a configuration may set, dotted, with its type.

    >>> field_types()["train.steps"]
    <class 'int'>
    """
    types: dict[str, Any] = {"model.preset": str, "model.style": Style | None}
    for section, cls in {"model": DecoderConfig, **_SECTIONS}.items():
        types |= {f"{section}.{name}": hint for name, hint in get_type_hints(cls).items()}
    types["strategy.auto"] = bool
    types["cpu_devices"] = get_type_hints(RunConfig)["cpu_devices"]
    return types


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with known names only, each converted to its field's type."""
    types = field_types()
    parser = ArgumentParser(exit_on_error=False)
    for name, hint in types.items():
        parser.add_argument(f"--{name}", type=hint)
    checked = {}
    for name, value in values.items():
        if name not in types:
            raise UserError(f"unknown config field {name!r}.{_suggest(name, types)}")
        if name == "data.sources":
            checked[name] = _sources(value)
            continue
        hint = types[name]
        try:
            if value is None and type(None) not in get_args(hint):
                raise TypeError
            checked[name] = parser.parse_object({name: value}, defaults=False)[name]
        except (ArgumentError, TypeError):
            raise UserError(
                f"{name}={value!r} must be {_describe(hint)}."
                f"{nearest(str(value), [c for c in get_args(hint) if isinstance(c, str)])}"
            ) from None
    return checked


def _sources(value: Any) -> tuple[WeightedSource, ...] | None:
    """The list of mappings `data.sources`: from a file, or from the YAML text of an override."""
    if isinstance(value, str):
        with contextlib.suppress(yaml.YAMLError):  # no list then either, which is told below
            value = yaml.safe_load(value)
    return None if value is None else parse_sources(value)


def _suggest(name: str, names: Iterable[str]) -> str:
    """What was meant: a field of another section, or the nearest spelling."""
    section, _, field = name.rpartition(".")
    if name in _SECTIONS or name == "model":
        planned = ", or strategy=auto to have it planned" if name == "strategy" else ""
        return f" It is a section: set one of its fields, such as {_example(name)}{planned}."
    by_field = {valid.rpartition(".")[2]: valid for valid in names}
    if field in by_field:
        return f" Did you mean {by_field[field]!r}?"
    siblings = [valid for valid in names if section and valid.startswith(f"{section}.")]
    hint = nearest(name, siblings) or nearest(name, names)
    if hint:
        return hint
    if siblings:
        fields = ", ".join(valid.removeprefix(f"{section}.") for valid in siblings)
        return f" The fields of {section!r} are {fields}."
    return f" The sections are model, {', '.join(_SECTIONS)}."


def _example(section: str) -> str:
    return next(name for name in field_types() if name.startswith(f"{section}."))


def _describe(hint: Any) -> str:
    """A type in words: `float | None` is "a number or null"."""
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if hint in words:
        return words[hint]
    if hint is type(None):
        return "null"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if hint == tuple[int, int]:
        return "a list of two whole numbers"
    if get_origin(hint) is tuple:
        return "a list of pairs [logical name, mesh axis]"
    return " or ".join(_describe(choice) for choice in get_args(hint))


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
    return Draft(
        model=preset(model.pop("preset", "nano"), **model),
        **{name: cls(**section(name)) for name, cls in others.items()},
        cpu_devices=values.get("cpu_devices"),
        auto=strategy.pop("auto", False),
        given=strategy,
    )
