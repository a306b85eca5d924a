"""Where a run begins: its own last checkpoint, another run's parameters, or random ones."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import jax

from hybrid_jax.checkpoint.checkpointer import Checkpointer
from hybrid_jax.config.paths import local_path
from hybrid_jax.config.run import RunConfig
from hybrid_jax.errors import UserError
from hybrid_jax.run.wiring import Run
from hybrid_jax.train.state import TrainState


def build_checkpointer(
    config: RunConfig,
) -> contextlib.AbstractContextManager[Checkpointer | None]:
    """Returns the checkpointer of a run, to be closed; None where nothing is to be saved.

    Raises:
      UserError: the folder cannot be written to.
    """
    if config.checkpoint_folder is None:
        return contextlib.nullcontext()
    checkpointer = Checkpointer(
        config.checkpoint_folder,
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
    )
    checkpointer.prepare()
    return checkpointer


def start(run: Run, checkpointer: Checkpointer | None) -> tuple[TrainState, list[str]]:
    """Returns the state that a run begins with, and what its user should know of it.

    Raises:
      UserError: the run's checkpoint was made with another model or other data, with which it
        would not resume but become another run.
    """
    config = run.config
    if checkpointer is not None and checkpointer.steps:
        notes = _compare(run, _newest_config(checkpointer))
        state = checkpointer.restore(run.train)
        step = int(state.step)
        if step > config.train.steps:
            raise UserError(
                f"train.steps={config.train.steps}, but the run has made {step} in "
                f"{config.checkpoint_folder}: raise it, or start another run in another "
                "train.output_dir."
            )
        return state, [f"resuming from step {step} in {config.checkpoint_folder}", *notes]
    if config.checkpoint.init_from is not None:
        folder = local_path("checkpoint.init_from", config.checkpoint.init_from)
        if not folder.is_dir():
            raise UserError(
                f"checkpoint.init_from={config.checkpoint.init_from!r} does not exist: give the "
                "folder of a run's checkpoints."
            )
        with Checkpointer(folder) as source:
            params = source.restore_params(run.train)
        return run.train.init_from(params), [f"parameters from {folder}"]
    return run.train.init(jax.random.key(config.train.seed)), []


def resume_signature(config: RunConfig) -> dict[str, Any]:
    """What the numbers of a run depend on, besides its model and its data."""
    train = {"seed": config.train.seed, "steps": config.train.steps}
    return {"optimizer": asdict(config.optimizer), "train": train}


def _compare(run: Run, saved: Mapping[str, Any]) -> list[str]:
    """Raises for what may not change in a run; returns what did change."""
    if not saved:
        return []  # nothing can be read, as restoring will say
    remedy = (
        "resume with what it was started with, or start another run in another train.output_dir, "
        f"with checkpoint.init_from={run.config.checkpoint_folder} for these parameters"
    )
    if changed := _differences("model", saved.get("model"), asdict(run.config.model)):
        raise UserError(f"the checkpoint has another model: {changed[0]}; {remedy}.")
    there, here = saved.get("data", "").split(), run.data_fingerprint.split()
    if there != here:
        only_there = " ".join(word for word in there if word not in here)
        only_here = " ".join(word for word in here if word not in there)
        raise UserError(
            f"the checkpoint saw other data: {only_there} there, {only_here} here; {remedy}."
        )
    found = resume_signature(run.config)
    return [
        note
        for section, fields in found.items()
        for note in _differences(section, saved.get("run", {}).get(section), fields)
    ]


def _newest_config(checkpointer: Checkpointer) -> Mapping[str, Any]:
    """Of the newest step whose manifest can be read; restoring names those that cannot."""
    for step in reversed(checkpointer.steps):
        with contextlib.suppress(UserError):
            return checkpointer.manifest(step).config
    return {}


def _differences(section: str, saved: Mapping[str, Any] | None, here: Mapping[str, Any]):
    here = json.loads(json.dumps(here))  # as the manifest has it
    return [
        f"{section}.{name} was {(saved or {}).get(name)}, is {value}"
        for name, value in here.items()
        if (saved or {}).get(name) != value
    ]
