"""The door for batches: what a model does not take is refused before it is placed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.errors import UserError, nearest
from hybrid_jax.models.entries import BatchEntries, Entry, kind_of

Array = np.ndarray | jax.Array
Sizes = dict[str, tuple[int, str]]  # of a named dim, and the entry that says so first

_WORDS = {"integer": "integers", "float": "floats", "bool": "booleans"}
_INT32 = np.iinfo(np.int32)


def admit(
    batch: Mapping[str, Any],
    declared: BatchEntries,
    *,
    shards: int,
    microbatches: int,
    values: bool = True,
) -> dict[str, Array]:
    """Returns a batch as the model takes it, or refuses it.

    Integers and floats of any width are cast. Weights [B] become [B, T], and ones where they are
    absent, if the model says so.

    Args:
      batch: arrays [B, ...], NumPy's or JAX's.
      declared: what the model takes.
      shards: slices of the batch over the mesh.
      microbatches: of every slice.
      values: whether ranges are checked too; arrays on devices are fetched for it.

    Raises:
      UserError: the entry, what is wrong with it, and what to do.
    """
    check_shapes(batch, declared, shards=shards, microbatches=microbatches)
    if values:
        for name, leaf in batch.items():
            _check_values(name, leaf, declared.entries[name])
    sizes = {
        axis: size
        for name, leaf in batch.items()
        for axis, size in zip(declared.entries[name].axes, leaf.shape, strict=False)
    }
    admitted = {name: _convert(leaf, declared.entries[name], sizes) for name, leaf in batch.items()}
    for name, entry in declared.entries.items():
        if entry.is_filled and name not in admitted:
            admitted[name] = np.ones([sizes[axis] for axis in entry.axes], entry.dtype)
    return admitted


def check_shapes(
    batch: Mapping[str, Any], declared: BatchEntries, *, shards: int, microbatches: int
) -> None:
    """Checks names, ranks, sizes and dtypes, also of shapes without arrays; as `admit`."""
    if not isinstance(batch, Mapping) or not batch:
        what = "an empty one" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise UserError(f"a batch must be a dict of arrays [B, ...], not {what}.")
    _check_names(batch, declared)
    for name, leaf in batch.items():
        _check_array(name, leaf)
    sizes: Sizes = {}
    for name, leaf in batch.items():
        _check_kind(name, leaf, declared.entries[name])
        _check_dims(name, leaf.shape, declared.entries[name], sizes)
    for axis, longest in declared.longest.items():
        size, owner = sizes[axis]
        if size > longest and "positions" not in batch:
            raise UserError(
                f"batch[{owner!r}] has {axis} {size}, but the model has {longest} positions: "
                "shorten the sequences, or use a model with a larger max_length."
            )
    _check_divides(*sizes["batch"], shards, microbatches)


def _check_names(batch: Mapping[str, Any], declared: BatchEntries) -> None:
    for name in batch:
        if name not in declared.entries:
            raise UserError(
                f"batch[{name!r}] is not an entry of this model: leave it out, or use one of "
                f"{', '.join(declared.entries)}.{nearest(str(name), declared.entries)}"
            )
    for name, entry in declared.entries.items():
        if entry.is_required and name not in batch:
            raise UserError(f"the batch lacks {name!r}: it has only {', '.join(batch)}.")


def _check_array(name: str, leaf: Any) -> None:
    if leaf is None:
        raise UserError(f"batch[{name!r}] is None: leave it out.")
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        raise UserError(
            f"batch[{name!r}] is a {type(leaf).__name__}, but must be an array [B, ...]: convert "
            "it by numpy.asarray."
        )
    if not leaf.shape:
        raise UserError(f"batch[{name!r}] is a scalar, but must be an array [B, ...].")
    if kind_of(leaf.dtype) is None:
        raise UserError(f"batch[{name!r}] has dtype {leaf.dtype}: use integers or floats.")


def _check_kind(name: str, leaf: Any, entry: Entry) -> None:
    wanted = kind_of(np.dtype(entry.dtype))
    assert wanted is not None, entry
    if kind_of(leaf.dtype) != wanted and not entry.is_weight:
        raise UserError(
            f"batch[{name!r}] has dtype {leaf.dtype}, but the model takes {_WORDS[wanted]}: "
            f"convert it, such as by .astype({entry.dtype!r})."
        )


def _check_dims(name: str, shape: tuple[int, ...], entry: Entry, sizes: Sizes) -> None:
    """Compares a shape with the declared dims, and with the sizes that other entries gave them."""
    per_example = entry.is_weight and len(shape) == 1
    if len(shape) != len(entry.axes) and not per_example:
        dims = ", ".join(axis or "any" for axis in entry.axes)
        raise UserError(f"batch[{name!r}] has shape {tuple(shape)}, but must be [{dims}].")
    for axis, size in zip(entry.axes, shape, strict=False):
        if axis is None:
            continue
        known, owner = sizes.setdefault(axis, (size, name))
        if size != known:
            raise UserError(
                f"batch[{name!r}] has {axis} {size}, but batch[{owner!r}] has {axis} {known}: make "
                "them equal."
            )
        if size == 0:
            raise UserError(f"batch[{name!r}] has {axis} 0: give at least one.")


def _check_divides(size: int, owner: str, shards: int, microbatches: int) -> None:
    if size % (shards * microbatches):
        raise UserError(
            f"batch[{owner!r}] has {size} examples, not divisible by {shards} data shards "
            f"(replica x data x expert) x {microbatches} microbatches: use a "
            f"multiple of {shards * microbatches} examples."
        )


def _check_values(name: str, leaf: Any, entry: Entry) -> None:
    if entry.is_weight:
        low, high, words = 0.0, float(np.finfo(np.float32).max), "finite and not negative"
    elif kind_of(leaf.dtype) != "integer":
        return
    elif entry.below is not None:
        low, high, words = 0, entry.below - 1, f"from 0 to {entry.below - 1}"
    elif np.can_cast(leaf.dtype, np.int32):
        return
    else:
        low, high, words = int(_INT32.min), int(_INT32.max), "32-bit integers"
    if entry.ignored is not None:
        words += f", or {entry.ignored} for no target"
    for piece, origin in _pieces(leaf):
        # Two passes without a temporary array; NaN fails both comparisons.
        if piece.size == 0 or (piece.min() >= low and piece.max() <= high):
            continue
        wrong = ~((piece >= low) & (piece <= high))
        if entry.ignored is not None:
            wrong &= piece != entry.ignored
        if wrong.any():
            index = np.argwhere(wrong)[0]
            place = ", ".join(map(str, (index + origin).tolist()))
            raise UserError(
                f"batch[{name!r}][{place}] is {piece[tuple(index)]}, but must be {words}."
            )


def _pieces(leaf: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What this process has of an array, each piece with the index of its first element."""
    if not isinstance(leaf, jax.Array):
        yield np.asarray(leaf), np.zeros(len(leaf.shape), int)
        return
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            yield np.asarray(shard.data), np.array([span.start or 0 for span in shard.index])


def _convert(leaf: Any, entry: Entry, sizes: Mapping[str | None, int]) -> Array:
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    if array.dtype != np.dtype(entry.dtype):
        array = array.astype(entry.dtype)
    if entry.is_weight and array.ndim < len(entry.axes) and None not in entry.axes:
        spread = jnp.broadcast_to if isinstance(array, jax.Array) else np.broadcast_to
        columns = array.reshape(-1, *[1] * (len(entry.axes) - 1))
        array = spread(columns, [sizes[axis] for axis in entry.axes])
    return array
