"""Ending a run on a signal, within a grace time."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from hybrid_jax.errors import notify
from hybrid_jax.runtime.watchdog import leave


class StopSignal(contextlib.AbstractContextManager):
    """Remembers a first SIGINT or SIGTERM instead of dying of it; lets a second one through.

    Args:
      grace_seconds: what is left to do when the signal comes must be done in this time, or the
        process says where it is and ends with status 75 (see `leave`); None: in any time.

    Attributes:
      received: whether the signal has come.
    """

    def __init__(self, grace_seconds: float | None = None) -> None:
        self.grace_seconds = grace_seconds
        self.received = False
        self._signalled, self._ended = threading.Event(), threading.Event()
        self._previous = {}
        self._holding = self._interrupted = False

    def __enter__(self) -> StopSignal:
        # Python delivers signals to the main thread only and forbids handlers set elsewhere.
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM)
            self._previous = {number: signal.signal(number, self._receive) for number in numbers}
            if self.grace_seconds is not None:
                # Before any signal: a handler may have interrupted the start of another thread.
                threading.Thread(target=self._limit, name="grace time", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore_handlers()
        self._ended.set()
        self._signalled.set()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds a second Ctrl-C back until the block is left, so that what it assigns is assigned.

        Without it, `state = step(state)` could lose both states: the old one, whose memory the step
        has taken over, and the new one, if the interrupt comes before it is assigned.
        """
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
            if self._interrupted:
                self._interrupt(signal.SIGINT, None)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = True
        self._restore_handlers()
        if signal.SIGINT in self._previous:
            signal.signal(signal.SIGINT, self._interrupt)
        name = signal.Signals(number).name
        # Not print: the signal may have come in the middle of one.
        notify(f"\n{name}: stopping after this step; once more to stop at once.")
        self._signalled.set()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Passes a later Ctrl-C on to whom it would have gone without this object."""
        del frame
        self._interrupted = self._holding and not self._interrupted
        if not self._interrupted:
            self._restore_handlers()
            signal.raise_signal(number)

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _limit(self) -> None:
        self._signalled.wait()
        if not self._ended.wait(self.grace_seconds):
            leave(
                f"the run did not end within {self.grace_seconds:g} s of the signal: what it was "
                "saving may be lost; raise train.grace_seconds."
            )
