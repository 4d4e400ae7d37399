"""What every request passes before the application: host names, origins, security headers, request ids, bytes.

In: an ASGI application. Out: the same behind a `Door`. It knows no routes. Whatever fails behind it, known or not, is
answered as the JSON of a `Refusal`.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from ray_jobs.serve.refusals import KINDS, Refusal, RefusedError
from ray_jobs.serve.web.asgi import ASGI, Headers, Message, Receive, Send, refuse

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::(?P<port>\d{1,5}))?", re.IGNORECASE)
_SHARED = "/api/videos/"
"""Addresses below it may be shown by pages of other sites."""
_FAILED = 1011
"""Code of a WebSocket that ends because the server failed."""
_CORS_SECONDS = 600
_HSTS_SECONDS = 365 * 24 * 3600

logger = logging.getLogger(__name__)


def allowed_hosts(host: str, names: Collection[str] = ()) -> frozenset[str]:
    """Host names that a request may be sent to.

    Args:
        host: The address that the server listens on.
        names: Further names of the server, such as that of the proxy before it; `*` allows all of them.

    Raises:
        ValueError: A name is none: it has a port, a scheme or a path.
    """
    for name in names:
        found = _HOST.fullmatch(name)
        if name != "*" and (found is None or found["port"]):
            raise ValueError(
                f"hosts={name!r}: should be a host name without scheme, port and path, such as clinic.example"
            )
    own = {host} - _ANY_ADDRESS
    return frozenset(name.strip("[]").rstrip(".").lower() for name in {*_LOOPBACK, *own, *names})


def parse_origin(origin: str) -> str:
    """An origin as browsers write it: scheme, host, and port unless it is the scheme's own.

    Raises:
        ValueError: It is no origin of a web page.
    """
    problem = f"origins={origin!r}: should be scheme://host or scheme://host:port, such as https://clinic.example"
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError as error:
        raise ValueError(problem) from error
    if (
        parts.scheme not in _DEFAULT_PORTS
        or not _HOST.fullmatch(parts.netloc)
        or origin != f"{parts.scheme}://{parts.netloc}"
    ):
        raise ValueError(problem)
    host = parts.netloc.lower().rpartition(":")[0] if port is not None else parts.netloc.lower()
    return f"{parts.scheme}://{host}" + ("" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}")


@dataclass
class _Visit:
    """A request or handshake on its way through the door."""

    scope: Message
    headers: dict[bytes, list[bytes]]
    request_id: str = field(default_factory=lambda: secrets.token_hex(8))
    host: str | None = None
    """The Host header, once it is known to be allowed."""
    listed_origin: bytes | None = None
    """The Origin, if it is another site's that may ask."""
    announced: int = 0
    received: int = 0
    """Bytes of the body by Content-Length, and so far."""
    unread: bool = False
    """Whether a part of the body has not been read."""
    started: bool = False
    finished: bool = False
    """Whether the answer has begun, and is complete."""

    @property
    def websocket(self) -> bool:
        return bool(self.scope["type"] == "websocket")

    @property
    def secure(self) -> bool:
        return self.scope.get("scheme") in ("https", "wss")

    def one(self, name: bytes) -> bytes | None:
        """The only value of a header; None if it is missing or repeated."""
        values = self.headers.get(name, [])
        return values[0] if len(values) == 1 else None


