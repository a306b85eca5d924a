"""The processes of a run meet before JAX joins them: who is there, who is missing.

JAX gives up on a missing process by aborting, in C++ and without saying whom it waited for. So the
processes first meet here, on the port that JAX takes afterwards. Process 0 listens; the others
connect and introduce themselves; when all are there it says so and stops listening. The
connections stay: see `Group`.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import selectors
import socket
import time
from typing import Any, NoReturn

from hybrid_jax.errors import RunError, TemporaryError, UserError
from hybrid_jax.runtime.channel import Channel, Peer
from hybrid_jax.runtime.notices import Notices

GREETING = "hybrid_jax 1"
_STRANGER_SECONDS = 10.0
_MAX_STRANGERS = 64
_LATE_SECONDS = 10.0  # for those who come when the roll call has failed, to be sent the reason

Meeting = tuple[dict[int, Peer], dict[int, Channel]]
"""All processes by index, and the connections of this one: process 0 has one to each of the
others, the others have one to process 0."""


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on a port of process 0: on loopback only, if `host` is that.

    Raises:
      UserError: the port is in use or may not be used.
    """
    try:
        if is_loopback(host):
            return socket.create_server(("127.0.0.1", port), backlog=128)
        if socket.has_dualstack_ipv6():
            address = ("::", port)
            return socket.create_server(
                address, family=socket.AF_INET6, backlog=128, dualstack_ipv6=True
            )
        return socket.create_server(("", port), backlog=128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of the coordinator address {host}:{port} is in use on this host: "
                "end the program that holds it (an earlier run, perhaps), or choose another port."
            ) from None
        raise UserError(
            f"port {port} of the coordinator address {host}:{port} cannot be listened on: "
            f"{error.strerror}; choose another port."
        ) from None


def is_loopback(host: str) -> bool:
    """Whether a coordinator's host name can be reached from this machine only.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("10.0.0.1")
    (True, True, False)
    """
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        return address.version == 4 and address.is_loopback
    return False


def gather(listener: socket.socket, count: int, join_seconds: float) -> Meeting:
    """Waits on process 0 for all others, then closes `listener`.

    Connections that do not introduce themselves, such as those of a port scanner, are dropped.

    Args:
      count: of processes, this one included.
      join_seconds: how long to wait.

    Raises:
      UserError: two processes have the same index, or were started with different counts.
      TemporaryError: a process did not come in time, or died while others were awaited.
    """
    own = Peer.own(0)
    with listener, selectors.DefaultSelector() as selector:
        listener.setblocking(False)
        hall = _Hall(own, count, selector)
        selector.register(listener, selectors.EVENT_READ)
        try:
            _call(hall, listener, time.monotonic() + join_seconds, join_seconds)
        except UserError:
            hall.tell_latecomers(listener)
            raise
        hall.strangers.clear()
    peers = {0: own} | {index: peer for index, (peer, _) in hall.members.items()}
    channels = {index: channel for index, (_, channel) in hall.members.items()}
    for channel in channels.values():
        channel.send({"all": [list(peer) for peer in peers.values()]})
    return peers, channels


def _call(hall: _Hall, listener: socket.socket, deadline: float, join_seconds: float) -> None:
    """Waits until all have come."""
    notices = Notices()
    while len(hall.members) < hall.count - 1:
        hall.receive(listener)
        missing = hall.missing()
        if missing and time.monotonic() > deadline:
            hall.dismiss(
                TemporaryError,
                f"{missing} did not join within {join_seconds:g} s (train.join_seconds): look at "
                "its log, or whether it was started and reaches the coordinator.",
            )
        elif missing:
            notices.show(hall.missing)


