"""A real HTTP server on this machine that serves what a test puts into it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What is answered for a path."""

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    """The length that is promised; None: that of the content; -1: none."""


@dataclass
class Site:
    """A running server."""

    url: str
    pages: dict[str, Page] = field(default_factory=dict)
    """Path → page; another path is not found."""
    asked: list[str] = field(default_factory=list)
    """The requests so far, method and path."""


@contextlib.contextmanager
def serving() -> Iterator[Site]:
    """Run a server until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def answer(self, *, body: bool) -> None:
            site.asked.append(f"{self.command} {self.path}")
            page = site.pages.get(self.path, Page(b"nothing here", 404))
            self.send_response(page.status)
            length = len(page.content) if page.length is None else page.length
            for name, value in ({"Content-Length": str(length)} if length >= 0 else {}).items():
                self.send_header(name, value)
            for name, value in page.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(page.content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = Site(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
