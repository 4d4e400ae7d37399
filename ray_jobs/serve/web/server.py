"""The listening socket: uvicorn with deadlines and TLS, in a thread with an event loop of its own.

In: an ASGI application, an address and `ConnectionConfig`. Out: a `Listener`, which accepts connections between `start`
and `stop`. Its thread is not the one that Ray calls its replicas in, so that neither waits for the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.web.asgi import ASGI
from ray_jobs.serve.web.connections import ConnectionConfig, HttpProtocol, Line, Lines, WebSocketProtocol

_BACKLOG = 1024
_SEND_BYTES = 256 * 1024
"""How much of an answer the system takes at once. Only when a third of it is free again does a client count as reading;
with the megabytes that systems choose, one that reads slowly could not be told from one that does not."""
_START_SECONDS = 60.0
_STOP_SECONDS = 10
"""How long answers may take that are on their way when the server stops."""
_RENEWAL_TICKS = 100
"""uvicorn ticks ten times a second; how many ticks lie between two looks at the certificate."""
_FILES_BESIDES = 512
"""Files that a process may have open besides its connections."""

logger = logging.getLogger(__name__)


class Listener:
    """Serves an ASGI application until it is stopped.

    Args:
        app: The application.
        host: Address or name of this machine to listen on.
        port: Port; 0 chooses a free one.
        config: Deadlines, limits and encryption.
        on_refusal: Called, in the listener's thread, for each refusal that the application does not see.

    Raises:
        ValueError: Certificate and key cannot be used; the message says why.
    """

    def __init__(
        self,
        app: ASGI,
        *,
        host: str,
        port: int,
        config: ConnectionConfig | None = None,
        on_refusal: Callable[[Refusal], None] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self._config = config or ConnectionConfig()
        self._tls = tls_context(self._config.tls_certificate, self._config.tls_key)
        lines = Lines(self._config, on_refusal)
        self._server = _Server(_uvicorn_config(app, self._config), lines, self._tls)
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """Whether it is listening."""
        return self._thread is not None and self._thread.is_alive() and self._server.started

    @property
    def url(self) -> str:
        """Its address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self._tls is None else 'https'}://{host}:{self.port}"

    def start(self) -> None:
        """Listen; returns once connections are accepted.

        Raises:
            ConnectionError: The port is taken or may not be used, or the host is not of this machine.
        """
        _allow_files(self._config.max_connections + _FILES_BESIDES)
        sockets = bind(self.host, self.port)
        self.port = sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._run, args=(sockets,), name="listener", daemon=True)
        self._thread.start()
        self._server.ready.wait(_START_SECONDS)
        if not self.alive:
            self.stop()
            raise ConnectionError(f"the server at {self.url} does not start; its log says why")

    def stop(self) -> None:
        """Stop listening, wait some seconds for answers that are on their way, and cut the rest."""
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join(2 * _STOP_SECONDS)

    def _run(self, sockets: list[socket.socket]) -> None:
        try:
            asyncio.run(self._server.serve(sockets))
        except BaseException as error:
            logger.error("the listener ended", exc_info=error)
        finally:
            for opened in sockets:
                opened.close()
            self._server.ready.set()


def tls_context(certfile: Path | None, keyfile: Path | None) -> ssl.SSLContext | None:
    """TLS 1.2 or later by a certificate and its key; None without them.

    Raises:
        ValueError: One is missing, cannot be read, or does not belong to the other.
    """
    if certfile is None and keyfile is None:
        return None
    for name, path in {"tls_certificate": certfile, "tls_key": keyfile}.items():
        if path is None:
            raise ValueError(f"{name}=null: TLS needs both tls_certificate and tls_key")
        try:
            path.read_bytes()
        except OSError as error:
            raise ValueError(f"{name}={path}: cannot be read ({error.strerror})") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    pair = f"tls_certificate={certfile} and tls_key={keyfile}"
    try:
        context.load_cert_chain(str(certfile), str(keyfile), password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"{pair}: the key does not belong to the certificate") from error
        raise ValueError(
            f"{pair}: should be PEM files with a certificate and its key ({error.reason or error})"
        ) from error
    return context


def _no_password() -> str:
    raise ValueError("tls_key: the key has a password; `openssl pkey -in KEY -out NEW_KEY` writes one without")


