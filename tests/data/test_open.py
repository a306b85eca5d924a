"""Opening sources by name, and sources that a model or each other cannot go with."""

import numpy as np
import pytest

from hybrid_jax.data.open import check_sources, open_source
from hybrid_jax.data.prepare import prepare
from hybrid_jax.data.source import TokenSource
from hybrid_jax.data.text import TextSource
from hybrid_jax.errors import UserError


def make_source(tokens, vocab_size: int, name: str = "x", tokenizer: str = "bytes") -> TokenSource:
    tokens = np.asarray(tokens)
    return TokenSource(name, tokens, np.array([0]), vocab_size, len(tokens), tokenizer)


def test_a_text_file_is_opened(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"some text\n")
    source = open_source(str(tmp_path / "text.txt"))
    assert isinstance(source, TextSource)
    assert source.tokens.tobytes() == b"some text\n"


def test_a_prepared_corpus_is_opened(tmp_path):
    (tmp_path / "text.txt").write_text("one\n\ntwo")
    prepare([tmp_path / "text.txt"], tmp_path / "corpus", separator="", workers=1)
    source = open_source(str(tmp_path / "corpus"))
    assert source.num_documents == 2
    assert source.tokens[:3].tolist() == [*b"one"]
    check_sources([source, open_source("kjv")], source.vocab_size)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", r"is a folder, and no prepared corpus: give"),
        ("corpsu", r"no text '.*corpsu': give .* prepared corpus, .* Did you mean 'corpus'\?"),
        ("none/corpus", r"no text '.*': the folder '.*none' does not exist; give"),
    ],
)
def test_nothing_to_open(tmp_path, name, message):
    (tmp_path / "corpus").mkdir()
    with pytest.raises(UserError, match=message) as error:
        open_source(f"{tmp_path}/{name}")
    assert "\n" not in str(error.value)


def test_sources_that_go_together(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    bpe = [make_source([1, 2], 9, tokenizer=str(tmp_path / name)) for name in ("a.json", "b.json")]
    check_sources(bpe, vocab_size=9)
    check_sources([make_source([1, 2], 256), make_source([258, 2], 259)], vocab_size=300)
    check_sources([make_source(np.arange(256, dtype=np.uint8), 256)], vocab_size=256)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            [make_source([1], 300, "a")],
            "model.vocab_size=259 must be at least 300, the vocabulary of 'a'.",
        ),
        (
            [make_source([1], 9), make_source([3, 200, 2], 10, "b")],
            "'b' has token 200 at index 1, but tokens must be from 0 to 9 (vocab_size=10): give "
            "it the vocab_size of the tokenizer that made it.",
        ),
        (
            [make_source([3, -1], 10, "c")],
            "'c' has token -1 at index 1, but tokens must be from 0 to 9 (vocab_size=10): give "
            "it the vocab_size of the tokenizer that made it.",
        ),
        (
            [make_source([1], 9, "a"), make_source([1], 9, "b", "t.json")],
            "'a' and 'b' were made with different tokenizers, bytes and t.json: prepare one of "
            "them again with the tokenizer of the other.",
        ),
    ],
)
def test_sources_that_do_not_fit(sources, message):
    with pytest.raises(UserError) as error:
        check_sources(sources, vocab_size=259)
    assert str(error.value) == message


def test_tokenizers_are_compared_by_what_they_are(tmp_path):
    sources = []
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        sources.append(make_source([1], 9, name, tokenizer=str(tmp_path / name)))
    with pytest.raises(UserError, match="different tokenizers"):
        check_sources(sources, vocab_size=9)
