"""Every request is counted, timed and written to a log: when, which route, what became of it, and whose key.

In: an ASGI application. Out: the same one inside `Watch`; figures in a `Metrics`, and a line of JSON per request:

    {"time": "2026-01-31T12:00:00.250Z", "method": "PUT", "route": "/v1/subjects/{subject_id}", "status": 202,
     "code": null, "seconds": 0.214, "bytes_in": 48133, "key": "3f0c5d2a"}

There is nothing of a person in it: routes are templates, because ids in addresses name people; no address of a client,
no file name, no words of a request.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import stat
import time
from collections.abc import MutableMapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from logging.handlers import QueueListener, RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

from ray_jobs.serve.refusals import KINDS
from ray_jobs.serve.web.asgi import ASGI, Message, Receive, Send
from ray_jobs.serve.web.metrics import Metrics, known_method

UNMATCHED = "unmatched"
"""Stands for every address without a route."""
CLIENT_LEFT = 499
"""In place of a status where the client left before the answer, as in nginx."""

_NOTED = "clipautt.noted"
_MOUNTED = "app_root_path"
"""Key that Starlette adds to the scope of what it hands to another application."""
_MAX_WAITING = 10_000
_MAX_PROBLEM_BYTES = 16_384

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Line:
    """What the log says of a request."""

    time: str
    """When its headers came, ISO 8601, UTC."""
    method: str
    route: str
    """Template of its route."""
    status: int
    """HTTP status; of a live session 101."""
    code: str | None
    """Why it was refused, see `refusals.KINDS`."""
    seconds: float
    """Until its answer was sent."""
    bytes_in: int
    """Bytes of its body, or of a live session's messages."""
    key: str | None
    """Public id of its API key."""


class AccessLog:
    """Writes lines to a file in a thread of its own.

    When the file is full, it is renamed to `NAME.1` and a new one begun. A line that cannot be written, because the
    disk is full or too slow, is lost and counted, and stops nobody.

    Args:
        path: the file, which only its owner may read.
        max_bytes: size of a full one.
        files: how many full ones are kept, at least 1.
    """

    def __init__(self, path: Path, *, max_bytes: int = 10_000_000, files: int = 5) -> None:
        if max_bytes < 1 or files < 1:
            raise ValueError(f"max_bytes={max_bytes}, files={files}: expected at least 1 of both")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines: queue.Queue[Any] = queue.Queue(_MAX_WAITING)
        self._file = PrivateFile(path, maxBytes=max_bytes, backupCount=files, encoding="utf-8", delay=True)
        self._listener = QueueListener(self._lines, self._file)
        self._listener.start()

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._file.lost

    def write(self, line: Line) -> None:
        """Hand a line to the writing thread; returns at once."""
        text = json.dumps(asdict(line))
        try:
            self._lines.put_nowait(logging.makeLogRecord({"msg": text, "levelno": logging.INFO}))
        except queue.Full:
            self._file.lose()

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._lines.join()
        self._listener.stop()
        self._file.close()


