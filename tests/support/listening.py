"""A real listener on this machine, and clients that speak to it byte by byte."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.web.asgi import ASGI
from ray_jobs.serve.web.connections import ConnectionConfig
from ray_jobs.serve.web.server import Listener


@contextlib.contextmanager
def listening(app: ASGI, *, on_refusal: Callable[[Refusal], None] | None = None, **config: Any) -> Iterator[Listener]:
    """Serve an application at a free port until the block ends."""
    settings = ConnectionConfig(**config)
    listener = Listener(app, host="127.0.0.1", port=0, config=settings, on_refusal=on_refusal)
    listener.start()
    try:
        yield listener
    finally:
        listener.stop()


@dataclass
class Client:
    """A connection that sends exactly what it is told."""

    socket: socket.socket

    def send(self, *parts: bytes | str) -> Client:
        """Send parts one after the other; a connection that was cut is no error."""
        with contextlib.suppress(ConnectionError):
            for part in parts:
                self.socket.sendall(part.encode() if isinstance(part, str) else part)
        return self

    def rest(self) -> bytes:
        """All that arrives until the connection ends."""
        received = bytearray()
        with contextlib.suppress(ConnectionError):
            while chunk := self.socket.recv(65536):
                received += chunk
        return bytes(received)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the only answer on the connection, which the server must close."""
        head, _, body = self.rest().partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return (int(first.split()[1]) if first else 0), headers, body

    def problem(self) -> tuple[int, str, str]:
        """Status, code and sentence of a refusal."""
        status, _, body = self.answer()
        problem = json.loads(body) if body else {}
        return status, problem.get("code", ""), problem.get("detail", "")


@contextlib.contextmanager
def client(listener: Listener, tls: ssl.SSLContext | None = None) -> Iterator[Client]:
    """Connect to a listener."""
    with socket.create_connection(("127.0.0.1", listener.port), timeout=20) as connection:
        if tls is None:
            yield Client(connection)
        else:
            with tls.wrap_socket(connection, server_hostname="localhost") as encrypted:
                yield Client(encrypted)


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns once something is true; a test that waits in vain fails."""
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends, "it did not become true"
        time.sleep(0.01)
