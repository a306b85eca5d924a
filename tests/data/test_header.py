"""Headers: whatever stands in them, a corpus is refused in one line or read right."""

import json
import os

import pytest
from damage import DOCUMENTS, write_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_jax.data.header import MAX_BYTES, read_header
from hybrid_jax.data.open import open_source
from hybrid_jax.errors import UserError

TOKENS = [token for document in DOCUMENTS for token in document]
SHA = "a" * 64


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("header") / "corpus")
    return folder, json.loads((folder / "header.json").read_text())


def refused_or_right(folder):
    """One line, or None where the corpus was opened and is what was written."""
    try:
        source = open_source(str(folder))
    except UserError as error:
        assert type(error) is UserError
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return str(error)
    assert (source.tokens.tolist(), source.starts.tolist()) == (TOKENS, [0, 3, 4, 8, 12])
    return None


FIELDS = [
    *("num_tokens", "num_documents", "num_bytes", "num_skipped", "vocab_size", "dtype"),
    *("tokenizer", "fingerprint", "starts_fingerprint", "sources", "job", "version", "x"),
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 20)
    | st.sampled_from([2**31, 2**32, 2**63, 10**30, 65_536, 257, 301, 302])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["int8", "uint32", "uint64", "bytes", "..", "../x", "x/y", SHA, SHA.upper()]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2),
    removed=st.sets(st.sampled_from(FIELDS[:-1]), max_size=1),
)
def test_any_values(corpus, changes, removed):
    folder, values = corpus
    values = {name: value for name, value in values.items() if name not in removed} | changes
    (folder / "header.json").write_text(json.dumps(values))
    line = refused_or_right(folder)
    if removed - {*changes} or "x" in changes:
        assert line is not None
    if line is None:
        assert read_header(folder).num_tokens == 14


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    start=st.integers(0, 700),
    length=st.integers(0, 700),
    inserted=st.binary(max_size=6)
    | st.sampled_from([b"{", b'"', b"1", b"\xff", b"\0", b"-", b"e9"]),
)
def test_any_bytes(corpus, start, length, inserted):
    folder, values = corpus
    data = json.dumps(values, indent=2).encode()
    (folder / "header.json").write_bytes(data[:start] + inserted + data[start + length :])
    refused_or_right(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tokens": True}, "num_tokens=True must be a whole number, at least 0"),
        ({"num_tokens": 14.0}, "num_tokens=14.0 must be a whole number"),
        ({"num_tokens": 1 << 63}, "num_tokens=9223372036854775808 must be"),
        ({"num_tokens": 0}, "num_documents=5 cannot have num_tokens=0"),
        ({"num_documents": 15}, "num_documents=15 cannot have num_tokens=14"),
        ({"num_documents": 0}, "num_documents=0 cannot have num_tokens=14"),
        ({"num_bytes": 0}, "num_bytes=0 with documents"),
        ({"num_skipped": -1}, "num_skipped=-1 must be"),
        ({"vocab_size": 0, "dtype": "int8"}, "vocab_size=0 must be a whole number from 1 to"),
        ({"vocab_size": 1 << 33, "dtype": "uint64"}, "vocab_size=8589934592 must be"),
        ({"dtype": "object"}, "dtype='object' must be uint8, uint16 or uint32"),
        ({"dtype": ["uint16"]}, r"dtype=\['uint16'\] must be uint8"),
        ({"dtype": "uint8"}, "dtype='uint8' is not that of 301 tokens"),
        ({"tokenizer": "../tokenizer.json"}, "tokenizer='../tokenizer.json' must be"),
        ({"tokenizer": "/etc/passwd"}, "tokenizer='/etc/passwd' must be"),
        ({"tokenizer": ".."}, "tokenizer='..' must be"),
        ({"tokenizer": "header.json"}, "tokenizer='header.json' must be"),
        ({"fingerprint": "abc"}, "fingerprint='abc' must be a SHA-256"),
        ({"starts_fingerprint": SHA.upper()}, "starts_fingerprint='A+...A+' must be a SHA-256"),
        ({"sources": "a.txt"}, "sources='a.txt' must be a list of paths"),
        ({"sources": [1]}, r"sources=\[1\] must be a list of paths"),
        ({"job": "x\ny"}, r"job='x\\ny' must be 16 hexadecimal digits"),
        ({"version": True}, "version=True must be 2"),
        ({"version": "2"}, "version='2' must be 2"),
        ({"num_token": 1}, "unknown field 'num_token' Did you mean 'num_tokens'"),
    ],
)
def test_every_field_is_checked(corpus, changes, message):
    folder, values = corpus
    (folder / "header.json").write_text(json.dumps(values | changes))
    with pytest.raises(UserError, match=rf"header.json is damaged \({message}.*: copy the corpus"):
        read_header(folder)


@pytest.mark.parametrize("version", [1, 0, 3, 10**18])
def test_another_version_says_what_to_do(corpus, version):
    folder, values = corpus
    (folder / "header.json").write_text(json.dumps(values | {"version": version}))
    with pytest.raises(UserError, match=rf"has version {version}, but .* version 2: prepare the"):
        read_header(folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no JSON"),
        (b"null", "no JSON object"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a":' * 100_000, "no JSON"),
        (b'{"version": 1, "version": 2}', "no JSON, or a field twice"),
        (b'{"version": ' + b"9" * 5000 + b"}", "no JSON"),
        ("{}".encode("utf-16"), "no JSON"),
        (b'{"\xff": 1}', "no JSON"),
    ],
)
def test_what_is_no_header(tmp_path, data, message):
    (tmp_path / "header.json").write_bytes(data)
    with pytest.raises(UserError, match=rf"header.json is damaged \({message}"):
        read_header(tmp_path)


def test_a_huge_header_is_not_read(tmp_path):
    with (tmp_path / "header.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match=r"header.json is damaged \(more than 256 MiB\)"):
        read_header(tmp_path)


def test_a_header_that_is_no_file(tmp_path):
    header = tmp_path / "header.json"
    os.mkfifo(header)
    with pytest.raises(UserError, match=r"header.json is a named pipe: give a file"):
        open_source(str(tmp_path))
    header.unlink()
    header.mkdir()
    with pytest.raises(UserError, match=r"header.json is a folder"):
        open_source(str(tmp_path))
    header.rmdir()
    header.symlink_to("none")
    with pytest.raises(UserError, match=r"header.json is a broken link, to 'none'"):
        open_source(str(tmp_path))
    header.unlink()
    header.write_text("{}")
    with pytest.raises(UserError, match=r"header.json is a file: give a folder"):
        read_header(header)


@pytest.mark.parametrize("name", ["tokens.bin", "starts.bin"])
def test_token_files_that_are_no_files(tmp_path, name):
    write_corpus(tmp_path / "corpus")
    file = tmp_path / "corpus" / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match=f"{name} is a named pipe"):
        open_source(str(tmp_path / "corpus"))
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=f"{name} is missing"):
        open_source(str(tmp_path / "corpus"))
