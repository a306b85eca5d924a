"""Where a run begins: its own last checkpoint, another run's parameters, or random ones."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import jax

from hybrid_jax.build.run import Run
from hybrid_jax.checkpoint.checkpointer import Checkpointer
from hybrid_jax.config.run import RunConfig
from hybrid_jax.errors import UserError
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
    return Checkpointer(
        config.checkpoint_folder,
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
    )


def start(run: Run, checkpointer: Checkpointer | None) -> tuple[TrainState, list[str]]:
    """Returns the state that a run begins with, and what its user should know of it.

    Raises:
      UserError: the run's checkpoint was made with another model or other data, with which it
        would not go on but become another run.
    """
    config = run.config
    if checkpointer is not None and checkpointer.steps:
        state = checkpointer.restore(run.train)
        step = int(state.step)
        notes = [f"going on from step {step} in {config.checkpoint_folder}"]
        return state, notes + _compare(run, checkpointer.manifest(step).config)
    if config.checkpoint.init_from is not None:
        with Checkpointer(config.checkpoint.init_from) as source:
            params = source.restore_params(run.train)
        notes = [f"parameters from {config.checkpoint.init_from}"]
        return run.train.init_from(params), notes
    return run.train.init(jax.random.key(config.train.seed)), []


def recipe(config: RunConfig) -> dict[str, Any]:
    """What the numbers of a run depend on, besides its model and its data."""
    train = {"seed": config.train.seed, "steps": config.train.steps}
    return {"optimizer": asdict(config.optimizer), "train": train}


def _compare(run: Run, saved: Mapping[str, Any]) -> list[str]:
    """Raises for what may not change in a run; returns what did change."""
    remedy = (
        "go on with what it was started with, or start another run in another train.output_dir, "
        f"with checkpoint.init_from={run.config.checkpoint_folder} for these parameters"
    )
    if changed := _differences("model", saved.get("model"), asdict(run.config.model)):
        raise UserError(f"the checkpoint has another model: {changed[0]}; {remedy}.")
    if saved.get("data") != run.data_fingerprint:
        raise UserError(
            f"the checkpoint saw other data: {saved.get('data')} there, {run.data_fingerprint} "
            f"here; {remedy}."
        )
    found = recipe(run.config)
    return [
        note
        for section, fields in found.items()
        for note in _differences(section, saved.get("run", {}).get(section), fields)
    ]


def _differences(section: str, saved: Mapping[str, Any] | None, here: Mapping[str, Any]):
    here = json.loads(json.dumps(here))  # as the manifest has it
    return [
        f"{section}.{name} was {(saved or {}).get(name)}, is {value}"
        for name, value in here.items()
        if (saved or {}).get(name) != value
    ]
