"""The study of a sweep: killed drivers, several drivers, grids; on real storages and with real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
import pytest

from ray_jobs.sweep.studies.records import Counts
from ray_jobs.sweep.studies.states import RERUN
from ray_jobs.sweep.studies.storage import open_storage
from ray_jobs.sweep.studies.study import SweepStudy
from tests.support import sweep_driver
from tests.support.postgres import PostgresServer
from tests.support.sweep_driver import choose, opened, run

ROOT = Path(__file__).resolve().parents[3]
GRID = [{"kind": "flat", "rate": rate} for rate in (0.1, 0.2, 0.4)]


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return str(tmp_path / "study.log")


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a driver as a process of its own, which prints the number of each trial that it begins."""
    with ExitStack() as started:

        def begin(where: str | None, folder: Path, total: int, **options: Any) -> subprocess.Popen[str]:
            given = {"where": where, "folder": str(folder), "total": total} | options
            command = [sys.executable, sweep_driver.__file__, json.dumps(given)]
            environment = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
            process = started.enter_context(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
            )
            started.callback(process.kill)
            return process

        yield begin


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_what_became_of_trials_is_kept_with_their_figures(journal: str, tmp_path: Path) -> None:
    with opened(journal, tmp_path) as study:
        assert (study.front(), study.trials()) == ([], [])
        for number in range(5):
            trial = study.ask(6)
            assert trial is not None and trial.number == number
            trial.suggest_float("rate", 0, 1)
        assert study.report(0, 1, 0.5) and study.report(0, 2, 0.6)
        assert study.complete(0, [0.6], {"folds": 2, "note": "ä", "cohorts": {"20%": 0.5}}) == "ok"
        assert study.report(1, 1, 0.2) and study.prune(1, {"folds": 1}) == "pruned"
        assert study.fail(2, "ValueError: no face") == "failed"
        assert study.complete(3, [float("nan")], {"folds": 5}) == "failed"
        with pytest.raises(ValueError, match="trial 4 has 2 values for 1 objectives"):
            study.complete(4, [0.1, 0.2], {})
        assert study.counts() == Counts(ok=1, pruned=1, failed=2, running=1, elsewhere=0, waiting=0, interrupted=0)
        assert study.complete(4, [0.6], {}) == "ok"
    with opened(journal, tmp_path) as study:
        trials = study.trials()
    assert [(t.number, t.ordinal, t.status, t.reason, t.values) for t in trials] == [
        (0, 0, "ok", "", (0.6,)),
        (1, 1, "pruned", "", None),
        (2, 2, "failed", "ValueError: no face", None),
        (3, 3, "failed", "its result is no number: nan", None),
        (4, 4, "ok", "", (0.6,)),
    ]
    assert trials[0].facts == {"folds": 2, "note": "ä", "cohorts": {"20%": 0.5}}
    assert (trials[0].intermediate, trials[1].intermediate, trials[3].facts) == (
        {1: 0.5, 2: 0.6},
        {1: 0.2},
        {"folds": 5},
    )
    assert study.front() == [trials[0], trials[4]]
    assert all(trial.seconds is not None and trial.seconds >= 0 for trial in trials)
    there = optuna.load_study(study_name="demo", storage=open_storage(journal, tmp_path)).get_trials()
    assert [trial.state.name for trial in there] == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "COMPLETE"]


def test_several_objectives_have_a_front(journal: str, tmp_path: Path) -> None:
    with opened(journal, tmp_path, directions=["maximize", "minimize"]) as study:
        for values in ([0.5, 3.0], [0.6, 5.0], [0.4, 4.0]):
            trial = study.ask(3)
            assert trial is not None and study.report(trial.number, 1, values[0])
            if trial.number == 2:
                with pytest.raises(ValueError, match="several objectives cannot be stopped early"):
                    study.prune(2, {})
            study.complete(trial.number, values, {})
        assert [trial.number for trial in study.front()] == [0, 1]
        assert study.study.metric_names == ["objective 0", "objective 1"]
        assert not study.report(0, 2, 0.5)  # it has ended


