"""JSON objects over a TCP connection, a line each: how the processes of a run talk to each other.

Nothing but JSON is read and its length is bounded, so whoever connects to the port can at worst
be ignored.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import Any, NamedTuple

_MAX_LINE = 4 << 20
_CHUNK = 1 << 16


class Peer(NamedTuple):
    """A process of the run, as messages name it.

    >>> str(Peer(1, "node1", 4242))
    'process 1 (host node1, pid 4242)'
    """

    index: int
    host: str
    pid: int

    @classmethod
    def own(cls, index: int) -> Peer:
        """Returns this process under its index in the run."""
        return cls(index, socket.gethostname(), os.getpid())

    def __str__(self) -> str:
        return f"process {self.index} (host {self.host}, pid {self.pid})"


class Channel:
    """One end of a connection. Sending never waits; what does not fit is sent with the next call.

    Any thread may send; only one receives.

    Args:
      connection: a connected socket; the channel owns it from here on.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self._received = b""
        self._unread: list[dict[str, Any]] = []
        self._unsent = b""
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """For `selectors`."""
        return self.connection.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message; one that the other end no longer takes is lost, as receiving shows."""
        with self._sending:
            self._unsent += json.dumps(message).encode() + b"\n"
            try:
                while self._unsent:
                    self._unsent = self._unsent[self.connection.send(self._unsent) :]
            except BlockingIOError:
                pass  # the other end is busy or stopped; the line is kept whole
            except OSError:
                self._unsent = b""

    @property
    def is_congested(self) -> bool:
        """Whether the other end has not taken all that was sent."""
        return bool(self._unsent)

    def receive(self) -> list[dict[str, Any]]:
        """Returns the messages that have come, without waiting.

        Raises:
          EOFError: the other end has hung up and all its messages have been returned.
          ValueError: what came is not from a process of this run.
        """
        is_open = self._fill()
        *lines, self._received = self._received.split(b"\n")
        if len(self._received) > _MAX_LINE:
            raise ValueError("a line without an end")
        messages = self._unread + [json.loads(line) for line in lines]
        self._unread = []
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("a line that is no JSON object")
        if not messages and not is_open:
            raise EOFError
        return messages

    def put_back(self, messages: list[dict[str, Any]]) -> None:
        """Leaves messages to the next one who receives."""
        self._unread = messages

    def close(self) -> None:
        """Hangs up."""
        self.connection.close()

    def _fill(self) -> bool:
        """Reads what has come; returns whether the connection is still open."""
        try:
            while len(self._received) <= _MAX_LINE:
                chunk = self.connection.recv(_CHUNK)
                if not chunk:
                    return False
                self._received += chunk
        except BlockingIOError:
            pass
        except OSError:  # reset, or the network has given it up
            return False
        return True
