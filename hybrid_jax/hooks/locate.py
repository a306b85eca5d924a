"""Names what was not finite in a step that was skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax

from hybrid_jax.nonfinite import Locator
from hybrid_jax.train.state import TrainState
from hybrid_jax.train.step import TrainStep
from hybrid_jax.trainer import BatchSource


class LocateNonfinite:
    """Runs every skipped step again, with probes, and reports what first was not finite in it.

    It waits for every step, to look at it before the next one changes the parameters: for finding
    a fault, not for every day. Steps that are skipped because an f16 gradient overflowed, which a
    smaller loss scale cures, are left alone. It belongs before `StopWhenDiverged`.

    Args:
      train: the train step.
      batches: those of the run; read again for the steps that were skipped.
      report: called with a line of text.
    """

    def __init__(
        self, train: TrainStep, batches: BatchSource, report: Callable[[str], object] = print
    ) -> None:
        self.batches, self.report = batches, report
        self._locator = Locator(train)
        self._in_a_row = 0

    def on_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """Looks at update number `step`."""
        before, self._in_a_row = self._in_a_row, int(metrics["skipped_in_a_row"])
        if self._in_a_row <= before:
            return
        scale = metrics.get("loss_scale")
        found = self._locator.locate(
            state,
            self.batches.batch(step - 1),
            step=step - 1,
            loss_scale=None if scale is None else float(scale),
        )
        loss = float(metrics["loss"])
        what = f"every array is finite, and loss {loss:.4g} a spike" if found is None else found
        self.report(f"step {step} was skipped: {what}")

    def on_end(self, state: TrainState) -> None:
        """Does nothing: all steps have been looked at."""
