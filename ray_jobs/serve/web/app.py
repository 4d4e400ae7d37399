"""The routes: what they take and answer, as an ASGI application without Ray and PyTorch.

In: a pipeline that answers their questions, and what stands around it (`Parts`). Out: the application, `make_app`.
Forms are not parsed by FastAPI, which would hold them in memory, but by `uploads.read_form`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Request, WebSocket
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import Route

from ray_jobs.serve.refusals import KINDS, Refusal, RefusedError, unless_refused
from ray_jobs.serve.web.annotated_videos import AnnotatedVideos
from ray_jobs.serve.web.asgi import refusal_content, refusal_headers
from ray_jobs.serve.web.asked import Ask
from ray_jobs.serve.web.forms import Forms, ask_of, check_subject, described, keep_of, models_of
from ray_jobs.serve.web.gate import Gate
from ray_jobs.serve.web.interface import answer as interface_answer
from ray_jobs.serve.web.jobs import Jobs
from ray_jobs.serve.web.live import Live
from ray_jobs.serve.web.metrics import Metrics
from ray_jobs.serve.web.pipeline import ServePipeline
from ray_jobs.serve.web.readiness import Readiness
from ray_jobs.serve.web.schemas import (
    Alive,
    Answer,
    BatchAnswer,
    Erased,
    InterfaceAnswer,
    Job,
    Models,
    Problem,
    Ready,
    Subject,
    Subjects,
)
from ray_jobs.serve.web.uploads import Form, Upload

_PAGE = resources.files("ray_jobs.serve") / "page"
_STATUS_CODES = {404: "not_found", 405: "method_not_allowed"}
_ID = Annotated[str, InPath(description="Id of the subject")]

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Parts:
    """What the routes use."""

    pipeline: ServePipeline
    """Answers questions about videos."""
    gate: Gate
    """Decides who may ask."""
    forms: Forms
    """Reads uploads."""
    jobs: Jobs
    """Personalization in the background."""
    annotated: AnnotatedVideos
    """Videos with their answers, for a while."""
    live: Live
    """Live sessions."""
    readiness: Readiness
    """Whether predictions work."""
    metrics: Metrics
    """What Prometheus reads."""
    facts: dict[str, Any]
    """`Models` but for the models."""
    public_url: str | None = None
    """Address by which clients reach the server; None: as a request says."""


def make_app(parts: Parts, *, lifespan: Lifespan | None = None) -> FastAPI:
    """The application: routes, the page, the OpenAPI and the answers to errors.

    Args:
        parts: what the routes use.
        lifespan: what runs as long as the application.
    """
    app = FastAPI(
        lifespan=lifespan,
        title="clipautt",
        summary="Emotion from face video by facial action units, personalized",
        docs_url=None,
        redoc_url=None,
    )
    _add_predictions(app, parts)
    _add_subjects(app, parts)
    _add_interface(app, parts)
    _add_watching(app, parts)
    app.add_api_route("/docs", lambda: FileResponse(str(_PAGE / "docs.html")), include_in_schema=False)
    _answer_head(app)
    app.mount("/", StaticFiles(directory=str(_PAGE), html=True), name="page")
    app.add_exception_handler(RefusedError, _answer_refused)
    app.add_exception_handler(RequestValidationError, _answer_malformed)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_bug)
    return app


def _answer_head(app: FastAPI) -> None:
    """HEAD is answered as GET, of which the server sends the headers; monitors and proxies ask so."""
    for route in app.routes[:]:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            head = Route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
            head.app = route.app
            app.router.routes.append(head)


def _errors(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for the OpenAPI."""
    always = ("unknown_host", "key_missing", "key_unknown", "key_scope", "other_site", "rate_limited", "failed")
    found: dict[int | str, dict[str, Any]] = {}
    for code in sorted((*always, *codes), key=lambda one: KINDS[one][0]):
        status, meaning, _ = KINDS[code]
        entry = found.setdefault(status, {"model": Problem, "description": ""})
        entry["description"] += f"{'; ' * bool(entry['description'])}`{code}`: {meaning[0].lower()}{meaning[1:]}"
    return found


_OF_VIDEOS = ("malformed", "too_slow", "too_large", "not_a_video", "over_limit", "wrong_field", "no_face", "no_label")
_OF_WORK = ("unknown_model", "not_finite", "busy", "worker_lost", "timeout")
_OF_SUBJECTS = ("unknown_subject", "wrong_field", "worker_lost", "timeout")


