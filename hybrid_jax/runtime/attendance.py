"""The roll call as seen by all processes but the first: they go where it listens, and wait."""

from __future__ import annotations

import errno
import selectors
import socket
import time

from hybrid_jax.errors import RunError, TemporaryError, UserError
from hybrid_jax.runtime.channel import Channel, Peer
from hybrid_jax.runtime.notices import Notices
from hybrid_jax.runtime.roll_call import GREETING, Meeting


def attend(host: str, port: int, index: int, count: int, join_seconds: float) -> Meeting:
    """Introduces this process to process 0 and waits for the others.

    Raises:
      UserError: what process 0 found wrong with the numbers of processes.
      TemporaryError: process 0 or another did not come in time.
    """
    own, pause = Peer.own(index), 0.1
    notices, deadline = Notices(), time.monotonic() + join_seconds
    while True:
        try:
            return _introduce(_connect(host, port), own, count, deadline)
        except UserError:
            raise
        except (EOFError, ValueError):
            found = "whoever listens there is not process 0 of a run that waits for others"
        except OSError as error:
            found = error.strerror or str(error)
        awaited = f"process 0 at {host}:{port} ({found})"
        if time.monotonic() > deadline:
            raise TemporaryError(
                f"{awaited} did not answer within {join_seconds:g} s (train.join_seconds): look "
                "at its log, or whether it was started and that address is reachable from here."
            )
        notices.show(lambda awaited=awaited: awaited)
        time.sleep(pause)
        pause = min(1.0, 1.5 * pause)


def _connect(host: str, port: int) -> Channel:
    connection = socket.create_connection((host, port), timeout=5)
    # Linux connects a socket to itself if nobody listens and its own port happens to be that one.
    if connection.getsockname() == connection.getpeername():
        connection.close()
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    return Channel(connection)


def _introduce(channel: Channel, own: Peer, count: int, deadline: float) -> Meeting:
    try:
        channel.send({"greeting": GREETING, "count": count, **own._asdict()})
        return _wait_for_all(channel, deadline), {0: channel}
    except BaseException:
        channel.close()
        raise


def _wait_for_all(channel: Channel, deadline: float) -> dict[int, Peer]:
    """Waits for process 0's words: welcome, then the list of all, or why it ended the roll call."""
    first, patience = None, time.monotonic() + 5
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        # Process 0 speaks first when the time is over: it knows who is missing.
        while time.monotonic() < (patience if first is None else deadline + 5):
            if not selector.select(timeout=0.2):
                continue
            try:
                messages = channel.receive()
            except EOFError:
                if first is None:
                    raise
                raise TemporaryError(f"{first} ended before all processes had joined.") from None
            for position, message in enumerate(messages):
                if "end" in message:
                    raise error_of(message["end"], message["reason"])
                if "welcome" in message:
                    first = Peer(*message["welcome"])
                if "all" in message:
                    channel.put_back(messages[position + 1 :])
                    return {entry[0]: Peer(*entry) for entry in message["all"]}
    if first is None:
        raise EOFError
    raise TemporaryError(f"{first} does not say who is missing: look at its log.")


def error_of(status: int, reason: str) -> UserError | RunError:
    """Returns the error that ends a command with that exit status.

    >>> type(error_of(75, "a process is missing")).__name__
    'TemporaryError'
    """
    kinds = {2: UserError, TemporaryError.status: TemporaryError}
    return kinds.get(status, RunError)(reason)
