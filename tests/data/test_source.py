"""Splitting a source: whole documents, nothing lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_jax.data.source import TokenSource
from hybrid_jax.errors import UserError


def make_source(lengths: list[int]) -> TokenSource:
    total = sum(lengths)
    return TokenSource("x", np.arange(total), np.cumsum([0, *lengths[:-1]]), total, 3 * total)


def documents(source: TokenSource) -> list[list[int]]:
    return [part.tolist() for part in np.split(source.tokens, source.starts[1:])]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(2, 20), min_size=2, max_size=10), fraction=st.floats(0.01, 0.99)
)
def test_a_split_keeps_every_document_whole(lengths, fraction):
    source = make_source(lengths)
    train, held_out = source.split(fraction)
    assert documents(train) + documents(held_out) == documents(source)
    assert train.num_bytes + held_out.num_bytes == source.num_bytes
    assert (train.starts[0], held_out.starts[0]) == (0, 0)
    wanted = source.num_tokens * (1 - fraction)
    distances = np.abs(source.starts[1:] - wanted)
    assert abs(train.num_tokens - wanted) <= distances.min() + 1


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), count=st.integers(1, 60))
def test_the_first_tokens(lengths, count):
    source = make_source(lengths)
    first = source.first(count)
    assert first.tokens.tolist() == source.tokens[:count].tolist()
    assert first.starts.tolist() == [start for start in source.starts if start < count]
    assert first.num_bytes == 3 * first.num_tokens


def test_too_small_to_split():
    with pytest.raises(UserError, match="has 3 tokens, split into 2 to train on and 1 held out"):
        make_source([2, 1]).split(0.3)
