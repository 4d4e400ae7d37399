"""A real server under whatever may be sent to it: no request may make it fail, leak, or keep anything on disk.

The processes of the server are this test's own. Each attack is made twice: the first time fills caches and pools, and
what the second one adds is a leak.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from ray_jobs.serve.refusals import KINDS
from tests.benchmarks.bench_predict_many import write_checkpoint
from tests.support.corpus import mutations, whole_files, write_corpus
from tests.support.fakes import numbered_frames, write_video
from tests.support.recordings import jpeg
from tests.support.server_process import OBJECT_STORE, PROGRAM_FILES, Server, ended, memory_by_name, processes, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
_LIMITS = (
    "max_upload_mb=2",
    "max_seconds=4",
    "max_pixels=1000000",
    "max_videos=16",
    "requests_per_minute=100000",
    "annotated_seconds=5",
)
_MUTATED = 25
"""Damaged files of each format."""
_EXAMPLES = 40
"""Requests for each operation of the OpenAPI."""
_GROWN_MB, _GROWN_FILES = 60.0, 40
"""What all processes together may hold more after some hundred requests than before."""
_ODD_TEXTS = (
    "",
    " ",
    "\0",
    "../../etc/passwd",
    "Ü" * 300,
    "a\r\nSet-Cookie: a=b",
    "<script>",
    "{}",
    "[[",
    "%00",
    "-1",
    "NaN",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fuzz")
    with serving(folder, [f"checkpoint={write_checkpoint(folder / 'checkpoint')}", *_LIMITS]) as running:
        yield running


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("face") / "face.mp4", numbered_frames(30))


@dataclass(frozen=True)
class Held:
    """What the processes of a server hold."""

    memory_mb: float
    """Of their own, without the object store, which has a limit."""
    files: int
    """Open files and sockets."""

    @classmethod
    def by(cls, server: Server) -> Held:
        pids = processes(server.pid)
        files = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids if os.path.exists(f"/proc/{pid}/fd"))
        own = {name: mb for name, mb in memory_by_name(server.pid).items() if name not in (OBJECT_STORE, PROGRAM_FILES)}
        return cls(sum(own.values()), files)


def check_harmless(server: Server, face: Path, attack: Callable[[], object]) -> None:
    """After an attack the server answers as before, keeps nothing on disk, and holds about as much as before."""
    attack()
    before = Held.by(server)
    attack()
    assert predict(server, face.read_bytes()).status_code == 200
    deadline = time.monotonic() + 15
    while server.files() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert server.files() == []
    after = Held.by(server)
    assert after.files - before.files < _GROWN_FILES
    assert after.memory_mb - before.memory_mb < _GROWN_MB


def predict(server: Server, content: bytes, **fields: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/predict", files={"video": ("a.mp4", content)}, data=fields, timeout=120)


def check_answer(answer: httpx.Response) -> dict[str, Any]:
    """An answer, or a refusal as all refusals are; never a failure of the server."""
    body: dict[str, Any] = answer.json()
    if answer.status_code < 300:
        return body
    assert set(body) == {"code", "detail", "help"}
    assert answer.status_code == KINDS[body["code"]][0]
    assert body["code"] not in ("failed", "worker_lost", "timeout"), (body, answer.request.url)
    assert "/tmp" not in body["detail"]
    assert "Traceback" not in body["detail"]
    return body


def hostile_files(folder: Path) -> Iterator[bytes]:
    """The corpus of broken videos, and damaged copies of whole ones."""
    for path in write_corpus(folder).values():
        if path.is_file():
            yield path.read_bytes()
    for path in mutations(whole_files(folder / "whole"), folder, per_format=_MUTATED):
        yield path.read_bytes()


def test_broken_videos_through_every_upload_route(server: Server, face: Path, tmp_path: Path) -> None:
    files = list(hostile_files(tmp_path))
    check_harmless(server, face, lambda: upload_everywhere(server, files))


def upload_everywhere(server: Server, files: Sequence[bytes]) -> None:
    """Every file through `predict`, `batch` and a personalization, and some through `/api/predict`."""
    codes = {check_answer(predict(server, content)).get("code", "answered") for content in files}
    assert {"answered", "not_a_video"} <= codes
    parts = [files[first : first + 16] for first in range(0, len(files), 16)]
    for part in parts:
        answer = httpx.post(f"{server.url}/v1/predict/batch", files=videos(part), timeout=300)
        items = check_answer(answer)["answers"]
        assert [item["video"] for item in items] == list(range(len(part)))
        assert all(item["error"] is None or item["error"]["code"] != "failed" for item in items)
        answer = httpx.put(f"{server.url}/v1/subjects/fuzz", files=videos(part), timeout=120)
        follow(server, check_answer(answer))
    httpx.delete(f"{server.url}/v1/subjects/fuzz", timeout=30)
    for content in files[::3]:
        form = {"model": "pain", "labels": '["neutral", "pain"]'}
        sent = {"video": ("a.webm", content)}
        check_answer(httpx.post(f"{server.url}/api/predict", files=sent, data=form, timeout=120))


def videos(contents: Sequence[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("video", ("a.mp4", content)) for content in contents]


def follow(server: Server, job: dict[str, Any]) -> None:
    """Wait until a personalization has ended; it may fail, but not by a fault of the server."""
    job = ended(server.url, job)
    assert job["error"] is None or job["error"]["code"] != "failed", job


def test_odd_fields_and_bodies_are_refused(server: Server, face: Path) -> None:
    content = face.read_bytes()
    check_harmless(server, face, lambda: (send_odd_fields(server, content), send_odd_bodies(server, content)))


def send_odd_fields(server: Server, content: bytes) -> None:
    """Odd texts in every field."""
    for text in _ODD_TEXTS:
        for field in ("model", "subject_id", "adapt"):
            check_answer(predict(server, content, **{field: text}))
        form = {"model": text, "labels": text}
        check_answer(httpx.post(f"{server.url}/api/predict", files={"video": content}, data=form, timeout=60))
        check_answer(
            httpx.put(f"{server.url}/v1/subjects/x", files={"video": content}, data={"keep": text}, timeout=60)
        )


def send_odd_bodies(server: Server, content: bytes) -> None:
    """Bodies that are damaged, or other than their header says."""
    rng = np.random.default_rng(0)
    url = f"{server.url}/v1/predict"
    whole = b'--b\r\nContent-Disposition: form-data; name="video"; filename="a"\r\n\r\n' + content + b"\r\n--b--\r\n"
    for _ in range(60):
        damaged = bytearray(whole[: int(rng.integers(1, len(whole)))] if rng.random() < 0.3 else whole)
        for at in rng.integers(min(len(damaged), 120), size=4):
            damaged[at] = rng.integers(256)
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        check_answer(httpx.post(url, content=bytes(damaged), headers=headers, timeout=60))
    for kind in ("", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "text/plain"):
        check_answer(httpx.post(url, content=whole, headers={"Content-Type": kind}, timeout=60))


def test_broken_frames_and_messages_through_the_live_socket(server: Server, face: Path) -> None:
    def attack() -> None:
        rng = np.random.default_rng(0)
        for session in range(20):
            with contextlib.suppress(ConnectionClosed, OSError):  # the server may end a session that sends nonsense
                live_session(server, rng, vanishing=bool(session % 2))

    check_harmless(server, face, attack)


def live_session(server: Server, rng: np.random.Generator, *, vanishing: bool) -> None:
    """A session of damaged frames and texts; it ends without a word if it is `vanishing`."""
    url = f"ws{server.url[4:]}/v1/live"
    with connect(url, compression=None, proxy=None, close_timeout=1) as client:
        client.send(json.dumps({"type": "start"}))
        assert json.loads(client.recv(30))["type"] == "ready"
        for message in hostile_messages(rng, jpeg(numbered_frames(8)[7])):
            client.send(message)
            told = json.loads(client.recv(30))
            assert told["type"] in ("frame", "rest", "error")
            assert told.get("code", "busy") in KINDS
            assert told.get("code") != "failed"
        if vanishing:
            client.socket.close()


def hostile_messages(rng: np.random.Generator, good: bytes) -> Iterator[str | bytes]:
    """Frames and texts, most of which are damaged."""
    for _ in range(12):
        frame = bytearray(good[: int(rng.integers(1, len(good)))] if rng.random() < 0.3 else good)
        for at in rng.integers(len(frame) if rng.random() < 0.5 else min(len(frame), 400), size=3):
            frame[at] = rng.integers(256)
        yield bytes(frame)
        yield good
    texts = [
        '{"type": "rest", "seconds": 1e400}',
        '{"type": "rest", "seconds": -1}',
        "{" * 4000,
        "\0",
        '"rest"',
        "null",
    ]
    yield texts[int(rng.integers(len(texts)))]


def test_requests_made_from_the_openapi_are_answered_as_it_says(server: Server) -> None:
    import schemathesis
    from hypothesis import HealthCheck, Phase, given
    from hypothesis import settings as effort

    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checks = [
        schemathesis.checks.not_a_server_error,
        schemathesis.checks.status_code_conformance,
        schemathesis.checks.content_type_conformance,
        schemathesis.checks.response_schema_conformance,
    ]
    wrong: dict[str, str] = {}
    tried = set()
    for found in api.get_all_operations():
        operation = found.ok()
        tried.add(operation.path)

        @given(case=operation.as_strategy())
        @effort(
            max_examples=_EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        def holds(case: Any) -> None:
            answer = case.call(timeout=60)
            if answer.status_code not in (503, 504):  # refused for load, which is no fault
                case.validate_response(answer, checks=checks)

        try:
            holds()
        except Exception as error:
            wrong[operation.label] = "".join(traceback.format_exception_only(error))
    assert not wrong, "\n\n".join(f"{label}: {problem}" for label, problem in wrong.items())
    assert {"/v1/predict", "/v1/predict/batch", "/v1/subjects/{subject_id}", "/api/predict", "/healthz"} <= tried
