"""YAML read strictly: one line for every mistake, and no text that makes the reader grow."""

import math
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_jax.config.yaml_text import LARGEST, dump_yaml, parse_yaml
from hybrid_jax.errors import UserError


def complaint(text: str) -> str:
    with pytest.raises(UserError) as error:
        parse_yaml(text, "a file")
    message = str(error.value)
    assert message.startswith("a file")
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "a file, line 3: 'a' stands in line 1 already: remove one of them."),
        ("a: 1\n'a': 3", "a file, line 2: 'a' stands in line 1 already: remove one of them."),
        ("t:\n  a: 1\n  a: 2", "a file, line 3: 'a' stands in line 2 already: remove one of them."),
        ("{a: 1, a: 2}", "a file, line 1: 'a' stands in line 1 already: remove one of them."),
        ("- {a: 1}\n- {b: 1,\n b: 2}", "a file, line 3: 'b' stands in line 2 already: remove one "
         "of them."),
        ("1: 2", "a file, line 1: the key '1' must be text: the name of a field."),
        ("true: 2", "a file, line 1: the key 'true' must be text: the name of a field."),
        ("on: 2", "a file, line 1: the key 'on' must be text: the name of a field."),
        ("null: 2", "a file, line 1: the key 'null' must be text: the name of a field."),
        ("? \n: 2", "a file, line 1: the key '' must be text: the name of a field."),
        ("1.5: 2", "a file, line 1: the key '1.5' must be text: the name of a field."),
        ("? [a]\n: b", "a file, line 1: a key must be text: the name of a field."),
        ("? {a: b}\n: b", "a file, line 1: a key must be text: the name of a field."),
        ("a: !!set {x}", "a file, line 1: 'tag:yaml.org,2002:set' is no type that a configuration "
         "has."),
        ("a: !!python/object/apply:os.system [ls]", "a file, line 1: "
         "'tag:yaml.org,2002:python/object/apply:os.system' is no type that a configuration has."),
        ("a: !!binary aGk=", "a file, line 1: 'tag:yaml.org,2002:binary' is no type that a "
         "configuration has."),
        ("a: !!timestamp 2001-01-01", "a file, line 1: 'tag:yaml.org,2002:timestamp' is no type "
         "that a configuration has."),
        ("a: !own x", "a file, line 1: '!own' is no type that a configuration has."),
        ("a: !!int x", "a file, line 1: 'x' is no whole number that can be read."),
        ("a: !!int ''", "a file, line 1: '' is no whole number that can be read."),
        ("a: !!float x", "a file, line 1: 'x' is no number that can be read."),
        ("a: !!bool x", "a file, line 1: 'x' is no true or false."),
        ("a: &a [*a]", "a file, line 1: *a stands in what it repeats."),
        ("a: &a {b: *a}", "a file, line 1: *a stands in what it repeats."),
        ("a: *b", "a file is not YAML: line 1, column 4: found undefined alias 'b'."),
        ("a: 1\n---\nb: 2", "a file is not YAML: line 2, column 1: expected a single document in "
         "the stream, but found another document."),
        ("a:\n\tb: 1", "a file is not YAML: line 2, column 1: found character '\\t' that cannot "
         "start any token."),
        ("a: {<<: 3}", "a file, line 1: '<<' takes a mapping or a list of them."),
        ("a: \0", "a file is not YAML: unacceptable character #x0000: special characters are not "
         "allowed."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(text, message):
    assert complaint(text) == message


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "[{a: "])
def test_absurd_nesting_is_refused_at_once(opening):
    begin = time.process_time()
    assert "deeper than 20 levels" in complaint(opening * 10_000)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("sign", ["", "-", "+"])
def test_absurd_numbers_are_read_or_refused(sign):
    assert parse_yaml(f"a: {sign}{10**23}", "a file") == {"a": int(f"{sign}{10**23}")}
    assert "is no whole number that can be read" in complaint(f"a: {sign}{'1' * 100_000}")
    assert parse_yaml(f"a: {sign}1e400", "a file")["a"] in (math.inf, -math.inf)


def test_a_billion_laughs_take_no_memory():
    lines = ["a0: &a0 ['lol', 'lol', 'lol', 'lol', 'lol', 'lol', 'lol', 'lol', 'lol', 'lol']"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    merges = ["a0: &a0 {x: 1}"]
    merges += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 10)]
    long = f"a: &a {'x' * 1000}\nb: &b [{', '.join(['*a'] * 1000)}]\nc: [*b, *b, *b]"
    deep = ["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 1000))]
    tracemalloc.start()
    assert "repeat too much" in complaint("\n".join(lines))
    assert "repeat too much" in complaint("\n".join(merges))
    assert "repeat too much" in complaint(long)
    assert "deeper than 20 levels" in complaint("\n".join(deep))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_too_much_text_is_not_read():
    assert complaint("a: " + "x" * LARGEST).endswith(
        f"must have at most {LARGEST} characters, not {LARGEST + 3}."
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("1_000", 1000),
        ("0x10", 16),
        ("0b11", 3),
        ("-0", 0),
        ("010", "010"),
        ("0o10", "0o10"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("2001-01-01", "2001-01-01"),
        ("2001-99-99", "2001-99-99"),
        ("=", "="),
        ("\u0665", "\u0665"),
        ("nan", "nan"),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("", None),
        ("!!str 5", "5"),
        ("!!float '5'", 5.0),
    ],
)
def test_values_are_what_they_look_like(text, value):
    found = parse_yaml(f"a: {text}", "a file")["a"]
    assert (found, type(found)) == (value, type(value))


def test_merge_keys_give_defaults():
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: [*b, *a], z: 4}"
    assert parse_yaml(text, "a file") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {"x": 3, "y": 2, "z": 4},
    }
    assert "'<<' stands in line 2 already" in complaint("a: &a {}\nb: {<<: *a,\n <<: *a}")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["1e3", "010", "1:30", "yes", "null", "~", "", "=", "<<", "0x1", ".nan", "2001-01-01", "- a"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(values)
def test_what_is_dumped_is_read_again(value):
    again = parse_yaml(dump_yaml(value), "a file")
    assert repr(again) == repr(value)  # of NaN and -0.0 too
