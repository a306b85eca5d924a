"""The held-out loss on the way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from hybrid_jax.evaluation import evaluate
from hybrid_jax.metrics.log import Log
from hybrid_jax.train.state import TrainState
from hybrid_jax.train.step import TrainStep


class Evaluate:
    """Writes the held-out values to the log, such as `eval_loss`, at every call and at the end.

    Args:
      train: the train step, whose `evaluate` is used.
      batches: held-out batches, the same at every call.
      log: takes the loss; its clock stands still meanwhile.
      last_step: of the run, which when stopped before it ends without an evaluation; None: with.

    Attributes:
      loss: the latest held-out loss in nats per token; NaN before the first.
      step: the updates made before it was measured.
    """

    def __init__(
        self,
        train: TrainStep,
        batches: Iterable[Any],
        log: Log,
        *,
        last_step: int | None = None,
    ) -> None:
        self.train = train
        self.batches = batches
        self.log = log
        self.last_step = last_step
        self.loss = math.nan
        self.step = -1

    def on_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """Evaluates `state`."""
        del metrics
        self._evaluate(step, state)

    def on_end(self, state: TrainState) -> None:
        """Evaluates the final state, unless the last step did."""
        step = int(state.step)
        if step != self.step and self.last_step in (None, step):
            self._evaluate(step, state)

    def _evaluate(self, step: int, state: TrainState) -> None:
        jax.block_until_ready(state)  # what is left of the step counts as training
        with self.log.paused():
            values = evaluate(self.train, state, self.batches)
        self.loss, self.step = float(values["loss"]), step
        self.log.write(
            step, {f"eval_{name}": float(v) for name, v in values.items() if not np.ndim(v)}
        )
