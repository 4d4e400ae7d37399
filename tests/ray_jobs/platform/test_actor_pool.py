"""The pool of actors on a real local Ray: real processes, real kills, files that say what ran."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ray_jobs.platform.actor_pool import Done, Failed, PoolConfig, PoolError, run_pool

Outcomes = list[Done[str, str] | Failed[str]]


class Scripted:
    """An actor whose items say what it does: upper-cases, raises, dies, hangs. It writes down what it was given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / f"pid-{os.getpid()}").touch()

    def run(self, items: list[str]) -> list[str]:
        with (self.folder / "log").open("a") as log:
            log.write(f"{os.getpid()} {' '.join(items)}\n")
        return [self._one(item) for item in items]

    def _one(self, item: str) -> str:
        if item.startswith("raise"):
            raise ValueError(f"no face\n in {item}")
        if item.startswith("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if item.startswith("hang"):
            time.sleep(600)
        if item.startswith("once") and not (self.folder / item).exists():
            (self.folder / item).touch()
            time.sleep(600)  # until it is killed from outside
        if item.startswith("ill"):
            (self.folder / f"ill-{os.getpid()}").touch()
        if (self.folder / f"ill-{os.getpid()}").exists():
            raise RuntimeError("CUDA error")
        if item.startswith("slow"):
            time.sleep(0.3)
        return item.upper()


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("stays here")


class Strange:
    """An actor with faults of its own making: what it raises or returns cannot be sent, or is too little."""

    def run(self, items: list[str]) -> list[Any]:
        if items == ["exception"]:
            raise Unpicklable("odd")
        return [] if items == ["too few"] else [threading.Lock()] if items == ["result"] else items


class Faulty:
    """An actor that cannot start."""

    def __init__(self, folder: Path) -> None:
        (folder / f"start-{time.time_ns()}-{os.getpid()}").touch()
        raise FileNotFoundError("no weights at /models/x.pt")

    def run(self, items: list[str]) -> list[str]:
        return items


class FirstFails:
    """An actor of which the first one cannot start."""

    def __init__(self, folder: Path) -> None:
        try:
            (folder / "first").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def run(self, items: list[str]) -> list[str]:
        return items


def config(actors: int = 1, **more: Any) -> PoolConfig:
    return PoolConfig(**({"actors": actors, "num_cpus": 0.5, "start_seconds": 60.0} | more))


def run(folder: Path, tasks: Sequence[Sequence[str]], how: PoolConfig) -> Outcomes:
    return list(run_pool(Scripted, (folder,), tasks, config=how))


def runs_of(folder: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Process and items of every call, in order."""
    lines = [line.split() for line in (folder / "log").read_text().splitlines()] if (folder / "log").exists() else []
    return [(int(pid), tuple(items)) for pid, *items in lines]


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_no_actor_left(folder: Path) -> None:
    pids = [int(path.name[4:]) for path in folder.glob("pid-*")]
    assert pids
    wait_for(lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("actors", 0, "expected at least 1"),
        ("attempts", 0, "expected at least 1"),
        ("num_cpus", -1.0, "expected 0 or more"),
        ("num_gpus", -0.5, "expected 0 or more"),
        ("start_seconds", 0.0, "expected more than 0"),
        ("seconds_per_item", 0.0, "expected more than 0, or null for no limit"),
    ],
)
def test_settings_name_what_is_allowed(name: str, value: float, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}={value}: {allowed}"):
        PoolConfig(**cast("dict[str, Any]", {"actors": 1, name: value}))


def test_one_actor_gives_every_item_in_order(local_ray: None, tmp_path: Path) -> None:
    got = run(tmp_path, [["a", "b"], [], ["c"]], config())
    assert got == [Done("a", "A"), Done("b", "B"), Done("c", "C")]
    assert [items for _, items in runs_of(tmp_path)] == [("a", "b"), ("c",)]
    assert_no_actor_left(tmp_path)


@pytest.mark.slow
def test_the_caller_is_told_once_that_work_begins(local_ray: None, tmp_path: Path) -> None:
    told: list[list[tuple[int, tuple[str, ...]]]] = []
    pool = run_pool(
        Scripted, (tmp_path,), [["a"], ["b"]], config=PoolConfig(2), on_ready=lambda: told.append(runs_of(tmp_path))
    )
    assert len(list(pool)) == 2 and told == [[]]


def test_two_actors_share_the_work(local_ray: None, tmp_path: Path) -> None:
    got = run(tmp_path, [[f"slow{i}"] for i in range(8)], config(2))
    assert sorted(done.item for done in got) == [f"slow{i}" for i in range(8)]
    assert all(isinstance(done, Done) and done.result == done.item.upper() for done in got)
    assert len({pid for pid, _ in runs_of(tmp_path)}) == 2
    assert len(runs_of(tmp_path)) == 8


def test_an_actor_does_not_wait_for_what_the_caller_does(local_ray: None, tmp_path: Path) -> None:
    tasks = [["a", "b"], ["c"], ["d"]]
    outcomes = run_pool(Scripted, (tmp_path,), tasks, config=PoolConfig(1))
    assert cast(Any, next(outcomes)).result == "A"
    deadline = time.monotonic() + 20
    while len((tmp_path / "log").read_text().splitlines()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [line.split()[1:] for line in (tmp_path / "log").read_text().splitlines()] == [["a", "b"], ["c"]]
    assert [cast(Any, one).result for one in outcomes] == ["B", "C", "D"]


def test_nothing_to_do_starts_no_actor(tmp_path: Path) -> None:
    assert run(tmp_path, [[], []], config()) == []


def test_an_exception_costs_its_own_item_only(local_ray: None, tmp_path: Path) -> None:
    got = run(tmp_path, [["a", "raise", "b"], ["c"], ["d"], ["e"]], config())
    assert {done.item for done in got if isinstance(done, Done)} == set("abcde")
    assert [failed for failed in got if isinstance(failed, Failed)] == [
        Failed("raise", "ValueError: no face in raise", 3)
    ]
    calls = Counter(items for _, items in runs_of(tmp_path))
    assert calls["a", "raise", "b"] == 1 and calls[("raise",)] == 3 and calls[("a",)] == 1
    assert len({pid for pid, _ in runs_of(tmp_path)}) == 1  # others went well in between: the item is to blame


@pytest.mark.slow
def test_an_actor_that_fails_item_after_item_is_replaced(local_ray: None, tmp_path: Path) -> None:
    """What a device does that fell ill on one item: the items after it are done by another actor."""
    got = run(tmp_path, [["a"], ["ill"], ["b"], ["c"], ["d"]], config())
    assert {done.item for done in got if isinstance(done, Done)} == set("abcd")
    assert [failed.item for failed in got if isinstance(failed, Failed)] == ["ill"]


@pytest.mark.slow
def test_where_everything_fails_actors_are_not_replaced_for_ever(local_ray: None, tmp_path: Path) -> None:
    got = run(tmp_path, [[f"raise{i}"] for i in range(9)], config())
    assert Counter(type(outcome) for outcome in got) == {Failed: 9}
    assert len(list(tmp_path.glob("pid-*"))) == 1 + 3


def test_an_item_that_kills_its_worker_is_given_up(local_ray: None, tmp_path: Path) -> None:
    got = run(tmp_path, [["a", "die"], ["b"], ["c"]], config(2))
    assert {done.item for done in got if isinstance(done, Done)} == set("abc")
    (failed,) = [outcome for outcome in got if isinstance(outcome, Failed)]
    assert (failed.item, failed.attempts) == ("die", 3)
    assert failed.reason.startswith("its worker died (its worker process has died. Worker exit type: SYSTEM_ERROR")
    assert failed.reason.endswith("End of file)") and "\n" not in failed.reason
    assert Counter(items for _, items in runs_of(tmp_path))[("die",)] == 3
    assert_no_actor_left(tmp_path)


def test_a_worker_killed_from_outside_costs_nothing(local_ray: None, tmp_path: Path) -> None:
    def kill() -> None:
        wait_for(lambda: (tmp_path / "once").exists())
        os.kill(next(pid for pid, items in runs_of(tmp_path) if "once" in items), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    got = run(tmp_path, [["a"], ["once"], ["b"]], config(attempts=2))
    killer.join()
    assert {done for done in got} == {Done("a", "A"), Done("once", "ONCE"), Done("b", "B")}


@pytest.mark.slow
def test_an_actor_that_died_before_its_task_counts_for_nothing(local_ray: None, tmp_path: Path) -> None:
    """Killed while it has nothing to do: with a single try, the item that it would get next would be lost."""
    outcomes = run_pool(Scripted, (tmp_path,), [["a"], ["slow", "raise"]], config=config(actors=2, attempts=1))
    assert next(outcomes) == Done("a", "A")
    (pid,) = {pid for pid, items in runs_of(tmp_path) if items == ("a",)}
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid))
    time.sleep(0.5)  # until Ray knows, and the other actor has failed
    rest = {one.item: one for one in outcomes}
    assert rest["slow"] == Done("slow", "SLOW") and isinstance(rest["raise"], Failed) and len(rest) == 2


def test_a_task_that_hangs_is_ended(local_ray: None, tmp_path: Path) -> None:
    got = run(tmp_path, [["a", "hang"], ["b"]], config(attempts=1, seconds_per_item=1.0))
    assert {done.item for done in got if isinstance(done, Done)} == {"a", "b"}
    reason = "took longer than 1 s, and its worker was killed"
    assert [failed for failed in got if isinstance(failed, Failed)] == [Failed("hang", reason, 1)]
    assert_no_actor_left(tmp_path)


@pytest.mark.slow
def test_a_caller_that_is_away_for_hours_ends_nothing(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both clocks run out meanwhile; a task is done by then, and an actor that died has no successor yet."""
    away = [0.0]
    monkeypatch.setattr(
        "ray_jobs.platform.actor_pool.time", SimpleNamespace(monotonic=lambda: time.monotonic() + away[0])
    )
    tasks = [["a"], ["slow1"], ["slow2"], ["die1"], ["die2"], ["b"]]
    found: Outcomes = []
    for outcome in run_pool(Scripted, (tmp_path,), tasks, config=config(2, attempts=1)):
        found.append(outcome)
        time.sleep(0.6)
        away[0] += 10_000
    assert {done.item for done in found if isinstance(done, Done)} == {"a", "slow1", "slow2", "b"}
    assert all(f.reason.startswith("its worker died") for f in found if isinstance(f, Failed))


@pytest.mark.slow
def test_what_cannot_be_sent_fails_in_words(local_ray: None) -> None:
    """Exceptions and results that do not survive pickling, too few results; and an item that cannot be pickled."""
    lock = threading.Lock()
    tasks: list[list[Any]] = [["exception"], ["result"], ["too few"], [lock], ["fine"]]
    got = list(run_pool(Strange, (), tasks, config=config(attempts=1)))
    reasons = {failed.item: failed.reason for failed in got if isinstance(failed, Failed)}
    assert reasons.pop("exception") == "Unpicklable: odd"
    assert reasons.pop("result") == "TypeError: cannot pickle '_thread.lock' object"
    assert reasons.pop("too few") == "ValueError: run() gave 0 results for 1 items; expected one per item"
    assert "cannot pickle '_thread.lock' object" in reasons.pop(lock) and not reasons
    assert [done for done in got if isinstance(done, Done)] == [Done("fine", "fine")]


def test_actors_that_cannot_start_say_why(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(PoolError) as caught:
        list(run_pool(Faulty, (tmp_path,), [["a"]] * 9, config=config()))
    assert str(caught.value) == (
        "no actor can be started; 3 in a row failed: FileNotFoundError: no weights at /models/x.pt"
    )
    assert len(list(tmp_path.glob("start-*"))) == 3


@pytest.mark.slow
def test_many_actors_that_cannot_start_are_not_all_tried(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="no weights"):
        list(run_pool(Faulty, (tmp_path,), [["a"]] * 9, config=config(12, num_cpus=1)))
    assert len(list(tmp_path.glob("start-*"))) <= 6


@pytest.mark.slow
def test_one_start_that_fails_is_made_good(local_ray: None, tmp_path: Path) -> None:
    assert list(run_pool(FirstFails, (tmp_path,), [["a"]], config=config())) == [Done("a", "a")]


def test_actors_without_a_place_say_what_they_ask_for(local_ray: None, tmp_path: Path) -> None:
    message = (
        r"^no actor was ready for start_seconds=2: each asks for num_cpus=64 and num_gpus=0, the cluster has "
        r"2 CPU \([\d.]+ free\), 0 GPU \(0 free\); 0 of 1 are placed and loading$"
    )
    with pytest.raises(PoolError, match=message):
        run(tmp_path, [["a"]], config(num_cpus=64, start_seconds=2.0))


@pytest.mark.slow
@pytest.mark.parametrize(("num_cpus", "fitting"), [(1, 2), (2, 1)])
def test_actors_that_fit_do_the_work_of_those_that_do_not(
    local_ray: None, tmp_path: Path, num_cpus: int, fitting: int
) -> None:
    got = run(tmp_path, [[f"slow{i}"] for i in range(6)], config(6, num_cpus=num_cpus))
    assert {done.item for done in got if isinstance(done, Done)} == {f"slow{i}" for i in range(6)}
    assert len(list(tmp_path.glob("pid-*"))) == fitting
    assert_no_actor_left(tmp_path)


def test_tasks_are_read_as_actors_become_free(local_ray: None, tmp_path: Path) -> None:
    read: list[int] = []

    def endless() -> Iterator[list[str]]:
        for number in range(10_000):
            read.append(number)
            yield [f"item{number}"]

    outcomes = run_pool(Scripted, (tmp_path,), endless(), config=config(2))
    for done in range(1, 21):
        assert isinstance(next(outcomes), Done)
        assert len(read) <= done + 3  # two at work, and one more that may be done
    outcomes.close()  # type: ignore[attr-defined]
    assert_no_actor_left(tmp_path)


def test_closed_early_no_actor_is_left(local_ray: None, tmp_path: Path) -> None:
    outcomes = run_pool(Scripted, (tmp_path,), [["hang"], ["a"]], config=config(2))
    assert next(outcomes) == Done("a", "A")
    assert ("hang",) in [items for _, items in runs_of(tmp_path)]
    outcomes.close()  # type: ignore[attr-defined]
    assert_no_actor_left(tmp_path)


@pytest.mark.slow
def test_interrupted_no_actor_is_left(local_ray: None, tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_for(lambda: runs_of(tmp_path))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [["hang"]], config())
    assert_no_actor_left(tmp_path)


@pytest.mark.slow
def test_tasks_that_raise_end_the_pool(local_ray: None, tmp_path: Path) -> None:
    def broken() -> Iterator[list[str]]:
        yield ["a"]
        raise OSError("the store is gone")

    with pytest.raises(OSError, match="the store is gone"):
        list(run_pool(Scripted, (tmp_path,), broken(), config=config()))
    assert_no_actor_left(tmp_path)


@pytest.mark.cluster
@pytest.mark.usefixtures("no_ray")
def test_a_lost_node_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.cluster_utils import Cluster

    paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, logging_level=logging.ERROR)
    tasks = [[f"slow{i}", f"slow{i}b"] for i in range(30)]
    found: Outcomes = []
    try:
        for outcome in run_pool(Scripted, (tmp_path,), tasks, config=config(2, num_cpus=1)):
            found.append(outcome)
            if other is not None and len({pid for pid, _ in runs_of(tmp_path)}) == 2:
                nodes.remove_node(other, allow_graceful=False)
                other = None
        assert other is None
    finally:
        ray.shutdown()
        nodes.shutdown()  # type: ignore[no-untyped-call]
    assert sorted(done.item for done in found if isinstance(done, Done)) == sorted(i for task in tasks for i in task)
