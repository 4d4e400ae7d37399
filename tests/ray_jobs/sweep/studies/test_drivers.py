"""Who lives: processes of this machine by their number and start, drivers of others by their notes."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from ray_jobs.sweep.studies import drivers
from ray_jobs.sweep.studies.drivers import Drivers, runs, this_process
from ray_jobs.sweep.studies.storage import open_storage


def test_a_process_runs_until_it_ends_and_its_number_alone_does_not_prove_it() -> None:
    here = this_process()
    assert runs(here)
    assert not runs(replace(here, started="1"))  # another process that has the number now
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = replace(here, pid=child.pid, started=drivers._started(child.pid) or "")
    assert runs(process)
    child.kill()
    deadline = time.monotonic() + 5
    while runs(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(process)  # a zombie: nobody has waited for it yet
    child.wait()
    assert not runs(process)


def test_a_driver_of_another_machine_lives_while_its_notes_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "QUIET_SECONDS", 0.6)
    monkeypatch.setattr(drivers, "_WATCHED_SECONDS", 0.2)
    study = optuna.create_study(storage=open_storage(str(tmp_path / "s.log"), tmp_path))
    here = Drivers(study, refresh=0.05)
    here.enter()
    hour = 3600.0

    def note(name: str, notes: int, clock: float, **other: Any) -> None:
        whose = {"host": "far", "machine": "far boot", "pid": 1, "started": "1", "left": False}
        study.set_user_attr(f"driver {name}", whose | {"seen": time.time() + clock, "notes": notes} | other)

    def alive() -> set[str]:
        return here.alive() - {here.name}

    note("steady, clock an hour slow", 1, -hour)
    note("silent for an hour", 1, -hour)
    note("silent since now", 1, 0)
    note("silent, clock an hour fast", 1, hour)
    note("gone", 1, 0, left=True)
    everybody = {"steady, clock an hour slow", "silent for an hour", "silent since now", "silent, clock an hour fast"}
    assert alive() == everybody  # nobody is taken for dead at the first look
    time.sleep(0.25)
    note("steady, clock an hour slow", 2, -hour)
    assert alive() == everybody - {"silent for an hour"}
    time.sleep(0.4)
    note("steady, clock an hour slow", 3, -hour)
    assert alive() == {"steady, clock an hour slow"}
    assert study.user_attrs[f"driver {here.name}"]["notes"] > 3
    here.leave()
    assert Drivers(study).alive() >= {"silent since now"}
    assert here.name not in Drivers(study).alive()
