import hashlib

import numpy as np
import pytest

from hybrid_jax.data.text import load_corpus, unigram_loss
from hybrid_jax.errors import UserError


def test_bundled_text_is_the_one_in_the_readme():
    corpus = load_corpus("kjv", 0.05)
    text = corpus.train.tobytes() + corpus.validation.tobytes()
    assert hashlib.sha256(text).hexdigest() == (
        "eb089f4be0e41cd2fd33adb734c279d0599279d49e0ba6a110e375c356eb206b"
    )
    assert text.startswith(b"Genesis 1\n\nIn the beginning God created")
    assert corpus.validation.tobytes().startswith(b"Colossians 1\n\nPaul, an apostle")
    assert not corpus.train.flags.writeable


@pytest.mark.parametrize("fraction", [0.01, 0.3])
def test_bundled_text_is_cut_between_books(fraction):
    corpus = load_corpus("kjv", fraction)
    assert corpus.train.tobytes().endswith(b"\n\n\n")
    np.testing.assert_allclose(corpus.validation.size / 4_153_272, fraction, atol=0.02)


def test_file_is_cut_at_the_nearest_line(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"first line\nsecond\n\xff\x00 third")
    corpus = load_corpus(str(path), 0.2)
    assert corpus.name == str(path)
    assert corpus.train.tobytes() == b"first line\nsecond\n"
    assert corpus.validation.tobytes() == b"\xff\x00 third"


def test_file_without_lines_is_cut_at_the_fraction(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"a" * 90 + b"b" * 10)
    corpus = load_corpus(str(path), 0.1)
    assert (corpus.train.tobytes(), corpus.validation.tobytes()) == (b"a" * 90, b"b" * 10)


def test_unigram_loss_by_hand():
    train, validation = np.array([0, 0, 1], np.uint8), np.array([0, 1, 1, 9], np.uint8)
    probabilities = np.array([3, 2, 2, 1]) / (3 + 256)
    np.testing.assert_allclose(unigram_loss(train, validation), -np.log(probabilities).mean())


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
        (".", b"x", r"is a folder"),
        ("text.txt", b"", r"text.txt' is empty \(0 bytes\)"),
        ("text.txt", b" \n\n", r"is empty \(3 bytes\)"),
        ("text.txt", b"abc", r"has 3 bytes, split into 3 to train on and 0 held out"),
    ],
)
def test_bad_file(tmp_path, name, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_corpus(f"{tmp_path}/{name}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_bad_fraction(fraction):
    with pytest.raises(UserError, match="more than 0 and less than 1"):
        load_corpus("kjv", fraction)
