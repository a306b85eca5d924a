import json
import sys

import numpy as np
import pytest

from hybrid_jax.data.bpe import END_OF_TEXT, train_bpe
from hybrid_jax.data.tokenizer import load_tokenizer
from hybrid_jax.errors import UserError

TEXTS = ["In the beginning God created the heaven and the earth.\n" * 4, "And the earth was void."]
AWKWARD = ["", " ", "  two\n\n", "naïve Ω 語 🙂", "tab\tand\r\nnewline\0", f"a{END_OF_TEXT}b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    train_bpe(TEXTS, 280, folder)
    return folder


def copy_with(folder, target, **changes):
    """A tokenizer.json in `target` with some of its fields replaced."""
    fields = json.loads((folder / "tokenizer.json").read_text())
    (target / "tokenizer.json").write_text(json.dumps(fields | changes))
    return target


@pytest.mark.parametrize("text", [*TEXTS, *AWKWARD])
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_text_round_trips_without_special_tokens(folder, kind, text):
    tokenizer = load_tokenizer("bytes" if kind == "bytes" else folder)
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32
    assert tokenizer.decode(tokens) == text
    assert tokenizer.eos not in tokens
    assert np.all(tokens < tokenizer.vocab_size)
    assert tokenizer.decode([*tokens, tokenizer.eos]) == text


def test_bpe_merges_and_is_the_same_every_time(folder, tmp_path):
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    assert tokenizer.name == str(folder / "tokenizer.json")
    assert (tokenizer.vocab_size, tokenizer.eos) == (280, 0)
    assert tokenizer.encode(TEXTS[0]).size < len(TEXTS[0]) / 2
    train_bpe(iter(TEXTS), 280, tmp_path / "new")
    again = (tmp_path / "new" / "tokenizer.json").read_bytes()
    assert again == (folder / "tokenizer.json").read_bytes()


def test_vocabulary_is_smaller_when_the_text_has_no_more_pairs(tmp_path):
    assert train_bpe(["ab ab"], 400, tmp_path).vocab_size < 400


def test_what_a_file_adds_around_the_text_is_left_out(folder, tmp_path):
    padding = {
        "strategy": {"Fixed": 40},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": END_OF_TEXT,
    }
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    tokenizer = load_tokenizer(copy_with(folder, tmp_path, padding=padding, truncation=truncation))
    expected = load_tokenizer(folder).encode(TEXTS[1])
    np.testing.assert_array_equal(tokenizer.encode(TEXTS[1]), expected)


@pytest.mark.parametrize("named", ["Ġthe", {"content": "Ġthe"}])
def test_end_of_text_is_the_one_that_the_config_names(folder, tmp_path, named):
    copy_with(folder, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": named}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode([tokenizer.eos]) == " the"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no tokenizer '.*': give the path of a tokenizer.json or of its folder, or 'bytes'"),
        ({"tokenizer.json": "{"}, r"tokenizer.json is not a tokenizer file \(.+\): give"),
        (
            {"tokenizer.json": None, "tokenizer_config.json": "[]"},
            r"tokenizer_config.json is not a JSON object",
        ),
        (
            {"tokenizer.json": None, "tokenizer_config.json": '{"eos_token": "<e>"}'},
            r"eos_token '<e>' is not in the vocabulary of .*tokenizer.json",
        ),
        (
            {"tokenizer.json": None, "tokenizer_config.json": '{"eos_token": ["a"]}'},
            r"eos_token \['a'\] is not in the vocabulary",
        ),
        (
            {"tokenizer.json": None, "tokenizer_config.json": "[" * 100_000},
            r"tokenizer_config.json is not a JSON object",
        ),
    ],
)
def test_bad_tokenizer_is_one_line(folder, tmp_path, files, message):
    for name, content in files.items():
        text = (folder / "tokenizer.json").read_text() if content is None else content
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_misspelt_name():
    with pytest.raises(UserError, match="Did you mean 'bytes'"):
        load_tokenizer("byte")


def test_tokenizer_without_an_end_of_text_token(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"has no end-of-text token .*tokenizer_config.json"):
        load_tokenizer(tmp_path)


def test_missing_package_is_one_line_with_the_command(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'hybrid-jax\[bpe\]'"):
        load_tokenizer(folder)


def test_bad_training(folder, tmp_path):
    with pytest.raises(UserError, match="vocab_size=256: must be at least 257"):
        train_bpe(TEXTS, 256, tmp_path)
    with pytest.raises(UserError, match=r"tokenizer.json exists: choose another"):
        train_bpe(TEXTS, 280, folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made: Not a directory"):
        train_bpe(TEXTS, 280, tmp_path / "file" / "x")
    train_bpe(TEXTS, 270, tmp_path)
    assert train_bpe(TEXTS, 280, tmp_path, overwrite=True).vocab_size == 280