class PrivateFile(RotatingFileHandler):
    """The file of a log; a failed write closes it, so that the next one begins anew."""

    lost = 0
    _failing = False

    def lose(self) -> None:
        """Count a line that is not written."""
        self.lost += 1
        if not self._failing:
            self._failing = True
            logger.warning("the log %s loses lines; requests go on", self.baseFilename)

    def emit(self, record: logging.LogRecord) -> None:
        lost = self.lost
        super().emit(record)
        if self._failing and self.lost == lost:
            self._failing = False
            logger.warning("the log %s is written again; %d lines were lost so far", self.baseFilename, lost)

    def handleError(self, record: logging.LogRecord) -> None:
        self.lose()
        stream, self.stream = self.stream, None  # type: ignore[assignment]
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:
                stream.close()

    def _open(self) -> TextIO:  # type: ignore[override]
        handle = os.open(self.baseFilename, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            os.fchmod(handle, 0o600)
            end = os.lseek(handle, 0, os.SEEK_END)
            if end and os.pread(handle, 1, end - 1) != b"\n":  # a line was cut off
                os.write(handle, b"\n")
        return os.fdopen(handle, "a", encoding="utf-8")


@dataclass
class _Noted:
    """What is learned of a request while it is answered."""

    root: str
    """`root_path` of the scope before the application changed it."""
    began: float = field(default_factory=time.monotonic)
    moment: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    status: int | None = None
    code: str | None = None
    owner: str | None = None
    received: int = 0
    left: bool = False
    """Whether the client left before its answer began; what is sent then, such as a status of 500, reaches nobody."""
    failed: bool = False
    """Whether the application raised."""
    problem: bytearray | None = field(default=None, repr=False)
    """Begin of the body of a refusal."""


def note(scope: MutableMapping[str, Any], *, owner: str | None = None, code: str | None = None) -> None:
    """Say whose key a request has, or why a live session is refused, for its line in the log.

    Why a request is refused need not be said: it is read from its answer.

    Args:
        scope: of the request, as in `request.scope`.
        owner: public id of the key.
        code: of the refusal.
    """
    noted = scope.get(_NOTED)
    if isinstance(noted, _Noted):
        noted.owner = owner or noted.owner
        noted.code = code or noted.code


class Watch:
    """ASGI layer around all others, so that what they refuse is counted, too.

    Args:
        app: what answers.
        metrics: where requests are counted.
        log: where they are written; None for nowhere.
    """

    def __init__(self, app: ASGI, metrics: Metrics, log: AccessLog | None) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, and remember what became of it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        noted = scope[_NOTED] = _Noted(scope.get("root_path", ""))

        async def received() -> Message:
            message = await receive()
            _note_received(noted, message)
            return message

        async def sent(message: Message) -> None:
            _note_sent(noted, message)
            await send(message)

        try:
            await self._app(scope, received, sent)
        except Exception:
            noted.failed = True
            raise
        finally:
            self._conclude(scope, noted)

    def _conclude(self, scope: Message, noted: _Noted) -> None:
        seconds = time.monotonic() - noted.began
        left = noted.left or (noted.status is None and not noted.failed)
        status = CLIENT_LEFT if left else noted.status or 500
        code = None if left else noted.code or _code_in(noted.problem) or ("failed" if noted.failed else None)
        route, method = route_of(scope, noted.root), known_method(scope.get("method", "GET"))
        timed = seconds if scope["type"] == "http" else None
        self._metrics.observe_request(route, method, status, timed, noted.received)
        if code is not None:
            self._metrics.observe_refusal(code)
        if self._log is not None:
            moment = noted.moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            self._log.write(Line(moment, method, route, status, code, round(seconds, 3), noted.received, noted.owner))


def route_of(scope: MutableMapping[str, Any], root: str = "") -> str:
    """Template of the route that a request matched, such as `/v1/subjects/{subject_id}`; never its path.

    Args:
        scope: of the request, after it was answered.
        root: its `root_path` before that.
    """
    template = getattr(scope.get("route"), "path_format", None)
    if isinstance(template, str):
        return template
    if "endpoint" not in scope or scope.get("path_params"):
        return UNMATCHED
    if _MOUNTED in scope:  # also at `/`, where everything ends up that no route takes
        return f"{str(scope.get('root_path', '')).removeprefix(root)}/{{path}}"
    # A route without parameters is its own template; with a line feed at the end it matches, too.
    return str(scope["path"]).rstrip("\n")


def _note_received(noted: _Noted, message: Message) -> None:
    kind = message["type"]
    if kind == "http.request":
        noted.received += len(message.get("body", b""))
    elif kind == "websocket.receive":
        noted.received += len(message.get("bytes") or b"") + len((message.get("text") or "").encode())
    elif kind == "http.disconnect" and noted.status is None:
        noted.left = True


def _note_sent(noted: _Noted, message: Message) -> None:
    kind = message["type"]
    if kind in ("http.response.start", "websocket.http.response.start"):
        noted.status = message["status"]
        is_json = any(
            name.lower() == b"content-type" and b"json" in value for name, value in message.get("headers", ())
        )
        noted.problem = bytearray() if is_json and message["status"] >= 400 else None
    elif kind in ("http.response.body", "websocket.http.response.body"):
        if noted.problem is not None and len(noted.problem) < _MAX_PROBLEM_BYTES:
            noted.problem += message.get("body", b"")
    elif kind == "websocket.accept":
        noted.status = 101
    elif kind == "websocket.close" and noted.status is None:
        noted.status = 403


def _code_in(problem: bytearray | None) -> str | None:
    """The code of a `Problem`; None if the answer is none."""
    try:
        code = json.loads(problem or b"null")["code"]
    except (ValueError, TypeError, KeyError):
        return None
    return code if isinstance(code, str) and code in KINDS else None
