"""Notifies the watchdog that the run is alive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from hybrid_jax.runtime.watchdog import Watchdog
from hybrid_jax.train.state import TrainState
from hybrid_jax.trainer import ErrorHook, Hook


class Heartbeat:
    """Notifies a watchdog at every step and at the end.

    It belongs behind hooks that may take long (evaluating, saving): then they and the next step
    have the whole time of a watchdog that was given one. Another has patience with them, see
    `Patient`.

    Args:
      watchdog: to notify; the caller closes it.
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


class Patient:
    """Calls a hook that may take longer than a step, with the watchdog's patience.

    Args:
      hook: evaluates or saves.
      watchdog: see `Watchdog.patient`.
    """

    def __init__(self, hook: Hook, watchdog: Watchdog) -> None:
        self.hook = hook
        self.watchdog = watchdog

    def on_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """Calls the hook."""
        with self.watchdog.patient():
            self.hook.on_step(step, state, metrics)

    def on_end(self, state: TrainState) -> None:
        """Calls the hook."""
        with self.watchdog.patient():
            self.hook.on_end(state)

    def on_error(self, state: TrainState, error: Exception) -> None:
        """Calls the hook, if it wants to be."""
        if isinstance(self.hook, ErrorHook):
            with self.watchdog.patient():
                self.hook.on_error(state, error)


class Watched:
    """Batches that show the watchdog, each when it is asked for, that the run is alive.

    Args:
      batches: read anew by every iteration.
      watchdog: see `Watchdog.live`.
    """

    def __init__(self, batches: Iterable[Any], watchdog: Watchdog) -> None:
        self.batches = batches
        self.watchdog = watchdog

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.watchdog.live()
            yield batch
