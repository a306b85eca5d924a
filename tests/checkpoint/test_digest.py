"""Digests: the same on any sharding and in NumPy by pieces; any change shows."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid_jax.checkpoint.digest import digest, digest_piece

DTYPES = [np.float32, np.int32, np.uint8, np.float16, ml_dtypes.bfloat16, np.bool_]


def random_array(dtype, shape=(8, 6, 4), seed=0):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_on_every_layout_and_in_numpy(dtype):
    array = random_array(dtype)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    found = [digest_piece(array)]
    for spec in ((), ("a",), ("b", "a"), (("a", "b"),), (None, "a", "b")):
        placed = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
        found.append(np.asarray(jax.jit(digest)(placed)))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_pieces_of_any_grid_add_up(data):
    shape = data.draw(st.lists(st.integers(1, 7), max_size=3).map(tuple))
    dtype = data.draw(st.sampled_from([np.float32, np.float16, np.float64, np.int8]))
    array = random_array(dtype, shape)
    spans = []
    for length in shape:
        size = data.draw(st.integers(1, length))
        spans.append([slice(first, first + size) for first in range(0, length, size)])
    total = np.zeros(2, np.uint32)
    for index in itertools.product(*spans):
        total += digest_piece(array[index], tuple(span.start for span in index), shape)
    np.testing.assert_array_equal(total, digest_piece(array))


@given(st.integers(0, 191), st.integers(0, 31))
@settings(max_examples=200, deadline=None)
def test_every_flipped_bit_changes_the_first_sum(word, bit):
    array = random_array(np.float32)
    flipped = array.copy()
    flipped.view(np.uint32).reshape(-1)[word] ^= np.uint32(1 << bit)
    assert digest_piece(flipped)[0] != digest_piece(array)[0]


def test_elements_that_change_places_show():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    for other in (array[::-1], array[:, ::-1], np.roll(array, 1), array.reshape(6, 4).T):
        assert not np.array_equal(digest_piece(other, shape=other.shape), digest_piece(array))


def test_a_scalar_has_a_digest():
    np.testing.assert_array_equal(jax.jit(digest)(jnp.int32(7)), digest_piece(np.int32(7)))
    assert not np.array_equal(digest_piece(np.int32(7)), digest_piece(np.int32(6)))
