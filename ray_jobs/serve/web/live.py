"""The live socket: a browser sends JPEG frames, and is told what the model sees in them while it looks.

In: a WebSocket, and a `Pipeline` to ask. Out: JSON messages, see `Live.serve`. At most one frame of a session is in
work. The socket is read all the same: frames that arrive meanwhile are dropped and counted. What a session knows of its
frames is held here, has a bound (`live_state`), and is gone when its client is.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from clipautt.settings import settings
from ray_jobs.serve.refusals import Refusal, RefusedError, unless_refused
from ray_jobs.serve.web.access_log import note
from ray_jobs.serve.web.asked import Pipeline
from ray_jobs.serve.web.forms import check_subject
from ray_jobs.serve.web.keys import Who
from ray_jobs.serve.web.live_state import LONGEST_REST, LiveState

Authenticate = Callable[[WebSocket, str | None], Awaitable[Who | Refusal]]
"""The socket and the key of its first message → who it is, or why nobody."""
Lapsed = Callable[[WebSocket, str | None], Refusal | None]
"""The same → why the key is none any more; None while it is one."""
_TEXT_CHARACTERS = 4096
_WAITING_PER_CLIENT = 4
"""Sockets that have not said yet who they are, as a multiple of the clients that are served."""
_RETRY_SECONDS = 10
_CLOSE_CODES = {413: 1009, 500: 1011, 503: 1013, 429: 1013}
"""HTTP status → close code of RFC 6455 and its registry; 1008, against the rules, for any other."""
_EXAMPLE = '{"type": "start", "model": "pain", "resting_seconds": 3}'

logger = logging.getLogger(__name__)


@settings
class LiveLimits:
    """Limits of the live socket."""

    max_clients: PositiveInt = 8
    """Live sessions at once; another client is told that the server is busy."""
    start_seconds: PositiveFloat = 5.0
    """How long a client may take to say what it wants."""
    idle_seconds: PositiveFloat = 30.0
    """How long a client may be silent."""
    session_seconds: PositiveFloat = 1800.0
    """How long a session may last."""
    answer_seconds: PositiveFloat = 5.0
    """How long a frame may take, and how long a client may take to receive an answer."""
    max_frame_mb: PositiveFloat = 1.0
    """Size of a frame's JPEG, millions of bytes."""
    max_bad_frames: PositiveInt = 20
    """Frames in a row that cannot be used; then the session ends."""
    trouble_seconds: PositiveFloat = 60.0
    """How long a session goes on without answers while the server has trouble, such as a worker that restarts."""


class _Start(BaseModel):
    """The first message."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["start"]
    model: str | None = Field(None, max_length=200)
    subject_id: str | None = None
    key: str | None = Field(None, max_length=500)
    resting_seconds: float | None = Field(None, ge=0, le=LONGEST_REST)


class _Rest(BaseModel):
    """The resting face begins now."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["rest"]
    seconds: float = Field(3.0, gt=0, le=LONGEST_REST)


class _GoneError(Exception):
    """The client is not there any more, or does not take what it is sent."""


