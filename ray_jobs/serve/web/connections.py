"""One connection of the server, over uvicorn's protocols: deadlines, and how much a client may send or leave unread.

In: what arrives at a socket. Out: requests for the application. A `Line` is a connection's transport; it knows since
when something is waited for. `Lines` holds all of them, and cuts those that are late, see `Lines.watch`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httptools
from pydantic import PositiveFloat, PositiveInt
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from clipautt.settings import settings
from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.web.asgi import Headers, Message, Receive, Send, refusal_content, refusal_headers
from ray_jobs.serve.web.door import security_headers
from ray_jobs.serve.web.pace import Pace

_FRAMING_SHARE = 16
"""At most a byte in so many of a body may be framing: sizes of chunks, trailers."""
_DROP = struct.pack("ii", 1, 0)
_MAX_TICK_SECONDS = 1.0
_MAX_FRAMING = 1024 * 1024
_LINE_BYTES = 64
"""A request's first line without the address, and the line that ends its headers."""
_MAX_FRAGMENTS = 1024
"""Of a WebSocket message; empty ones would cost memory, too."""
_WAITING_MESSAGES = 4
"""How many of the largest WebSocket messages may wait for a client that does not read."""


@settings
class ConnectionConfig:
    """Deadlines, limits and encryption of connections."""

    header_seconds: PositiveFloat = 10.0
    """A request's headers must be complete after so many seconds, as must a TLS handshake, s."""
    idle_seconds: PositiveFloat = 5.0
    """How long a connection may wait for its next request, s."""
    answer_seconds: PositiveFloat = 30.0
    """A client that reads nothing of its answer is cut after so many seconds, s."""
    linger_seconds: PositiveFloat = 5.0
    """How long a client whose request is refused may go on sending before it is cut, s."""
    bytes_per_second: PositiveFloat = 16384.0
    """Slowest client that is waited for, uploading or reading its answer, bytes/s."""
    websocket_seconds: PositiveFloat = 20.0
    """How often a WebSocket is pinged, and how long its answer may take, s."""
    websocket_bytes: PositiveInt = 1024 * 1024
    """Largest message on a WebSocket, bytes."""
    max_header_bytes: PositiveInt = 32 * 1024
    """Most bytes in a request's first line and headers."""
    max_connections: PositiveInt = 512
    """Most open connections; further ones are closed at once."""
    max_connections_per_client: PositiveInt = 256
    """Most of them from one address, or one /64 network of IPv6."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose headers X-Forwarded-For and X-Forwarded-Proto are believed."""
    tls_certificate: Path | None = None
    """File with the server's certificate and those that vouch for it, PEM; null: no TLS."""
    tls_key: Path | None = None
    """File with the certificate's private key, PEM, without a password."""

    def __post_init__(self) -> None:
        for proxy in self.trusted_proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ValueError(
                    f"trusted_proxies={proxy!r}: should be an address or a network, such as 10.0.0.5 or 10.0.0.0/24"
                ) from error


