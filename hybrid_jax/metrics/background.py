"""A writer on a thread of its own: whatever holds it up, the step does not wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from hybrid_jax.errors import notify

_CAPACITY = 10_000  # records of about 1 kB
_FLUSH_SECONDS = 10.0

# A record, a mark that is set when the writer gets to it, or the end.
_Item = tuple[int, dict[str, float]] | threading.Event | None


class Writer(Protocol):
    """Takes the records of a run, in the order of their steps. It may block, and it may raise.

    Attributes:
      name: what to call it in messages: a path, or a service.
      essential: whether a run must end when it fails.
    """

    name: str
    essential: bool

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes what was measured after update number `step`; not every record has every name."""

    def close(self) -> None:
        """Releases files and the terminal; no record follows."""


class Background:
    """Hands records to a writer on a thread; none of its methods raises or waits without a bound.

    A disk that is full, a file server or a network that hangs, a terminal that is paused: the
    records wait meanwhile, and those beyond `capacity` are dropped, which is said once. A writer
    that raises gets no further records.

    >>> class Printing:
    ...     name, essential = "stdout", False
    ...     def write(self, step, values):
    ...         print(step, values)
    ...     def close(self):
    ...         print("closed")
    >>> background = Background(Printing())
    >>> background.write(1, {"loss": 2.5})
    >>> background.end()
    >>> background.join(10)
    1 {'loss': 2.5}
    closed

    Args:
      writer: called from the thread only.
      capacity: records that may wait.
      flush_seconds: how long `flush` waits.

    Attributes:
      failure: what went wrong with the writer; None while nothing has.
    """

    def __init__(
        self, writer: Writer, capacity: int = _CAPACITY, flush_seconds: float = _FLUSH_SECONDS
    ) -> None:
        self.writer = writer
        self.capacity = capacity
        self.flush_seconds = flush_seconds
        self.failure: str | None = None
        self._dropped = 0
        self._unreached: threading.Event | None = None
        # Unbounded: marks and the end always have room; `write` limits the records.
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"to {writer.name}", daemon=True)
        self._thread.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Leaves a record for the writer."""
        if self.failure is not None:
            return
        if self._queue.qsize() >= self.capacity:
            if not self._dropped:
                notify(
                    f"warning: {self.writer.name} takes no records: {self.capacity} are waiting, "
                    f"and those from step {step} on are dropped until it does."
                )
            self._dropped += 1
            return
        self._queue.put((step, dict(values)))

    def flush(self) -> None:
        """Waits until the writer has all records; gives up after a while, once."""
        if self._unreached is not None and not self._unreached.is_set():
            return
        reached = threading.Event()
        self._queue.put(reached)
        if not reached.wait(self.flush_seconds):
            self._unreached = reached
            notify(
                f"warning: {self.writer.name} has not taken its records within "
                f"{self.flush_seconds:g} s; the run does not wait for it."
            )

    def end(self) -> None:
        """Has the writer closed when it has all records."""
        self._queue.put(None)

    def join(self, seconds: float) -> None:
        """Waits so long for what `end` asked for, and says what was lost."""
        self._thread.join(seconds)
        if lost := self._dropped + (self._queue.qsize() if self._thread.is_alive() else 0):
            notify(f"warning: {lost} records are missing in {self.writer.name}.")

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            elif self.failure is None:
                self._attempt(self.writer.write, *item)
        was_essential = self.writer.essential and self.failure is None
        self._attempt(self.writer.close)
        if was_essential and self.failure is not None:
            notify(f"warning: {self.failure}.")  # too late to end the run

    def _attempt(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # a writer may be anyone's
            if self.failure is not None:
                return
            reason = error.strerror if isinstance(error, OSError) else None
            reason = reason or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            self.failure = f"{self.writer.name} cannot be written to: {reason}"
            if not self.writer.essential:
                notify(f"warning: {self.failure}; no more metrics go there.")
