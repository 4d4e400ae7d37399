"""Tokens of clusters: used where there is one, asked for in one line where one is missing. Real sockets, and for the
tests of clusters a real Ray."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from ray_jobs import cli
from ray_jobs.platform.cluster import ClusterConfig, connect
from ray_jobs.platform.tokens import mode_for, token_advice, use_token
from tests.support.server_process import free_port

VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (*VARIABLES, "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def leave_token(home: Path, token: str = "secret") -> None:
    """As Ray leaves one after a local start."""
    (home / ".ray").mkdir(exist_ok=True)
    (home / ".ray" / "auth_token").write_text(token)


class Guard(grpc.GenericRpcHandler):
    """A server that refuses everything without its token, as Ray's does."""

    def service(self, handler_call_details: Any) -> Any:
        sent = dict(handler_call_details.invocation_metadata).get("authorization")

        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            if sent != "Bearer secret":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Guard()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


@pytest.fixture(scope="module")
def open_server() -> Iterator[str]:
    """A cluster without tokens."""
    server = grpc.server(ThreadPoolExecutor(2), handlers=[])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


def test_a_token_that_a_local_start_left_is_used_where_the_cluster_asks(
    home: Path, guarded: str, open_server: str
) -> None:
    leave_token(home)
    with mode_for(guarded):
        assert os.environ["RAY_AUTH_MODE"] == "token"
    with mode_for(open_server):
        assert "RAY_AUTH_MODE" not in os.environ
    assert "RAY_AUTH_MODE" not in os.environ


def test_a_mode_that_an_earlier_local_start_left_is_undone_for_a_cluster_without_tokens(
    home: Path, open_server: str, guarded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls to this driver would be refused, and its actors would die."""
    leave_token(home)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with mode_for(open_server):
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    with mode_for(guarded):
        assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("variable", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_may_come_from_the_environment(
    home: Path, guarded: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    (home / "file").write_text("secret\n")
    monkeypatch.setenv(variable, "secret" if variable == "RAY_AUTH_TOKEN" else str(home / "file"))
    for address in (guarded, f"ray://{guarded}"):
        with mode_for(address):
            assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize(
    ("token", "mode", "said"),
    [
        (
            None,
            None,
            "wants a token and there is none here: it is in the file ~/.ray/auth_token of the user who started it; set "
            "RAY_AUTH_TOKEN to it, or RAY_AUTH_TOKEN_PATH to a file with it",
        ),
        ("other", None, "wants another token than the one in {home}/.ray/auth_token: it is in the file"),
        ("secret", "disabled", "wants a token, and RAY_AUTH_MODE=disabled keeps it back: set RAY_AUTH_MODE=token"),
    ],
)
@pytest.mark.usefixtures("no_ray")
def test_joining_says_which_variable_is_missing(
    home: Path, guarded: str, monkeypatch: pytest.MonkeyPatch, token: str | None, mode: str | None, said: str
) -> None:
    if token:
        leave_token(home, token)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ConnectionError) as caught, connect(ClusterConfig(address=guarded)):
        pass
    message = str(caught.value)
    assert message.startswith(f"the cluster at {guarded} {said.format(home=home)}") and "\n" not in message
    assert "no Ray cluster answers" not in message


def test_the_advice_follows_what_is_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "other")
    use_token()
    assert "another token than the one in RAY_AUTH_TOKEN:" in token_advice("head:6379")


@pytest.fixture
def cluster(home: Path) -> Iterator[tuple[str, str]]:
    """A real cluster that was started where Ray had left a token; the addresses of its server and dashboard."""
    leave_token(home, "0123456789abcdef0123456789abcdef")
    folder = tempfile.mkdtemp(prefix="rj", dir="/tmp")
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    ports = {name: free_port() for name in names}
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=1"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"),
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    log = Path(folder, "start.log")
    with log.open("w") as output:
        head = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while "Process exit logs" not in log.read_text():
            assert time.monotonic() < deadline and head.poll() is None, log.read_text()
            time.sleep(0.5)
        yield f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['dashboard-port']}"
    finally:
        head.terminate()
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.cluster
@pytest.mark.usefixtures("no_ray")
def test_a_cluster_started_later_is_joined_and_takes_jobs(
    home: Path, cluster: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    server, dashboard = cluster
    words = ["dataset.source_subjects=2", "dataset.source_val_subjects=1", "dataset.target_subjects=1"]
    words += ["dataset.clips_per_source_subject=2", "dataset.clips_per_target_subject=2", "dataset.num_frames=24"]
    root = Path(__file__).parents[3]
    for place in (["cluster.address=" + server], ["--address", dashboard]):
        submitted = ["submit"] if place[0] == "--address" else []
        command = [sys.executable, "-m", "ray_jobs.cli", *submitted, "synth", f"out={home}/{len(submitted)}"]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run([*command, *words, *place], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(done.args)}\n{done.stdout}\n{done.stderr}"
        assert (home / str(len(submitted)) / "manifest.parquet").is_file()
    shutil.rmtree(home / ".ray")
    for place in (["cluster.address=" + server], ["--address", dashboard]):
        submitted = ["submit"] if place[0] == "--address" else []
        assert cli.main([*submitted, "synth", f"out={home}/x", *words, *place]) == 2
        said = capfd.readouterr().err
        assert "wants a token and there is none here" in said and "Traceback" not in said
