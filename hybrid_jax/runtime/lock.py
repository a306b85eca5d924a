"""One run, one folder: a lock that names its holder and that no ended process leaves behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from hybrid_jax.errors import UserError, unwritable

_TOUCH_SECONDS, _STALE_SECONDS = 15.0, 120.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of a file system mounted without them

_held: set[int] = set()


def _close_in_child() -> None:
    # A forked child would hold the lock beyond its parent's end.
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_in_child)


class Holder(NamedTuple):
    """The process that holds a lock: where it runs, since when, and its command."""

    pid: int
    host: str
    started: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host} since {self.started}"


class FolderLock(contextlib.AbstractContextManager):
    """Holds a folder for one run, until `close` or the end of the process, however it ends.

    On one machine the kernel decides (`flock`): no lock is stale. Machines that share a file system
    may not share its locks: there a holder shows that it lives by touching the file, and one that
    has not for two minutes is taken to be dead.

    Args:
      folder: made if missing. Its `run.lock` says who holds it, in JSON.

    Attributes:
      failure: that another run has taken the folder after all; None while none has.

    Raises:
      UserError: another process holds the folder, or it cannot be written to; never waits.
      RunError: the disk is full or broken.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "run.lock"
        self.failure: str | None = None
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self._own = Holder(os.getpid(), socket.gethostname(), now, shlex.join(sys.argv))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while (descriptor := self._lock()) is None:
                pass
        except OSError as error:
            remedy = "choose one that you may write to"
            problem = f"the run's folder '{folder}' cannot be written to"
            raise unwritable(problem, error, remedy) from None
        self._descriptor = descriptor
        _held.add(descriptor)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._touch, name="folder lock", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Gives the folder free."""
        self._closed.set()
        self._thread.join(timeout=10)
        if self._thread.is_alive() or self._descriptor not in _held:
            return  # stuck in a file system that hangs, or closed already, such as in a child
        _held.remove(self._descriptor)
        with contextlib.suppress(OSError):
            if self.failure is None:
                self.path.unlink()
            os.close(self._descriptor)

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _lock(self) -> int | None:
        """Returns a locked descriptor of the file; None if its last holder removed it just now."""
        with contextlib.ExitStack() as closing:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            closing.callback(os.close, descriptor)
            holder, has_locks = _read(descriptor), True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._refusal(holder or "a process that does not say which") from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                has_locks = False
            if not os.path.lexists(self.path) or not os.path.samestat(
                os.fstat(descriptor), self.path.stat()
            ):
                return None
            if holder is not None and not (has_locks and holder.host == self._own.host):
                with tempfile.TemporaryFile(dir=self.path.parent) as probe:  # the server's clock
                    age = os.fstat(probe.fileno()).st_mtime - os.fstat(descriptor).st_mtime
                if age < _STALE_SECONDS:
                    raise self._refusal(holder, f", which gave a sign of life {age:.0f} s ago")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{json.dumps(self._own._asdict())}\n".encode(), 0)
            closing.pop_all()
            return descriptor

    def _refusal(self, holder: Holder | str, more: str = "") -> UserError:
        return UserError(
            f"the folder '{self.path.parent}' is in use by {holder}{more}: wait until that run has "
            "ended, or choose another folder."
        )

    def _touch(self) -> None:
        while not self._closed.wait(_TOUCH_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)
            if (holder := _read(self.path)) not in (None, self._own):
                self.failure = f"the folder '{self.path.parent}' was taken by {holder}"
                return


def _read(file: int | Path) -> Holder | None:
    """Whom a lock file names; None where it names nobody."""
    try:
        text = os.pread(file, 2**16, 0) if isinstance(file, int) else file.read_bytes()
        return Holder(**json.loads(text))
    except (OSError, ValueError, TypeError):
        return None
