"""A corpus that a run opens holds what was written: every damage to its files is one line."""

import os
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from damage import (
    DOCUMENTS,
    VOCAB_SIZE,
    as_nobody,
    change_header,
    write_by_hand,
    write_corpus,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_jax.config.load import load_config
from hybrid_jax.data.contents import BLOCK_BYTES
from hybrid_jax.data.open import check_sources, open_source
from hybrid_jax.data.source import TokenSource
from hybrid_jax.data.tokens import open_tokens
from hybrid_jax.errors import UserError
from hybrid_jax.run import build_data

TOKENS = [token for document in DOCUMENTS for token in document]
STARTS = [0, 3, 4, 8, 12]
REMEDY = "prepare it again with overwrite=True (--overwrite)."


def refused(action):
    """The one line with which `action` refuses, None where it does not."""
    try:
        action()
    except UserError as error:
        assert type(error) is UserError
        assert "\n" not in str(error)
        return str(error)
    return None


def flipped(data):
    return data[:7] + bytes([data[7] ^ 1]) + data[8:]


@pytest.mark.parametrize("name", ["tokens.bin", "starts.bin"])
@pytest.mark.parametrize(
    "damage",
    [lambda data: bytes(len(data)), lambda data: data[::-1], flipped],
    ids=["zeroed", "reversed", "flipped"],
)
def test_a_run_refuses_a_damaged_file(tmp_path, name, damage):
    folder = tmp_path / "corpus"
    rng = random.Random(0)
    write_corpus(folder, [[rng.randrange(1, 256) for _ in range(99)] + [0] for _ in range(30)])
    config = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    overrides = [f"data.source={folder}", "model.vocab_size=301", "data.validation_fraction=0.5"]
    overrides += ["data.seq_len=16", "data.global_batch=8"]
    build_data(load_config(config, overrides))
    file = folder / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=rf"{name} is damaged \(SHA-256 .*{REMEDY[:20]}") as error:
        build_data(load_config(config, overrides))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("verify") / "corpus")
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


def cut(data, start, stop):
    return data[:start] + data[stop:]


def swap_blocks(data, start, stop):
    return data[stop:] + data[start:stop] + data[:start]


def flip(data, start, stop):
    return data[:start] + bytes([data[start] ^ (1 << stop % 8)]) + data[start + 1 :]


def permute(data, start, stop):
    values = list(data)
    random.Random(start * 1000 + stop).shuffle(values)
    return bytes(values)


DAMAGES = {
    "cut": cut,
    "swap": swap_blocks,
    "flip": flip,
    "permute": permute,
    "zero": lambda data, start, stop: data[:start] + bytes(stop - start) + data[stop:],
    "reverse": lambda data, start, stop: data[:start] + data[start:stop][::-1] + data[stop:],
    "repeat": lambda data, start, stop: data[:stop] + data[start:],
    "fill": lambda data, start, stop: data[:start] + b"\xff" * (stop - start) + data[stop:],
}


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["tokens.bin", "starts.bin"]),
    damage=st.sampled_from(sorted(DAMAGES)),
    where=st.tuples(st.integers(0, 39), st.integers(0, 39)).map(sorted),
)
def test_any_other_bytes_are_refused(corpus, name, damage, where):
    folder, files = corpus
    scale = len(files[name]) / 40
    start, stop = (int(place * scale) for place in where)
    damaged = DAMAGES[damage](files[name], start, stop)
    for other, content in (files | {name: damaged}).items():
        (folder / other).write_bytes(content)
    line = refused(lambda: open_source(str(folder)))
    assert (line is None) == (damaged == files[name])
    if line is None:
        source = open_source(str(folder))
        assert (source.tokens.tolist(), source.starts.tolist()) == (TOKENS, STARTS)