def test_a_study_of_other_settings_is_refused_with_the_differences(journal: str, tmp_path: Path) -> None:
    with opened(journal, tmp_path, settings={"folds": 5, "space": {"rate": (0, 1)}}):
        pass
    with opened(journal, tmp_path, settings={"folds": 5, "space": {"rate": [0, 1]}}):
        pass
    with pytest.raises(ValueError) as error:
        opened(journal, tmp_path, settings={"folds": 3, "space": {"rate": (0, 1)}, "new": "ä"})
    assert str(error.value) == (
        f"the study 'demo' in {journal} exists with other settings:\n  folds: 5 → 3\n"
        '  new: (not set) → "ä"\nChoose another name (name=…) or another storage.'
    )
    with pytest.raises(
        ValueError, match="exists with other objectives: they are to maximize, and now to minimize; cho"
    ):
        opened(journal, tmp_path, directions=["minimize"])
    foreign = str(tmp_path / "foreign.log")
    optuna.create_study(storage=open_storage(foreign, tmp_path), study_name="demo", direction="maximize").ask()
    with pytest.raises(ValueError, match=r"the study 'demo' in .*foreign\.log was not made by a sweep; choose another"):
        opened(foreign, tmp_path)


def test_a_trial_of_a_driver_that_ended_is_run_again_with_its_values(journal: str, tmp_path: Path) -> None:
    with opened(journal, tmp_path) as study:
        run(study, 4, stop_after=2)
        left = study.ask(4)
        assert left is not None
        choose(left)
        study._note(left.number, {"facts": {"folds": 5}})  # killed between its figures and its end
    with opened(journal, tmp_path) as study:
        assert study.counts() == Counts(ok=2, pruned=0, failed=0, running=0, elsewhere=0, waiting=1, interrupted=1)
        run(study, 4)
        trials = study.trials()
        assert study.close_interrupted() == []
    assert [(t.number, t.ordinal, t.status) for t in trials] == [
        (0, 0, "ok"),
        (1, 1, "ok"),
        (2, None, "interrupted"),
        (3, 2, "ok"),
        (4, 3, "ok"),
    ]
    assert trials[2].params == trials[3].params == left.params
    assert trials[2].reason.startswith("its driver ended (") and trials[3].reason == ""


def test_a_driver_that_was_taken_for_dead_is_told_so(journal: str, tmp_path: Path) -> None:
    with opened(journal, tmp_path) as sleeping, opened(journal, tmp_path) as other:
        trial = sleeping.ask(1)
        assert trial is not None and other.ask(1) is None
        choose(trial)
        assert other.counts().elsewhere == 1
        assert other.close_interrupted() == []  # it lives
        other.study.set_user_attr(f"driver {sleeping.drivers.name}", {"left": True})
        sleeping.drivers._stop.set()
        assert other.close_interrupted() == [trial.number]
        assert not sleeping.report(trial.number, 1, 0.5)
        assert sleeping.complete(trial.number, [0.5], {}) == "interrupted"
        run(other, 1)
        assert [trial.status for trial in sleeping.trials()] == ["interrupted", "ok"]


def test_several_drivers_at_once_reach_the_number_exactly(journal: str, tmp_path: Path) -> None:
    with opened(journal, tmp_path) as dead:
        for _ in range(3):
            trial = dead.ask(20)
            assert trial is not None
            choose(trial)
    studies = [opened(journal, tmp_path) for _ in range(4)]
    together = threading.Barrier(len(studies))

    def work(study: SweepStudy) -> int:
        together.wait()
        study.close_interrupted()
        while (trial := study.ask(20)) is not None:
            study.complete(trial.number, [choose(trial)], {})
        return study.enqueue_all([])

    with ThreadPoolExecutor(len(studies)) as pool:
        assert list(pool.map(work, studies)) == [0, 0, 0, 0]
    trials = studies[0].trials()
    assert [t.status for t in trials].count("ok") == 20
    assert [t.status for t in trials].count("interrupted") == 3 and len(trials) == 23
    everything = studies[0].study.get_trials()
    again = [t.user_attrs[RERUN] for t in everything if t.state.name == "COMPLETE" and RERUN in t.user_attrs]
    assert sorted(again) == [0, 1, 2]
    assert studies[0].finished(20) and not studies[0].finished(21)
    for study in studies:
        study.close()


