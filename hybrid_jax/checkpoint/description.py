"""What a checkpoint will say of itself, and whether the folder has it already."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from hybrid_jax.checkpoint.arrays import array_entries
from hybrid_jax.checkpoint.folder import StepFolder
from hybrid_jax.checkpoint.manifest import Damaged, Manifest
from hybrid_jax.checkpoint.processes import anywhere, together
from hybrid_jax.errors import UserError
from hybrid_jax.train.state import TrainState
from hybrid_jax.train.step import TrainStep


def describe(
    train: TrainStep, state: TrainState, metrics: Mapping[str, float], config: Mapping[str, Any]
) -> Manifest:
    """Returns the manifest of a canonical `state`."""
    return Manifest(
        step=int(state.step),
        arrays=array_entries(train, state),
        metrics={name: float(value) for name, value in metrics.items()},
        strategy=dataclasses.asdict(train.strategy),
        config={"model": _model_config(train.model), **config},
        written_by=_versions(),
    )


def is_saved(folder: StepFolder, manifest: Manifest) -> bool:
    """Whether the folder has this very state; all processes must ask together.

    Raises:
      UserError: the folder has another state of that step, a damaged one, or a newer step.
    """
    step = manifest.step
    prefix = f"checkpoint step {step} cannot be saved in {folder.path}, which has"
    if not anywhere(step in folder.present):
        newest = max(folder.steps, default=step)
        if newest > step:
            raise UserError(
                f"{prefix} step {newest}: resume from that one, or choose another folder."
            )
        return False
    try:
        saved = together(lambda: folder.manifest(step))
    except Damaged as damage:
        raise UserError(
            f"{prefix} a damaged one of that step: {damage}; move it away, or choose another "
            "folder."
        ) from None
    if difference := saved.difference(manifest):
        raise UserError(
            f"{prefix} another state of that step, saved {folder.saved_at(step)}: {difference}; "
            "restore that one and resume from it, or choose another folder."
        )
    return True


def _model_config(model: Any) -> dict[str, Any] | None:
    config = getattr(model, "config", None)
    return dataclasses.asdict(config) if dataclasses.is_dataclass(config) else None  # pyright: ignore[reportArgumentType]


def _versions() -> dict[str, str]:
    versions = {"jax": jax.__version__, "orbax-checkpoint": ocp.__version__}
    try:
        return {"hybrid_jax": importlib.metadata.version("hybrid-jax"), **versions}
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return versions
