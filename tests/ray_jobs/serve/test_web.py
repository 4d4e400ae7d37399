"""The web side alone, with a model that answers at once: what is refused at the door, and the page."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_jobs.serve import web
from ray_jobs.serve.uploads import Limits
from ray_jobs.serve.web import make_app

LIMITS = Limits(max_bytes=300_000, max_seconds=60, max_pixels=3840 * 2160)


class Silent:
    """A model that nobody may ask for a prediction."""

    async def predict(self, video: bytes, subject: str | None) -> dict[str, Any]:
        raise AssertionError("the door lets it through")

    async def subjects(self) -> list[str]:
        return ["target-001"]

    async def facts(self) -> dict[str, Any]:
        facts = {"checkpoint": "0" * 16, "backbone": "small", "classes": ["neutral", "pain"], "subjects": 1}
        return facts | {"trained_on": {"the checkpoint": "BioVid (not rendered)"}}


def call(method: str, path: str, **request: Any) -> httpx.Response:
    """One request to the application, without a network."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(make_app(Silent(), LIMITS), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


def detail(response: httpx.Response) -> str:
    """What a refusal says."""
    return str(response.json()["detail"])


def test_too_many_bytes_are_refused_by_their_announcement() -> None:
    response = call("POST", "/v1/predict", files={"video": bytes(LIMITS.max_bytes + 70_000)})
    assert (response.status_code, detail(response)) == (413, "the file is too large; at most 0.3 MB are allowed")
    slightly = call("POST", "/v1/predict", files={"video": bytes(LIMITS.max_bytes + 1)})
    assert (slightly.status_code, detail(slightly)) == (413, "the file is too large; at most 0.3 MB are allowed")


def test_too_many_bytes_without_an_announcement_are_not_read_on() -> None:
    sent = []

    async def body() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            sent.append(1000)
            yield bytes(1000)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = call("POST", "/v1/predict", content=body(), headers=headers)
    assert response.status_code == 413
    assert sum(sent) <= LIMITS.max_bytes + web._FRAMING_BYTES + 2000


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 400),
        ({"host": "127.0.0.1.evil.example:8000"}, 400),
        ({"host": "localhost.evil.example"}, 400),
        ({"host": "www.localhost"}, 400),
        ({"host": ""}, 400),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"content-length": "many"}, 400),
        ({"host": "localhost:9000", "origin": "http://localhost:9000"}, 200),
    ],
)
def test_other_sites_pages_do_not_reach_the_server(headers: dict[str, str], status: int) -> None:
    response = call("GET", "/v1/subjects", headers=headers)
    assert response.status_code == status
    assert status == 200 or response.text
    assert response.headers["content-security-policy"].startswith("default-src 'none'")


def test_another_name_reaches_neither_pages_nor_predictions() -> None:
    for method, path in (("GET", "/"), ("GET", "/page.js"), ("POST", "/v1/predict"), ("GET", "/healthz")):
        response = call(method, path, headers={"host": "evil.example"})
        assert (response.status_code, response.text) == (400, "Invalid host header"), path


@pytest.mark.parametrize("path", ["/../web.py", "/%2e%2e/web.py", "/..%2fweb.py", "/nothing.js"])
def test_nothing_beside_the_page_is_given_out(path: str) -> None:
    assert call("GET", path).status_code == 404


def test_the_page_needs_no_other_machine() -> None:
    files = {f"/{path.name}" for path in (Path(web.__file__).parent / "page").iterdir()}
    pages = {path: call("GET", path) for path in ("/", "/docs", *sorted(files))}
    for path, response in pages.items():
        assert response.status_code == 200, path
        text = response.text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[\w.]+\.\w|@import|url\(", text), path
        assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        for linked in re.findall(r'(?:src|href)="([\w./]+)"|from "\./([\w.]+)"', text):
            target = "/" + next(filter(None, linked)).removeprefix(".").lstrip("/")
            assert target in pages or target == "/openapi.json", f"{path} wants {target}"
    assert "<script>" not in pages["/"].text and not re.search(r"\son\w+=|style=", pages["/"].text)


def test_the_api_describes_itself() -> None:
    spec = call("GET", "/openapi.json").json()
    assert set(spec["paths"]) == {"/v1/predict", "/v1/subjects", "/healthz"}
    answer = spec["paths"]["/v1/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["$ref"].endswith("/Answer")
    assert detail(call("GET", "/nothing")) == "Not Found"
