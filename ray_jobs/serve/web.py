"""The web side of the server: routes, what is refused before they run, and the page.

In: a `Model`, which answers the routes' questions, and `Limits`. Out: an ASGI application, see `make_app`. `Door` is
the layer before any parsing. It reads a request's body up to the limit and no further, and turns away browsers that
another site sent here: a page elsewhere must not reach a server that trusts everyone on this machine.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import resources
from typing import Annotated, Any, Protocol
from urllib.parse import urlsplit

from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ray_jobs.serve.uploads import Limits, Refusal

_FRAMING_BYTES = 64 * 1024
"""Bytes that a multipart body may hold besides the file."""
_PAGE = resources.files("ray_jobs.serve") / "page"
_ERRORS = {
    400: "no file `video`, not multipart/form-data, or sent to a host name that is not this machine's",
    403: "sent by another site's page",
    404: "no subject with this subject_id has adapted prompts",
    409: "the subject's prompts belong to another checkpoint",
    413: "more bytes than allowed",
    415: "not a video that can be decoded; gives the decoders' messages",
    422: "longer, or with larger frames, than allowed; or no face or no finite numbers in the video",
    500: "the server failed",
    503: "too many requests at once, or the worker stopped; try again",
    504: "no answer in time",
}
_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src blob:; "
        b"img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Message, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)


class Model(Protocol):
    """What the routes ask."""

    async def predict(self, video: bytes, subject: str | None) -> dict[str, Any] | Refusal:
        """An `Answer` as plain values, or why there is none."""

    async def subjects(self) -> list[str] | Refusal:
        """Ids of the subjects with adapted prompts."""

    async def facts(self) -> dict[str, Any] | Refusal:
        """`Health` as plain values, without the status."""


class TopActionUnit(BaseModel):
    """An action unit that rose in the chosen window."""

    code: str = Field(description="FACS code", examples=["AU4"])
    name: str = Field(description="FACS name", examples=["Brow lowerer"])
    phrase: str = Field(description="What is seen, in words", examples=["eyebrows lowered and pulled together"])
    rise: float = Field(
        description="Mean similarity in the window minus the median over the clip; similarities are cosines"
    )


class ActionUnitCurves(BaseModel):
    """Similarity of the face to each action unit over time, as the frozen backbone sees it."""

    time_seconds: list[float] = Field(description="Middle of each window, seconds from the first frame")
    codes: dict[str, list[float]] = Field(description="FACS code → similarity in each window, a cosine")
    names: dict[str, str] = Field(description="FACS code → code and name", examples=[{"AU4": "AU4 Brow lowerer"}])
    not_learned: list[str] = Field(
        description="Codes that the backbone never learned, whose curves mean nothing; empty if that is not known"
    )


class Answer(BaseModel):
    """The prediction for one video."""

    label: str = Field(description="The most probable class")
    probabilities: dict[str, float] = Field(description="Class → probability; they sum to 1")
    window_start_seconds: float = Field(description="Start of the most expressive window, on which the label rests")
    window_end_seconds: float = Field(description="End of that window")
    top_action_units: list[TopActionUnit] = Field(
        description="What rose most in that window, highest first, of what the backbone has learned"
    )
    action_units: ActionUnitCurves
    entropy: list[float] = Field(
        description="Entropy of each window's class probabilities, nats; low where the model is sure"
    )
    personalized_for: str | None = Field(description="Subject whose adapted prompts were used")
    warnings: list[str] = Field(
        description="Sentences on why the answer may be worth little, such as footage that the model has never seen"
    )
    duration_seconds: float = Field(description="Length of the video, seconds")
    seconds: float = Field(description="Time that the prediction took, seconds")


class Subjects(BaseModel):
    """The subjects with adapted prompts."""

    subjects: list[str]


class Health(BaseModel):
    """What is served."""

    status: str = Field(examples=["ok"])
    checkpoint: str = Field(description="Fingerprint of the checkpoint")
    backbone: str = Field(description="Name of the CLIP")
    classes: list[str] = Field(description="What can be predicted")
    subjects: int = Field(description="How many subjects have adapted prompts")
    trained_on: dict[str, str] = Field(
        description="Part of the model → the footage that it was trained on",
        examples=[{"the checkpoint": "BioVid (not rendered)"}],
    )
    limits: dict[str, float] = Field(description="Limits of an upload: max_bytes, max_seconds, max_pixels")


class Problem(BaseModel):
    """Why a request failed."""

    detail: str


class Door:
    """The ASGI layer around the application: reads bodies up to a limit, and refuses what other sites' pages send.

    Args:
        app: The application.
        max_body_bytes: Most bytes in the body of a request.
        hosts: Names of this server, from whose pages requests may come.
    """

    def __init__(self, app: ASGI, *, max_body_bytes: int, hosts: frozenset[str]) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.hosts = hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on with its body already read."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(dict(scope["headers"]))
        if refusal is None and scope["method"] == "POST":
            body = await self._read(receive)
            if body is None:
                return
            if isinstance(body, Refusal):
                refusal = body
            else:
                receive = _replay(body, receive)
        if refusal is not None:
            await _refuse(refusal, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, headers: dict[bytes, bytes]) -> Refusal | None:
        """Why the headers alone are refused; None if they are not."""
        origin = headers.get(b"origin")
        if origin is not None and _hostname(origin.decode("latin-1")) not in self.hosts:
            return Refusal(403, "requests from other sites' pages are not answered")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return Refusal(400, "Content-Length is not a number")
        return self._too_large() if int(length) > self.max_body_bytes else None

    async def _read(self, receive: Receive) -> bytes | Refusal | None:
        """The body; None if the client left before its end."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.max_body_bytes:
                return self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> Refusal:
        return too_large(self.max_body_bytes - _FRAMING_BYTES)


