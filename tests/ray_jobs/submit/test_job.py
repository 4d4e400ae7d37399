"""Submitting jobs: what is sent, and for real what comes back from a cluster of one machine."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_jobs
from clipautt.commands import quoted
from ray_jobs import cli
from ray_jobs.platform import configuration, jobs
from ray_jobs.platform.runs import code_version
from ray_jobs.submit import job as submit
from tests.support.server_process import free_port

TINY = '''"""Runs a task on the cluster and ends as it is told.

Example:
    clipautt tiny
"""
import os
import sys
import time
from ray_jobs.platform import cluster
from ray_jobs.platform.runs import code_version

def main(cfg):
    import ray
    with cluster.connect():
        @ray.remote
        def square(x):
            import ray_jobs.tiny.job
            return x * x
        print("squares", ray.get([square.remote(i) for i in range(3)]))
        print("text", repr(cfg.text))
        print("version", code_version())
        print("files", sorted(os.listdir(".")), flush=True)
        time.sleep(cfg.sleep)
    return cfg.code
'''
MAIN = """from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own with one tiny job, and things that must stay at home."""
    source = Path(ray_jobs.__file__).parent
    root = tmp_path / "project"
    shutil.copytree(source, root / "ray_jobs", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "ray_jobs" / "tiny").mkdir()
    (root / "ray_jobs" / "tiny" / "job.py").write_text(TINY)
    (root / "ray_jobs" / "tiny" / "__main__.py").write_text(MAIN)
    (root / "conf").mkdir()
    (root / "conf" / "tiny.yaml").write_text(
        "code: 0 # exit code\ntext: x # printed\nsleep: 0 # seconds\nruns: runs # folder of all runs\n"
    )
    (root / "pyproject.toml").touch()
    for name in ("runs/a.parquet", "data/b.parquet", ".git/config", "clip.mp4", "kept/data/c.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    monkeypatch.setattr(ray_jobs, "__path__", [*ray_jobs.__path__, str(root / "ray_jobs")])
    monkeypatch.setattr(configuration, "folder", lambda: root / "conf")
    monkeypatch.setattr(configuration, "checkout", lambda: root)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "CLIPAUTT_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return root


def test_the_entrypoint_survives_a_shell(project: Path) -> None:
    text = "it's a 'b' $HOME `c`; d"
    entrypoint = submit.entrypoint_of("tiny", [f"text={quoted(text)}", "runs=/shared"])
    script = "import sys; print(sys.argv[-2])"
    shown = entrypoint.replace(" -m ray_jobs.tiny", f" -c '{script}'")
    done = subprocess.run(shown, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"text={quoted(text)}"


def test_files_of_settings_are_sent_with_the_words(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the cluster reads needs none of them."""
    (project / "conf" / "tiny.yaml").write_text(
        "defaults: [_self_, {how: usual}]\ncode: 0 # exit code\nruns: runs # folder of all runs\n"
    )
    (project / "conf" / "how").mkdir()
    (project / "conf" / "how" / "usual.yaml").write_text("pace: 1 # steps\n")
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("pace: 7 # it's fast\n")
    Path("best.yaml").write_text("tiny: [code=3, how=mine.yaml]\n")
    entrypoint = submit.entrypoint_of("tiny", ["@best.yaml", "runs=/shared"])
    Path("mine.yaml").unlink()
    words = shlex.split(entrypoint)[-3:]
    assert (words[0], words[2]) == ("code=3", "runs=/shared")
    assert configuration.compose("tiny", words) == {"how": {"pace": 7}, "code": 3, "runs": "/shared"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "clipautt submit: which job? Write `clipautt submit <job> key=value …`\n"),
        (["tinny"], "clipautt submit: unknown job 'tinny'; did you mean 'tiny'? `clipautt --help` lists the jobs\n"),
        (["tiny", "cod=1"], "clipautt submit: unknown key 'cod'; did you mean 'code'?\n"),
        (["submit", "tiny"], "clipautt submit: 'submit' runs on this machine and cannot be submitted\n"),
        (["tiny", "--address"], "clipautt submit: --address needs a URL, for instance --address http://head:8265\n"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(
    project: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["submit", *words]) == 2
    assert capsys.readouterr().err == message


def test_no_cluster_is_a_clear_error(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert cli.main(["submit", "tiny", "runs=/shared", "--address", url]) == 2
    message = capsys.readouterr().err
    assert message.startswith(
        f"clipautt submit: no Ray cluster accepts jobs at {url}: start one with `ray start --head`"
    )
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("words", "named", "advice"),
    [
        (["tiny"], "runs=runs", "runs=/shared/runs"),
        (["tiny", "runs=~/my runs"], "runs=~/my runs", "\"runs='/shared/my runs'\""),
        (["tiny", "runs=./a"], "runs=./a", "runs=/shared/a"),
    ],
)
def test_a_relative_path_is_refused_with_words_that_replace_it(
    project: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    named: str,
    advice: str,
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))  # a folder that is there is advised as it is
    assert cli.main(["submit", *words]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"clipautt submit: {named}: a relative path would lie in a folder that Ray removes with the job; give absolute "
        f"paths on storage that the cluster's machines share, for instance {advice}\n"
    )
    again = shlex.split(advice)
    assert submit.entrypoint_of("tiny", again).endswith(shlex.join(again))


