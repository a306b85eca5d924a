"""YAML read strictly: a mistake is one line, and no text makes the reader recurse or grow.

Of YAML's types only those that configurations need exist, and numbers are what they look like: 010
is text, not 8, 1:30 is text, not 90, and 3e-4 is a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from hybrid_jax.config.checks import one_line, shown
from hybrid_jax.errors import UserError, nearest

LARGEST = 2**20
"""Characters of a YAML text; with what its aliases repeat, twice as many."""

_DEEPEST = 20
_TAG = "tag:yaml.org,2002:"


def read_yaml(path: Path, kind: str) -> Any:
    """Returns what the YAML file at `path` says, as `parse_yaml` does.

    Args:
      path: of the file.
      kind: of file, to begin messages with.

    Raises:
      UserError: no such file, one that cannot be read or is no UTF-8, or as `parse_yaml`.
    """
    what = f"{kind} {shown(str(path), 200)}"
    try:
        with path.open("rb") as file:
            content = file.read(4 * LARGEST + 1)  # of 4 bytes at most; a device has no end
    except FileNotFoundError:
        siblings = path.parent.glob("*.yaml") if path.parent.is_dir() else ()
        hint = nearest(str(path), [str(file) for file in siblings])
        raise UserError(f"no {what}: give the path of a YAML file.{hint}") from None
    except (OSError, ValueError) as error:  # a ValueError for a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {what}: {reason}.") from None
    if len(content) > 4 * LARGEST:
        raise UserError(f"{what} must have at most {LARGEST} characters, but is far larger.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read {what}: byte {error.start} is no UTF-8; give a YAML file."
        ) from None
    return parse_yaml(text, what)


def parse_yaml(text: str, what: str) -> Any:
    """Returns the mappings, lists, texts, numbers, booleans and nulls that `text` says.

    >>> parse_yaml("train: {steps: 5}", "config file 'run.yaml'")
    {'train': {'steps': 5}}
    >>> parse_yaml("a: 1\\nb: 2\\na: 3", "config file 'run.yaml'")
    Traceback (most recent call last):
    hybrid_jax.errors.UserError: config file 'run.yaml', line 3: 'a' stands in line 1 already: \
remove one of them.

    Args:
      text: one YAML document.
      what: the text is, to begin messages with.

    Raises:
      UserError: no YAML, a key that is no text or stands there twice, a type that configurations
        do not have, a number of too many digits, too much of it, or too deep.
    """
    if len(text) > LARGEST:
        raise UserError(f"{what} must have at most {LARGEST} characters, not {len(text)}.")
    try:
        return yaml.load(text, _StrictLoader)
    except _Refused as error:
        raise UserError(f"{what}, line {_line(error.problem_mark)}: {error.problem}.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        expected = f"{error.context}, " if (error.context or "").startswith("expected") else ""
        problem = one_line(f"{expected}{error.problem}", 300)
        raise UserError(f"{what} is not YAML:{where} {problem}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{what} is not YAML: {str(error).splitlines()[0]}.") from None


def dump_yaml(value: Any) -> str:
    """Returns `value` as YAML from which `parse_yaml` makes it again, tuples as lists.

    >>> dump_yaml({"rules": [["1e3", None]]})
    "rules:\\n- - '1e3'\\n  - null\\n"
    """
    return yaml.dump(value, Dumper=_StrictDumper, sort_keys=False)


class _Refused(yaml.MarkedYAMLError):
    """YAML, but none that a configuration may be."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a node when it is composed, before anything is made of it or repeats it.

    PyYAML composes by recursion, so that depth is counted on the way down; aliases share their
    nodes, so that what they repeat is counted on the way up.
    """

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's way: filled below)
    yaml_constructors: dict = {}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, tuple[int, int]] = {}  # of finished nodes: (characters, levels)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self._depth += 1
        self._limit(event, 0, self._depth)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if id(node) not in self._sizes:
            if isinstance(event, yaml.AliasEvent):
                # Its node is not finished: the alias would hold itself.
                raise _Refused(f"*{event.anchor} stands in what it repeats", event.start_mark)
            self._sizes[id(node)] = self._size(node)
        self._limit(event, *self._sizes[id(node)])
        return node

    def _size(self, node: Any) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            return 1 + len(node.value), 1
        pairs = isinstance(node, yaml.MappingNode)
        children = [child for pair in node.value for child in pair] if pairs else node.value
        sizes = [self._sizes[id(child)] for child in children]
        return 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)

    def _limit(self, event: Any, size: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise _Refused(f"it is nested deeper than {_DEEPEST} levels", event.start_mark)
        if size > 2 * LARGEST:
            raise _Refused("its aliases repeat too much: write less", event.start_mark)

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                raise _Refused(
                    f"the key {shown(key.value, 40)} must be text: the name of a field"
                    if isinstance(key, yaml.ScalarNode)
                    else "a key must be text: the name of a field",
                    key.start_mark,
                )
            if key.value in lines:
                raise _Refused(
                    f"{shown(key.value)} stands in line {lines[key.value]} already: remove one of "
                    "them",
                    key.start_mark,
                )
            lines[key.value] = _line(key.start_mark)
        return node

    def flatten_mapping(self, node: Any) -> None:
        # PyYAML 6.0.4 lets the last of several merged mappings win; in YAML the first does.
        pairs: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":
                for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(merged, yaml.MappingNode):
                        raise _Refused("'<<' takes a mapping or a list of them", merged.start_mark)
                    self.flatten_mapping(merged)
                    pairs = {pair[0].value: pair for pair in merged.value} | pairs
        own = {key.value: (key, value) for key, value in node.value if key.tag != f"{_TAG}merge"}
        node.value = list((pairs | own).values())


class _StrictDumper(yaml.SafeDumper):
    """Quotes the texts that the loader would take for something else."""

    yaml_implicit_resolvers = _StrictLoader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _line(mark: Any) -> int:
    return mark.line + 1


def _refuse_type(loader: Any, node: Any) -> Any:
    raise _Refused(f"{shown(node.tag)} is no type that a configuration has", node.start_mark)


def _scalar(construct: Callable[[Any, Any], Any], word: str) -> Callable[[Any, Any], Any]:
    def construct_or_refuse(loader: Any, node: Any) -> Any:
        try:
            return construct(loader, node)
        except (ValueError, LookupError):
            raise _Refused(f"{shown(node.value)} is no {word}", node.start_mark) from None

    return construct_or_refuse


_TYPES: dict[str, tuple[list[str], str]] = {  # tag: first characters, pattern
    "bool": (
        [*"yYnNtTfFoO"],
        "yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
    ),
    "int": ([*"-+0123456789"], "[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)"),
    "float": (
        [*"-+0123456789."],
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    ),
    "null": ([*"~nN", ""], "~|null|Null|NULL|"),
    "merge": (["<"], "<<"),
}
for _name, (_first, _pattern) in _TYPES.items():
    _StrictLoader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)
for _name, _construct in {
    "null": SafeConstructor.construct_yaml_null,
    "bool": _scalar(SafeConstructor.construct_yaml_bool, "true or false"),
    "int": _scalar(SafeConstructor.construct_yaml_int, "whole number that can be read"),
    "float": _scalar(SafeConstructor.construct_yaml_float, "number that can be read"),
    "str": SafeConstructor.construct_yaml_str,
    "seq": SafeConstructor.construct_yaml_seq,
    "map": SafeConstructor.construct_yaml_map,
}.items():
    _StrictLoader.add_constructor(f"{_TAG}{_name}", _construct)
_StrictLoader.yaml_constructors[None] = _refuse_type  # for every other tag
