"""Uploads over real connections: what becomes a file, what is refused, and that nothing stays."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse

from ray_jobs.serve.refusals import RefusedError
from ray_jobs.serve.web.asgi import Message, Receive, Send
from ray_jobs.serve.web.door import Door, allowed_hosts
from ray_jobs.serve.web.pace import Pace
from ray_jobs.serve.web.server import Listener
from ray_jobs.serve.web.spool import Spool, sweep_dead
from ray_jobs.serve.web.uploads import FormConfig, read_form
from tests.support.listening import client, listening, wait_until

MAX_BYTES = 300_000
TYPE = "multipart/form-data; boundary=limit"
FILE = 'Content-Disposition: form-data; name="video"; filename="../../etc/passwd"\r\nContent-Type: text/html\r\n\r\n'


def part(headers: str, content: str | bytes) -> bytes:
    """A part of a body."""
    content = content.encode() if isinstance(content, str) else content
    return b"--limit\r\n" + headers.encode() + content + b"\r\n"


def text(name: str, content: str | bytes) -> bytes:
    """A text field."""
    return part(f'Content-Disposition: form-data; name="{name}"\r\n\r\n', content)


END = b"--limit--\r\n"
VIDEO = part(FILE, b"\r\n--limi" * 1000)


class Site:
    """An application with an upload and a page, whose files are counted while it answers."""

    def __init__(self, folder: Path) -> None:
        self.spool = Spool(folder, max_bytes=2_000_000, free_bytes=1)
        self.config = FormConfig(bytes_per_second=10_000, grace_seconds=0.4, stall_seconds=0.6)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        if request.method == "GET":
            await JSONResponse({"alive": True})(scope, receive, send)
            return
        fields, config = ("model", "subject_id"), self.config
        files = 3 if request.url.path == "/batch" else 1
        async with read_form(
            request, self.spool, max_bytes=MAX_BYTES, max_files=files, fields=fields, config=config
        ) as form:
            contents = [upload.path.read_bytes() for upload in form.videos]
            assert [upload.size for upload in form.videos] == [len(content) for content in contents]
            assert {upload.path for upload in form.videos} <= set(files_of(self.spool))
            assert {oct(upload.path.stat().st_mode & 0o777) for upload in form.videos} == {"0o600"}
            if request.url.path == "/bug":
                raise RuntimeError("bug")
            shown = {"fields": form.fields, "bytes": [len(content) for content in contents]}
        await JSONResponse(shown)(scope, receive, send)


def files_of(spool: Spool) -> list[Path]:
    """Files of uploads."""
    return list(spool.folder.iterdir())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Listener]]:
    made = Site(tmp_path_factory.mktemp("spool"))
    door = Door(made, hosts=allowed_hosts("127.0.0.1"), max_body_bytes=10_000_000)
    with listening(door, linger_seconds=1.0) as listener:
        yield made, listener
    made.spool.close()


def post(listener: Listener, body: bytes, *, path: str = "/", kind: str = TYPE, length: int | None = None) -> Any:
    """Status and JSON of an upload; a length beyond the body's leaves it unfinished."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nConnection: close\r\n"
    with client(listener) as one:
        one.send(head + f"Content-Length: {len(body) if length is None else length}\r\n\r\n", body)
        status, _, content = one.answer()
    parts = content.split(b"\r\n")
    return status, json.loads(parts[1] if len(parts) > 1 else content) if content else {}


def test_files_and_fields_arrive_whole(site: tuple[Site, Listener]) -> None:
    spool, listener = site[0].spool, site[1]
    body = text("model", "pain") + VIDEO + text("model", "stress") + text("subject_id", "Zoë") + VIDEO + END
    assert post(listener, body, path="/batch") == (
        200,
        {"fields": {"model": ["pain", "stress"], "subject_id": ["Zoë"]}, "bytes": [8000, 8000]},
    )
    assert post(listener, part(FILE, bytes(MAX_BYTES)) + END) == (200, {"fields": {}, "bytes": [MAX_BYTES]})
    assert (files_of(spool), spool.used) == ([], 0)
    assert post(listener, VIDEO + END, path="/bug")[0] == 500
    assert (files_of(spool), spool.used) == ([], 0)


MANY = "too many fields; at most 64 are allowed"


