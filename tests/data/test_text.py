import bz2
import gzip
import hashlib
import io
import lzma
import os
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from damage import write_corpus
from pyarrow import parquet

from hybrid_jax.data.open import open_source
from hybrid_jax.data.text import read_text
from hybrid_jax.data.tokenizer import load_tokenizer
from hybrid_jax.data.tokens import open_tokens
from hybrid_jax.errors import UserError


def test_bundled_text_is_the_one_in_the_readme():
    source = read_text("kjv")
    text = source.tokens.tobytes()
    assert hashlib.sha256(text).hexdigest() == (
        "eb089f4be0e41cd2fd33adb734c279d0599279d49e0ba6a110e375c356eb206b"
    )
    assert text.startswith(b"Genesis 1\n\nIn the beginning God created")
    assert not source.tokens.flags.writeable
    train, held_out = source.split(0.05)
    assert train.tokens.tobytes() + held_out.tokens.tobytes() == text
    assert held_out.tokens.tobytes().startswith(b"Colossians 1\n\nPaul, an apostle")
    assert (train.num_bytes, held_out.num_bytes) == (train.num_tokens, held_out.num_tokens)
    assert (train.starts.tolist(), held_out.starts.tolist()) == ([0], [0])


@pytest.mark.parametrize("fraction", [0.01, 0.3])
def test_bundled_text_is_cut_between_books(fraction):
    train, held_out = read_text("kjv").split(fraction)
    assert train.tokens.tobytes().endswith(b"\n\n\n")
    np.testing.assert_allclose(held_out.num_tokens / 4_153_272, fraction, atol=0.02)


@pytest.mark.parametrize(
    ("text", "fraction", "held_out"),
    [
        (b"first line\nsecond\n\xff\x00 third", 0.2, b"\xff\x00 third"),
        (b"first line\nsecond\n\xff\x00 third", 0.5, b"second\n\xff\x00 third"),
        (b"one\ntwo lines\n", 0.01, b"two lines\n"),  # not after the last line break
        (b"a" * 90 + b"b" * 10, 0.1, b"b" * 10),  # no lines: at the fraction
    ],
)
def test_a_file_is_cut_at_the_nearest_line(tmp_path, text, fraction, held_out):
    path = tmp_path / "text.txt"
    path.write_bytes(text)
    source = read_text(str(path))
    assert (source.name, source.num_documents, source.vocab_size) == (str(path), 1, 256)
    train, rest = source.split(fraction)
    assert (train.tokens.tobytes(), rest.tokens.tobytes()) == (text[: -len(held_out)], held_out)


def test_a_line_is_found_far_away_but_not_too_far(tmp_path):
    path = tmp_path / "text.txt"
    size = 3 << 20
    text = bytearray(b"a" * size)
    for line, cut in [((2 << 20) + 10, (2 << 20) + 11), ((1 << 20) // 8, 3 * size // 4)]:
        text[:] = b"a" * size
        text[line] = ord("\n")
        path.write_bytes(text)
        assert read_text(str(path)).split(0.25)[0].num_tokens == cut


def test_the_fingerprint_is_of_the_bytes(tmp_path):
    prints = []
    for name, text in [("a", b"text"), ("b", b"text"), ("c", b"test")]:
        (tmp_path / name).write_bytes(text)
        prints.append(read_text(str(tmp_path / name)).fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "textt.txt",
            b"x",
            r"no text '.*textt.txt'.*'kjv' for the bundled.*Did you mean 'text.txt'",
        ),
        ("kvj", b"x", r"Did you mean 'kjv'"),
        ("none/text.txt", b"x", r"the folder '.*none' does not exist"),
        (".", b"x", r"is a folder, and no prepared corpus"),
        ("text.txt", b"", r"text.txt' is empty \(0 bytes\)"),
        ("text.txt", b" \n\n", r"is empty \(3 bytes\)"),
        ("text.txt", b"abc", r"has 3 tokens, split into 3 to train on and 0 held out"),
    ],
)
def test_bad_file(tmp_path, name, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_text(f"{tmp_path}/{name}").split(0.05)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_bad_fraction(fraction):
    with pytest.raises(UserError, match=r"validation_fraction=.* must lie in \(0, 1\)"):
        read_text("kjv").split(fraction)


def in_zip(data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", data)
    return file.getvalue()


def in_parquet(data):
    file = io.BytesIO()
    parquet.write_table(pa.table({"text": [data.decode()]}), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("packing", "pack"),
    [
        ("gzip", gzip.compress),
        ("xz", lzma.compress),
        ("bzip2", bz2.compress),
        ("zip", in_zip),
        ("parquet", in_parquet),
        ("zstd", lambda data: b"\x28\xb5\x2f\xfd" + data),
    ],
)
def test_a_packed_text_is_refused(tmp_path, packing, pack):
    path = tmp_path / "text.txt"
    path.write_bytes(pack(b"some text\n" * 9))
    with pytest.raises(UserError, match=rf"is a {packing} file, whose bytes are no text: unpack"):
        read_text(str(path))


def test_a_text_that_begins_like_a_packed_one(tmp_path):
    path = tmp_path / "text.txt"
    for text in (b"PK and others", b"BZh is no word", b"PAR 1"):
        path.write_bytes(text)
        assert read_text(str(path)).tokens.tobytes() == text


@pytest.mark.parametrize("name", ["tokens.bin", "starts.bin"])
def test_a_file_of_a_corpus_is_no_text(tmp_path, name):
    write_corpus(tmp_path)
    with pytest.raises(UserError, match=rf"{name}' is a file of a prepared corpus: give its fold"):
        read_text(str(tmp_path / name))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "is a named pipe: give a file on disk"),
        ("/dev/zero", "is a device: give a file on disk"),
        ("none", "is a broken link, to 'none'"),
        ("text.txt", "cannot be looked at: Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_named_and_not_opened(tmp_path, target, message):
    path = tmp_path / "text.txt"
    if target is None:
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    for opened in (read_text, open_source):
        with pytest.raises(UserError, match=message) as error:
            opened(str(path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "~nobody-of-this-name/a.txt"])
def test_names_that_cannot_be(name):
    for opened in (read_text, open_source, open_tokens, load_tokenizer):
        with pytest.raises(UserError) as error:
            opened(name)
        assert len(str(error.value)) < 500


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text.txt").write_bytes(b"some text")
    write_corpus(tmp_path / "corpus")
    assert open_source("~/text.txt").num_tokens == 9
    assert open_source("~/corpus").num_documents == 5
