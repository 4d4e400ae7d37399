"""What is sent along with a job: what Ray would refuse is named before, and the commit comes along."""

from __future__ import annotations

import http.server
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_jobs
from ray_jobs.platform import configuration, runs
from ray_jobs.submit import package
from ray_jobs.submit.package import refuse_too_large, sent_files

ROOT = Path(ray_jobs.__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with code, and things that stay at home."""
    root = tmp_path / "my code"
    for name, size in {"clipautt/a.py": 10, "runs/b.bin": 10**6, "clip.mp4": 10**6, "notes/c.txt": 20}.items():
        grow(root / name, size)
    (root / ".gitignore").write_text("*.ckpt\n")
    grow(root / "x.ckpt", 10**6)
    return root


def grow(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_what_is_sent_is_what_ray_would_send(checkout: Path) -> None:
    assert sent_files(checkout) == {Path(".gitignore"): 7, Path("clipautt/a.py"): 10, Path("notes/c.txt"): 20}
    refuse_too_large(checkout, limit=38)


@pytest.mark.parametrize(
    ("files", "named", "patterns"),
    [
        ({"scan.bin": 600}, "scan.bin (600 B)", "/scan.bin"),
        ({"a b/[1].bin": 300, "second.npy": 200, "third.npy": 1}, "a b/[1].bin (300 B), second.npy", ""),
        ({f"many/{i}.txt": 50 for i in range(20)}, "many/ (1.0 kB)", "/many/"),
    ],
)
def test_what_is_too_large_is_named_and_the_advice_works(
    checkout: Path, files: dict[str, int], named: str, patterns: str
) -> None:
    for name, size in files.items():
        grow(checkout / name, size)
    with pytest.raises(ValueError) as caught:
        refuse_too_large(checkout, limit=150)
    said = str(caught.value)
    assert f"more than the 150 B that Ray takes: {named}" in said and "\n" not in said and patterns in said
    command = said.partition("leave it out: ")[2]
    subprocess.run(command, shell=True, check=True)
    assert {name.as_posix() for name in sent_files(checkout)} & files.keys() <= {"third.npy"}
    refuse_too_large(checkout, limit=150)


def test_the_commit_comes_along(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "checkout", lambda: checkout)
    monkeypatch.setattr(package, "commit", lambda: "1a2b3c4.dirty")
    assert package.runtime_env()["env_vars"] == {"CLIPAUTT_COMMIT": "1a2b3c4.dirty"}


def test_code_without_its_git_folder_is_of_the_commit_that_came_along(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "checkout", lambda: checkout)
    monkeypatch.setenv("CLIPAUTT_COMMIT", "1a2b3c4")
    assert runs.commit.__wrapped__() == "1a2b3c4"


class Cluster(http.server.BaseHTTPRequestHandler):
    """Answers like a dashboard that refuses whatever is sent."""

    sent: list[int]

    def do_GET(self) -> None:
        version = b'{"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "s"}'
        self.answer(404 if "/packages" in self.path else 200, version)

    def do_PUT(self) -> None:
        self.sent.append(int(self.headers["Content-Length"]))
        self.rfile.read(self.sent[-1])
        self.answer(500, b"Traceback\nValueError: Package size exceeds the maximum size of 1 MiB")

    def answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[tuple[str, list[int]]]:
    Cluster.sent = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cluster) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", Cluster.sent
        server.shutdown()


def submit(root: Path, url: str) -> subprocess.CompletedProcess[str]:
    for name in ("clipautt", "ray_jobs", "conf"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    command = [sys.executable, "-m", "ray_jobs.submit", "synth", "out=/shared/x", "--address", url]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_nothing_is_sent_that_would_be_refused(tmp_path: Path, dashboard: tuple[str, list[int]]) -> None:
    """With Ray's own limit; the file is sparse."""
    grow(tmp_path / "scan.bin", 600 << 20)
    done = submit(tmp_path, dashboard[0])
    assert done.returncode == 2 and dashboard[1] == []
    (line,) = done.stderr.splitlines()
    assert "scan.bin (629.1 MB)" in line and shlex.quote(str(tmp_path / ".rayignore")) in line


def test_a_refusal_of_the_cluster_is_one_line(tmp_path: Path, dashboard: tuple[str, list[int]]) -> None:
    done = submit(tmp_path, dashboard[0])
    assert done.returncode == 2 and len(dashboard[1]) == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("clipautt submit: the cluster refused the job: ") and "maximum size of 1 MiB" in last
