"""Inputs that are not what they were: noticed by what is in them, also while they are prepared."""

import gzip
import json
import os
import shutil

import pyarrow as pa
import pytest
from pyarrow import parquet

from hybrid_jax.data.bpe import train_bpe
from hybrid_jax.data.files import find_files
from hybrid_jax.data.open import open_source
from hybrid_jax.data.prepare import prepare
from hybrid_jax.data.progress import Silent
from hybrid_jax.errors import UserError


def rewrite(path, content):
    """Other contents of the same size, with the time of modification of those before."""
    status = path.stat()
    assert len(content) == status.st_size
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


class Said(Silent):
    """A progress that remembers, and does something after a piece."""

    def __init__(self, after=-1, action=None):
        self.lines, self.pieces, self.after, self.action = [], 0, after, action

    def advance(self, num_bytes):
        self.pieces += 1
        if self.pieces == self.after:
            self.action()

    def say(self, line):
        self.lines.append(line)


def test_other_contents_of_the_same_size_and_time_are_another_corpus(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    prepare([path], tmp_path / "out", workers=1)
    rewrite(path, b"two")
    with pytest.raises(UserError, match=r"out holds another corpus: .*--overwrite"):
        prepare([path], tmp_path / "out", workers=1)
    source = prepare([path], tmp_path / "out", workers=1, overwrite=True)
    assert source.tokens.tolist() == [*b"two", 257]


def test_the_same_contents_at_another_time_are_the_same_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    prepare([tmp_path / "a.txt"], tmp_path / "out", workers=1)
    os.utime(tmp_path / "a.txt", (1, 1))
    said = Said()
    prepare([tmp_path / "a.txt"], tmp_path / "out", workers=1, progress=said)
    assert said.lines == [f"{tmp_path / 'out'} is this corpus already"]


def test_an_unfinished_run_starts_anew_with_other_contents(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' * 9 + "{")
    with pytest.raises(UserError, match="invalid JSON"):
        prepare([path], tmp_path / "out", workers=1, piece_bytes=30)
    rewrite(path, b'{"text": "y"}\n' * 9 + b" ")
    said = Said()
    source = prepare([path], tmp_path / "out", workers=1, piece_bytes=30, progress=said)
    assert said.lines == ["inputs or options have changed since the unfinished run: starting anew"]
    assert source.tokens.tolist() == [ord("y"), 257] * 9


def write_jsonl(path, letter, count=12):
    path.write_text((json.dumps({"text": letter}) + "\n") * count)


def write_parquet(path, letter):
    parquet.write_table(pa.table({"text": [letter] * 12}), path, row_group_size=3)


def write_gz(path, letter):
    path.write_bytes(gzip.compress((json.dumps({"text": letter}) + "\n").encode() * 12, mtime=0))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("name", "write"), [("a.jsonl", write_jsonl), ("a.parquet", write_parquet)]
)
def test_a_file_that_changes_while_it_is_read(tmp_path, name, write, workers):
    path = tmp_path / name
    write(path, "x")
    original = path.read_bytes()
    said = Said(1, lambda: write(path, "y"))
    options = {"workers": workers, "piece_bytes": 1}
    if workers == 1:
        with pytest.raises(UserError, match=f"{name} has changed since it was found: let") as error:
            prepare([path], tmp_path / "out", progress=said, **options)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out" / "header.json").exists()
        # As it was again, it resumes: the part that was made is of these contents.
        path.write_bytes(original)
        again = Said()
        source = prepare([path], tmp_path / "out", progress=again, **options)
        assert again.lines[0].startswith("resuming: 1 of ")
    else:  # whichever was read first
        with pytest.raises(UserError, match=rf"{name} (has )?changed (since|while) it was "):
            prepare([path], tmp_path / "out", progress=said, **options)
        path.write_bytes(original)
        source = prepare([path], tmp_path / "out", **options)
    assert source.tokens.tolist() == [ord("x"), 257] * 12


def test_what_a_changed_file_seems_to_hold_is_not_told(tmp_path):
    write_parquet(tmp_path / "a.parquet", "x")
    (file,), _ = find_files([tmp_path / "a.parquet"])
    with pytest.raises(UserError, match=r"a\.parquet has changed since it was found"), file.open():
        (tmp_path / "a.parquet").write_bytes(b"")
        raise UserError("cannot be read as parquet")


@pytest.mark.parametrize(("name", "write"), [("a.jsonl", write_jsonl), ("a.jsonl.gz", write_gz)])
def test_a_file_that_changes_after_it_was_read(tmp_path, name, write):
    (tmp_path / "b.txt").write_text("text")
    path = tmp_path / name
    write(path, "x")
    said = Said(2, lambda: write(path, "y"))
    options = {"workers": 1, "piece_bytes": 10**6 if name.endswith("gz") else 100}
    inputs = [path, tmp_path / "b.txt"]
    pieces = Said()
    prepare(inputs, tmp_path / "all", progress=pieces, **options)
    said.after = pieces.pieces
    with pytest.raises(UserError, match=f"{name} changed while it was prepared: let its writer"):
        prepare(inputs, tmp_path / "out", progress=said, **options)
    assert not (tmp_path / "out" / "header.json").exists()


def test_a_touch_is_no_change(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, "x")
    said = Said(6, lambda: os.utime(path))
    options = {"workers": 1, "piece_bytes": 20, "progress": said}
    assert prepare([path], tmp_path / "out", **options).num_documents == 12
    assert said.pieces == 6


def test_a_damaged_corpus_is_not_taken_for_finished(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    prepare([tmp_path / "a.txt"], tmp_path / "out", workers=1)
    tokens = tmp_path / "out" / "tokens.bin"
    tokens.write_bytes(bytes(tokens.stat().st_size))
    with pytest.raises(UserError, match=r"out holds a damaged corpus, .*--overwrite"):
        prepare([tmp_path / "a.txt"], tmp_path / "out", workers=1)
    source = prepare([tmp_path / "a.txt"], tmp_path / "out", workers=1, overwrite=True)
    assert source.tokens.tolist() == [*b"text", 257]


def test_a_tokenizer_with_other_contents_is_another_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("the light")
    train_bpe(["the light"] * 9, 260, tmp_path / "bpe")
    prepare([tmp_path / "a.txt"], tmp_path / "out", tokenizer=tmp_path / "bpe", workers=1)
    shutil.copyfile(tmp_path / "bpe" / "tokenizer.json", tmp_path / "tokenizer.json")
    said = Said()
    options = {"workers": 1, "progress": said}
    prepare(
        [tmp_path / "a.txt"], tmp_path / "out", tokenizer=tmp_path / "tokenizer.json", **options
    )
    assert said.lines == [f"{tmp_path / 'out'} is this corpus already"]
    train_bpe(["light the"] * 9, 262, tmp_path / "bpe", overwrite=True)
    with pytest.raises(UserError, match=r"out holds another corpus"):
        prepare([tmp_path / "a.txt"], tmp_path / "out", tokenizer=tmp_path / "bpe", workers=1)


def test_a_corpus_whose_tokenizer_was_replaced(tmp_path):
    (tmp_path / "a.txt").write_text("the light")
    for name, text in [("a", "the light"), ("b", "stone ton")]:
        train_bpe([text] * 9, 260, tmp_path / f"bpe-{name}")
        prepare(
            [tmp_path / "a.txt"], tmp_path / name, tokenizer=tmp_path / f"bpe-{name}", workers=1
        )
    shutil.copyfile(tmp_path / "a" / "tokenizer.json", tmp_path / "b" / "tokenizer.json")
    open_source(str(tmp_path / "a"))
    with pytest.raises(UserError, match=r"b/tokenizer.json is not the tokenizer that made the tok"):
        open_source(str(tmp_path / "b"))
