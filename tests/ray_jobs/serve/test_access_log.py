"""Every request is counted and logged, whatever becomes of it, and nothing of a person is."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse
from prometheus_client.parser import text_string_to_metric_families
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from ray_jobs.serve.refusals import RefusedError
from ray_jobs.serve.web import access_log
from ray_jobs.serve.web.access_log import ASGI, AccessLog, Line, Watch, note
from ray_jobs.serve.web.metrics import Metrics

LINE = Line("2026-01-31T12:00:00.250Z", "GET", "/v1/models", 200, None, 0.004, 0, "3f0c5d2a")


def application(folder: Path) -> FastAPI:
    """Routes such as the server has."""
    app = FastAPI()

    @app.put("/v1/subjects/{subject_id}", status_code=202)
    async def put(subject_id: str, request: Request) -> str:
        note(request.scope, owner="3f0c5d2a")
        await request.body()
        return subject_id

    @app.get("/refused/{name}")
    async def refused(name: str) -> JSONResponse:
        refusal = RefusedError("no_face", f"no face in {name}").refusal
        return JSONResponse(refusal.body, refusal.status)

    @app.get("/broken")
    async def broken() -> None:
        raise KeyError("anna-smith")

    @app.websocket("/v1/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        note(socket.scope, owner="3f0c5d2a")
        await socket.receive_bytes()
        note(socket.scope, code="rate_limited")
        await socket.close(1008)

    app.add_route("/page", lambda request: JSONResponse({}))  # type: ignore[arg-type, return-value]
    app.mount("/static", StaticFiles(directory=folder))
    return app


def watched(app: ASGI, folder: Path) -> tuple[Watch, Metrics, AccessLog]:
    metrics, log = Metrics(), AccessLog(folder / "log" / "access.log")
    return Watch(app, metrics, log), metrics, log


def lines(log: AccessLog, folder: Path) -> list[dict[str, Any]]:
    """What the log holds, without times."""
    log.close()
    found = [json.loads(line) for line in (folder / "log" / "access.log").read_text().splitlines()]
    for line in found:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
        assert 0 <= line.pop("seconds") < 60
    return found


def counted(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Values of the labels by their names → value of a counter, without those at 0."""
    return {
        tuple(one.labels[label] for label in sorted(one.labels)): one.value
        for family in text_string_to_metric_families(metrics.render()[0].decode())
        for one in family.samples
        if one.name == f"clipautt_serve_{name}" and one.value
    }


def test_each_request_is_a_line_with_the_template_of_its_route(tmp_path: Path) -> None:
    (tmp_path / "page.css").write_text("p {}")
    app, metrics, log = watched(application(tmp_path), tmp_path)
    with TestClient(app, raise_server_exceptions=False) as client:
        client.put("/v1/subjects/anna-smith?name=anna-smith", content=b"x" * 3000)
        client.post("/v1/subjects/anna-smith")
        client.get("/refused/anna-smith")
        client.get("/broken")
        client.get("/page?anna-smith")
        client.get("/page%0a")
        client.get("/static/page.css")
        client.get("/static/anna-smith.css")
        client.get("/anna-smith/../../etc/passwd%0a{}")
        client.request("ANNA-SMITH", "/page")
        with client.websocket_connect("/v1/live?key=anna-smith") as socket, pytest.raises(WebSocketDisconnect):
            socket.send_bytes(bytes(500))
            socket.receive_text()
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/anna-smith"):
            pass
    found = lines(log, tmp_path)
    none = {"code": None, "bytes_in": 0, "key": None}
    subject = "/v1/subjects/{subject_id}"
    assert found == [
        {"method": "PUT", "route": subject, "status": 202, "code": None, "bytes_in": 3000, "key": "3f0c5d2a"},
        {"method": "POST", "route": subject, "status": 405, **none},
        {"method": "GET", "route": "/refused/{name}", "status": 422, **none, "code": "no_face"},
        {"method": "GET", "route": "/broken", "status": 500, **none, "code": "failed"},
        {"method": "GET", "route": "/page", "status": 200, **none},
        {"method": "GET", "route": "/page", "status": 200, **none},
        {"method": "GET", "route": "/static/{path}", "status": 200, **none},
        {"method": "GET", "route": "/static/{path}", "status": 404, **none},
        {"method": "GET", "route": "unmatched", "status": 404, **none},
        {"method": "other", "route": "/page", "status": 405, **none},
        {
            "method": "GET",
            "route": "/v1/live",
            "status": 101,
            "code": "rate_limited",
            "bytes_in": 500,
            "key": "3f0c5d2a",
        },
        {"method": "GET", "route": "unmatched", "status": 403, **none},
    ]
    text = (tmp_path / "log" / "access.log").read_text() + metrics.render()[0].decode()
    assert "anna" not in text.lower() and "passwd" not in text
    assert counted(metrics, "failures_total") == {("no_face",): 1, ("failed",): 1, ("rate_limited",): 1}
    assert counted(metrics, "requests_total")["404", "GET", "unmatched"] == 1
    assert counted(metrics, "upload_bytes_total") == {(): 3500}


def test_what_no_route_takes_ends_at_the_page_and_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "page.js").touch()
    inner = application(tmp_path)
    inner.mount("/", StaticFiles(directory=tmp_path))
    app, metrics, log = watched(inner, tmp_path)
    with TestClient(app, raise_server_exceptions=False) as client:
        client.get("/page.js")
        client.get("/anna-smith")
        client.patch("/v1/subjects/anna-smith")
        client.head("/v1/subjects/anna-smith/")
    assert {line["route"] for line in lines(log, tmp_path)} == {"/{path}"}
    assert {route for _, _, route in counted(metrics, "requests_total")} == {"/{path}"}


