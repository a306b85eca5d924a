"""Ends a run whose updates are skipped one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax

from hybrid_jax.errors import RunError
from hybrid_jax.train.state import TrainState


class StopWhenDiverged:
    """Raises a `RunError` when too many updates in a row have been skipped.

    Like the log it looks at the metrics of a step when the next one has been dispatched, so that
    the devices do not wait. It belongs behind the hooks that save and log, which then see the last
    step too. The parameters are those of the last good update: skipped ones do not touch them.

    Args:
      max_skipped: how many in a row end the run.
      last_checkpoint: returns where the newest good checkpoint is; None: there is none.
    """

    def __init__(
        self, max_skipped: int, last_checkpoint: Callable[[], str | None] = lambda: None
    ) -> None:
        self.max_skipped = max_skipped
        self.last_checkpoint = last_checkpoint
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None

    def on_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """Looks at the previous step.

        Raises:
          RunError: it was the last of too many skipped in a row.
        """
        del state
        self._check()
        self._pending = (step, metrics)

    def on_end(self, state: TrainState) -> None:
        """Looks at the last step; raises like `on_step`."""
        del state
        self._check()

    def _check(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        skipped = int(metrics["skipped_in_a_row"])
        if skipped < self.max_skipped:
            return
        path = self.last_checkpoint()
        saved = "no checkpoint was saved" if path is None else f"the last good checkpoint is {path}"
        raise RunError(
            f"the run diverged: {skipped} updates in a row were skipped, the last at step {step} "
            f"(loss {float(metrics['loss']):.4g}, gradient norm "
            f"{float(metrics['grad_norm']):.4g}); {saved}. Lower the learning rate, or look at the "
            f"data of steps {step - skipped + 1} to {step}; train.max_skipped sets how many are "
            "too many."
        )
