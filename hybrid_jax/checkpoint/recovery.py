"""Finds the newest step that is good, and sets aside what is not."""

from __future__ import annotations

import warnings
from typing import Any

from jax.experimental import multihost_utils

from hybrid_jax.checkpoint import integrity
from hybrid_jax.checkpoint.arrays import check_arrays, check_digests, read_arrays
from hybrid_jax.checkpoint.folder import StepFolder
from hybrid_jax.checkpoint.manifest import Damaged, Manifest
from hybrid_jax.checkpoint.processes import together
from hybrid_jax.errors import UserError

Nested = dict[str, Any]
Part = tuple[int, int]


def read_good_step(
    folder: StepFolder, like: Nested | None, step: int | None, part: Part
) -> tuple[Nested, list[int]]:
    """Returns the arrays of a step, and the damaged steps that were set aside to find it.

    All processes call it together and take the same step.

    Args:
      like: nested dict of `jax.ShapeDtypeStruct` with shardings; None: parameters in NumPy.
      step: this one and no other; None: the newest good one.
      part: (index, number) of this process.

    Raises:
      UserError: no step is there, none is good, or it has other arrays than the run.
    """
    if step is not None:
        step = folder.find(step)
        try:
            return _read(folder, step, like, part), []
        except Damaged as damage:
            raise UserError(
                f"checkpoint step {step} in {folder.path} is damaged: {damage}; restore another "
                f"of {folder.steps}."
            ) from None
    folder.find(None)
    damaged: list[int] = []
    for candidate in reversed(folder.steps):
        try:
            nested = _read(folder, candidate, like, part)
        except Damaged as damage:
            warnings.warn(
                f"checkpoint step {candidate} in {folder.path} is damaged: {damage}; taking the "
                "next older one.",
                stacklevel=4,
            )
            damaged.append(candidate)
            continue
        _set_aside(folder, damaged, part)
        return nested, damaged
    raise UserError(
        f"every checkpoint in {folder.path} is damaged (steps {damaged}): start again in another "
        "folder."
    )


def _read(folder: StepFolder, step: int, like: Nested | None, part: Part) -> Nested:
    def check_files() -> Manifest:
        manifest = folder.manifest(step, again=True)
        integrity.check_files(folder / step, *part)
        return manifest

    manifest = together(check_files)
    if like is not None:
        check_arrays(like, manifest, f"checkpoint step {step} in {folder.path}")
    arrays = together(lambda: read_arrays(folder / step, manifest, like))
    return together(lambda: check_digests(arrays, manifest, like))


def _set_aside(folder: StepFolder, damaged: list[int], part: Part) -> None:
    if part[0] == 0:
        for step in damaged:
            folder.set_aside(step)
    if damaged and part[1] > 1:
        multihost_utils.sync_global_devices(f"steps {damaged} set aside")
