"""Ends a run when something that works beside its steps has failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import jax

from hybrid_jax.errors import RunError
from hybrid_jax.metrics.log import Log
from hybrid_jax.train.state import TrainState


class Failing(Protocol):
    """What works on a thread of its own and cannot raise: it keeps what went wrong."""

    @property
    def failure(self) -> str | None:
        """What went wrong, without a full stop; None while nothing has."""


class StopOnFailure:
    """Raises a `RunError` at the first step after a writer of the run has failed.

    A full disk is found by whoever writes to it first: the log, a heartbeat, a checkpoint on its
    way, a trace. All of them write beside the steps. This hook belongs behind those that save: at
    the end of a run a log that is lost does not cost the state too.

    Args:
      log: its writers; flushed before the last look.
      others: looked at after it, in this order.
      last_checkpoint: says which checkpoint is the last good one.
    """

    def __init__(
        self, log: Log, others: Sequence[Failing], last_checkpoint: Callable[[], str]
    ) -> None:
        self.log = log
        self.others = tuple(others)
        self.last_checkpoint = last_checkpoint

    def on_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """Looks at all of them; does not wait.

        Raises:
          RunError: one has failed.
        """
        del state, metrics
        self._check(f"after step {step}")

    def on_end(self, state: TrainState) -> None:
        """Waits for the log, then looks; raises like `on_step`."""
        self.log.flush()
        self._check(f"after step {int(state.step)}, the last one")

    def _check(self, when: str) -> None:
        for one in (self.log, *self.others):
            if one.failure is not None:
                raise RunError(f"{one.failure}; the run ends {when}, and {self.last_checkpoint()}.")
