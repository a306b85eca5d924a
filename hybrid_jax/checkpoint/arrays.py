"""The arrays of a checkpoint: described, compared with a run's, and read onto its devices."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from hybrid_jax.checkpoint.digest import digest, digest_piece
from hybrid_jax.checkpoint.integrity import hexadecimal
from hybrid_jax.checkpoint.manifest import ArrayEntry, Damaged, Manifest
from hybrid_jax.checkpoint.tree import by_name, nest, to_nested
from hybrid_jax.errors import UserError
from hybrid_jax.train.state import TrainState
from hybrid_jax.train.step import TrainStep

# Bytes that may be on their way from the files to the devices, beside the largest shard.
_IN_FLIGHT_BYTES = 2**26


def array_entries(train: TrainStep, state: TrainState) -> dict[str, ArrayEntry]:
    """Returns the entry of every array of a canonical `state`."""
    arrays = by_name(to_nested(state))
    is_names = lambda node: isinstance(node, tuple)
    axes = by_name({"params": train.model.axes()}, is_leaf=is_names)
    digests = _digests(list(arrays.values()))
    return {
        name: ArrayEntry(tuple(array.shape), str(array.dtype), hexadecimal(found), axes.get(name))
        for (name, array), found in zip(arrays.items(), digests, strict=True)
    }


def check_arrays(like: Mapping[str, Any], manifest: Manifest, checkpoint: str) -> None:
    """Raises a UserError unless the checkpoint has the arrays that a run wants.

    Args:
      like: nested dict of arrays or their shapes: a whole state, or its parameters alone.
      checkpoint: what to call it in errors.
    """
    wanted = by_name(like)
    whole = "step" in wanted
    saved = {name for name in manifest.arrays if whole or name.startswith("params/")}
    if missing := sorted(set(wanted) ^ saved):
        name = missing[0]
        which, lacks = (
            ("this run", "the checkpoint") if name in wanted else ("the checkpoint", "this run")
        )
        raise UserError(
            f"{checkpoint}: {which} has {name!r}, which {lacks} does not have ({len(missing)} such "
            "arrays): use the model and the optimizer that it was saved with, or restore the "
            "parameters alone."
        )
    for name, leaf in wanted.items():
        if tuple(leaf.shape) != manifest.arrays[name].shape:
            raise UserError(
                f"{checkpoint}: {name!r} has shape {manifest.arrays[name].shape}, but "
                f"{tuple(leaf.shape)} in this run: use the model that it was saved with."
            )


def read_arrays(folder: Path, manifest: Manifest, like: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the arrays of `like` with its shardings, and with the dtypes that they were saved in.

    Every process reads what its devices hold, a few arrays at a time, and waits for no other.

    Args:
      folder: of the step.
      like: nested dict of `jax.ShapeDtypeStruct` with shardings; None: parameters in NumPy.

    Raises:
      Damaged: the files cannot be read.
    """
    if like is None:
        entries = {name: e for name, e in manifest.arrays.items() if name.startswith("params/")}
        wanted = nest({name: np.empty(0) for name in entries})
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        largest = max(math.prod(e.shape) * np.dtype(e.dtype).itemsize for e in entries.values())
    else:
        names = by_name(like)
        as_saved = {
            name: jax.ShapeDtypeStruct(
                leaf.shape, manifest.arrays[name].dtype, sharding=leaf.sharding
            )
            for name, leaf in names.items()
        }
        wanted = nest(as_saved)
        arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
        largest = max(map(_shard_bytes, as_saved.values()))
    reader = ocp.PyTreeCheckpointHandler(
        use_zarr3=True,
        restore_concurrent_gb=(largest + _IN_FLIGHT_BYTES) / 1e9,  # pyright: ignore[reportArgumentType]
    )
    try:
        nested = reader.restore(
            epath.Path(folder / "state"),
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True),
        )
        return jax.block_until_ready(nested)
    except Exception as error:  # whatever tensorstore makes of broken files
        reason = " ".join(str(error).split())[:200]
        raise Damaged(f"its arrays cannot be read ({type(error).__name__}: {reason})") from None
    finally:
        reader.close()


def check_digests(
    nested: dict[str, Any], manifest: Manifest, like: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns what `read_arrays` read with the dtypes of `like`, after comparing the digests.

    Raises:
      Damaged: an array is not what was saved.
    """
    arrays = by_name(nested)
    for (name, _), found in zip(arrays.items(), _digests(list(arrays.values())), strict=True):
        if hexadecimal(found) != manifest.arrays[name].digest:
            raise Damaged(f"array {name} is not what was saved")
    if like is None:
        return nested
    return jax.tree.map(
        lambda array, leaf: array if array.dtype == leaf.dtype else array.astype(leaf.dtype),
        nested,
        dict(like),
    )


def _digests(arrays: list[Any]) -> list[np.ndarray]:
    if all(isinstance(array, np.ndarray) for array in arrays):
        return [digest_piece(array) for array in arrays]
    mesh = arrays[0].sharding.mesh
    return list(np.asarray(_stacked_digests(NamedSharding(mesh, PartitionSpec()))(arrays)))


@functools.cache  # one compilation for all saves
def _stacked_digests(sharding: NamedSharding):
    def stacked(arrays):
        return jax.numpy.stack([digest(array) for array in arrays])

    return jax.jit(stacked, out_shardings=sharding)


def _shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    assert leaf.sharding is not None
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
