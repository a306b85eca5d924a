"""A trace of chosen steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax

from hybrid_jax.errors import unwritable
from hybrid_jax.train.state import TrainState


class Profile:
    """Writes a `jax.profiler` trace of the steps `first` to `last`, and of nothing else.

    The devices are waited for before and after, so that the trace holds these steps whole. A run
    that begins later traces what is left of them. Open it with TensorBoard or ui.perfetto.dev.

    Args:
      first: the first step of the trace, from 1; the first one of a run compiles.
      last: the last one.
      folder: of the trace; made where it is missing.

    Attributes:
      failure: why the trace could not be written; None while it could.

    Raises:
      UserError: the folder cannot be made.
      RunError: its disk is full or broken.
    """

    def __init__(self, first: int, last: int, folder: str | Path) -> None:
        self.first, self.last = first, last
        self.folder = Path(folder)
        self.failure: str | None = None
        self._tracing = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            remedy = "choose one that you may write to"
            problem = f"the profile's folder '{folder}' cannot be made"
            raise unwritable(problem, error, remedy) from None

    def on_start(self, state: TrainState) -> None:
        """Starts the trace if the next step belongs to it."""
        self._start_before(int(state.step) + 1, state)

    def on_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """Ends the trace after its last step; starts it before its first."""
        del metrics
        if step == self.last:
            self._stop(state)
        self._start_before(step + 1, state)

    def on_end(self, state: TrainState) -> None:
        """Ends a trace whose last step was not reached."""
        self._stop(state)

    def _start_before(self, step: int, state: TrainState) -> None:
        if self.first <= step <= self.last and not self._tracing:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.folder))
            self._tracing = True

    def _stop(self, state: TrainState) -> None:
        if self._tracing:
            jax.block_until_ready(state)
            self._tracing = False
            try:
                jax.profiler.stop_trace()
            except Exception as error:  # whatever the profiler makes of a full disk
                reason = " ".join(str(error).split())[:300]
                self.failure = f"the trace in {self.folder} cannot be written: {reason}"