@pytest.mark.parametrize(
    ("body", "status", "code", "detail"),
    [
        (part(FILE, bytes(MAX_BYTES + 1)) + END, 413, "too_large", "the file is too large; at most 0.3 MB are allowed"),
        (part(FILE, bytes(400_000)) + END, 413, "too_large", "the file is too large; at most 0.3 MB are allowed"),
        (VIDEO + VIDEO + END, 413, "too_large", "too many files; at most 1 are allowed"),
        (part(FILE, "") + END, 415, "not_a_video", "the file is empty"),
        (text("model", "pain") + END, 400, "malformed", "there is no file `video` in the body"),
        (END, 400, "malformed", "there is no file `video` in the body"),
        (b"", 400, "malformed", "the body ends before its last part does"),
        (VIDEO, 400, "malformed", "the body ends before its last part does"),
        (VIDEO[:500], 400, "malformed", "the body ends before its last part does"),
        (b"nonsense", 400, "malformed", "the body is not multipart/form-data with the announced boundary"),
        (text("video", "x") + END, 400, "malformed", "the field `video` should be a file, not text"),
        (
            part(FILE.replace("video", "model"), "x") + END,
            400,
            "malformed",
            "the field 'model' should be text, not a file",
        ),
        (
            part(FILE.replace("video", "x"), "x") + END,
            400,
            "malformed",
            "unknown field 'x'; allowed: video, model, subject_id",
        ),
        (
            text("x" * 100, "x") + END,
            400,
            "malformed",
            f"unknown field '{'x' * 40}…'; allowed: video, model, subject_id",
        ),
        (part("Content-Type: text/plain\r\n\r\n", "x") + END, 400, "malformed", "a part of the body has no name"),
        (text("model", b"\xff") + END, 400, "malformed", "the field 'model' is not UTF-8"),
        (
            text("model", "x" * 20_000) + END,
            413,
            "too_large",
            "the field 'model' is too long; at most 16384 bytes are allowed",
        ),
        (text("model", "x") * 65 + END, 413, "too_large", MANY),
        (
            part("X: y\r\n" * 50 + FILE, "x") + END,
            400,
            "malformed",
            "the body is not multipart/form-data with the announced boundary",
        ),
        (
            part("X: " + "y" * 9000, ""),
            400,
            "malformed",
            "the body is not multipart/form-data with the announced boundary",
        ),
    ],
)
def test_what_is_refused(site: tuple[Site, Listener], body: bytes, status: int, code: str, detail: str) -> None:
    got, problem = post(site[1], body)
    assert (got, problem["code"], problem["detail"]) == (status, code, detail)
    assert (files_of(site[0].spool), site[0].spool.used) == ([], 0)


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("video/mp4", "the body should be multipart/form-data with a file `video`"),
        ("application/json", "the body should be multipart/form-data with a file `video`"),
        ("multipart/form-data", "the header Content-Type has no boundary"),
        (f"multipart/form-data; boundary={'x' * 300}", "the boundary in the header Content-Type is too long"),
    ],
)
def test_a_body_of_another_kind_is_refused(site: tuple[Site, Listener], kind: str, detail: str) -> None:
    status, problem = post(site[1], VIDEO + END, kind=kind)
    assert (status, problem["code"], problem["detail"]) == (400, "malformed", detail)


def test_too_many_announced_bytes_are_refused_before_any_is_read(site: tuple[Site, Listener]) -> None:
    for path, most in (
        ("/", "the file is too large; at most 0.3"),
        ("/batch", "the files together are too large; at most 0.9"),
    ):
        status, problem = post(site[1], b"", path=path, length=1_000_000)
        assert (status, problem["code"], problem["detail"]) == (413, "too_large", f"{most} MB are allowed")


