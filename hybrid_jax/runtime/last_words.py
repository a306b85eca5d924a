"""What a process still does before it ends without destructors: it says why, and is heard."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from hybrid_jax.runtime.channel import Channel

_DELIVERY_SECONDS = 2.0


def send_last(message: dict[str, Any], channels: Sequence[Channel]) -> None:
    """Sends a last message over all channels and waits, not for long, until it has been read."""
    for channel in channels:
        channel.send(message)
        with contextlib.suppress(OSError):
            channel.connection.shutdown(socket.SHUT_WR)
    # Closing while signs of life lie unread would reset the connection, and the message with it.
    unheard, end = list(channels), time.monotonic() + _DELIVERY_SECONDS
    while unheard and time.monotonic() < end:
        for channel in list(unheard):
            try:
                channel.receive()
            except (EOFError, ValueError):
                unheard.remove(channel)
        time.sleep(0.01)


def flush_output() -> None:
    """Writes out what was printed, unless another thread is stuck in the middle of printing."""

    def flush() -> None:
        with contextlib.suppress(Exception):
            sys.stdout.flush()

    thread = threading.Thread(target=flush, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is shutting down: nobody else prints
        flush()
    else:
        thread.join(timeout=1)
