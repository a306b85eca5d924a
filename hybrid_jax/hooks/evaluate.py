"""The held-out loss on the way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from hybrid_jax.evaluate import evaluate
from hybrid_jax.metrics.log import Log
from hybrid_jax.train.state import TrainState
from hybrid_jax.train.step import TrainStep


class Evaluate:
    """Writes the held-out loss to the log, as `eval_loss`, when it is called and at the end.

    Args:
      train: the train step, whose `evaluate` is used.
      batches: held-out batches, the same at every call.
      log: takes the loss; its clock stands still meanwhile.

    Attributes:
      loss: the latest held-out loss in nats per token; NaN before the first.
    """

    def __init__(self, train: TrainStep, batches: Iterable[Any], log: Log) -> None:
        self.train = train
        self.batches = batches
        self.log = log
        self.loss = math.nan
        self._step = 0

    def on_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """Evaluates `state`."""
        del metrics
        self._evaluate(step, state)

    def on_end(self, state: TrainState) -> None:
        """Evaluates the final state, unless the last step did."""
        step = int(state.step)
        if step != self._step:
            self._evaluate(step, state)

    def _evaluate(self, step: int, state: TrainState) -> None:
        jax.block_until_ready(state)  # what is left of the step counts as training
        with self.log.paused():
            self.loss = evaluate(self.train, state, self.batches)
        self._step = step
        self.log.write(step, {"eval_loss": self.loss})