def first_wrong(tokens, starts, vocab_size):
    """By the book: what the message must hold, None for a good corpus."""
    for i, start in enumerate(starts):
        if start != 0 if i == 0 else start <= starts[i - 1]:
            return f"document {i:,} start at token {start:,}"
        if not 0 <= start < len(tokens):
            return f"document {i:,} start at token {start:,}"
    for i, token in enumerate(tokens):
        if token >= vocab_size:
            document = sum(start <= i for start in starts) - 1
            return f"has token {token} at index {i:,}, in document {document:,},"
    return None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    tokens=st.lists(st.integers(0, 65_535) | st.integers(0, 299), min_size=1, max_size=12),
    starts=st.lists(st.integers(-2, 13), min_size=1, max_size=6)
    | st.sets(st.integers(1, 11), max_size=5).map(lambda inner: [0, *sorted(inner)]),
    vocab_size=st.integers(257, 65_536),
)
def test_honest_checksums_of_wrong_contents_help_nobody(corpus, tokens, starts, vocab_size):
    folder = corpus[0].with_name("by-hand")
    starts = starts[: len(tokens)]
    write_by_hand(folder, tokens, starts, vocab_size, "uint16")
    wrong = first_wrong(tokens, starts, vocab_size)
    line = refused(lambda: open_source(str(folder)))
    assert (line is None) == (wrong is None)
    if wrong is None:
        source = open_source(str(folder))
        assert (source.tokens.tolist(), source.starts.tolist()) == (tokens, starts)
    else:
        # A look at the first and the last start comes before all are read, and knows no place.
        assert wrong in line or "starts.bin does not belong to tokens.bin" in line