class _Hall:
    """Those who have come to process 0 so far."""

    def __init__(self, own: Peer, count: int, selector: selectors.BaseSelector) -> None:
        self.own, self.count, self.selector = own, count, selector
        self.members: dict[int, tuple[Peer, Channel]] = {}
        self.strangers: dict[Channel, float] = {}
        self.refused: list[Channel] = []
        self.refusal: dict[str, Any] | None = None

    def receive(self, listener: socket.socket) -> None:
        """Lets in who waits, listens to who speaks, drops who does not introduce itself."""
        for key, _ in self.selector.select(timeout=0.2):
            if key.fileobj is listener:
                self.admit(listener)
            else:
                self.listen_to(key.fileobj)
        self.drop_strangers()

    def tell_latecomers(self, listener: socket.socket) -> None:
        """Answers those who come after the roll call has failed: they would wait in vain."""
        end = time.monotonic() + _LATE_SECONDS
        while len(self.members) + len(self.refused) < self.count - 1 and time.monotonic() < end:
            self.receive(listener)

    def admit(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # gone again
            channel = Channel(listener.accept()[0])
            self.strangers[channel] = time.monotonic()
            self.selector.register(channel, selectors.EVENT_READ)

    def listen_to(self, channel: Any) -> None:
        try:
            for message in channel.receive():
                if channel in self.strangers:
                    self._introduce(channel, message)
        except EOFError:
            self._hung_up(channel)
        except UserError:
            raise
        except (ValueError, KeyError, TypeError):
            self._drop(channel)

    def _introduce(self, channel: Channel, message: dict[str, Any]) -> None:
        if message["greeting"] != GREETING:
            raise ValueError("another program")
        peer = Peer(int(message["index"]), str(message["host"]), int(message["pid"]))
        del self.strangers[channel]
        if self.refusal is not None:
            self.refused.append(channel)
            self._refuse(channel)
            return
        taken = self.own if peer.index == 0 else self.members.get(peer.index, (None,))[0]
        # A second of the same index is kept too, under none, to be named.
        self.members[peer.index if taken is None else -1] = (peer, channel)
        if message["count"] != self.count:
            self.dismiss(
                UserError,
                f"{peer} was started as one of {message['count']} processes, {self.own} as one of "
                f"{self.count}: start all with the same JAX_NUM_PROCESSES.",
            )
        if taken is not None:
            self.dismiss(
                UserError,
                f"{taken} and {peer} have the same index: give each process its own "
                "JAX_PROCESS_ID, and each run its own coordinator port.",
            )
        channel.send({"welcome": list(self.own)})

    def _hung_up(self, channel: Channel) -> None:
        for index, (peer, theirs) in list(self.members.items()):
            if theirs is channel and self.refusal is None:
                del self.members[index]
                self.dismiss(TemporaryError, f"{peer} ended before all processes had joined.")
        self._drop(channel)

    def _drop(self, channel: Channel) -> None:
        self.strangers.pop(channel, None)
        self.selector.unregister(channel)
        channel.close()

    def drop_strangers(self) -> None:
        late = time.monotonic() - _STRANGER_SECONDS
        for position, (channel, since) in enumerate(reversed(list(self.strangers.items()))):
            if since < late or position >= _MAX_STRANGERS:
                self._drop(channel)

    def missing(self) -> str:
        """Which processes have not come, in words; empty if all have."""
        absent = [index for index in range(1, self.count) if index not in self.members]
        if not absent:
            return ""
        shown = ", ".join(map(str, absent[:16])) + (", …" if len(absent) > 16 else "")
        noun = "process" if len(absent) == 1 else "processes"
        return f"{noun} {shown} ({len(absent)} of {self.count})"

    def dismiss(self, error: type[RunError] | type[UserError], reason: str) -> NoReturn:
        """Ends the roll call for everyone with the same reason."""
        self.refusal = {"end": error.status, "reason": reason}
        for _, channel in self.members.values():
            self._refuse(channel)
        raise error(reason)

    def _refuse(self, channel: Channel) -> None:
        channel.send(self.refusal or {})
        with contextlib.suppress(OSError):
            channel.connection.shutdown(socket.SHUT_WR)
