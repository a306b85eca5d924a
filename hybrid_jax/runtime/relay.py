"""Keeps the death of process 0 from JAX, which would abort this process before it can say why.

The client of JAX's coordination service aborts as soon as its connection closes: it prints a C++
stack and takes no public callback. It therefore connects to this relay, in the same process,
which passes everything on to process 0 but the end of the connection. What happens then is the
group's business, see `Group`.
"""

from __future__ import annotations

import contextlib
import socket
import threading

_CHUNK = 1 << 16


def start_relay(host: str, port: int) -> str:
    """Returns an address on this machine where process 0's `host:port` can be reached."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listener, host, port), daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def _accept(listener: socket.socket, host: str, port: int) -> None:
    while True:
        client, _ = listener.accept()
        try:
            server = socket.create_connection((host, port))
        except OSError:
            client.close()  # process 0 does not listen yet; the client tries again
            continue
        for connection in (client, server):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for ends in ((client, server, True), (server, client, False)):
            threading.Thread(target=_pass_on, args=ends, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, ends_with_source: bool) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(_CHUNK):
            target.sendall(chunk)
    if ends_with_source:
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
