"""Tells the watchdog that the run is alive."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from hybrid_jax.runtime.watchdog import Watchdog
from hybrid_jax.train.state import TrainState


class Heartbeat:
    """Beats a watchdog at every step and at the end.

    It belongs behind hooks that may take long (evaluating, saving): then they and the next step
    have the watchdog's whole time together.

    Args:
      watchdog: is beaten; whoever made it closes it.
    """

    def __init__(self, watchdog: Watchdog) -> None:
        self.watchdog = watchdog

    def on_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """Beats."""
        del state, metrics
        self.watchdog.beat(step)

    def on_end(self, state: TrainState) -> None:
        """Beats once more: hooks that end after this one have the whole time."""
        self.watchdog.beat(int(state.step))