def test_a_grid_is_queued_once_whoever_starts_it_and_is_completed_by_more_repeats(journal: str, tmp_path: Path) -> None:
    with opened(journal, tmp_path, sampler="grid") as first, opened(journal, tmp_path, sampler="grid") as second:
        assert (first.enqueue_all(GRID), second.enqueue_all(GRID)) == (3, 0)
        trial = first.ask(9)
        assert trial is not None and choose(trial) == pytest.approx(0.7)
        first.fail(trial.number, "broken")  # a failed one is done
        assert second.ask(9) is not None  # left behind below
    with opened(journal, tmp_path, sampler="grid") as study:
        assert study.enqueue_all(GRID) == 0
        assert study.enqueue_all([*GRID, *GRID]) == 3
        run(study, 99)
        assert study.ask(99) is None and study.finished(99)
        trials = [trial for trial in study.trials() if trial.status != "interrupted"]
    assert sorted((t.params["rate"], t.status) for t in trials) == [
        (0.1, "failed"),
        (0.1, "ok"),
        (0.2, "ok"),
        (0.2, "ok"),
        (0.4, "ok"),
        (0.4, "ok"),
    ]
    with opened(str(tmp_path / "none.log"), tmp_path, sampler="grid") as study:
        assert study.ask(5) is None  # it invents nothing


@pytest.fixture
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | None]:
    if request.param != "postgres":
        yield {"sqlite": None, "journal": str(tmp_path / "study.log")}[request.param]
        return
    server: PostgresServer = request.getfixturevalue("server")
    server.sql("CREATE DATABASE shared")
    yield server.url(database="shared")
    server.sql("DROP DATABASE shared WITH (FORCE)")


@pytest.mark.parametrize(
    "storage_url",
    ["journal", pytest.param("sqlite", marks=pytest.mark.slow), pytest.param("postgres", marks=pytest.mark.slow)],
    indirect=True,
)
def test_of_two_processes_one_is_killed_and_the_number_is_reached(
    storage_url: str | None, tmp_path: Path, start: Any
) -> None:
    drivers = [start(storage_url, tmp_path, 10, seconds=0.1) for _ in range(2)]
    killed, other = drivers
    begun = [line(killed) for _ in range(2)]
    assert line(other) not in begun
    killed.send_signal(signal.SIGKILL)
    assert other.wait(timeout=60) == 0
    killed.wait()
    with opened(storage_url, tmp_path) as study:
        assert study.counts() == Counts(ok=10, pruned=0, failed=0, running=0, elsewhere=0, waiting=0, interrupted=1)
        trials = study.trials()
        left = next(trial for trial in trials if trial.status == "interrupted")
        assert f" {killed.pid} " in left.reason
        assert sum(trial.params == left.params for trial in trials if trial.status == "ok") == 1
        assert all(trial.facts == {"folds": 5} for trial in trials if trial.status == "ok")


@pytest.mark.slow
@pytest.mark.parametrize("storage_url", ["journal", "sqlite", "postgres"], indirect=True)
def test_a_grid_that_is_killed_again_and_again_is_done_once(
    storage_url: str | None, tmp_path: Path, start: Any
) -> None:
    grid = [{"kind": "flat", "rate": rate / 20} for rate in range(1, 13)]
    for wait in (1, 3, 2):
        drivers = [start(storage_url, tmp_path, 12, seconds=0.05, sampler="grid", grid=grid) for _ in range(2)]
        for _ in range(wait):
            line(drivers[0])
        for driver in drivers:
            driver.kill()
            driver.wait()
    assert start(storage_url, tmp_path, 12, sampler="grid", grid=grid).wait(timeout=60) == 0
    with opened(storage_url, tmp_path, sampler="grid") as study:
        done = [trial.params["rate"] for trial in study.trials() if trial.status == "ok"]
        assert sorted(done) == [values["rate"] for values in grid]
        assert study.counts().interrupted >= 1 and study.finished(12)
