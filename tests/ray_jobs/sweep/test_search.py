"""What Ray Tune and the study tell each other, with real studies and without Ray; what is left of logs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.backbones.loading import BackboneConfig
from clipautt.features.clip_features import FeatureSpec
from clipautt.model.training import TrainConfig
from clipautt.selection.folds import Division
from clipautt.video.decoding import Sampling
from ray_jobs.sweep.progress import SweepProgress
from ray_jobs.sweep.search import Conductor, scratch_name, sweep_up, why_ended
from ray_jobs.sweep.space import make_space
from ray_jobs.sweep.stopping import Stopping
from ray_jobs.sweep.studies.samplers import make_sampler
from ray_jobs.sweep.studies.storage import open_storage
from ray_jobs.sweep.studies.study import SweepStudy
from ray_jobs.sweep.table import best_record, subject_values, trial_table
from ray_jobs.sweep.trial import SweepJob
from tests.support.fakes import shared_backbone

SPACE = make_space(
    {"train": {"window": {"length": {"choices": [4, 8, 16]}}}}, train=TrainConfig(), adapt=AdaptConfig(ClipAUTT())
)
FOUR = Division((("a",), ("b",), ("c",), ("d",)), (), ())
COHORTS = ("balanced", "20%")


def job() -> SweepJob:
    features = FeatureSpec.of(shared_backbone(), Sampling(12.5))
    return SweepJob(BackboneConfig(), features, SPACE, ("neutral", "pain"), "m", FOUR, COHORTS)


def told(values: Sequence[float], **more: Any) -> dict[str, Any]:
    """What a trial reports after some folds, each with one subject."""
    uar = float(np.mean(values))
    facts = {"uar": uar, "war": uar, "f1": uar, "uar_balanced": uar, "uar_20%": uar, "folds": len(values)}
    facts |= {"subjects": list(values), "seconds_per_video": 0.01, "seconds": 1.0}
    return {"facts": json.dumps(facts | more)}


class Sweep:
    """A conductor on a new study."""

    def __init__(self, folder: Path, *, total: int, objectives: tuple[str, ...] = ("uar",), stop: bool = False) -> None:
        directions = ["minimize" if name == "seconds_per_video" else "maximize" for name in objectives]
        self.study = SweepStudy.open(
            open_storage(None, folder),
            "one",
            directions=directions,  # type: ignore[arg-type]
            sampler=make_sampler("random", 0, objectives=len(objectives)),
            settings={},
        )
        self.clock = iter(range(0, 1000, 10))
        self.conductor = Conductor(
            self.study,
            job(),
            total=total,
            objectives=objectives,
            stopping=Stopping(1, 2) if stop else None,
            progress=SweepProgress(total, objectives, clock=lambda: next(self.clock)),
        )

    def trial(self, name: str, values: Sequence[float], **more: Any) -> bool:
        """Run one trial fold by fold; returns whether it was stopped."""
        given = self.conductor.suggest(name)
        assert given is not None and set(given["values"]) == {"train.window.length"}
        for folds in range(1, len(values) + 1):
            if self.conductor.result(name, told(values[:folds], **more)):
                self.conductor.ended(name)
                return True
        self.conductor.ended(name)
        return False


def test_trials_become_records_and_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep(tmp_path, total=3)
    with sweep.study:
        assert not sweep.trial("x", [0.5, 0.75, 0.75, 1.0])
        number = sweep.conductor.suggest("y")
        assert number is not None and number["number"] == 1
        sweep.conductor.result("y", {"facts": json.dumps({"failed": "no windows"})})
        sweep.conductor.ended("y")
        values = []
        for name in ("z", "again"):  # A lost process may have been its node's fault: once, the trial runs again.
            given = sweep.conductor.suggest(name)
            assert given is not None and sweep.conductor.suggest("too many") is None
            values.append(given["values"])
            sweep.conductor.result(name, told([0.9]))
            sweep.conductor.ended(name, "its process died")
        assert values[0] == values[1] and sweep.study.finished(3)
        records = sweep.study.trials()
    assert [(one.status, one.reason) for one in records] == [
        ("ok", ""), ("failed", "no windows"), ("interrupted", "its process died"), ("failed", "its process died"),
    ]  # fmt: skip
    assert records[0].values == (0.75,) and records[0].intermediate == {1: 0.5, 2: 0.625, 3: 2 / 3, 4: 0.75}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "sweep: 1/3 trials; trial 0: UAR 75.0 % (56.2 to 93.8); best: trial 0, UAR 75.0 % (56.2 to 93.8); 20 s left"
    )
    assert lines[1] == (
        "sweep: 2/3 trials (1 failed); trial 1 failed: no windows; best: trial 0, UAR 75.0 % (56.2 to 93.8); 10 s left"
    )
    assert lines[2].startswith("sweep: 2/3 trials (1 failed); trial 2 interrupted: its process died; ")
    assert lines[3].startswith("sweep: 3/3 trials (2 failed); trial 3 failed: its process died; ")

    reference = np.array([0.5, 0.5, 0.5, 0.5])
    table = trial_table(records, SPACE, cohorts=COHORTS, num_subjects=4, reference=reference).set_index("number")
    assert table.loc[0, "gain"] == pytest.approx(0.25) and table.loc[0, "uar_sd"] == pytest.approx(0.2041, abs=1e-4)
    assert (
        table["status"].tolist() == ["ok", "failed", "interrupted", "failed"]
        and table["train.window.length"].notna().all()
    )
    assert math.isnan(table.loc[1, "uar"]) and table.loc[3, "reason"] == "its process died"


def test_a_bad_trial_is_stopped_and_told_as_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep(tmp_path, total=4, stop=True)
    with sweep.study:
        assert not sweep.trial("x", [0.9, 0.9, 0.9, 0.9])
        assert sweep.trial("y", [0.5, 0.9, 0.9, 0.9])
        assert not sweep.trial("z", [0.95, 0.95, 0.95, 0.95])
        records = sweep.study.trials()
        states = [trial.state.name for trial in sweep.study.study.trials]
        assert states == ["COMPLETE", "PRUNED", "COMPLETE"]
        assert sweep.study.study.best_trial.number == 2
    assert [(one.status, one.facts["folds"]) for one in records] == [("ok", 4), ("pruned", 1), ("ok", 4)]
    assert "trial 1 pruned after 1 fold; " in capsys.readouterr().out
    np.testing.assert_array_equal(subject_values(records[1], 4), [0.5, np.nan, np.nan, np.nan])
    best = best_record(records, "uar")
    assert best is not None and best.number == 2


def test_an_interrupted_trial_is_stopped_again_and_counts_once(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, total=3, stop=True)
    assert not sweep.trial("x", [0.9] * 4)
    sweep.conductor.suggest("y")
    assert sweep.conductor.result("y", told([0.5])), "it is to be stopped, and the sweep is killed before that is noted"
    sweep.study.close()
    sweep = Sweep(tmp_path, total=3, stop=True)
    with sweep.study:
        assert sweep.trial("y again", [0.5] * 4), "it begins with its first fold, as if it had never run"
        assert sweep.trial("z", [0.8] * 4), "one of three goes on; with y counted twice it would be two of four"
        told_of = [(one.status, one.facts.get("folds")) for one in sweep.study.trials()]
        assert told_of == [("ok", 4), ("interrupted", None), ("pruned", 1), ("pruned", 1)]


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, total=4, objectives=("uar", "seconds_per_video"), stop=False)
    with sweep.study:
        for name, uar, seconds in (("a", 0.9, 0.3), ("b", 0.8, 0.1), ("c", 0.7, 0.2), ("d", 0.6, 0.05)):
            assert not sweep.trial(name, [uar] * 4, seconds_per_video=seconds)
        assert [one.number for one in sweep.study.front()] == [0, 1, 3]


def test_what_killed_sweeps_left_is_removed(tmp_path: Path) -> None:
    for driver in ("host 1 abc", "host 2 def"):
        (tmp_path / scratch_name(driver) / "trials").mkdir(parents=True)
    for model in ("aaaa", ".bbbb.0123.tmp"):
        (tmp_path / "models" / model).mkdir(parents=True)
    sweep_up(tmp_path, {"host 1 abc", "host 2 def"})
    assert len([*tmp_path.iterdir()]) == 3 and len([*(tmp_path / "models").iterdir()]) == 2
    sweep_up(tmp_path, {"host 2 def"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ray_tune.host-2-def", "models"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["aaaa"]


def test_why_a_process_ended_is_one_line_of_what_ray_noted(tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    file.write_text("Failure # 1 (occurred at 2026-11-28)\n\n  The actor died: out of memory\nmore\n")
    assert why_ended(str(file)) == "The actor died: out of memory"
    traceback = (
        "\x1b[36mray::Trial.__init__()\x1b[39m (pid=7)\n  File trial.py, line 3\nImportError: no disk\nmore of it\n"
    )
    file.write_text(f"Failure # 1 (occurred at 2026-11-28)\n{traceback}")
    assert why_ended(str(file)) == "ImportError: no disk"
    assert why_ended(None) == why_ended(str(tmp_path / "none")) == "its process ended without a reason"
