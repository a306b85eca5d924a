"""Generated configs: each can be written and read again, or is refused in one line."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_jax.config.draft import Draft
from hybrid_jax.config.load import field_types, load_draft
from hybrid_jax.config.model import preset
from hybrid_jax.config.run import RunConfig
from hybrid_jax.config.strategy import Strategy
from hybrid_jax.config.yaml_text import dump_yaml
from hybrid_jax.errors import UserError

FILES = [
    path.read_text() for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
]
NAMES = sorted(field_types())
CLASSES = {name: type(getattr(Draft(), name)) for name in ("model", "optimizer", "data", "train",
                                                           "checkpoint")}  # fmt: skip
SECTIONS = [*CLASSES, "strategy", "cpu_devices"]
WORDS = {part for name in NAMES for part in name.split(".")}
FREELY = settings(derandomize=True, database=None, deadline=None, max_examples=400)

# What people and programs write where a number, a text or a section belongs.
NASTY = [
    *("", " ", "~", "null", "yes", "off", "=", "<<", "-", "?", ":", "|", ">", "%", "@", "`", "'"),
    *('"', ".nan", ".inf", "-.inf", "nan", "inf", "1e400", "-1e400", "-0.0", "1e-400", "1e39"),
    *("1e-46", "-1", "0", "1", "2", "010", "0o17", "0x1F", "1:30", "1_000", "1e3", "2.0", "0.5"),
    *("'5'", "\u0665", str(2**31 - 1), str(2**31), str(2**32), str(2**63), str(10**23)),
    *("9" * 5000, "-" + "9" * 5000, "[", "]", "{", "}", "[[", "{a: ", "[1, 2]", "{a: b}"),
    *("[" * 10_000, "{a: " * 3000, "- " * 3000, "&a", "*a", "&a [*a]", "!!set {a}", "!!int x"),
    *("!!python/name:os.system", "!!binary aGk=", "2001-01-01", "2001-99-99", "\t", "\0", "#"),
    *(
        "\ud800",
        "\ufeff",
        "\x85",
        "\u2028",
        "\x7f",
        "a\nb",
        "🦜",
        "gs://b/x",
        "s3://b",
        "file:///a",
    ),
    *("file://h/a", "$HOME", "$NO_SUCH_NAME", "~/a", "~nobody-/a", "/dev/null/a", "x" * 300),
    *("x" * 5000, "auto", "kjv", "true", "nano", "megatron"),
]
nasty = st.sampled_from(NASTY) | st.text(max_size=8)


def is_plain(value) -> bool:
    """Whether nothing in a configuration is NaN, infinite, absurdly large or no plain value."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    if type(value) is int:
        return 0 <= value < 2**63
    if type(value) is float:
        return math.isfinite(value) and 0 <= value < 3.5e38
    return value is None or type(value) in (bool, str)


def as_yaml(draft: Draft) -> str:
    sections = {name: dataclasses.asdict(getattr(draft, name)) for name in CLASSES}
    strategy = {**draft.given, "auto": draft.auto}
    return dump_yaml({**sections, "strategy": strategy, "cpu_devices": draft.cpu_devices})


def told(error: UserError) -> None:
    message = str(error)
    assert message.isprintable(), message
    assert len(message) < 600, message
    assert re.search(r"line \d+|column \d+|config file|override", message) or any(
        re.search(rf"\b{re.escape(word)}\b", message) for word in WORDS
    ), message


def enter(path: Path, overrides=()) -> Draft | None:
    """What the door lets in; None where it told why not."""
    try:
        draft = load_draft(path, overrides)
    except UserError as error:
        told(error)
        return None
    for section in CLASSES:
        assert is_plain(dataclasses.asdict(getattr(draft, section))), draft
    assert is_plain(draft.given), draft
    again = path.with_name("again.yaml")
    again.write_text(as_yaml(draft), encoding="utf-8")
    assert load_draft(again) == draft
    if not draft.auto:
        try:
            config = draft.laid_out()
        except UserError as error:
            told(error)
        else:
            assert isinstance(config, RunConfig)
            assert load_draft(again).laid_out() == config
    return draft


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile") / "run.yaml"


CHANGES = ["value"] * 3 + ["repeat", "drop", "swap", "indent", "insert", "name"]


