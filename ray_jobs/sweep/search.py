"""Runs the trials that a study lacks, on Ray Tune.

In: a `SweepStudy`, and what trials share. Out: finished trials in the study, a line of progress for each. Optuna
chooses a trial's values; Ray Tune places trials on the cluster, one fold at a time, and keeps the logs. What the two
tell each other goes through a `Conductor`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.platform.cluster import ClusterConfig, gpu_share, num_cpus, num_gpus
from ray_jobs.sweep.loggers import Logger, make_loggers
from ray_jobs.sweep.progress import SweepProgress
from ray_jobs.sweep.stopping import Stopping
from ray_jobs.sweep.studies.study import SweepStudy
from ray_jobs.sweep.trainable import make_trainable
from ray_jobs.sweep.trial import SweepData, SweepJob

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # The newer output prints a table even with verbose=0.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # We print one line per failed trial, and keep its reason.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the job; the next run continues from there.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # The setting `loggers` says which there are.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # A failed trial has no figures.
    "TUNE_WARN_THRESHOLD_S": "60",  # A logger may take its time.
}
_SCRATCH = ".ray_tune."
_POLL_SECONDS = 2.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"[\w.]+: ")


@dataclass(frozen=True)
class TuneConfig:
    """How Ray Tune runs the trials."""

    cluster: ClusterConfig
    """Gives the share of a GPU per trial."""
    concurrent: int | None = None
    """Trials at a time; None: as many as fit."""
    loggers: tuple[Logger, ...] = ("tensorboard",)
    """Who is told of every fold of every trial."""


class Conductor:
    """Stands between Ray Tune, which knows trials by id, and the study, which knows them by number.

    Args:
        study: the study; `suggest` asks it for trials.
        job: what all trials know.
        total: number of trials to have at the end.
        objectives: names of the figures that are optimized.
        stopping: decides whether a trial is stopped before its last fold; None: none is.
        progress: prints a line for every trial that ends.
    """

    def __init__(
        self,
        study: SweepStudy,
        job: SweepJob,
        *,
        total: int,
        objectives: Sequence[str],
        stopping: Stopping | None,
        progress: SweepProgress,
    ) -> None:
        self.study, self.job, self.total, self.objectives = study, job, total, tuple(objectives)
        self.stopping, self.progress = stopping, progress
        self.numbers: dict[str, int] = {}
        """Ray Tune's id → number in the study, of the trials that run."""
        self.facts: dict[str, dict[str, Any]] = {}
        """Ray Tune's id → the figures reported last."""

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        """Ray Tune saves what it was given to restore it later; the study is our state, so nothing is saved."""
        return object, ()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Number and values of the next trial; None if no trial is missing."""
        trial = self.study.ask(self.total)
        if trial is None:
            return None
        values = self.study.values(trial, self.job.space)
        self.numbers[trial_id] = trial.number
        return {"number": trial.number, "values": values}

    def result(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Note the figures after a fold; returns whether the trial is to be stopped."""
        self.facts[trial_id] = facts = json.loads(result["facts"])
        if "failed" in facts or trial_id not in self.numbers:
            return False
        number, folds = self.numbers[trial_id], facts["folds"]
        if len(self.objectives) > 1:
            return False
        if not self.study.report(number, folds, facts[self.objectives[0]]):
            return True  # Another driver took this one for dead and runs the trial again.
        stopping = self.stopping if folds < self.job.steps else None
        return stopping is not None and self.study.stops(number, stopping)

    def ended(self, trial_id: str, reason: str | None = None) -> None:
        """Tell the study how a trial ended; `reason` if its process died."""
        number, facts = self.numbers.pop(trial_id, None), self.facts.pop(trial_id, {})
        if number is None:
            return
        values = [facts.get(name, math.nan) for name in self.objectives]
        if reason:
            self.study.lose(number, reason)
        elif "failed" in facts:
            self.study.fail(number, facts["failed"])
        elif facts["folds"] < self.job.steps:
            self.study.prune(number, facts)
        else:
            self.study.complete(number, values, facts)
        self.progress.ended(self.study, number)