def bind(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address that a host name stands for.

    Raises:
        ConnectionError: None can be used; the message says why and what to do.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConnectionError(f"host={host}: no address is known for it; 127.0.0.1 is this machine only") from error
    sockets: list[socket.socket] = []
    problems: list[OSError] = []
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        try:
            bound = socket.create_server((address[0], port), family=family, backlog=_BACKLOG)
        except OSError as error:
            problems.append(error)
            continue
        bound.setblocking(False)
        sockets.append(bound)
        port = bound.getsockname()[1]
    in_use = next((error for error in problems if error.errno != errno.EADDRNOTAVAIL), None)
    if in_use is not None or not sockets:
        for bound in sockets:
            bound.close()
        raise ConnectionError(_why(in_use or problems[0], host, port)) from (in_use or problems[0])
    return sockets


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; choose another with port=…, or stop what listens there"
    if error.errno == errno.EACCES:
        return f"port {port} may not be used by this user; choose one above 1023 with port=…"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host={host} is no address of this machine; 127.0.0.1 is this machine only, 0.0.0.0 all its addresses"
    return f"{host}:{port} cannot be listened on: {error.strerror or error}"


def _allow_files(number: int) -> None:
    """Raise the number of files that this process may have open, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        most = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _uvicorn_config(app: ASGI, config: ConnectionConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=HttpProtocol,
        ws=WebSocketProtocol,
        ws_max_size=config.websocket_bytes,
        ws_ping_interval=config.websocket_seconds,
        ws_ping_timeout=config.websocket_seconds,
        ws_per_message_deflate=False,
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=bool(config.trusted_proxies),
        forwarded_allow_ips=list(config.trusted_proxies),
        server_header=False,
        timeout_keep_alive=config.idle_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=_STOP_SECONDS,
    )


class _Server(uvicorn.Server):
    """uvicorn with its own way of accepting connections, so that they count before their TLS handshake."""

    def __init__(self, config: uvicorn.Config, lines: Lines, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._lines = lines
        self._tls = tls
        self._certified = self._certificate_times()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise RuntimeError("the application does not start")
        self.servers = [_Acceptor(self, bound) for bound in sockets or []]  # type: ignore[misc]
        self.started = True
        self.ready.set()

    async def on_tick(self, counter: int) -> bool:
        self._lines.watch()
        if counter % _RENEWAL_TICKS == 0:
            self._renew()
        return await super().on_tick(counter)

    def _certificate_times(self) -> list[int]:
        config = self._lines.config
        paths = [path for path in (config.tls_certificate, config.tls_key) if path is not None]
        return [path.stat().st_mtime_ns for path in paths if path.exists()]

    def _renew(self) -> None:
        """Use a certificate that has been renewed, once both files can be used; until then the earlier one."""
        times = self._certificate_times()
        if self._tls is None or times == self._certified:
            return
        config = self._lines.config
        try:
            tls_context(config.tls_certificate, config.tls_key)
            self._tls.load_cert_chain(str(config.tls_certificate), str(config.tls_key), password=_no_password)
            self._certified = times
        except (ValueError, OSError) as error:
            logger.warning("the renewed certificate is not used yet: %s", error)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._lines.abort()

    async def greet(self, accepted: socket.socket, line: Line) -> None:
        """Serve one connection until it ends."""
        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {"ssl": self._tls, "ssl_handshake_timeout": self._lines.config.header_seconds}
            if sys.version_info >= (3, 11):
                tls["ssl_shutdown_timeout"] = self._lines.config.linger_seconds
        loop = asyncio.get_running_loop()
        uvicorns = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        protocol = HttpProtocol.on(line, self._lines, **uvicorns, _loop=loop)
        try:
            await loop.connect_accepted_socket(lambda: protocol, accepted, **tls)
            await line.closed.wait()
        except OSError:  # the handshake failed, or was late
            pass
        finally:
            accepted.close()
            self._lines.release(line)

    def admit(self, accepted: socket.socket, address: tuple[str, int]) -> asyncio.Task[None] | None:
        """Begin to serve a connection; closes it at once if there are too many."""
        line = self._lines.admit(address)
        if line is None:
            accepted.close()
            return None
        with contextlib.suppress(OSError):
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        return asyncio.get_running_loop().create_task(self.greet(accepted, line))


class _Acceptor:
    """Accepts connections at one socket; uvicorn closes it like an `asyncio.Server`."""

    def __init__(self, server: _Server, listening: socket.socket) -> None:
        self._server = server
        self._listening = listening
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def close(self) -> None:
        self._accepting.cancel()
        self._listening.close()

    async def wait_closed(self) -> None:
        await asyncio.wait([self._accepting])

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(self._listening)
            except OSError as error:  # the client has gone, or there are too many open files
                logger.warning("a connection was not accepted: %s", error)
                await asyncio.sleep(0.1)
                continue
            task = self._server.admit(accepted, address[:2])
            if task is not None:
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
