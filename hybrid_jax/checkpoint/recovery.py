"""Finds the newest step that is good, in a folder where others may save and delete meanwhile."""

from __future__ import annotations

import warnings
from typing import Any

from hybrid_jax.checkpoint import integrity
from hybrid_jax.checkpoint.arrays import check_arrays, check_digests, read_arrays
from hybrid_jax.checkpoint.folder import StepFolder
from hybrid_jax.checkpoint.manifest import Damaged, Manifest
from hybrid_jax.checkpoint.processes import anywhere, from_first, raise_shared, together
from hybrid_jax.errors import UserError

Nested = dict[str, Any]
Part = tuple[int, int]

# How often a step may be deleted while it is being read.
_ATTEMPTS = 20


class _Gone(Exception):
    """A step that was there when it was chosen, and is no more."""


def read_good_step(folder: StepFolder, like: Nested | None, step: int | None, part: Part) -> Nested:
    """Returns the arrays of a step; notes the damaged ones that it finds on the way.

    All processes call it together and take the same step.

    Args:
      like: nested dict of `jax.ShapeDtypeStruct` with shardings; None: parameters in NumPy.
      step: this one and no other; None: the newest good one.
      part: (index, number) of this process.

    Raises:
      UserError: no step is there, none is good, or it has other arrays than the run.
    """
    gone = 0
    while gone < _ATTEMPTS:
        # Listed anew each time: a run that is being watched has saved others meanwhile.
        candidate = _choose(folder, step)
        try:
            nested = _read(folder, candidate, like, part)
            folder.forget_damage(candidate)
            return nested
        except _Gone:
            gone += 1
        except Damaged as damage:
            folder.note_damage(candidate)
            what = f"checkpoint step {candidate} in {folder.path} is damaged: {damage}"
            if step is not None:
                raise UserError(f"{what}; restore another of {folder.steps}.") from None
            warnings.warn(f"{what}; taking the next older one.", stacklevel=4)
    raise UserError(
        f"checkpoints in {folder.path} are deleted faster than they can be read: have the run that "
        "saves them keep more, with a larger keep_last."
    )


def read_newest_manifest(folder: StepFolder, step: int | None) -> Manifest:
    """Returns the manifest of a step, by default the newest.

    Raises:
      UserError: there is no such step, or its manifest is damaged.
    """
    while True:
        found = folder.find(step)
        try:
            return folder.manifest(found)
        except Damaged as damage:
            if folder.identity(found) is None:
                continue  # deleted since it was listed
            raise UserError(f"checkpoint step {found} in {folder.path}: {damage}.") from None


def _choose(folder: StepFolder, step: int | None) -> int:
    found, problem = -1, None
    try:
        found = folder.find(step)
    except UserError as error:
        problem = str(error)
    raise_shared(problem, UserError)
    return from_first(found)


def _read(folder: StepFolder, step: int, like: Nested | None, part: Part) -> Nested:
    chosen = folder.identity(step)

    def check_files() -> Manifest:
        manifest = folder.manifest(step)
        integrity.check_files(folder / step, *part)
        return manifest

    try:
        manifest = together(check_files)
        if like is not None:
            check_arrays(like, manifest, f"checkpoint step {step} in {folder.path}")
        arrays = together(lambda: read_arrays(folder / step, manifest, like))
        return together(lambda: check_digests(arrays, manifest, like))
    except Damaged:
        if anywhere(chosen is None or folder.identity(step) != chosen):
            raise _Gone from None
        raise
