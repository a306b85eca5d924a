"""The loss of token frequencies, by hand."""

import numpy as np
import pytest

from hybrid_jax.data import unigram
from hybrid_jax.data.batches import Batches
from hybrid_jax.data.source import TokenSource

HELD_OUT = [
    {"targets": np.array([[0, 1], [1, 2]]), "weights": np.array([[1, 1], [1, 0]], np.float32)},
    {"targets": np.array([[4, 0]]), "weights": np.array([[1, 0]], np.float32)},
]


def make_batches(*texts: list[int], weights=None) -> Batches:
    sources = [
        TokenSource("x", np.array(text, np.uint32), np.array([0]), 5, len(text)) for text in texts
    ]
    return Batches(sources, global_batch=1, seq_len=2, weights=weights)


def test_one_source_by_hand():
    probabilities = np.array([3, 2, 2, 1]) / (3 + 5)
    loss = unigram.unigram_loss(make_batches([0, 0, 1]), HELD_OUT)
    np.testing.assert_allclose(loss, -np.log(probabilities).mean())


def test_a_mixture_is_counted_by_its_weights():
    batches = make_batches([0, 0, 1], [2, 2, 2, 2, 2, 1], weights=[0.75, 0.25])
    counts = 9 * (0.75 * np.array([2, 1, 0, 0, 0]) / 3 + 0.25 * np.array([0, 1, 5, 0, 0]) / 6) + 1
    probabilities = counts[[0, 1, 1, 4]] / (9 + 5)
    loss = unigram.unigram_loss(batches, HELD_OUT)
    np.testing.assert_allclose(loss, -np.log(probabilities).mean())


def test_a_large_source_is_counted_in_pieces(monkeypatch):
    monkeypatch.setattr(unigram, "_SAMPLE_TOKENS", 1000)
    monkeypatch.setattr(unigram, "_PIECE_TOKENS", 10)
    text = np.repeat([0, 1, 2, 3], 25_000).tolist()
    loss = unigram.unigram_loss(make_batches(text), [HELD_OUT[0]])
    assert loss == pytest.approx(np.log(1005 / 251), rel=0.05)
