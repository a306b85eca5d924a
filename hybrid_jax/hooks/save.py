"""Saves the state of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from hybrid_jax.checkpoint.checkpointer import Checkpointer
from hybrid_jax.errors import RunError
from hybrid_jax.hooks.evaluate import Evaluate
from hybrid_jax.metrics.log import Log
from hybrid_jax.train.state import TrainState
from hybrid_jax.train.step import TrainStep


class Save:
    """Saves a checkpoint when it is called, and the last state however the run ends.

    Args:
      checkpointer: takes the states.
      train: the step that they belong to.
      evaluation: its held-out loss is kept with a state that it was measured of; it must come
        before this hook.
      log: writes the record of a step before the step is saved, so that a run killed in between
        has it when it resumes.
      config: JSON values to keep with every checkpoint.
      last_step: of the run; saved at its end, when its held-out loss is known.
      after_errors: whether an exception that ends the run saves its last whole state too.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        train: TrainStep,
        evaluation: Evaluate | None = None,
        log: Log | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        last_step: int | None = None,
        after_errors: bool = True,
    ) -> None:
        self.checkpointer = checkpointer
        self.train = train
        self.evaluation = evaluation
        self.log = log
        self.config = config
        self.last_step = last_step
        self.after_errors = after_errors

    def on_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """Saves `state`."""
        if step != self.last_step:
            self._save(step, state, {"loss": float(metrics["loss"])})

    def on_end(self, state: TrainState) -> None:
        """Saves the last state, and waits until it is verified."""
        self._save(int(state.step), state, {})
        self.checkpointer.wait()

    def on_error(self, state: TrainState, error: Exception) -> None:
        """Saves the last whole state of a run that `error` ends.

        Not after a `RunError`, in which the run says itself what is left of it, nor with several
        processes: all of them must save together, and the error may be of one alone.
        """
        if self.after_errors and not isinstance(error, RunError) and jax.process_count() == 1:
            self._save(int(state.step), state, {})
            self.checkpointer.wait()

    def _save(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        if self.evaluation is not None and self.evaluation.step == step:
            metrics["eval_loss"] = self.evaluation.loss
        if self.log is not None:
            self.log.flush()
        self.checkpointer.save(self.train, state, metrics=metrics, config=self.config)
