"""Adaptation that is killed: a worker, the driver, a node. Real processes, real kills; the results are the undisturbed
run's, each row once."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from clipautt.evaluation.results import Cohort
from ray_jobs.adapt.run import WorkConfig
from ray_jobs.platform.cluster import ClusterConfig
from tests.support.adapting import World, assert_same_results, in_order, make_world, run_adaptation
from tests.support.configs import adapt_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SUBJECTS = 8
STEPS = 150
WORDS = {
    "per_subject": ["adapt=infomax_kl", f"adapt.method.steps={STEPS}", "adapt.method.learning_rate=0.02"],
    "online": [
        "adapt=infomax_kl",
        "adapt.protocol=online",
        f"adapt.method.steps={STEPS // 2}",
        "adapt.method.learning_rate=0.02",
    ],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Eight subjects with four clips each, one to a task."""
    return make_world(tmp_path_factory.mktemp("kills"), subjects=SUBJECTS, per_subject=4)


@pytest.fixture(scope="module")
def undisturbed(world: World) -> Callable[[str], str]:
    """Protocol → name of a run that nobody killed, done once."""

    def run(protocol: str) -> str:
        if not world.run(f"undisturbed-{protocol}").exists():
            finish(start(world, f"undisturbed-{protocol}", protocol))
        return f"undisturbed-{protocol}"

    return run


def start(world: World, name: str, protocol: str, *more: str, manifest: Path | None = None) -> subprocess.Popen[str]:
    """A job of its own, with a Ray of its own."""
    words = [*WORDS[protocol], "cluster.address=local", "cluster.num_cpus=2", "work.actors=2", "work.clips_per_task=4"]
    command = [sys.executable, "-m", "ray_jobs.adapt", *world.words(name, *words, *more, manifest=manifest)]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(job: subprocess.Popen[str]) -> str:
    said, _ = job.communicate(timeout=400)
    assert job.returncode == 0, said
    return said


def wait_until(happened: Callable[[], object], job: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline and (job is None or job.poll() is None)
        time.sleep(0.02)


def done(world: World, name: str) -> set[str]:
    """The subjects whose files are there."""
    return {path.stem for path in (world.run(name) / "subjects").glob("s*.parquet")}


def at_work(job: subprocess.Popen[str]) -> list[int]:
    """Process ids of this job's actors that have a task right now; Ray writes it into the name of a process."""
    return [pid for pid, name in descendants(job.pid) if name.startswith("ray::PoolActor.work")]


def descendants(root: int) -> Iterator[tuple[int, str]]:
    """Process id and command line of everything that a process has started."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # gone meanwhile
            continue
        children.setdefault(parent, []).append(int(entry.name))
    waiting = list(children.get(root, []))
    while waiting:
        pid = waiting.pop()
        yield pid, names[pid].strip()
        waiting += children.get(pid, [])


@pytest.mark.parametrize("protocol", ["per_subject", "online"])
def test_killed_workers_cost_time_only(world: World, undisturbed: Callable[[str], str], protocol: str) -> None:
    """Three times: whichever actor is at work once another subject is done."""
    expected, name = world.rows(undisturbed(protocol)), f"workers-{protocol}"
    job = start(world, name, protocol)
    killed: list[int] = []
    for count in (1, 2, 4):
        wait_until(lambda count=count: len(done(world, name)) >= count and set(at_work(job)) - set(killed), job)  # type: ignore[misc]
        killed.append(min(set(at_work(job)) - set(killed)))
        os.kill(killed[-1], signal.SIGKILL)
    assert len(done(world, name)) < SUBJECTS
    finish(job)
    assert len(set(killed)) == 3
    assert_same_results(world.rows(name), expected)


@pytest.mark.parametrize("protocol", ["per_subject", "online"])
def test_a_killed_driver_is_started_again(world: World, undisturbed: Callable[[str], str], protocol: str) -> None:
    """What is done stands, file for file."""
    expected, name = world.rows(undisturbed(protocol)), f"driver-{protocol}"
    job = start(world, name, protocol)
    wait_until(lambda: len(done(world, name)) >= 2, job)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    stood = {path: path.stat().st_mtime_ns for path in (world.run(name) / "subjects").glob("s*.parquet")}
    assert 2 <= len(stood) < SUBJECTS
    said = finish(start(world, name, protocol))
    assert {path: path.stat().st_mtime_ns for path in stood} == stood
    left = SUBJECTS - len(stood)
    assert f"adapt: {4 * left}/{4 * left} videos" in said
    assert_same_results(world.rows(name), expected)


def test_killed_again_and_again(world: World, undisturbed: Callable[[str], str]) -> None:
    """At six moments, those before the first subject among them."""
    expected, name, rng = world.rows(undisturbed("per_subject")), "again", np.random.default_rng(0)
    for _ in range(6):
        job = start(world, name, "per_subject")
        time.sleep(float(rng.uniform(3, 20)))
        job.send_signal(signal.SIGKILL)
        job.communicate()
    finish(start(world, name, "per_subject"))
    assert_same_results(world.rows(name), expected)


def test_a_killed_extension_gives_the_undisturbed_rows(world: World) -> None:
    """Clips that came later, `online`: a worker and then the driver are killed while they are added."""
    few = ["adapt.method.steps=40", "cohorts=[]"]  # a single problem at a time: numbers depend on no company
    part = [clip for clip in world.clips if clip.clip_id[-1] in "01"]
    for name in ("extended", "extended-undisturbed"):
        manifest = world.manifest(part, name=name)
        finish(start(world, name, "online", *few, manifest=manifest))
        world.manifest(name=name)
    finish(start(world, "extended-undisturbed", "online", *few, manifest=world.folder / "extended-undisturbed.parquet"))
    expected = world.rows("extended-undisturbed")
    before = {path: path.stat().st_mtime_ns for path in (world.run("extended") / "subjects").glob("s*.parquet")}

    def extended() -> int:
        return sum(path.stat().st_mtime_ns != time for path, time in before.items())

    job = start(world, "extended", "online", *few, manifest=world.folder / "extended.parquet")
    wait_until(lambda: extended() >= 1 and at_work(job), job)
    os.kill(min(at_work(job)), signal.SIGKILL)
    wait_until(lambda: extended() >= 3, job)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert extended() < SUBJECTS
    finish(start(world, "extended", "online", *few, manifest=world.folder / "extended.parquet"))
    found = world.rows("extended").drop(columns="manifest")
    assert_same_results(found, expected)


@pytest.mark.cluster
@pytest.mark.usefixtures("no_ray")
def test_a_lost_node_costs_time_only(world: World, undisturbed: Callable[[str], str]) -> None:
    expected = world.rows(undisturbed("per_subject"))
    import ray
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, logging_level=logging.ERROR)
    lost = threading.Event()

    def lose() -> None:
        wait_until(lambda: len(done(world, "node")) >= 2)
        nodes.remove_node(other, allow_graceful=False)
        lost.set()

    threading.Thread(target=lose, daemon=True).start()
    try:
        own = adapt_config(objective="infomax_kl", steps=STEPS, learning_rate=0.02)
        job = world.job("node", own, adapt_config())
        rows, failed = run_adaptation(
            job,
            world.read(),
            world.clips,
            [Cohort()],
            cluster=ClusterConfig(),
            work=WorkConfig(actors=2, clips_per_task=4),
        )
        assert lost.is_set() and not failed
    finally:
        ray.shutdown()
        nodes.shutdown()  # type: ignore[no-untyped-call]
    assert_same_results(in_order(rows), expected)
