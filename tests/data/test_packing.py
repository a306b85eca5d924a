"""Packed rows against an obvious reference, and each document in one as if it were alone."""

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_jax.data.packing import Rows
from hybrid_jax.data.source import TokenSource


def make_source(lengths: list[int], vocab_size: int = 50) -> TokenSource:
    """Documents of these lengths, of random tokens."""
    tokens = np.random.default_rng(0).integers(vocab_size, size=sum(lengths), dtype=np.uint16)
    starts = np.cumsum([0, *lengths[:-1]])
    return TokenSource("x", tokens, starts, vocab_size, num_bytes=len(tokens))


def reference_row(lengths: list[int], tokens: list[int], seq_len: int, row: int) -> dict:
    """One row, token by token."""
    owner = [document for document, length in enumerate(lengths) for _ in range(length)]
    batch = {name: [] for name in ("tokens", "targets", "weights", "segment_ids", "positions")}
    segment, position = 0, 0
    for index in range(row * seq_len, (row + 1) * seq_len):
        if batch["tokens"] and index < len(owner) and owner[index] != owner[index - 1]:
            segment, position = segment + 1, 0
        has_target = index + 1 < len(owner)
        batch["tokens"].append(tokens[index] if index < len(owner) else 0)
        batch["targets"].append(tokens[index + 1] if has_target else 0)
        batch["weights"].append(float(has_target and owner[index] == owner[index + 1]))
        batch["segment_ids"].append(segment)
        batch["positions"].append(position)
        position += 1
    return batch


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=12),
    seq_len=st.integers(1, 9),
    data=st.data(),
)
def test_rows_match_the_reference(lengths, seq_len, data):
    source = make_source(lengths)
    rows = Rows(source, seq_len)
    wanted = data.draw(st.lists(st.integers(0, rows.num_rows), min_size=1, max_size=6))
    batch = rows.take(np.array(wanted))
    for index, row in enumerate(wanted):
        expected = reference_row(lengths, source.tokens.tolist(), seq_len, row)
        assert {name: array[index].tolist() for name, array in batch.items()} == expected
    assert {name: array.dtype for name, array in batch.items()} == {
        "tokens": np.int32,
        "targets": np.int32,
        "weights": np.float32,
        "segment_ids": np.int32,
        "positions": np.int32,
    }


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12).filter(lambda x: sum(x) > 1),
    seq_len=st.integers(1, 9),
)
def test_all_rows_have_every_target_once(lengths, seq_len):
    source = make_source(lengths)
    rows = Rows(source, seq_len, packed=True)
    batch = rows.take(np.arange(rows.num_rows))
    count = source.num_tokens - 1
    np.testing.assert_array_equal(batch["targets"].ravel()[:count], source.tokens[1:])
    assert batch["weights"].sum() == source.num_tokens - len(lengths)
    full = batch["weights"][: rows.num_full]
    inner = [start for start in source.starts[1:].tolist() if start <= rows.num_full * seq_len]
    assert full.sum() == full.size - len(inner)


def test_one_document_needs_no_segments():
    source = make_source([9])
    assert sorted(Rows(source, 4).take(np.arange(2))) == ["targets", "tokens", "weights"]
    packed = Rows(source, 4, packed=True).take(np.arange(2))
    np.testing.assert_array_equal(packed["segment_ids"], np.zeros((2, 4)))
    np.testing.assert_array_equal(packed["positions"], [[0, 1, 2, 3]] * 2)


def test_a_memory_map_gives_plain_arrays(tmp_path):
    source = make_source([5, 8])
    source.tokens.tofile(tmp_path / "tokens")
    mapped = np.memmap(tmp_path / "tokens", np.uint16, mode="r")
    disk = TokenSource("disk", mapped, source.starts, 50, 13)
    for name, array in Rows(disk, 4).take(np.arange(3)).items():
        assert type(array) is np.ndarray
        np.testing.assert_array_equal(array, Rows(source, 4).take(np.arange(3))[name])


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_a_packed_document_has_the_loss_it_has_alone(style):
    model = tiny.decoder(style)
    params = model.init(jax.random.key(0))
    lengths = [5, 3, 8, 7, 6, 3]  # two rows of 16
    source = make_source(lengths, tiny.VOCAB)
    packed = Rows(source, seq_len=16).take(np.arange(2))
    packed_losses = losses(model, params, packed) * packed["weights"]
    for document, start in enumerate(source.starts):
        tokens = source.tokens[None, start : start + lengths[document]].astype(np.int32)
        alone = losses(model, params, {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]})
        inside = packed_losses.ravel()[start : start + lengths[document] - 1]
        np.testing.assert_allclose(inside, alone[0], rtol=2e-5, atol=2e-5)
    assert packed["weights"].sum() == sum(lengths) - len(lengths)


def losses(model, params, batch) -> np.ndarray:
    """The loss of every token, whatever its weight, [B, T]."""
    logits = np.asarray(model.logits(params, {k: v for k, v in batch.items() if k != "targets"}))
    log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return -np.take_along_axis(log_probs, batch["targets"][..., None], axis=-1)[..., 0]