def test_forty_slow_uploads_are_cut_and_cost_nobody_anything(site: tuple[Site, Listener]) -> None:
    spool, listener = site[0].spool, site[1]
    stop = threading.Event()
    slow = []
    answers = []

    def drip() -> None:
        with client(listener) as one:
            one.send(f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {TYPE}\r\nContent-Length: 200000\r\n\r\n")
            one.send(VIDEO[:200])
            while not stop.wait(0.1):
                one.send(b"x")
            answers.append(one.problem())

    for _ in range(40):
        slow.append(threading.Thread(target=drip, daemon=True))
        slow[-1].start()
    wait_until(lambda: len(files_of(spool)) == 40)
    assert post(listener, VIDEO + END)[0] == 200
    wait_until(lambda: not files_of(spool))
    stop.set()
    for thread in slow:
        thread.join()
    assert set(answers) <= {
        (408, "too_slow", "the body arrived too slowly; at least 10 kB/s are expected"),
        (0, "", ""),
    }
    assert spool.used == 0


def test_an_upload_may_pause_but_not_for_long(site: tuple[Site, Listener]) -> None:
    spool, listener = site[0].spool, site[1]
    body = part(FILE, bytes(100_000)) + END
    head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {TYPE}\r\nConnection: close\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with client(listener) as one:
        one.send(head, body[:50_000])
        threading.Event().wait(0.3)
        assert one.send(body[50_000:]).answer()[0] == 200
    with client(listener) as one:
        assert one.send(head, body[:-1]).problem()[:2] == (408, "too_slow")
    assert (files_of(spool), spool.used) == ([], 0)


def test_a_pace_lets_pause_who_was_fast_and_no_longer() -> None:
    pace = Pace(bytes_per_second=100, grace_seconds=10, stall_seconds=30)
    pace.wait(9)
    pace.move(500)
    assert pace.seconds_left == 6
    pace.move(1_000_000)
    assert pace.seconds_left == 30
    pace.wait(31)
    assert pace.seconds_left == -1
    generous = Pace(bytes_per_second=100, grace_seconds=10, stall_seconds=5)
    generous.move(1)
    assert generous.seconds_left == 10


def test_a_client_that_vanishes_leaves_nothing(site: tuple[Site, Listener]) -> None:
    spool, listener = site[0].spool, site[1]
    for framing in ("Content-Length: 200000", "Transfer-Encoding: chunked"):
        with client(listener) as one:
            one.send(f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {TYPE}\r\n{framing}\r\n\r\n")
            one.send(VIDEO if framing.startswith("C") else b"%x\r\n%s\r\n" % (len(VIDEO), VIDEO))
            wait_until(lambda: len(files_of(spool)) == 1)
        wait_until(lambda: not files_of(spool))
        assert spool.used == 0


def test_a_full_spool_or_disk_refuses_and_says_when_to_come_again(tmp_path: Path) -> None:
    small = Spool(tmp_path / "small", max_bytes=1000, free_bytes=0)
    kept = small.new_file()
    kept.write(bytes(600))
    with pytest.raises(RefusedError, match="the server has no room for this upload now") as raised:
        small.check_room(600)
    assert (raised.value.refusal.code, raised.value.refusal.retry_seconds) == ("busy", 10)
    more = small.new_file()
    with pytest.raises(RefusedError, match="no room"):
        more.write(bytes(401))
    more.write(bytes(400))
    kept.remove()
    more.remove()
    kept.remove()
    assert (small.used, files_of(small)) == (0, [])
    full = Spool(tmp_path / "full", max_bytes=10**9, free_bytes=2**62)
    with pytest.raises(RefusedError, match="no room"):
        full.check_room(1)
    with pytest.raises(RefusedError, match="no room"):
        full.new_file().write(bytes(9_000_000))


def test_what_a_killed_process_left_is_swept_and_a_living_ones_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    code = (
        "import sys, time; from pathlib import Path; from ray_jobs.serve.web.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]), max_bytes=10**6, free_bytes=0)\n"
        "spool.new_file().write(b'video'); print(spool.folder.name, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    left = folder / other.stdout.readline().strip()
    mine = Spool(folder, max_bytes=10**6, free_bytes=0)
    assert len(list(left.iterdir())) == 1 and oct(folder.stat().st_mode & 0o777) == "0o700"
    other.send_signal(signal.SIGKILL)
    other.wait()
    half_made = folder / "0" / "x"
    half_made.mkdir(parents=True)
    again = Spool(folder, max_bytes=10**6, free_bytes=0)
    assert sorted(folder.glob("[!.]*")) == sorted([mine.folder, again.folder])
    mine.close()
    again.close()
    assert list(folder.rglob("*")) == [folder / ".alive"]
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=r"uploads cannot be kept in .*file \(File exists\)"):
        Spool(file, max_bytes=1, free_bytes=0)


def test_what_servers_at_other_ports_left_is_swept_unless_they_live(tmp_path: Path) -> None:
    living = Spool(tmp_path / "serve-0-8001" / "uploads", max_bytes=1, free_bytes=0)
    names = ("serve-0-8000", "serve-0-8001", "serve-0-8002", "serve-1-8003", "other")
    for name in names:
        left = tmp_path / name / "jobs" / "a process" / "a job" / "0"
        left.parent.mkdir(parents=True)
        left.write_text("a face")
    killed = tmp_path / "serve-0-8002" / "uploads" / ".alive" / "a process"
    killed.parent.mkdir(parents=True)
    killed.touch()
    (tmp_path / "serve-0-link").symlink_to(tmp_path / "other")
    sweep_dead(tmp_path / "serve-0-8000")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other",
        "serve-0-8000",
        "serve-0-8001",
        "serve-0-link",
        "serve-1-8003",
    ]
    assert (tmp_path / "other" / "jobs").is_dir() and living.folder.is_dir()
    living.close()