class Door:
    """The ASGI layer around the application.

    Args:
        app: The application.
        hosts: Names of this server, see `allowed_hosts`. The numeric address that a request came in by is allowed, too:
            only names can be made to lead here by another site.
        origins: Origins of other sites whose pages may ask, such as `https://clinic.example`.
        max_body_bytes: Most bytes in the body of any request; routes may allow less.

    Raises:
        ValueError: An origin is none.
    """

    def __init__(self, app: ASGI, *, hosts: frozenset[str], origins: Collection[str] = (), max_body_bytes: int) -> None:
        self.app = app
        self.hosts = hosts
        self.origins = frozenset(parse_origin(origin) for origin in origins)
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request or handshake, or hand it on."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        visit = _visit(scope)
        scope.setdefault("state", {})["request_id"] = visit.request_id

        async def send_on(message: Message) -> None:
            if message["type"] == "websocket.close" and not visit.started:  # no route takes this handshake
                await refuse(Refusal("not_found", KINDS["not_found"][1]), send_on, websocket=True)
                return
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                visit.started = True
                message["headers"] = [*message.get("headers", ()), *self._headers(visit, message)]
            elif message["type"] in ("websocket.accept", "websocket.close"):
                visit.started = True
            await send(message)
            if message["type"] in ("http.response.body", "websocket.http.response.body"):
                visit.finished = not message.get("more_body", False)
            elif message["type"] == "websocket.close":
                visit.finished = True

        try:
            self._check(visit)
            if _is_preflight(visit):
                await send_on({"type": "http.response.start", "status": 204, "headers": _preflight(visit)})
                await send_on({"type": "http.response.body"})
                return
            await self.app(scope, self._counted(visit, receive), send_on)
        except RefusedError as error:
            await self._answer(visit, error.refusal, send_on)
        except (ClientDisconnect, WebSocketDisconnect):
            pass
        except Exception as error:
            logger.error("request %s failed", visit.request_id, exc_info=error)
            await self._answer(visit, Refusal("failed", f"request {visit.request_id} failed"), send_on)

    async def _answer(self, visit: _Visit, refusal: Refusal, send: Send) -> None:
        if not visit.started:
            await refuse(refusal, send, websocket=visit.websocket)
        elif not visit.finished and visit.websocket:
            await send({"type": "websocket.close", "code": _FAILED})
        elif not visit.finished:  # the server cuts the connection, so that nobody takes what was sent for all
            raise ConnectionAbortedError(f"request {visit.request_id} failed after its answer had begun")

    def _check(self, visit: _Visit) -> None:
        """Raises RefusedError if the headers alone are refused."""
        self._check_host(visit)
        self._check_origin(visit)
        length = visit.one(b"content-length") or b"0"
        if not length.isdigit():
            raise RefusedError("malformed", "Content-Length is not a number")
        visit.announced = int(length)
        visit.unread = visit.announced > 0 or b"transfer-encoding" in visit.headers
        if visit.announced > self.max_body_bytes:
            raise self._too_large()

    def _check_host(self, visit: _Visit) -> None:
        text = (visit.one(b"host") or b"").decode("latin-1")
        found = _HOST.fullmatch(text)
        name = found["name"].strip("[]").rstrip(".").lower() if found else None
        here = (visit.scope.get("server") or ("",))[0]
        if name is None or not ({name, "*"} & self.hosts or name == here):
            raise RefusedError("unknown_host", "the request was sent to a host name that is not this server's")
        visit.host = text.lower()

    def _check_origin(self, visit: _Visit) -> None:
        if b"origin" not in visit.headers:
            return
        origin = visit.one(b"origin")
        try:
            site = parse_origin((origin or b"").decode("latin-1"))
            scheme = site.partition("://")[0]
            own = parse_origin(f"{scheme}://{visit.host}")
        except ValueError:
            site, scheme, own = "", "", "none"
        if site in self.origins:
            visit.listed_origin = origin
        elif site != own or (visit.secure and scheme != "https"):
            raise RefusedError("other_site", "requests from other sites' pages are not answered")

    def _counted(self, visit: _Visit, receive: Receive) -> Receive:
        """ASGI's `receive` that stops at the limit."""

        async def receive_counted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                visit.received += len(message.get("body", b""))
                if visit.received > self.max_body_bytes:
                    raise self._too_large()
                visit.unread = message.get("more_body", False)
            return message

        return receive_counted

    def _too_large(self) -> RefusedError:
        return RefusedError(
            "too_large", f"the request is too large; at most {self.max_body_bytes / 1e6:g} MB are allowed"
        )

    def _headers(self, visit: _Visit, message: Message) -> Headers:
        """Headers that an answer gets besides its own."""
        present = {name.lower() for name, _ in message.get("headers", ())}
        headers = [(b"x-request-id", visit.request_id.encode())]
        headers += security_headers(visit.scope.get("path", ""), host=visit.host, secure=visit.secure)
        if self.origins:
            headers.append((b"vary", b"Origin"))
        if visit.listed_origin is not None:
            headers.append((b"access-control-allow-origin", visit.listed_origin))
            headers.append((b"access-control-expose-headers", b"Retry-After, Location, X-Request-Id"))
        if visit.unread and not visit.websocket:
            headers.append((b"connection", b"close"))
        return [(name, value) for name, value in headers if name not in present or name == b"vary"]


def security_headers(path: str, *, host: str | None = None, secure: bool = False) -> Headers:
    """Headers of every answer, https://owasp.org/www-project-secure-headers.

    Args:
        path: Path of the request.
        host: Checked value of its Host header; WebSockets to it are allowed by name, for browsers in which `'self'`
            does not include them.
        secure: Whether it came by TLS; the browser is then told to use nothing else, unless it is on this machine.
    """
    sockets = f" ws://{host} wss://{host}" if host else ""
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'{sockets}; "
        "media-src 'self' blob:; img-src data: blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = [
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", policy.encode("latin-1")),
        (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"cross-origin" if path.startswith(_SHARED) else b"same-origin"),
    ]
    if secure and host and host.rpartition(":")[0] != "localhost" != host:
        headers.append((b"strict-transport-security", f"max-age={_HSTS_SECONDS}".encode()))
    return headers


def _visit(scope: Message) -> _Visit:
    headers: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.lower(), []).append(value)
    return _Visit(scope, headers)


def _is_preflight(visit: _Visit) -> bool:
    return visit.listed_origin is not None and not visit.websocket and visit.scope["method"] == "OPTIONS"


def _preflight(visit: _Visit) -> Headers:
    """What a browser is told before it sends a listed site's request, https://fetch.spec.whatwg.org/#http-cors-protocol."""
    headers = [
        (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
        (b"access-control-allow-headers", b"Authorization, Content-Type, X-API-Key"),
        (b"access-control-max-age", str(_CORS_SECONDS).encode()),
    ]
    if visit.one(b"access-control-request-private-network") == b"true":
        headers.append((b"access-control-allow-private-network", b"true"))
    return headers