@st.composite
def mutated_files(draw) -> str:
    """A shipped config with up to four changes to its lines, of the kind that editing makes."""
    lines = draw(st.sampled_from(FILES)).splitlines()
    for _ in range(draw(st.integers(1, 4))):
        index = draw(st.integers(0, len(lines) - 1))
        line = lines[index]
        change = draw(st.sampled_from(CHANGES))
        if change == "value":
            lines[index] = f"{line.partition(':')[0]}: {draw(nasty)}"
        elif change == "repeat":
            lines.insert(draw(st.integers(0, len(lines))), line)
        elif change == "drop" and len(lines) > 1:
            del lines[index]
        elif change == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[index], lines[other] = lines[other], line
        elif change == "indent":
            lines[index] = draw(st.sampled_from(["  ", "\t", " ", "- ", "? "])) + line
        elif change == "insert":
            at = draw(st.integers(0, len(line)))
            lines[index] = line[:at] + draw(nasty) + line[at:]
        elif change == "name":
            lines[index] = f"{draw(nasty)}:{line.partition(':')[2]}"
    return "\n".join(lines)


@FREELY
@given(text=mutated_files())
def test_mutated_files(path, text):
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    enter(path)


@st.composite
def documents(draw) -> str:
    """Sections, fields and anything else in the right place or in a wrong one."""
    flow = st.recursive(
        nasty,
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
            | st.lists(st.tuples(st.sampled_from(sorted(WORDS)) | nasty, inner), max_size=3).map(
                lambda pairs: f"{{{', '.join(f'{key}: {value}' for key, value in pairs)}}}"
            )
        ),
        max_leaves=5,
    )
    lines = []
    for section in draw(st.lists(st.sampled_from(SECTIONS) | nasty, max_size=3)):
        fields = [name.partition(".")[2] for name in NAMES if name.startswith(f"{section}.")]
        keys = st.sampled_from(fields or sorted(WORDS)) | nasty
        lines.append(f"{section}: {draw(st.just('') | flow)}")
        lines += [f"  {draw(keys)}: {draw(flow)}" for _ in range(draw(st.integers(0, 2)))]
    return "\n".join(lines)


@FREELY
@given(text=documents() | st.text(max_size=40))
def test_documents(path, text):
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    enter(path)


@FREELY
@given(content=st.binary(max_size=20))
def test_bytes(path, content):
    path.write_bytes(content)
    enter(path)


@FREELY
@given(
    changes=st.lists(st.tuples(st.sampled_from([*NAMES, *SECTIONS]), nasty), max_size=2),
    other=st.none() | st.tuples(nasty, st.sampled_from(["=", "", "=="]), nasty),
)
def test_overrides(path, changes, other):
    path.write_text(FILES[-1])
    overrides = [f"{name}={text}" for name, text in changes]
    enter(path, [*overrides, "".join(other)] if other else overrides)


numbers = (
    st.integers()
    | st.floats()
    | st.integers(23, 6000).map(lambda digits: 10**digits)
    | st.sampled_from([-1, 0, 1, 2, 8, 2**31 - 1, 2**31, 2**32, 2**63])
    | st.sampled_from([0.5, 1e-46, 1e39, 1 - 1e-9])
)
objects = st.sampled_from(
    [
        *(np.int64(4), np.uint8(1), np.float32(0.5), np.float64("nan"), np.bool_(True)),
        *(np.str_("a"), np.array(3), np.array([1, 2]), np.datetime64("NaT", "s"), 1j),
        *(object(), int, Path("a"), {4}),
    ]
)
scalars = st.none() | st.booleans() | numbers | nasty | st.binary(max_size=4) | objects
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(nasty, inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(FREELY, max_examples=1000)
@given(name=st.sampled_from(NAMES), value=values)
def test_values_from_python(name, value):
    section, _, field = name.rpartition(".")
    try:
        if name == "model.preset":
            made = preset(value)
        elif section == "model":
            made = preset("nano", **{field: value})
        elif name in ("cpu_devices", "strategy.auto"):
            made = Draft(**{field or name: value})
        elif section == "strategy":
            made = Strategy(**{field: value})
        else:
            made = CLASSES[section](**{field: value})
    except UserError as error:
        told(error)
    else:
        fields = dataclasses.asdict(made)
        assert is_plain(fields.get(field, None)), fields


@pytest.mark.parametrize("text", FILES, ids=lambda text: text.splitlines()[0][:20])
def test_a_repeated_line_is_refused_with_both_lines(path, text):
    lines = text.splitlines()
    fields = [index for index, line in enumerate(lines) if re.match(r" +\w+: \S", line)]
    for index in fields:
        path.write_text("\n".join([*lines[: index + 1], lines[index], *lines[index + 1 :]]))
        name = lines[index].split(":")[0].strip()
        with pytest.raises(
            UserError, match=f"line {index + 2}: '{name}' stands in line {index + 1}"
        ):
            load_draft(path)
    sections = [index for index, line in enumerate(lines) if re.match(r"\w+:", line)]
    for index in sections:
        name = lines[index].split(":")[0]
        path.write_text("\n".join([*lines, f"{name}: null"]))
        with pytest.raises(UserError, match=rf"'{name}' stands in line {index + 1} already"):
            load_draft(path)