class Live:
    """All live sessions of a web process.

    Args:
        pipeline: the deployments.
        authenticate: who a client is.
        lapsed: whether its key was revoked meanwhile; asked at each message, so that none is answered afterwards.
        limits: how many, how long, how large.
        on_clients: called with the number of sessions whenever it changes.
        on_frame: called for each frame with what became of it, `answered`, `dropped` or the code of a refusal, and the
            seconds that it took.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        authenticate: Authenticate,
        lapsed: Lapsed = lambda socket, key: None,
        limits: LiveLimits | None = None,
        on_clients: Callable[[int], None] = lambda number: None,
        on_frame: Callable[[str, float], None] = lambda outcome, seconds: None,
    ) -> None:
        self.pipeline = pipeline
        self.limits = limits or LiveLimits()
        self.on_frame = on_frame
        self.lapsed = lapsed
        self._authenticate = authenticate
        self._on_clients = on_clients
        self._waiting: dict[asyncio.Task[tuple[_Start, Who]], None] = {}
        self.clients = 0
        """Sessions at this moment."""

    async def serve(self, socket: WebSocket) -> None:
        """Serve one socket until it is closed.

        The first message is JSON text, `{"type": "start", "model", "subject_id", "key", "resting_seconds"}`, of which
        only the type is needed. It is answered by `ready`. Then each binary message is a JPEG, and is answered by a
        `frame` unless it is dropped; `{"type": "rest", "seconds"}` declares that the resting face begins now, and is
        answered by a `rest` once it is known. An `error` has code, detail and help of a `Refusal`, the number of the
        frame where it is about one, and `final`: whether the session is over.
        """
        await socket.accept()
        client = _Client(socket, self.limits)
        try:
            await self._serve(client)
        except _GoneError:
            pass
        except RefusedError as error:
            await client.refuse(error.refusal)
        except Exception:
            logger.exception("a live session failed")
            await client.refuse(Refusal("failed", "the server failed in this session"))

    async def _serve(self, client: _Client) -> None:
        start, who = await self._introduction(client)
        if self.clients >= self.limits.max_clients:
            raise RefusedError(
                "busy", f"{self.limits.max_clients} live sessions at once are allowed", retry_seconds=_RETRY_SECONDS
            )
        self._count(1)
        try:
            facts = await self._facts(start, who)
            await client.send(
                {"type": "ready"}
                | {k: facts[k] for k in ("action_units", "classes", "window_frames")}
                | {"model": facts["name"]}
            )
            state = LiveState(facts["name"], who, start.subject_id)
            if start.resting_seconds:
                state.rest(start.resting_seconds)
            await _Session(self, client, state, start.key).run()
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self.clients += change
        self._on_clients(self.clients)

    async def _introduction(self, client: _Client) -> tuple[_Start, Who]:
        """`_introduced`; where too many are silent, the first of them goes, so that they keep nobody else out."""
        introducing = asyncio.create_task(self._introduced(client))
        self._waiting[introducing] = None
        most = _WAITING_PER_CLIENT * self.limits.max_clients
        if len(self._waiting) > most:
            first = next(iter(self._waiting))
            del self._waiting[first]
            first.cancel()
        try:
            await asyncio.wait({introducing})
            if introducing.cancelled():
                said = f"{most} clients have connected since and not said yet what they want"
                raise RefusedError("busy", said, retry_seconds=_RETRY_SECONDS)
            return introducing.result()
        finally:
            self._waiting.pop(introducing, None)
            introducing.cancel()

    async def _introduced(self, client: _Client) -> tuple[_Start, Who]:
        """The first message, and who sent it."""
        message = await client.receive(self.limits.start_seconds)
        if message is None:
            raise RefusedError("too_slow", f"no first message within {self.limits.start_seconds:g} s")
        if isinstance(message, bytes):
            raise RefusedError("malformed", f"a frame before the first message, which is {_EXAMPLE}")
        start: _Start = _parsed(message, TypeAdapter(_Start), f"the first message is {_EXAMPLE}")
        return start, unless_refused(await self._authenticate(client.socket, start.key))

    async def _facts(self, start: _Start, who: Who) -> dict[str, Any]:
        """The model that is asked for, as `schemas.ServedModel`."""
        models = {one["name"]: one for one in unless_refused(await self.pipeline.models())}
        name = next(iter(models)) if start.model is None else start.model
        if name not in models:
            raise RefusedError("unknown_model", f"no such model; there are: {', '.join(models)}")
        if start.subject_id is not None:
            check_subject(start.subject_id)
            stored = unless_refused(await self.pipeline.subject(who, start.subject_id))
            if name not in stored["models"]:
                raise RefusedError("unknown_subject", f"nothing is stored of this subject for model {name}")
        facts: dict[str, Any] = models[name]
        return facts


class _Client:
    """A socket with deadlines.

    Args:
        socket: accepted.
        limits: how long sending may take.
    """

    def __init__(self, socket: WebSocket, limits: LiveLimits) -> None:
        self.socket = socket
        self._limits = limits
        self._sending = asyncio.Lock()

    async def message(self) -> str | bytes:
        """The next message."""
        message = await self.socket.receive()
        if message["type"] == "websocket.disconnect":
            raise _GoneError
        content: str | bytes | None = message.get("bytes")
        return message["text"] if content is None else content

    async def receive(self, seconds: float) -> str | bytes | None:
        """The next message; None if there is none in this time."""
        try:
            return await asyncio.wait_for(self.message(), seconds)
        except asyncio.TimeoutError:
            return None

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send a message as JSON text."""
        text = json.dumps(message, allow_nan=False, separators=(",", ":"))
        try:
            async with self._sending:
                await asyncio.wait_for(self.socket.send_text(text), self._limits.answer_seconds)
        except (asyncio.TimeoutError, WebSocketDisconnect, RuntimeError, OSError) as error:
            raise _GoneError from error

    async def refuse(self, refusal: Refusal) -> None:
        """Say why the session is over, and close."""
        note(self.socket.scope, code=refusal.code)
        code = _CLOSE_CODES.get(refusal.status, 1008)
        try:
            await self.send(_problem(refusal, final=True))
            await asyncio.wait_for(self.socket.close(code), self._limits.answer_seconds)
        except (_GoneError, asyncio.TimeoutError, RuntimeError, OSError):
            pass


@dataclass
class _Trouble:
    """Frames in a row without an answer."""

    bad_frames: int = 0
    """That the client is to blame for."""
    since: float | None = None
    """Since when the server has trouble, seconds of the session; None if it has none."""


