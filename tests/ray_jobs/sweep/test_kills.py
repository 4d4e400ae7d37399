"""Sweeps that are killed and sweeps that share a study, as commands of their own with a Ray of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from ray_jobs import cli
from tests.ray_jobs.sweep.test_job import TIMES, data, table_of, words
from tests.support.postgres import PostgresServer

__all__ = ["data"]  # the fixture
pytestmark = pytest.mark.slow


def start(given: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A sweep in a process group of its own, with its output in a file."""
    command = [sys.executable, "-m", "ray_jobs.cli", *given, "cluster=local", "cluster.num_cpus=2"]
    with log.open("ab") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        )


def finish(running: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a sweep that is to succeed."""
    assert running.wait(timeout=300) == 0, log.read_text()


def settled(table: pd.DataFrame) -> pd.DataFrame:
    """What must be equal however often a sweep was killed: the trials that count, in order, without their times."""
    counted = table[table["status"] != "interrupted"].drop(columns=[*TIMES, "number", "trained"])
    return counted.reset_index(drop=True)


@pytest.mark.usefixtures("no_ray")
def test_a_killed_sweep_goes_on_and_ends_as_if_nothing_had_happened(data: Path, tmp_path: Path) -> None:
    logs = {name: tmp_path / f"{name}.log" for name in ("killed", "whole")}
    finish(start(words(data, tmp_path, "trials=6", "name=whole"), logs["whole"]), logs["whole"])
    for kills in (1, 2):
        running = start(words(data, tmp_path, "trials=6", "name=killed"), logs["killed"])
        deadline = time.monotonic() + 200
        while logs["killed"].read_text().count("sweep: ") < 2 * kills and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    finish(start(words(data, tmp_path, "trials=6", "name=killed"), logs["killed"]), logs["killed"])
    folder = tmp_path / "sweep" / "killed"
    pd.testing.assert_frame_equal(settled(table_of(folder)), settled(table_of(tmp_path / "sweep" / "whole")))
    assert table_of(folder)["status"].value_counts()["ok"] == 6
    assert not list(folder.glob(".ray_tune*")) and not list(folder.rglob("*.tmp"))


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_two_drivers_share_a_study(kind: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if kind == "postgresql":
        server: PostgresServer = request.getfixturevalue("server")
        server.sql("create database two_drivers")
        storage = server.url(database="two_drivers")
    else:
        storage = str(tmp_path / "study.log")
    given = ["trials=24", "name=shared", f"storage={storage}", "stop=asha"]
    logs = [tmp_path / f"{n}.log" for n in (1, 2)]
    drivers = [start(words(data, tmp_path / str(n), *given), log) for n, log in enumerate(logs, start=1)]
    for driver, log in zip(drivers, logs, strict=True):
        finish(driver, log)
    tables = [table_of(tmp_path / str(n) / "sweep" / "shared") for n in (1, 2)]
    assert [len(table) for table in tables] == [24, 24]
    columns = ["number", "status", "uar", "train.window.length"]
    pd.testing.assert_frame_equal(tables[0][columns], tables[1][columns])
    lines = [log.read_text().count("; trial ") for log in logs]
    assert sum(lines) == 24 and min(lines) > 0, "each ran some of the trials"
    if kind == "postgresql":
        kept = [*tmp_path.rglob("*.yaml"), *tmp_path.rglob("*.html"), *tmp_path.rglob("*.json"), *logs]
        assert not [path for path in kept if "Secret-7" in path.read_text(errors="replace")]


@pytest.mark.usefixtures("no_ray")
def test_a_front_of_two_objectives(data: Path, tmp_path: Path) -> None:
    log = tmp_path / "front.log"
    given = ["trials=6", "name=front", "objectives=[uar_balanced,uar_20%]", "sampler=nsga2"]
    finish(start(words(data, tmp_path, *given), log), log)
    folder = tmp_path / "sweep" / "front"
    trials = table_of(folder).set_index("number")[["uar_balanced", "uar_20%"]]
    front = [
        number
        for number, trial in trials.iterrows()
        if not ((trials >= trial).all(axis=1) & (trials > trial).any(axis=1)).any()
    ]
    assert sorted(int(path.stem) for path in (folder / "front").iterdir()) == sorted(front)
    assert "No trial is better than one on the front" in (folder / "report" / "report.html").read_text()


@pytest.mark.cluster
@pytest.mark.usefixtures("no_ray")
def test_a_node_that_cannot_see_the_run_folder_takes_part(data: Path, tmp_path: Path) -> None:
    """Models that it trains come to the driver's folder, and nothing is written where it is not seen."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("hiding a folder from a process needs root and unshare")
    import ray
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    runs = tmp_path / "runs"
    runs.mkdir()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    joining = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1"]
    hide = f'mount -t tmpfs none {runs} && exec "$@"'
    other = subprocess.Popen(["unshare", "-m", "sh", "-c", hide, "sh", *joining, f"--address={nodes.address}"])
    try:
        ray.init(address=nodes.address, logging_level="ERROR")
        deadline = time.monotonic() + 60
        while len(ray.nodes()) < 2 and time.monotonic() < deadline:  # type: ignore[no-untyped-call]
            time.sleep(0.2)
        assert cli.main(words(data, runs, "trials=6", "name=nodes", "concurrent=2")) == 0
        assert [*Path(f"/proc/{other.pid}/root{runs}").iterdir()] == []
    finally:
        ray.shutdown()
        other.terminate()
        other.wait(timeout=60)
        nodes.shutdown()
    trials = table_of(runs / "sweep" / "nodes")
    assert trials["status"].tolist() == ["ok"] * 6
    assert len([*(runs / "sweep" / "nodes" / "models").iterdir()]) == trials["trained"].sum() + 4