class Line:
    """A connection as uvicorn's protocols see it: a transport that counts, and that does not close in mid-request.

    When a refused client is still sending, closing the connection would destroy the answer on its way: the rest is
    discarded for `linger_seconds` first.

    Args:
        address: Address and port at the other end; the socket no longer knows them if the client has gone.
        config: Deadlines and limits.
    """

    def __init__(self, address: tuple[str, int], config: ConnectionConfig) -> None:
        self.address = address
        self.closed = asyncio.Event()
        """Whether the connection has ended."""
        self.receiving = False
        """Whether a request's body is not complete."""
        self.max_waiting_bytes: int | None = None
        """Most bytes that may wait for the client to read them; None: as many as the application sends."""
        self.config = config
        self._transport: Any = None
        self._lingers = False
        self._header_seconds: float | None = None
        """How long the next headers have been waited for; None while they are not."""
        self._closing_seconds = 0.0
        self._written = self._read = 0
        self._pace = Pace(config.bytes_per_second, config.answer_seconds, config.answer_seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def attach(self, transport: asyncio.BaseTransport) -> None:
        """The connection is made; waits for the first headers from now on."""
        self._transport = transport
        self.await_headers()

    def await_headers(self) -> None:
        """The clock of the headers starts, unless it runs."""
        if self._header_seconds is None:
            self._header_seconds = 0.0

    def headers_came(self) -> None:
        """The clock of the headers stops."""
        self._header_seconds = None

    def write(self, data: bytes) -> None:
        """See `asyncio.WriteTransport`."""
        self._written += len(data)
        self._transport.write(data)
        if self.max_waiting_bytes is not None and self._transport.get_write_buffer_size() > self.max_waiting_bytes:
            self.abort()

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport`."""
        return self._lingers or bool(self._transport.is_closing())

    def close(self) -> None:
        """Close once all is sent; lingers first if a request is not complete."""
        if not self.receiving or self._transport.is_closing():
            self._transport.close()
        elif not self._lingers:
            self._lingers = True
            try:
                if self._transport.can_write_eof():
                    self._transport.write_eof()
                self._transport.resume_reading()
            except OSError:  # the client has gone
                self.abort()

    def abort(self) -> None:
        """Cut the connection; what the client has not read is dropped by the system, too."""
        opened = self._transport.get_extra_info("socket")
        if opened is not None:
            with contextlib.suppress(OSError):
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP)
        self._transport.abort()

    def body_came(self) -> None:
        """The request's body is complete."""
        self.receiving = False
        if self._lingers:
            self._transport.close()

    def watch(self, passed: float) -> bool:
        """Whether headers are late; cuts a client that does not read, or goes on sending.

        Args:
            passed: Seconds since the last time.
        """
        if self._transport is None:
            return False
        read = self._written - self._transport.get_write_buffer_size()
        if read == self._written:
            self._pace.reset()
            self._closing_seconds += passed if self.is_closing() else 0  # TLS waits for the client's goodbye
        else:
            self._pace.move(read - self._read)
            self._pace.wait(passed)
        self._read = read
        if self._pace.seconds_left < 0 or self._closing_seconds > self.config.linger_seconds:
            self.abort()
            return False
        if self._header_seconds is None:
            return False
        self._header_seconds += passed
        return self._header_seconds > self.config.header_seconds


class Lines:
    """All open connections.

    Args:
        config: Deadlines and limits.
        on_refusal: Called for each refusal that no application sees: `busy`, `malformed` or `too_slow`.
    """

    def __init__(self, config: ConnectionConfig, on_refusal: Callable[[Refusal], None] | None = None) -> None:
        self.config = config
        self.on_refusal = on_refusal or (lambda refusal: None)
        self.protocols: dict[Line, HttpProtocol] = {}
        self._clients: Counter[str] = Counter()
        self._proxies = [ipaddress.ip_network(proxy) for proxy in config.trusted_proxies]
        self._watched = time.monotonic()

    def admit(self, address: tuple[str, int]) -> Line | None:
        """A connection from a numeric address and port; None if there are too many, of everyone or of this client."""
        client = client_of(address[0])
        limit = self.config.max_connections if self._is_proxy(address[0]) else self.config.max_connections_per_client
        if self._clients.total() >= self.config.max_connections or self._clients[client] >= limit:
            self.on_refusal(Refusal("busy", "too many connections"))
            return None
        self._clients[client] += 1
        return Line(address, self.config)

    def release(self, line: Line) -> None:
        """A connection has ended."""
        self.protocols.pop(line, None)
        self._clients -= Counter([client_of(line.address[0])])

    def watch(self) -> None:
        """Cut what is late; to be called several times a second."""
        now = time.monotonic()
        # Where this process was held up, nobody else was late.
        passed, self._watched = min(now - self._watched, _MAX_TICK_SECONDS), now
        for line, protocol in list(self.protocols.items()):
            if line.watch(passed):
                protocol.refuse_late()

    def abort(self) -> None:
        """Cut everything."""
        for line, protocol in list(self.protocols.items()):
            if protocol.transport is not None:
                line.abort()

    def _is_proxy(self, address: str) -> bool:
        return any(ipaddress.ip_address(address.partition("%")[0]) in network for network in self._proxies)


def client_of(address: str) -> str:
    """Who a numeric address belongs to: IPv6 hands out networks of 64 bits, not addresses."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(getattr(found, "ipv4_mapped", None) or found)


class HttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a deadline for headers, a limit of what is not body, and refusals as JSON."""

    line: Line
    lines: Lines
    _fed = _headers = _body = _requests = 0
    """Since the connection was last idle: all bytes, those of headers, those of bodies, and how many requests."""
    _begun = False
    """Whether a request has begun since then."""
    _broken = False

    @classmethod
    def on(cls, line: Line, lines: Lines, **arguments: Any) -> HttpProtocol:
        """A protocol for one of the connections; the arguments are uvicorn's."""
        protocol = cls(**arguments)
        protocol.line = line
        protocol.lines = lines
        lines.protocols[line] = protocol
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.line.attach(transport)
        super().connection_made(cast(asyncio.Transport, self.line))
        self.client = self.line.address

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self.line.closed.set()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._broken:
            return
        if not self.line.receiving and (self.cycle is None or self.cycle.response_complete):
            self.line.await_headers()
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self._upgrade()
            else:  # such as HTTP/2: answered as if it were not asked for; what follows cannot be read
                self.cycle.keep_alive = False
            return
        except httptools.HttpParserError:
            self._refuse(Refusal("malformed", "this is not an HTTP request that can be read"))
            return
        self._fed += len(data)
        if self._fed - self._headers - self._body > self._max_framing:
            self._refuse(self._headers_too_large())

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._begun = True
        self.line.await_headers()

    def on_headers_complete(self) -> None:
        """A request's headers are complete."""
        self.line.headers_came()
        self.line.receiving = True
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        self._headers += size
        self._requests += 1
        app = self.app
        if size > self._max_header:
            self.app = cast(Any, self._refuse_headers)
        super().on_headers_complete()
        self.app = app

    def on_body(self, body: bytes) -> None:
        """A part of a request's body."""
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete."""
        super().on_message_complete()
        self.line.body_came()

    def on_response_complete(self) -> None:
        """A request is answered."""
        super().on_response_complete()
        if not self.pipeline:
            self._fed = self._headers = self._body = self._requests = 0
            self._begun = False
        if self.line.receiving and not self.pipeline and self.cycle.response_complete:
            self.line.close()

    def refuse_late(self) -> None:
        """The headers did not come in time."""
        if self.flow.read_paused:  # a request before is being answered: it is not the client's doing
            return
        self.line.headers_came()
        if not self._begun:
            self.line.abort()  # no request was sent
        else:
            self._refuse(Refusal("too_slow", "the request's headers did not arrive in time"))

    @property
    def _max_header(self) -> int:
        return self.line.config.max_header_bytes

    @property
    def _max_framing(self) -> int:
        """Most bytes that are in neither complete headers nor bodies: sizes of chunks, trailers, unfinished headers."""
        of_chunks = min(self._body // _FRAMING_SHARE, _MAX_FRAMING)
        return self._max_header + self._requests * _LINE_BYTES + of_chunks

    def _headers_too_large(self) -> Refusal:
        most = f"{self._max_header // 1024} KiB"
        return Refusal("malformed", f"the request's headers are too large; at most {most} are allowed")

    async def _refuse_headers(self, scope: Message, receive: Receive, send: Send) -> None:
        """The application for requests whose headers are too large."""
        refusal = self._headers_too_large()
        self.lines.on_refusal(refusal)
        content, headers = self._answer_of(refusal)
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _answer_of(self, refusal: Refusal) -> tuple[bytes, Headers]:
        content = refusal_content(refusal)
        headers = refusal_headers(refusal, content) + security_headers("", secure=self.scheme == "https")
        return content, [*headers, (b"connection", b"close")]

    def _upgrade(self) -> None:
        self.line.headers_came()
        self.line.receiving = False
        self.line.max_waiting_bytes = _WAITING_MESSAGES * self.line.config.websocket_bytes
        self.handle_websocket_upgrade()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer before there is a request to answer; between the answers of others that would be taken for theirs."""
        self._broken = True
        self.lines.on_refusal(refusal)
        if self.line.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            self.line.abort()
            return
        content, headers = self._answer_of(refusal)
        lines = b"".join(b"%s: %s\r\n" % header for header in [*self.server_state.default_headers, *headers])
        self.line.receiving = True  # so that closing lingers
        self.line.write(STATUS_LINE[refusal.status] + lines + b"\r\n" + content)
        self.line.close()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """A WebSocket that tells its line when it ends, and does not collect fragments without end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self.client = cast(Line, transport).address

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        cast(Line, self.transport).closed.set()

    async def send(self, message: Any) -> None:
        """See ASGI; a refused handshake is complete, too, which uvicorn would log as an error."""
        await super().send(message)
        self.handshake_complete |= self.close_sent

    def handle_cont(self, event: Frame) -> None:
        """A further fragment of a message."""
        if len(self.frames) < _MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            self.frames = []
            with contextlib.suppress(Exception):
                self.conn.fail(1009, "too many fragments")
            self.handle_parser_exception()