class _Session:
    """One session after its first message.

    Args:
        live: pipeline and limits.
        client: the socket.
        state: what is known of its frames.
        key: of its first message; None if it came in a header.
    """

    def __init__(self, live: Live, client: _Client, state: LiveState, key: str | None) -> None:
        self._live, self._client, self._state, self._key = live, client, state, key
        self._limits = live.limits
        self._began = time.monotonic()
        self._received = self._dropped = 0
        self._trouble = _Trouble()

    async def run(self) -> None:
        """Read the socket until it is closed; frames are looked at beside it, one at a time.

        Raises:
            _GoneError: when the client has gone.
            RefusedError: when the session has to end.
        """
        reading = asyncio.create_task(self._client.message())
        looking: asyncio.Task[None] | None = None
        heard = self._now
        try:
            while True:
                waiting = {reading} if looking is None else {reading, looking}
                done, _ = await asyncio.wait(
                    waiting, timeout=self._remaining(heard), return_when=asyncio.FIRST_COMPLETED
                )
                if looking in done:
                    looking.result()
                    looking = None
                if reading in done:
                    message, heard = reading.result(), self._now
                    reading = asyncio.create_task(self._client.message())
                    looking = await self._hear(message, looking)
        finally:
            tasks = [task for task in (reading, looking) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _now(self) -> float:
        """Seconds since the session began."""
        return time.monotonic() - self._began

    def _remaining(self, heard: float) -> float:
        """Seconds until the session would have to end; `heard` is when the client last sent something."""
        limits, now = self._limits, self._now
        if now >= limits.session_seconds:
            raise RefusedError("session_over", f"a session lasts {limits.session_seconds:g} s at most")
        if now - heard >= limits.idle_seconds:
            raise RefusedError("too_slow", f"nothing was received for {limits.idle_seconds:g} s")
        return min(limits.session_seconds - now, limits.idle_seconds - (now - heard))

    async def _hear(self, message: str | bytes, looking: asyncio.Task[None] | None) -> asyncio.Task[None] | None:
        """Take a message in; the frame that is in work afterwards."""
        unless_refused(self._live.lapsed(self._client.socket, self._key))
        if isinstance(message, str):
            told: _Rest = _parsed(message, TypeAdapter(_Rest), 'text is {"type": "rest", "seconds": 3}')
            self._state.rest(told.seconds)
            return looking
        number, self._received = self._received, self._received + 1
        if looking is not None:
            self._dropped += 1
            self._live.on_frame("dropped", 0.0)
            return looking
        return asyncio.create_task(self._look(message, number, self._now))

    async def _look(self, jpeg: bytes, number: int, received: float) -> None:
        """Answer a frame."""
        try:
            answer = await asyncio.wait_for(self._answer(jpeg, received), self._limits.answer_seconds)
        except asyncio.TimeoutError:
            answer = Refusal("timeout", f"no answer for this frame within {self._limits.answer_seconds:g} s")
        except (asyncio.CancelledError, _GoneError):
            raise
        except Exception:
            logger.exception("a live frame failed")
            answer = Refusal("failed", "the server failed on this frame")
        seconds = self._now - received
        if isinstance(answer, Refusal):
            self._live.on_frame(answer.code, seconds)
            self._judge(answer)
            await self._client.send(_problem(answer, final=False) | {"frame": number})
            return
        self._trouble = _Trouble()
        self._live.on_frame("answered", seconds)
        facts = {"type": "frame", "frame": number, "dropped": self._dropped, "seconds": round(seconds, 4)}
        await self._client.send(facts | answer)

    def _judge(self, refusal: Refusal) -> None:
        """End the session where the refusals do not.

        Raises:
            RefusedError: if they have lasted too long.
        """
        trouble, limits = self._trouble, self._limits
        if refusal.status < 500:
            trouble.bad_frames += 1
            if trouble.bad_frames >= limits.max_bad_frames:
                raise RefusedError(refusal.code, f"{trouble.bad_frames} frames in a row: {refusal.detail}")
            return
        trouble.since = self._now if trouble.since is None else trouble.since
        if self._now - trouble.since >= limits.trouble_seconds:
            raise RefusedError(refusal.code, f"no answers for {limits.trouble_seconds:g} s: {refusal.detail}")

    async def _answer(self, jpeg: bytes, received: float) -> dict[str, Any] | Refusal:
        most = self._limits.max_frame_mb
        if len(jpeg) > most * 1e6:
            return Refusal("too_large", f"the frame has {len(jpeg) / 1e6:.1f} MB; at most {most:g} MB are allowed")
        pipeline, state = self._live.pipeline, self._state
        rested = state.finish_rest(received)
        if isinstance(rested, Refusal):
            await self._client.send(_problem(rested, final=False))
        elif rested is not None:
            await self._client.send({"type": "rest"} | rested)
        still = await pipeline.still(jpeg, state.model, seconds=received, seen=state.seen)
        if isinstance(still, Refusal):
            return still
        moment = await pipeline.moment(state.look(still, received))
        if isinstance(moment, Refusal):
            return moment
        return state.take(still, moment, received)


def _parsed(text: str, kind: TypeAdapter[Any], what: str) -> Any:
    """A text message as its kind.

    Raises:
        RefusedError: if it is none.
    """
    if len(text) > _TEXT_CHARACTERS:
        raise RefusedError("malformed", f"text of more than {_TEXT_CHARACTERS} characters; {what}")
    try:
        return kind.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RefusedError("malformed", f"{where}{': ' if where else ''}{first['msg']}; {what}") from None


def _problem(refusal: Refusal, *, final: bool) -> dict[str, Any]:
    retry = {} if refusal.retry_seconds is None else {"retry_seconds": refusal.retry_seconds}
    return {"type": "error", "final": final} | refusal.body | retry