def too_large(max_bytes: int) -> Refusal:
    """The refusal of a file over the limit."""
    return Refusal(413, f"the file is too large; at most {max_bytes / 1e6:g} MB are allowed")


def make_app(model: Model, limits: Limits, *, host: str = "127.0.0.1") -> ASGI:
    """The ASGI application of the server.

    Args:
        model: Answers the routes' questions.
        limits: Limits of an upload.
        host: Address that the server listens on.
    """
    app = FastAPI(
        title="clipautt",
        summary="Emotion from face video by facial action units, personalized",
        docs_url=None,
        redoc_url=None,
    )
    _add_routes(app, model, limits)
    app.add_api_route("/docs", lambda: FileResponse(str(_PAGE / "docs.html")), include_in_schema=False)
    app.mount("/", StaticFiles(directory=str(_PAGE), html=True))
    app.add_exception_handler(RequestValidationError, _answer_malformed)
    app.add_exception_handler(Exception, _answer_bug)
    hosts = frozenset({"127.0.0.1", "localhost", host})
    door = Door(app, max_body_bytes=limits.max_bytes + _FRAMING_BYTES, hosts=hosts)
    # Against DNS rebinding: a request is refused if its host name is another site's, even if it leads to this machine.
    return _with_headers(TrustedHostMiddleware(door, allowed_hosts=sorted(hosts), www_redirect=False))


def _add_routes(app: FastAPI, model: Model, limits: Limits) -> None:
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": words} for status, words in _ERRORS.items()
    }

    @app.post("/v1/predict", summary="Predict one video", response_model=Answer, responses=errors)
    async def predict(
        video: Annotated[
            UploadFile, File(description="The video: MP4, WebM, MOV, MKV, AVI …; one face fills the frame")
        ],
        subject_id: Annotated[
            str | None, Form(description="Use this subject's adapted prompts", max_length=200)
        ] = None,
    ) -> Response:
        content = await video.read()
        if len(content) > limits.max_bytes:
            _raise(too_large(limits.max_bytes))
        if not content:
            raise HTTPException(415, "the file is empty")
        return JSONResponse(_value(await model.predict(content, subject_id or None)))

    @app.get("/v1/subjects", summary="List the subjects with adapted prompts")
    async def subjects() -> Subjects:
        return Subjects(subjects=_value(await model.subjects()))

    @app.get("/healthz", summary="Whether the server works, and what it serves")
    async def healthz() -> Health:
        return Health(status="ok", limits=vars(limits), **_value(await model.facts()))


def _value(answer: Any) -> Any:
    if isinstance(answer, Refusal):
        _raise(answer)
    return answer


def _raise(refusal: Refusal) -> None:
    raise HTTPException(refusal.status, refusal.detail)


async def _answer_malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
    hint = "send multipart/form-data with a file `video` and, optionally, a text `subject_id`"
    return JSONResponse({"detail": f"{'; '.join(problems)}; {hint}"}, 400)


async def _answer_bug(request: Request, error: Exception) -> Response:
    logger.error("request failed", exc_info=error)
    return JSONResponse({"detail": "the server failed on this request; its log says why"}, 500)


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body in one message and then whatever follows it."""
    waiting = [body]

    async def receive_again() -> Message:
        return {"type": "http.request", "body": waiting.pop(), "more_body": False} if waiting else await receive()

    return receive_again


def _with_headers(app: ASGI) -> ASGI:
    """The application with `_HEADERS` on every answer, including refusals."""

    async def headed(scope: Message, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await app(scope, receive, send_with_headers)

    return headed


async def _refuse(refusal: Refusal, send: Send) -> None:
    content = json.dumps({"detail": refusal.detail}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
