"""Token files: what is written is what is read, and a damaged folder is reported in one line."""

import hashlib
import json
import tracemalloc

import numpy as np
import pytest

from hybrid_jax.data.header import read_header
from hybrid_jax.data.tokens import open_tokens
from hybrid_jax.data.writer import BLOCK_TOKENS, TokenWriter
from hybrid_jax.errors import UserError

DOCUMENTS = [[1, 2, 0], [0], [5, 6, 7, 0]]


def write(folder, documents=DOCUMENTS, vocab_size=8):
    with TokenWriter(folder, vocab_size=vocab_size) as writer:
        for document in documents:
            writer.append(document, num_bytes=2 * len(document))
        writer.finish(sources=("a.txt",))
    return folder


def change(folder, **values):
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps(header | values))


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(8, "<u1"), (256, "<u1"), (257, "<u2"), (65_536, "<u2"), (65_537, "<u4")],
)
def test_round_trip_in_the_smallest_type(tmp_path, vocab_size, dtype):
    documents = [*DOCUMENTS, [vocab_size - 1, 0]]
    source = open_tokens(write(tmp_path / "new", documents, vocab_size))
    assert source.tokens.tolist() == [token for document in documents for token in document]
    assert source.tokens.dtype == np.dtype(dtype)
    assert isinstance(source.tokens, np.memmap)
    assert source.starts.tolist() == [0, 3, 4, 8]
    assert (source.vocab_size, source.num_bytes, source.tokenizer) == (vocab_size, 20, "bytes")
    assert (source.num_tokens, source.num_documents) == (10, 4)
    file = (tmp_path / "new" / "tokens.bin").read_bytes()
    assert np.frombuffer(file, dtype).tolist() == source.tokens.tolist()
    header = read_header(tmp_path / "new")
    assert header.sources == ("a.txt",)
    assert header.fingerprint == hashlib.sha256(file).hexdigest()
    starts = (tmp_path / "new" / "starts.bin").read_bytes()
    assert header.starts_fingerprint == hashlib.sha256(starts).hexdigest()


def test_extend_is_the_same_as_appending(tmp_path):
    together = write(tmp_path / "a", DOCUMENTS * 2)
    part = open_tokens(write(tmp_path / "part"))
    with TokenWriter(tmp_path / "b", vocab_size=8) as writer:
        writer.extend(part)
        writer.extend(part)
        writer.finish(sources=("a.txt",))
    for name in ("tokens.bin", "starts.bin", "header.json"):
        assert (together / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_long_document_is_written_in_blocks(tmp_path):
    tokens = np.arange(8 * BLOCK_TOKENS, dtype=np.int64) % 70_000
    with TokenWriter(tmp_path, vocab_size=70_000) as writer:
        tracemalloc.start()
        writer.append(tokens, num_bytes=1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        writer.finish()
    assert peak < 2.5 * 4 * BLOCK_TOKENS  # uint32: one block written, one being converted
    np.testing.assert_array_equal(open_tokens(tmp_path).tokens, tokens)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([3, 8], r"x.txt, line 4: token 8 is outside the vocabulary, 0 to 7"),
        ([-1, 3], r"x.txt, line 4: token -1 is outside the vocabulary"),
        ([], r"x.txt, line 4: no tokens"),
        ([0.5, 1.0], r"x.txt, line 4: tokens are float64 of shape \(2,\): give integers"),
        ([[1, 2]], r"x.txt, line 4: tokens are int64 of shape \(1, 2\): give integers"),
    ],
)
def test_a_token_outside_the_vocabulary_names_the_document(tmp_path, tokens, message):
    with TokenWriter(tmp_path, vocab_size=8) as writer:
        for document in DOCUMENTS:
            writer.append(document, num_bytes=1)
        with pytest.raises(UserError, match=message):
            writer.append(tokens, num_bytes=1, where=lambda: "x.txt, line 4")


def test_sizes_that_cannot_be(tmp_path):
    for vocab_size in (0, 2**31 + 1):
        with pytest.raises(UserError, match=f"vocab_size={vocab_size}: must be from 1 to"):
            TokenWriter(tmp_path, vocab_size=vocab_size)
    message = "document 0: num_bytes=0: must be at least 1"
    with TokenWriter(tmp_path, vocab_size=8) as writer, pytest.raises(UserError, match=message):
        writer.append([1], num_bytes=0)


def test_a_corpus_is_not_written_over(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="holds a corpus already"):
        TokenWriter(tmp_path, vocab_size=8)


def test_an_unfinished_corpus_is_none(tmp_path):
    with TokenWriter(tmp_path, vocab_size=8) as writer:
        writer.append([1], num_bytes=1)
    with pytest.raises(UserError, match="is unfinished or no corpus"):
        open_tokens(tmp_path)


TOKENIZER = {"tokenizer": "tokenizer.json", "tokenizer_fingerprint": "0" * 64}


def with_another_tokenizer(folder):
    change(folder, **TOKENIZER)
    (folder / "tokenizer.json").write_text("{}")


def cut(folder):
    (folder / "tokens.bin").write_bytes((folder / "tokens.bin").read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "tokens.bin").unlink(), r"tokens.bin is missing, but header"),
        (lambda folder: (folder / "starts.bin").unlink(), r"starts.bin is missing, but header"),
        (cut, r"tokens.bin has 7 bytes, but header.json beside it counts 8 bytes"),
        (lambda folder: change(folder, num_documents=2), r"starts.bin has 24 bytes"),
        (
            lambda folder: change(folder, version=1),
            r"has version 1, but .* reads version 2: prepare",
        ),
        (lambda folder: change(folder, dtype="uint16"), r"is damaged \(dtype='uint16' is not"),
        (lambda folder: change(folder, num_tokens="8"), r"is damaged"),
        (lambda folder: change(folder, num_tokens=9), r"tokens.bin has 8 bytes, but .* 9 bytes"),
        (lambda folder: change(folder, extra=1), r"is damaged \(unknown field 'extra'\)"),
        (lambda folder: change(folder, **TOKENIZER), r"lacks tokenizer.json"),
        (with_another_tokenizer, r"tokenizer.json is not the tokenizer that made the tokens"),
        (lambda folder: (folder / "header.json").write_text("{"), r"header.json is damaged"),
        (lambda folder: (folder / "header.json").write_text("[]"), r"header.json is damaged"),
        (
            lambda folder: (folder / "starts.bin").write_bytes(np.array([0, 3, 9]).tobytes()),
            r"starts.bin does not belong to tokens.bin",
        ),
    ],
)
def test_a_damaged_corpus_is_one_line(tmp_path, damage, message):
    damage(write(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        open_tokens(tmp_path)
    assert "\n" not in str(error.value)


def test_a_corpus_without_documents(tmp_path):
    with pytest.raises(UserError, match="holds no documents"):
        open_tokens(write(tmp_path, []))


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"none does not exist: give a folder written by"):
        open_tokens(tmp_path / "none")
