"""What the processes of a run must have in common, and how they differ."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

_PACKAGES = ("hybrid-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_SHOWN = 3
_ABSENT = "nothing"


def flatten_fields(value: Any, name: str = "") -> dict[str, Any]:
    """Returns the fields of a config by their dotted names, as JSON has them.

    >>> @dataclasses.dataclass
    ... class Config:
    ...     steps: int
    >>> flatten_fields({"train": Config(20), "axes": (1, 2)})
    {'train.steps': 20, 'axes': [1, 2]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping) and value:
        prefix = f"{name}." if name else ""
        return {
            full: leaf
            for key, inner in value.items()
            for full, leaf in flatten_fields(inner, f"{prefix}{key}").items()
        }
    return {name: json.loads(json.dumps(value, default=_as_json))}


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return repr(value)


def package_versions() -> dict[str, str]:
    """Returns the versions of what decides about a run's numbers."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return {f"version of {package}": version for package, version in versions.items()}


def compare_fields(fields: Mapping[int, Mapping[str, Any]]) -> str | None:
    """Returns in one line how processes differ from process 0; None if they do not.

    >>> compare_fields({0: {"train.steps": 20}, 1: {"train.steps": 12}, 2: {"train.steps": 12}})
    'processes 1, 2 have train.steps=12, process 0 has 20: start all processes with the same.'

    Args:
      fields: by process, which all have the same names, or else differ in them.
    """
    names = dict.fromkeys(name for process in sorted(fields) for name in fields[process])
    found = [text for name in names if (text := _compare_field(name, fields))]
    if not found:
        return None
    more = f", and {len(found) - _SHOWN} more fields differ" if len(found) > _SHOWN else ""
    return f"{'; '.join(found[:_SHOWN])}{more}: start all processes with the same."


def _compare_field(name: str, fields: Mapping[int, Mapping[str, Any]]) -> str:
    reference = fields[0].get(name, _ABSENT)
    others: dict[str, list[int]] = defaultdict(list)
    for process in sorted(fields):
        if (value := fields[process].get(name, _ABSENT)) != reference:
            others[_show(value)].append(process)
    parts = [f"{_name(processes)} {name}={value}" for value, processes in others.items()]
    return f"{', '.join(parts)}, process 0 has {_show(reference)}" if parts else ""


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _name(processes: list[int]) -> str:
    shown = ", ".join(map(str, processes[:8])) + (", …" if len(processes) > 8 else "")
    return f"process {shown} has" if len(processes) == 1 else f"processes {shown} have"