def test_a_refusal_of_an_inner_layer_is_seen_and_a_body_that_is_none_is_not_taken_for_one(tmp_path: Path) -> None:
    bodies = [
        (400, b"application/json", [b'{"code": "unknown', b'_host"}'], "unknown_host"),
        (400, b"application/problem+json; charset=utf-8", [b'{"code": "unknown_host"}'], "unknown_host"),
        (400, b"application/json", [b'{"code": "anna-smith"}'], None),
        (400, b"application/json", [b'{"code": ["unknown_host"]}'], None),
        (400, b"application/json", [b'["code"]'], None),
        (400, b"application/json", [b"\xff{"], None),
        (400, b"text/html", [b'{"code": "unknown_host"}'], None),
        (200, b"application/json", [b'{"code": "unknown_host"}'], None),
        (400, b"application/json", [b'{"code": "unknown_host", "x": "', b"x" * 9000, b"x" * 9000, b'"}'], None),
    ]
    remaining = iter(bodies)

    async def door(scope: Any, receive: Any, send: Any) -> None:
        status, kind, parts, _ = next(remaining)
        await send({"type": "http.response.start", "status": status, "headers": [(b"Content-Type", kind)]})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    app, metrics, log = watched(door, tmp_path)

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            for _ in bodies:
                await client.get("/")

    asyncio.run(ask())
    assert [line["code"] for line in lines(log, tmp_path)] == [code for *_, code in bodies]
    assert counted(metrics, "failures_total") == {("unknown_host",): 2}


@pytest.mark.parametrize("how", ["returns", "answers", "raises", "is cancelled"])
def test_a_client_that_leaves_is_no_failure_of_the_server(tmp_path: Path, how: str) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        if how == "answers":  # as Starlette does when reading the body raises
            await send(
                {"type": "http.response.start", "status": 500, "headers": [(b"content-type", b"application/json")]}
            )
            await send({"type": "http.response.body", "body": b'{"code": "failed"}'})
        if how == "raises":
            raise RuntimeError("the client left")
        if how == "is cancelled":
            raise asyncio.CancelledError

    async def messages() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "http.request", "body": b"x" * 10, "more_body": True}
        yield {"type": "http.disconnect"}

    app, metrics, log = watched(inner, tmp_path)

    async def ask() -> None:
        stream = messages()
        scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": []}

        async def send(message: Any) -> None:
            assert how == "answers"

        await app(scope, stream.__anext__, send)

    if how in ("returns", "answers"):
        asyncio.run(ask())
    else:
        with pytest.raises(RuntimeError if how == "raises" else asyncio.CancelledError):
            asyncio.run(ask())
    assert [(line["status"], line["code"], line["bytes_in"]) for line in lines(log, tmp_path)] == [(499, None, 10)]
    assert counted(metrics, "failures_total") == {}


def test_the_log_is_private_and_rotates(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text('{"cut off": ')
    path.chmod(0o644)
    log = AccessLog(path, max_bytes=1000, files=2)
    for _ in range(50):
        log.write(LINE)
    log.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["access.log", "access.log.1", "access.log.2"]
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.stat().st_size <= 1000
        assert {len(json.loads(line)) for line in file.read_text().splitlines()} == {8}
    assert log.lost == 0


def test_a_line_that_was_cut_off_damages_no_other(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text('{"cut off": ')
    log = AccessLog(path)
    log.write(LINE)
    log.close()
    assert path.read_text().splitlines()[0] == '{"cut off": '
    assert json.loads(path.read_text().splitlines()[1])["route"] == "/v1/models"


def test_a_full_disk_stops_nobody_and_what_was_lost_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "access.log"
    path.symlink_to("/dev/full")
    caplog.set_level(logging.WARNING)
    log = AccessLog(path)
    for _ in range(5):
        log.write(LINE)
    log._lines.join()
    assert log.lost == 5
    path.unlink()
    path.mkdir()
    log.write(LINE)
    log._lines.join()
    assert log.lost == 6
    path.rmdir()
    log.write(LINE)
    log.close()
    assert len(path.read_text().splitlines()) == 1
    assert caplog.messages == [
        f"the log {path} loses lines; requests go on",
        f"the log {path} is written again; 6 lines were lost so far",
    ]
    assert "Traceback" not in capfd.readouterr().err


def test_a_slow_disk_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "_MAX_WAITING", 5)
    log = AccessLog(tmp_path / "access.log")
    log._file.acquire()  # as while a write hangs
    for _ in range(100):
        log.write(LINE)
    assert 94 <= log.lost <= 95  # one may be in the hands of the writing thread
    log._file.release()
    log.close()
    assert len((tmp_path / "access.log").read_text().splitlines()) == 100 - log.lost


def test_without_a_log_requests_are_only_counted(tmp_path: Path) -> None:
    metrics = Metrics()
    with TestClient(Watch(application(tmp_path), metrics, None)) as client:
        assert client.get("/page").status_code == 200
    assert counted(metrics, "requests_total") == {("200", "GET", "/page"): 1}
    with pytest.raises(ValueError, match=r"^max_bytes=0, files=5: expected at least 1 of both$"):
        AccessLog(tmp_path / "access.log", max_bytes=0)