def run_trials(conductor: Conductor, data: SweepData, *, shelf: Any, config: TuneConfig, folder: Path) -> None:
    """Run the trials that are missing, on the connected Ray, until all are finished.

    Args:
        conductor: knows the study, on which other drivers may work at the same time, and how many trials it is to have.
        data: what all trials share.
        shelf: handle of the `ModelShelf`.
        config: how Ray Tune runs them.
        folder: the run folder; logs go to `tensorboard/` in it.
    """
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    study, total = conductor.study, conductor.total
    while not study.finished(total):
        counts = study.counts()
        missing = total - counts.finished - counts.elsewhere
        if missing > 0 and (counts.waiting or not study.sampler.only_queued):
            _tune(conductor, data, shelf, missing=missing, config=config, folder=folder)
        else:
            conductor.progress.waiting(counts.elsewhere)
            time.sleep(_POLL_SECONDS)


def _tune(conductor: Conductor, data: SweepData, shelf: Any, *, missing: int, config: TuneConfig, folder: Path) -> None:
    from ray import tune

    gpu = gpu_share(config.cluster)
    fits = max(1, int(num_gpus() / gpu)) if gpu else num_cpus()
    scratch = (folder / scratch_name(conductor.study.drivers.name)).absolute()
    trainable = tune.with_parameters(make_trainable(), job=conductor.job, data=data, shelf=shelf)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 0, "gpu": gpu} if gpu else {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=_searcher(conductor),
            metric=conductor.objectives[0],
            mode="max",
            num_samples=-1,  # The searcher says when there are enough.
            max_concurrent_trials=min(config.concurrent or fits, missing),
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
            reuse_actors=True,  # A process that has loaded the backbone runs the next trial.
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch),
            verbose=0,
            stop=_stopper(conductor),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # Other nodes cannot write here.
            callbacks=[
                _callback(conductor, shelf),
                *make_loggers(config.loggers, conductor.study.study.study_name, folder),
            ],
        ),
    )
    for noisy in ("ray.tune.tune", "ray.tune.analysis.experiment_analysis"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # They repeat which trials failed, and miss their files.
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _name_of(trial: Any) -> str:
    """The name of a trial for loggers."""
    return f"trial-{trial.config['number']:05d}"


def sweep_up(folder: Path, drivers: Collection[str]) -> None:
    """Remove what killed sweeps left in the run folder.

    Args:
        folder: the run folder.
        drivers: names of the drivers that live, this one among them.
    """
    used = {scratch_name(driver) for driver in drivers}
    left = [path for path in folder.glob(f"{_SCRATCH}*") if path.name not in used]
    if len(drivers) == 1:  # Nobody else writes models here.
        left += folder.glob("models/.*.tmp")
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def scratch_name(driver: str) -> str:
    """Name of the folder in which Ray Tune keeps what it needs while a driver runs."""
    return _SCRATCH + driver.replace(" ", "-")


def _searcher(conductor: Conductor) -> Any:
    from ray.tune.search import Searcher

    class StudySearcher(Searcher):  # type: ignore[misc]
        def suggest(self, trial_id: str) -> Any:
            return conductor.suggest(trial_id) or Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            if not error:  # The callback knows why.
                conductor.ended(trial_id)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the study is the state."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing to restore."""

        def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
            """Nothing: the study is the state."""

    return StudySearcher(metric=conductor.objectives[0], mode="max")


def _stopper(conductor: Conductor) -> Any:
    from ray.tune import Stopper

    class FoldStopper(Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return conductor.result(trial_id, result)

        def stop_all(self) -> bool:
            return False

    return FoldStopper()


def _callback(conductor: Conductor, shelf: Any) -> Any:
    from ray.tune import Callback

    class Ended(Callback):
        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            shelf.release.remote(trial.trial_id)
            conductor.ended(trial.trial_id, why_ended(trial.error_file))

    return Ended()


def why_ended(error_file: str | None) -> str:
    """Why a trial ended whose process left no reason, as Ray noted it below a headline with the time.

    It is the first line, or the last one of a traceback, which begins with `ray::`.
    """
    text = Path(error_file).read_text(encoding="utf-8") if error_file and Path(error_file).is_file() else ""
    lines = [_COLOURS.sub("", line) for line in text.splitlines()[1:] if line.strip()]
    if lines and lines[0].lstrip().startswith("ray::"):
        lines = [line for line in reversed(lines) if _ERROR.match(line)] or lines
    return lines[0].strip() if lines else "its process ended without a reason"