def test_places_beyond_the_first_block(tmp_path):
    count = BLOCK_BYTES // 2 + 1000
    tokens = np.zeros(count, np.uint16)
    tokens[-3] = 400
    write_by_hand(tmp_path, tokens, [0, count - 5, count - 2], 300, "uint16")
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path}/tokens.bin has token 400 at index {count - 3:,}, in document 1, but "
        "vocab_size=300 in header.json allows 0 to 299: copy the corpus again, or prepare it "
        "again with overwrite=True (--overwrite)."
    )
    starts = np.arange(BLOCK_BYTES // 8 + 100)
    starts[BLOCK_BYTES // 8] -= 1  # equal to the one before it, in the block before it
    write_by_hand(tmp_path, np.zeros(count, np.uint16), starts, 300, "uint16")
    with pytest.raises(UserError, match=f"document {BLOCK_BYTES // 8:,} start at token"):
        open_source(str(tmp_path))


def test_memory_is_bounded(tmp_path):
    count = 8 * BLOCK_BYTES
    write_by_hand(tmp_path, np.ones(count, np.uint8), np.arange(0, count, 8), 9, "uint8")
    tracemalloc.start()
    source = open_source(str(tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.num_documents == BLOCK_BYTES
    assert peak < 4 * BLOCK_BYTES  # one block, and what is computed of it; the files are 9 times


def bytes_read():
    [line] = [line for line in Path("/proc/self/io").read_text().splitlines() if "rchar" in line]
    return int(line.split()[1])


def cost(folder):
    before = bytes_read()
    open_source(str(folder))
    return bytes_read() - before


@pytest.fixture(scope="module")
def settled(tmp_path_factory):
    """A corpus that was written longer ago than a clock's tick, and one more to be changed."""
    parent = tmp_path_factory.mktemp("settled")
    for name in ("corpus", "changed"):
        write_by_hand(parent / name, np.ones(1 << 20, np.uint8), [0, 5], 256, "uint8")
    time.sleep(2.1)
    return parent / "corpus"


def test_files_are_read_whole_once_until_they_change(settled, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    corpus = settled.with_name("changed")
    assert cost(corpus) > 1 << 20
    assert cost(corpus) < 1 << 16
    [record] = (tmp_path / "hybrid_jax" / "verified").iterdir()
    record.unlink()
    assert cost(corpus) > 1 << 20
    # Same size, inode and time of modification, as `touch -r` leaves it: another time of change.
    file = corpus / "tokens.bin"
    content, status = file.read_bytes(), file.stat()
    with file.open("r+b") as opened:
        opened.write(b"\0")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match=r"tokens.bin is damaged"):
        open_source(str(corpus))
    file.write_bytes(content)
    # Just written: a later change might not change its times, so that nothing is remembered.
    assert cost(corpus) > 1 << 20
    assert cost(corpus) > 1 << 20


def test_another_header_is_verified_anew(settled, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = (settled / "header.json").read_text()
    open_source(str(settled))
    try:
        change_header(settled, fingerprint="0" * 64)
        with pytest.raises(UserError, match=r"tokens.bin is damaged"):
            open_source(str(settled))
    finally:
        (settled / "header.json").write_text(text)


@pytest.mark.parametrize("home", ["/dev/null", "/proc/none", ""])
def test_nothing_can_be_remembered(settled, monkeypatch, home):
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", "/proc/none")
    assert cost(settled) > 1 << 20
    assert open_source(str(settled)).num_documents == 2


def test_a_read_only_corpus():
    with tempfile.TemporaryDirectory() as name:
        folder = write_corpus(Path(name) / "corpus")
        Path(name).chmod(0o755)
        folder.chmod(0o555)
        with as_nobody():
            assert not os.access(folder, os.W_OK, effective_ids=True)
            assert open_source(str(folder)).tokens.tolist() == TOKENS
        for file in folder.iterdir():
            file.chmod(0)
            with as_nobody():
                line = refused(lambda: open_source(str(folder)))
            assert line is not None and f"{file} cannot be read: Permission denied" in line
            file.chmod(0o644)
        folder.chmod(0)
        with as_nobody():
            line = refused(lambda: open_source(str(folder)))
        assert line is not None and "cannot be accessed: Permission denied" in line
        folder.chmod(0o755)


def test_several_open_at_once(settled, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = "import sys; from hybrid_jax.data.open import open_source; open_source(sys.argv[1])"
    command = [sys.executable, "-c", code, str(settled)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        sources = list(pool.map(open_source, [str(settled)] * 8))
    assert all(source.num_tokens == 1 << 20 for source in sources)
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(list((tmp_path / "hybrid_jax" / "verified").iterdir())) == 1


def test_reading_without_a_run_looks_at_sizes_only(corpus):
    folder, files = corpus
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "tokens.bin").write_bytes(bytes(len(files["tokens.bin"])))
    source = open_tokens(folder)
    assert (source.tokens.max(), source.verified) == (0, False)
    with pytest.raises(UserError, match=r"tokens.bin is damaged"):
        open_tokens(folder, verify="always")


def test_arrays_of_others_are_looked_through_also_when_they_are_mapped(tmp_path):
    tokens = np.memmap(tmp_path / "tokens", np.uint16, mode="w+", shape=(3 << 20) + 9)
    tokens[-2] = 300
    source = TokenSource("x", tokens, np.array([0, 5]), VOCAB_SIZE, 9)
    check_sources([source], VOCAB_SIZE)
    tokens[-2] = VOCAB_SIZE
    with pytest.raises(UserError, match=f"'x' has token 301 at index {len(tokens) - 2:,}, but"):
        check_sources([source], VOCAB_SIZE)


@pytest.mark.parametrize(
    ("tokens", "starts", "message"),
    [
        ([0.5, 1.0], [0], r"'x': tokens are float64 of shape \(2,\), but must be integers"),
        ([[1], [2]], [0], r"'x': tokens are int64 of shape \(2, 1\)"),
        ([1, 2], [0.0], r"'x': starts are float64"),
        ([1, 2], [1], r"'x': starts must rise from 0 and stay below its 2 tokens"),
        ([1, 2], [0, 0], r"'x': starts must rise"),
        ([1, 2], [0, 2], r"'x': starts must rise"),
    ],
)
def test_arrays_that_are_no_corpus(tokens, starts, message):
    source = TokenSource("x", np.array(tokens), np.array(starts), 9, 9)
    with pytest.raises(UserError, match=message):
        check_sources([source], 9)


def test_the_fingerprint_changes_with_the_starts(tmp_path):
    together = write_by_hand(tmp_path / "a", [1, 2, 3], [0], 256, "uint8")
    apart = write_by_hand(tmp_path / "b", [1, 2, 3], [0, 2], 256, "uint8")
    prints = {open_source(str(folder)).fingerprint for folder in (together, apart)}
    assert len(prints) == 2