def test_a_uri_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "tiny", "runs=s3://bucket/runs"]) == 2
    assert capsys.readouterr().err.startswith("clipautt submit: runs=s3://bucket/runs: URIs are not read yet; ")


def test_a_password_is_refused_as_the_dashboard_shows_the_command(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["submit", "tiny", "runs=/shared", "text=postgresql://lab:Secret-7@db/sweeps"]) == 2
    assert capsys.readouterr().err == (
        "clipautt submit: text=postgresql://lab:***@db/sweeps: the cluster's dashboard would show this password to "
        "everybody; write 'text=${oc.env:SWEEP_TEXT}' and set SWEEP_TEXT on the machine where the job runs, or omit "
        "the password and put it into PGPASSWORD or ~/.pgpass there\n"
    )
    reference = "text=${oc.env:SWEEP_TEXT}"
    entrypoint = submit.entrypoint_of("tiny", ["runs=/shared", reference])
    assert entrypoint.endswith(f"-m ray_jobs.tiny runs=/shared '{reference}'")  # resolved there, not here
    with pytest.raises(ValueError, match="Environment variable 'SWEEP_TEXT' not found"):
        configuration.resolved(configuration.complete("tiny", ["runs=/shared", reference]))
    monkeypatch.setenv("SWEEP_TEXT", "postgresql://lab:Secret-7@db/sweeps")
    settings = configuration.resolved(configuration.complete("tiny", ["runs=/shared", reference]))
    assert settings["text"] == "postgresql://lab:Secret-7@db/sweeps"


def test_the_helps_own_examples_are_complete() -> None:
    """With the project's own jobs: every command in the help passes the checks that are made before sending."""
    text = submit.__doc__ or ""
    commands = text.partition("Example:")[2].replace("\\\n", " ").strip().splitlines()
    assert len(commands) >= 2
    for command in commands:
        words = shlex.split(command)
        assert words[:2] == ["clipautt", "submit"]
        _, rest = submit._take_address(words[2:])
        assert submit.entrypoint_of(rest[0], rest[1:])


def test_a_wheel_sends_no_code(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert submit.runtime_env()["working_dir"] == str(project)
    monkeypatch.setattr(configuration, "checkout", lambda: None)
    assert submit.runtime_env() == {}


def test_submit_has_no_configuration_of_its_own() -> None:
    assert jobs.find_job("submit").reads_words


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    """A Ray of its own on this machine, its dashboard's URL; stopped by its process, never by `ray stop`."""
    folder = tempfile.mkdtemp(prefix="rj", dir="/tmp")  # Short: Ray's sockets lie below it.
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    ports = {name: free_port() for name in names}
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"),
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    log = Path(folder, "start.log")
    with log.open("w") as output:
        head = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        await_url(f"{url}/api/version", head, log)
        yield url
    finally:
        head.terminate()
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def await_url(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise RuntimeError(f"Ray did not start:\n{log.read_text()}")


@pytest.mark.slow
def test_a_job_runs_there_and_its_log_and_exit_code_come_back(
    project: Path, cluster_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # The address given must win over this one.
    text = "it's a (b)"
    words = ["tiny", f"text={quoted(text)}", "runs=/shared", "--address", cluster_url]
    assert cli.main(["submit", *words]) == 0
    out = capfd.readouterr().out
    assert out.count("squares [0, 1, 4]\n") == 1
    assert f"text {text!r}\n" in out
    assert f"version {code_version()}\n" in out and "+" in code_version()  # with the commit, though `.git` stays here
    files = next(line for line in out.splitlines() if line.startswith("files"))
    assert files == "files ['conf', 'kept', 'pyproject.toml', 'ray_jobs']"


@pytest.mark.slow
def test_a_failing_job_fails_here(
    project: Path, cluster_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster_url)
    assert cli.main(["submit", "tiny", "code=3", "runs=/shared"]) == 3
    captured = capfd.readouterr()
    assert "squares [0, 1, 4]\n" in captured.out
    assert "failed: " in captured.err


@pytest.mark.slow
def test_an_interrupt_stops_the_job_there(
    project: Path, cluster_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from ray.job_submission import JobSubmissionClient

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")

    async def interrupted(client: JobSubmissionClient, job_id: str, shown: list[str]) -> None:
        async for lines in client.tail_job_logs(job_id):
            if "files" in lines:
                raise KeyboardInterrupt

    monkeypatch.setattr(submit, "_print_log", interrupted)
    assert cli.main(["submit", "tiny", "sleep=600", "runs=/shared", "--address", cluster_url]) == 130
    stopped = [job.status for job in JobSubmissionClient(cluster_url).list_jobs() if "sleep=600" in job.entrypoint]
    assert stopped == ["STOPPED"]
