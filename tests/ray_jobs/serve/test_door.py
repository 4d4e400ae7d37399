"""The layer before the application: whose requests pass, and what every answer says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse

from ray_jobs.serve.refusals import RefusedError
from ray_jobs.serve.web.asgi import ASGI, Message, Receive, Send
from ray_jobs.serve.web.door import Door, allowed_hosts, parse_origin

CLINIC = "https://clinic.example"


async def application(scope: Message, receive: Receive, send: Send) -> None:
    """Answers with the size of the body; `/busy` and `/bug` fail."""
    if scope["path"] == "/busy":
        raise RefusedError("busy", "too many videos at once", retry_seconds=7)
    if scope["path"] == "/bug":
        raise RuntimeError("secret")
    if scope["path"] == "/own":
        await PlainTextResponse("own", headers={"Cache-Control": "max-age=60", "Vary": "Accept"})(scope, receive, send)
        return
    size = len(await Request(scope, receive).body()) if scope["method"] == "POST" else 0
    await JSONResponse({"size": size})(scope, receive, send)


def call(method: str, path: str, *, url: str = "http://127.0.0.1:8000", **request: Any) -> httpx.Response:
    """One request through the door, without a network."""
    door = Door(
        application, hosts=allowed_hosts("0.0.0.0", ["clinic.example"]), origins=[CLINIC], max_body_bytes=1_000_000
    )

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(door, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=url) as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"host": "evil.example"}, 400, "unknown_host"),
        ({"host": "127.0.0.1.evil.example:8000"}, 400, "unknown_host"),
        ({"host": "localhost.evil.example"}, 400, "unknown_host"),
        ({"host": "www.localhost"}, 400, "unknown_host"),
        ({"host": "localhost:80:80"}, 400, "unknown_host"),
        ({"host": "localhost/"}, 400, "unknown_host"),
        ({"host": "evil.example@localhost"}, 400, "unknown_host"),
        ({"host": "0.0.0.0"}, 400, "unknown_host"),
        ({"host": ""}, 400, "unknown_host"),
        ({"host": "LOCALHOST.:9000"}, 200, ""),
        ({"host": "[::1]:8000"}, 200, ""),
        ({"host": "clinic.example"}, 200, ""),
        ({"origin": "https://evil.example"}, 403, "other_site"),
        ({"origin": "null"}, 403, "other_site"),
        ({"origin": ""}, 403, "other_site"),
        ({"origin": "http://127.0.0.1:9000"}, 403, "other_site"),
        ({"origin": "https://clinic.example:444"}, 403, "other_site"),
        ({"origin": "http://clinic.example"}, 403, "other_site"),
        ({"origin": "https://clinic.example.evil.example"}, 403, "other_site"),
        ({"origin": "http://127.0.0.1:8000"}, 200, ""),
        ({"host": "localhost:9000", "origin": "http://localhost:9000"}, 200, ""),
        ({"host": "clinic.example", "origin": "http://clinic.example:80"}, 200, ""),
        ({"origin": CLINIC}, 200, ""),
        ({"content-length": "many"}, 400, "malformed"),
        ({"content-length": "1000001"}, 413, "too_large"),
    ],
)
def test_whose_requests_pass(headers: dict[str, str], status: int, code: str) -> None:
    response = call("GET", "/", headers=headers)
    assert (response.status_code, response.json().get("code", "")) == (status, code)
    assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")


def test_every_answer_has_the_headers_of_a_careful_server() -> None:
    for path in ("/", "/busy", "/bug"):
        headers = call("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["permissions-policy"] == "camera=(self), microphone=(), geolocation=()"
        assert "connect-src 'self' ws://127.0.0.1:8000 wss://127.0.0.1:8000;" in headers["content-security-policy"]
        assert "media-src 'self' blob:; img-src data: blob:" in headers["content-security-policy"]
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert len(headers["x-request-id"]) == 16 and "strict-transport-security" not in headers
    assert call("GET", "/api/videos/token.mp4").headers["cross-origin-resource-policy"] == "cross-origin"
    own = call("GET", "/own").headers
    assert own.get_list("cache-control") == ["max-age=60"] and own.get_list("vary") == ["Accept", "Origin"]
    encrypted = {url: call("GET", "/", url=url).headers for url in ("https://clinic.example", "https://localhost:8443")}
    assert ["strict-transport-security" in headers for headers in encrypted.values()] == [True, False]


def test_refusals_and_bugs_are_json_without_details(caplog: pytest.LogCaptureFixture) -> None:
    busy = call("POST", "/busy", content=b"unread")
    assert (busy.status_code, busy.headers["retry-after"], busy.headers["connection"]) == (503, "7", "close")
    assert busy.json() == {
        "code": "busy",
        "detail": "too many videos at once",
        "help": "wait as long as Retry-After says, then send it again",
    }
    bug = call("GET", "/bug")
    assert (bug.status_code, bug.json()["code"]) == (500, "failed")
    assert "secret" not in bug.text and "connection" not in bug.headers
    assert bug.json()["detail"] == f"request {bug.headers['x-request-id']} failed"
    assert bug.headers["x-request-id"] in caplog.text and "secret" in caplog.text


def test_listed_sites_may_ask_and_read_their_refusals() -> None:
    ask = {"origin": CLINIC, "access-control-request-method": "POST"}
    asked = call("OPTIONS", "/busy", headers=ask | {"access-control-request-private-network": "true"})
    assert (asked.status_code, asked.content) == (204, b"")
    assert asked.headers["access-control-allow-headers"] == "Authorization, Content-Type, X-API-Key"
    assert asked.headers["access-control-allow-methods"] == "GET, POST, PUT, DELETE"
    assert asked.headers["access-control-allow-private-network"] == "true"
    for path in ("/", "/busy", "/bug"):
        headers = call("POST", path, headers=ask).headers
        assert headers["access-control-allow-origin"] == CLINIC
        assert headers["access-control-expose-headers"] == "Retry-After, Location, X-Request-Id"
        assert headers["vary"] == "Origin" and "access-control-allow-credentials" not in headers
    other = call("OPTIONS", "/", headers={"origin": "https://evil.example", "access-control-request-method": "POST"})
    assert other.status_code == 403 and "access-control-allow-origin" not in other.headers
    assert call("GET", "/").headers["vary"] == "Origin"


def test_a_body_without_length_is_counted() -> None:
    async def body() -> Any:
        for _ in range(1000):
            yield bytes(2000)

    response = call("POST", "/", content=body())
    assert (response.status_code, response.json()["code"]) == (413, "too_large")
    assert response.headers["connection"] == "close"
    assert call("POST", "/", content=bytes(1_000_000)).json() == {"size": 1_000_000}


async def without_sockets(scope: Message, receive: Receive, send: Send) -> None:
    """An application that takes no handshake."""
    await send({"type": "websocket.close", "code": 1000})


@pytest.mark.parametrize(
    ("app", "origin", "status", "code"),
    [
        (application, b"https://evil.example", 403, "other_site"),
        (without_sockets, b"http://127.0.0.1", 404, "not_found"),
    ],
)
def test_a_handshake_is_refused_like_a_request(app: ASGI, origin: bytes, status: int, code: str) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    headers = [(b"host", b"127.0.0.1"), (b"origin", origin)]
    scope = {"type": "websocket", "path": "/v1/live", "headers": headers, "scheme": "ws"}
    asyncio.run(Door(app, hosts=allowed_hosts("127.0.0.1"), max_body_bytes=1)(scope, receive, send))
    assert [message["type"] for message in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (status, code)
    assert b"content-security-policy" in dict(sent[0]["headers"])


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "clinic.example",
        "https://clinic.example/",
        "https://a@b",
        "ftp://a",
        "https://a:99999",
        "https://a b",
    ],
)
def test_an_origin_that_is_none_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match=r"should be scheme://host or scheme://host:port, such as https://clinic"):
        parse_origin(origin)


def test_names_of_the_server() -> None:
    loopback = {"127.0.0.1", "localhost", "::1"}
    assert allowed_hosts("0.0.0.0") == allowed_hosts("::") == allowed_hosts("127.0.0.1") == loopback
    assert allowed_hosts("10.0.0.5", ["Clinic.example"]) == loopback | {"10.0.0.5", "clinic.example"}
    assert parse_origin("https://Clinic.example:443") == "https://clinic.example"
    assert parse_origin("http://[::1]:8000") == "http://[::1]:8000"
    for name in ("https://clinic.example", "clinic.example:8000", "clinic.example/", ""):
        with pytest.raises(ValueError, match="should be a host name without scheme, port and path"):
            allowed_hosts("127.0.0.1", [name])
