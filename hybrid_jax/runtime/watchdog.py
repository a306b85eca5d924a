"""Ends a process that makes no progress, and says which process the others wait for."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, NoReturn

from hybrid_jax.errors import DISK_FAILURES, TemporaryError, notify, unwritable
from hybrid_jax.runtime.group import leave_group

_LEAST_SECONDS = 600.0
_PATIENT_SECONDS = 3600.0
_FIRST_STEPS = 10

STALLED = TemporaryError.status
"""Exit status of a process that gave up waiting: worth another try."""


def leave(message: str) -> NoReturn:
    """Writes the stacks of all threads and a last line to stderr; ends with status `STALLED`.

    No destructor and no `finally` runs: whatever hangs would hang them too.
    """
    faulthandler.dump_traceback(file=2, all_threads=True)
    # The others show their stacks too: the one that they all wait for may be among them.
    leave_group(STALLED, f"error: {message}", stacks=True)
    notify(f"error: {message}")
    os._exit(STALLED)


class Beat(NamedTuple):
    """A sign of life of a process: the last step it dispatched, None before the first, and when."""

    step: int | None
    time: float
    host: str
    pid: int


class Watchdog(contextlib.AbstractContextManager):
    """Calls `leave` when no beat has come for a while, naming the processes that are behind.

    It watches from the first beat on, so that compilation does not count. If a time is given, there
    must be time in it for a step and for what hooks do, evaluating and saving included. Otherwise
    it is ten times the slowest of the first ten steps, and at least ten minutes; an hour before
    that is known, and for what takes nobody knows how long, see `patient`.

    It works while the main thread waits in native code, such as a collective whose other end is
    missing. Should that code not let any Python thread run, `faulthandler` ends the process after
    twice the time, with the stacks and with status 1.

    Args:
      timeout_seconds: how long no beat may come; None: it finds out.
      folder: on a file system that all processes share; each keeps `heartbeat-<process>.json` there
        while it runs. None: other processes are not looked at.
      process: index of this one.
      num_processes: how many there are.

    Attributes:
      failure: that the disk of `folder` is full or broken; None while it is not.

    Raises:
      UserError: the folder cannot be made.
      RunError: its disk is full or broken.
    """

    def __init__(
        self,
        timeout_seconds: float | None = None,
        folder: str | Path | None = None,
        process: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self.process, self.num_processes = process, num_processes
        self.folder = None if folder is None else Path(folder)
        self._own = Beat(None, time.time(), socket.gethostname(), os.getpid())
        self.failure: str | None = None
        self._num_beats, self._slowest, self._last = 0, 0.0, time.monotonic()
        self._is_patient = False
        self._armed = self._armed_for = 0.0
        self._can_write = self.folder is not None
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                remedy = "choose one that you may write to"
                problem = f"the folder of heartbeats '{folder}' cannot be made"
                raise unwritable(problem, error, remedy) from None
        self._write(self._own)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @property
    def limit(self) -> float:
        """Seconds without a sign of life after which the process ends, as of now."""
        if self.timeout_seconds is not None:
            return self.timeout_seconds
        unknown = self._is_patient or self._num_beats <= _FIRST_STEPS
        return max(_PATIENT_SECONDS if unknown else _LEAST_SECONDS, 10 * self._slowest)

    def beat(self, step: int) -> None:
        """Says that step `step` has been dispatched; does not wait for any file."""
        self._own = self._own._replace(step=step)
        self._sign()
        self._num_beats += 1

    def live(self) -> None:
        """Says that this process lives in the midst of a step; counts unless a limit was given."""
        if self.timeout_seconds is None:
            self._sign()

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """For what may take longer than steps let expect: an hour, unless a limit was given."""
        if self.timeout_seconds is not None:
            yield
            return
        self._sign()
        self._is_patient = True
        self._arm()
        try:
            yield
        finally:
            self._sign()
            self._is_patient = False
            self._arm()

    def _sign(self) -> None:
        now = time.monotonic()
        if 1 <= self._num_beats <= _FIRST_STEPS and not self._is_patient:
            self._slowest = max(self._slowest, now - self._last)
        self._last = now
        self._own = self._own._replace(time=time.time())
        self._arm()

    def _arm(self) -> None:
        if self._own.step is None:
            return
        limit, now = self.limit, time.monotonic()
        if limit != self._armed_for or now - self._armed > min(1.0, limit / 4):
            faulthandler.dump_traceback_later(2 * limit, exit=True, file=2)
            self._armed, self._armed_for = now, limit

    def close(self) -> None:
        """Stops watching and takes this process's file away."""
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()
        self._thread.join(timeout=10)  # it may be stuck in a file system that hangs
        if self.folder is not None:
            with contextlib.suppress(OSError):
                self._path(self.process).unlink(missing_ok=True)

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _watch(self) -> None:
        pause = min(2.0, self.limit / 4)
        seen, idle_seconds, before = self._own, 0.0, time.monotonic()
        while not self._closed.wait(pause):
            now = time.monotonic()
            if self._own is not seen:
                seen, idle_seconds = self._own, 0.0
                self._write(seen)
            elif seen.step is not None:
                # If the whole process was stopped and continued, that time is not its own.
                idle_seconds += min(now - before, 2 * pause)
            before = now
            if idle_seconds > (limit := self.limit):
                leave(f"no progress for {limit:g} s: {self._describe()}.")

    def _describe(self) -> str:
        """Which processes are behind the others, at which step and since when."""
        beats = {self.process: self._own}
        if self.folder is not None:
            others = (index for index in range(self.num_processes) if index != self.process)
            beats |= {index: self._read(index) for index in others}
        steps = {index: -1 if b is None or b.step is None else b.step for index, b in beats.items()}
        furthest = max(steps.values())
        behind = [index for index in sorted(beats) if steps[index] < furthest]
        if len(beats) == 1:
            return _describe_beat(self.process, self._own)
        if not behind:
            return f"all {self.num_processes} processes are at step {furthest}"
        return (
            f"{len(behind)} of {self.num_processes} processes behind step {furthest}: "
            f"{'; '.join(_describe_beat(index, beats[index]) for index in behind)}"
        )

    def _path(self, process: int) -> Path:
        assert self.folder is not None
        return self.folder / f"heartbeat-{process}.json"

    def _read(self, process: int) -> Beat | None:
        try:
            return Beat(**json.loads(self._path(process).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _write(self, beat: Beat) -> None:
        """Replaces this process's file; a full disk is a failure, any other trouble a warning."""
        if not self._can_write:
            return
        path = self._path(self.process)
        try:
            new = path.with_suffix(".new")
            new.write_text(json.dumps(beat._asdict()))
            new.replace(path)
        except OSError as error:
            self._can_write = False
            if error.errno in DISK_FAILURES:
                self.failure = f"heartbeats in {path} cannot be written: {error.strerror}"
            else:
                notify(f"warning: no more heartbeats in {path}: {error.strerror}")


def _describe_beat(process: int, beat: Beat | None) -> str:
    if beat is None:
        return f"process {process} has left no heartbeat"
    since = datetime.fromtimestamp(beat.time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    at = "before its first step" if beat.step is None else f"at step {beat.step}"
    return f"process {process} (host {beat.host}, pid {beat.pid}) is {at} since {since}"