def _add_predictions(app: FastAPI, parts: Parts) -> None:
    errors = _errors(*_OF_VIDEOS, *_OF_WORK, "unknown_subject", "cannot_adapt", "other_checkpoint", "subject_busy")

    @app.post(
        "/v1/predict",
        summary="Predict one video",
        response_model=Answer,
        responses=errors,
        openapi_extra=described("predict"),
    )
    async def predict(request: Request) -> Response:
        who = parts.gate.admit(request, "predict")
        unless_refused(parts.pipeline.queue.full())
        async with parts.forms.read(request, "predict") as form:
            return JSONResponse(await _predicted(parts, form, ask_of(form.fields, who)))

    @app.post(
        "/v1/predict/batch",
        summary="Predict several videos; a bad one costs itself",
        response_model=BatchAnswer,
        responses=errors,
        openapi_extra=described("batch"),
    )
    async def batch(request: Request) -> Response:
        who = parts.gate.admit(request, "predict")
        unless_refused(parts.pipeline.queue.full())
        async with parts.forms.read(request, "batch") as form:
            items = await _predict_each(parts, form, ask_of(form.fields, who))
        return JSONResponse({"answers": items})

    @app.get(
        "/v1/models", summary="List the models", response_model=Models, responses=_errors("worker_lost", "timeout")
    )
    async def models(request: Request) -> Response:
        parts.gate.admit(request, "predict")
        return JSONResponse({"models": unless_refused(await parts.pipeline.models()), **parts.facts})


async def _predicted(parts: Parts, form: Form, ask: Ask) -> dict[str, Any]:
    """The answer for the form's video; raises what it is refused for."""
    return _timed(parts, unless_refused(await parts.pipeline.predict(form.videos[0], ask)), form)


def _timed(parts: Parts, answer: dict[str, Any], form: Form) -> dict[str, Any]:
    """The answer with the time that its form took, and counted."""
    for one in (answer, *answer["others"]):
        one["timings"]["receive"] = form.seconds
    parts.metrics.observe_answer(answer)
    return answer


async def _predict_each(parts: Parts, form: Form, ask: Ask) -> list[dict[str, Any]]:
    """A `BatchItem` for each video; no more are in work than the deployments have hands."""
    hands = asyncio.Semaphore(parts.pipeline.queue.capacity.at_once)

    async def item(index: int, upload: Upload) -> dict[str, Any]:
        async with hands:
            found = await parts.pipeline.predict(upload, ask, patient=True)
        if isinstance(found, Refusal):
            parts.metrics.observe_refusal(found.code)
            return {"video": index, "answer": None, "error": found.body}
        return {"video": index, "answer": _timed(parts, found, form), "error": None}

    if ask.adapt == "online":  # each goes on from the one before
        return [await item(index, upload) for index, upload in enumerate(form.videos)]
    return await asyncio.gather(*[item(index, upload) for index, upload in enumerate(form.videos)])


