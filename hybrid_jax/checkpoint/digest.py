"""Digests of arrays that do not depend on how the arrays are split over devices."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Murmur3's finaliser (Appleby 2011): a bijection of 32-bit words that spreads every bit.
_STEPS = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))
_SECOND = 0x9E3779B9


def digest(array: jax.Array) -> jax.Array:
    """Returns a digest of `array`, uint32 [2], for use under `jit`.

    Every word is mixed with its position in the whole array, and the results are added modulo
    2^32: any order of the additions, hence any sharding, gives the same sums. A change of one word
    changes the first sum for certain, any other change with probability 1 - 2^-64.

    >>> int(digest(jnp.arange(4.0))[0]) == int(digest_piece(np.arange(4, dtype=np.float32))[0])
    True
    """
    words = _words(array)
    position = jnp.zeros(words.shape, jnp.uint32)
    for dim in range(words.ndim):
        stride = np.uint32(math.prod(words.shape[dim + 1 :]) % 2**32)
        position += lax.broadcasted_iota(jnp.uint32, words.shape, dim) * stride
    first = _mix(words ^ _mix(position))
    second = _mix(first + np.uint32(_SECOND))
    # One reduction of both, so that XLA fuses all of it and nothing of the array's size is made.
    add = lambda left, right: (left[0] + right[0], left[1] + right[1])
    zeros = (np.uint32(0), np.uint32(0))
    return jnp.stack(lax.reduce((first, second), zeros, add, tuple(range(words.ndim))))


def digest_piece(
    piece: np.ndarray, origin: tuple[int, ...] = (), shape: tuple[int, ...] = ()
) -> np.ndarray:
    """Returns what a rectangular piece of an array adds to the array's digest, uint32 [2].

    >>> array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    >>> left = digest_piece(array[:, :1], (0, 0), (2, 3))
    >>> right = digest_piece(array[:, 1:], (0, 1), (2, 3))
    >>> (left + right == digest_piece(array)).tolist()
    [True, True]

    Args:
      piece: of at most 2^32 elements.
      origin: index of its first element in the whole array; by default it is the whole array.
      shape: of the whole array.
    """
    words = _numpy_words(piece)
    words_per_element = words.shape[-1] if words.ndim > piece.ndim else 1
    whole = (*(shape or piece.shape), words_per_element)
    position = np.zeros((1,) * words.ndim, np.uint32)
    for dim, size in enumerate(words.shape):
        first = origin[dim] if origin and dim < piece.ndim else 0
        stride = math.prod(whole[dim + 1 :])
        steps = (np.arange(first, first + size) * stride).astype(np.uint32)
        position = position + steps.reshape(-1, *[1] * (words.ndim - dim - 1))
    first_sum = _mix(words ^ _mix(position))
    total = first_sum.sum(dtype=np.uint32)
    first_sum += np.uint32(_SECOND)
    return np.stack([total, _mix(first_sum).sum(dtype=np.uint32)])


def _words(array: jax.Array) -> jax.Array:
    """The bits of `array` as uint32; wider elements get a dim of words more."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = array.dtype.itemsize * 8
    if bits > 32:
        return lax.bitcast_convert_type(array, jnp.uint32)
    return lax.bitcast_convert_type(array, f"uint{bits}").astype(jnp.uint32)


def _numpy_words(piece: np.ndarray) -> np.ndarray:
    """The same in NumPy."""
    piece = np.ascontiguousarray(piece)
    if piece.dtype.itemsize > 4:
        return piece[..., None].view(np.uint32)
    return piece.view(f"u{piece.dtype.itemsize}").astype(np.uint32)


def _mix(words):
    """Mixes uint32 words; a NumPy array in place."""
    in_place = isinstance(words, np.ndarray)
    for shift, factor in _STEPS:
        if in_place:
            words ^= words >> np.uint32(shift)
            words *= np.uint32(factor)
        else:
            words = (words ^ (words >> shift)) * np.uint32(factor)
    if in_place:
        words ^= words >> np.uint32(16)
        return words
    return words ^ (words >> 16)