def _add_subjects(app: FastAPI, parts: Parts) -> None:
    @app.get(
        "/v1/subjects", summary="List the subjects with something stored", responses=_errors("worker_lost", "timeout")
    )
    async def subjects(request: Request) -> Subjects:
        who = parts.gate.admit(request, "predict")
        return Subjects(subjects=unless_refused(await parts.pipeline.subjects(who)))

    @app.get(
        "/v1/subjects/{subject_id:path}",
        summary="What is stored of a subject",
        responses=_errors(*_OF_SUBJECTS, "other_checkpoint"),
    )
    async def subject(request: Request, subject_id: _ID) -> Subject:
        who = parts.gate.admit(request, "personalize")
        check_subject(subject_id)
        return Subject(**unless_refused(await parts.pipeline.subject(who, subject_id)))

    @app.put(
        "/v1/subjects/{subject_id:path}",
        summary="Personalize to a subject in the background; a resting face of a few seconds is enough by default",
        status_code=202,
        response_model=Job,
        responses=_errors(*_OF_VIDEOS[:4], "wrong_field", "unknown_model", "subject_busy", "busy"),
        openapi_extra=described("personalize"),
    )
    async def personalize(request: Request, subject_id: _ID) -> Response:
        who = parts.gate.admit(request, "personalize")
        check_subject(subject_id)
        async with parts.forms.read(request, "personalize") as form:
            models = unless_refused(parts.pipeline.named(models_of(form.fields), every=True))
            job = unless_refused(
                await parts.jobs.submit(who, subject_id, form.videos, models=models, keep=keep_of(form.fields))
            )
        return JSONResponse(job, 202, {"Location": f"/v1/jobs/{job['job']}"})

    @app.delete(
        "/v1/subjects/{subject_id:path}",
        summary="Erase what is stored of a subject",
        responses=_errors(*_OF_SUBJECTS, "subject_busy"),
    )
    async def erase(request: Request, subject_id: _ID) -> Erased:
        who = parts.gate.admit(request, "personalize")
        check_subject(subject_id)
        jobs = await parts.jobs.erase(who, subject_id)
        erased = unless_refused(await parts.pipeline.erase(who, subject_id)) + jobs
        if not erased:
            raise RefusedError("unknown_subject", f"nothing is stored for subject {subject_id!r}")
        return Erased(subject_id=subject_id, erased=erased)

    @app.get("/v1/jobs/{job}", summary="Follow a personalization", responses=_errors("unknown_job"))
    async def job(request: Request, job: str) -> Job:
        who = parts.gate.admit(request, "personalize")
        return Job(**unless_refused(await parts.jobs.status(who, job)))


def _add_interface(app: FastAPI, parts: Parts) -> None:
    @app.post(
        "/api/predict",
        summary="The contract of the public CLIP-AUTT web interface",
        response_model=InterfaceAnswer,
        responses=_errors(*_OF_VIDEOS, *_OF_WORK, "unknown_labels"),
        openapi_extra=described("interface"),
    )
    async def interface(request: Request) -> Response:
        who = parts.gate.admit(request, "predict")
        unless_refused(parts.pipeline.queue.full())
        base = parts.public_url or str(request.base_url)
        async with parts.forms.read(request, "interface") as form:
            return JSONResponse(await interface_answer(form, parts.pipeline, parts.annotated, base, who))

    @app.get(
        "/api/videos/{name}",
        summary="An annotated video of /api/predict; no key is needed, since nobody can guess its name",
        response_class=FileResponse,
        responses=_errors("unknown_video"),
    )
    async def annotated(name: str) -> FileResponse:
        return parts.annotated.response(name)

    @app.websocket("/v1/live")
    async def live(websocket: WebSocket) -> None:
        await parts.live.serve(websocket)


def _add_watching(app: FastAPI, parts: Parts) -> None:
    @app.get("/healthz", summary="Whether the server is alive; it asks nobody")
    async def healthz() -> Alive:
        return Alive()

    @app.get("/-/healthz", include_in_schema=False)
    async def healthz_of_ray() -> PlainTextResponse:
        """Asked by KubeRay of each node, to send requests to those with a web side."""
        return PlainTextResponse("success")

    @app.get("/readyz", summary="Whether predictions work", response_model=Ready, responses={503: {"model": Ready}})
    async def readyz() -> Response:
        state = parts.readiness.state()
        return JSONResponse(state.model_dump(), 200 if state.ready else 503)

    @app.get("/metrics", summary="Measurements for Prometheus", response_class=Response, responses=_errors())
    async def metrics(request: Request) -> Response:
        parts.gate.admit(request, "admin")
        content, kind = parts.metrics.render()
        return Response(content, media_type=kind)


def _problem(refusal: Refusal) -> Response:
    content = refusal_content(refusal)
    headers = {name.decode(): value.decode() for name, value in refusal_headers(refusal, content)}
    return Response(content, refusal.status, headers)


async def _answer_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return _problem(error.refusal)


async def _answer_malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
    return await _answer_refused(request, RefusedError("malformed", "; ".join(problems)))


async def _answer_http(request: Request, error: Exception) -> Response:
    """Errors of the framework itself, such as an address that there is not."""
    assert isinstance(error, HTTPException)
    code = _STATUS_CODES.get(error.status_code, "malformed")
    return await _answer_refused(request, RefusedError(code, KINDS[code][1]))


async def _answer_bug(request: Request, error: Exception) -> Response:
    """A fault of the server; the door writes it down, to which the framework hands it on."""
    return await _answer_refused(request, RefusedError("failed", KINDS["failed"][1]))
