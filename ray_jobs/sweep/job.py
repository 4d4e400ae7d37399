"""Search window length, prompt tuning and readout on source-validation subjects.

Every trial trains CLIP-AU on the source subjects, personalizes to the validation subjects as if they were unseen, and
is scored by its mean UAR over them; target subjects are never read. Trials run on Ray Tune, and Optuna chooses their
values. A run that is started again does only the trials that are missing.

The run folder then holds `best.yaml` (the settings, and the commands that use them), `trials.parquet`, `study.db` (the
Optuna study) and `figures/`.

Example:
    clipautt sweep manifest=data/hard/manifest.parquet trials=30 name=hard
    clipautt sweep manifest=data/hard/manifest.parquet '~space.steps' adapt.steps=10 space.window_length.high=24
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from clipautt.files import write_text
from clipautt.manifest import Manifest
from ray_jobs.platform.cluster import ClusterConfig, connect, gpu_share, num_cpus, num_gpus
from ray_jobs.platform.configuration import instantiate, resolved
from ray_jobs.platform.extraction.extract import extract, extraction_config, refuse_lost, report_failures
from ray_jobs.platform.footage import training_footage
from ray_jobs.platform.manifests import load_manifest
from ray_jobs.platform.progress import duration
from ray_jobs.platform.runs import IGNORED, open_run
from ray_jobs.sweep.results import write_results
from ray_jobs.sweep.space import SearchSpace, SeededSampler, make_space
from ray_jobs.sweep.trial import METRICS, SweepData, SweepJob, load_data, run_trial

_FACTS = ("seconds", "trained", "fallbacks", "agreement")
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # The newer output prints a table even with verbose=0.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # We print one line per failed trial, and keep its reason.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the job; the next run continues from there.
}


def open_study(folder: str | Path, name: str) -> Any:
    """The Optuna study of a run, in `study.db`; trials that a stopped run left behind are closed as interrupted."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=_storage(folder), study_name=name, direction="maximize", load_if_exists=True)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING)):
        study.set_user_attr(_fact_key(trial.number), {"status": "interrupted", "reason": "the run was stopped"})
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _storage(folder: str | Path) -> Any:
    from optuna.storages import RDBStorage

    path = (Path(folder) / "study.db").absolute()
    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})


def _fact_key(number: int) -> str:
    """Key of a trial's facts, which are kept with the study, as Optuna closes a trial before its reason is known."""
    return f"trial {number}"


def read_trials(study: Any, space: SearchSpace) -> pd.DataFrame:
    """All trials of a study.

    Returns:
        One row per trial, by number: `number, status, reason, uar, war, f1, seconds, trained, fallbacks, agreement`,
        and a column per dimension, empty where it did not matter. Status is `ok`, `failed`, or `interrupted` where the
        run was stopped.
    """
    noted = study.user_attrs
    rows = []
    for trial in study.get_trials(deepcopy=False):
        facts = noted.get(_fact_key(trial.number), {})
        ok = trial.state.name == "COMPLETE"
        row = {"number": trial.number, "status": "ok" if ok else facts.get("status", "failed")}
        row["reason"] = "" if ok else facts.get("reason", "unknown: the run was stopped before it was noted")
        row["uar"] = trial.value if ok else None
        row |= {name: facts.get(name) for name in (*METRICS[1:], *_FACTS)}
        if row["seconds"] is None and trial.duration is not None:
            row["seconds"] = trial.duration.total_seconds()
        rows.append(row | {dimension.name: trial.params.get(dimension.name) for dimension in space.dimensions})
    columns = ["number", "status", "reason", *METRICS, *_FACTS, *(dimension.name for dimension in space.dimensions)]
    types = dict.fromkeys([*METRICS, "seconds", "agreement"], "float64") | {"trained": "boolean", "fallbacks": "Int64"}
    types |= {dimension.name: dimension.dtype for dimension in space.dimensions}
    return pd.DataFrame(rows, columns=columns).astype(types)


class TrialLog:
    """Notes what Optuna does not and prints one line per finished trial.

    Args:
        study: the sweep's Optuna study.
        folder: where failing trials leave their reasons, see `reason_file`.
        total: number of trials when all are done.
        done: number of trials that were finished before.
    """

    def __init__(self, study: Any, folder: str | Path, *, total: int, done: int) -> None:
        self.study, self.folder, self.total, self.before, self.done = study, Path(folder), total, done, done
        self.began = time.monotonic()
        good = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
        best = max(good, key=lambda trial: trial.value, default=None)
        self.best: tuple[float, int] | None = None if best is None else (best.value, best.number)

    def finished(self, number: int, result: Mapping[str, Any]) -> None:
        """Note a finished trial's figures and print its line."""
        self.study.set_user_attr(_fact_key(number), {name: result[name] for name in (*METRICS[1:], *_FACTS)})
        uar = float(result["uar"])
        if self.best is None or uar > self.best[0]:
            self.best = uar, number
        self._line(f"trial {number}: UAR {100 * uar:.1f} %")

    def failed(self, number: int, reason: str) -> None:
        """Note why a trial failed and print its line."""
        self.study.set_user_attr(_fact_key(number), {"status": "failed", "reason": reason})
        self._line(f"trial {number} failed: {reason}")

    def _line(self, what: str) -> None:
        self.done += 1
        elapsed = time.monotonic() - self.began
        left = elapsed / (self.done - self.before) * max(0, self.total - self.done)
        best = "none yet" if self.best is None else f"{100 * self.best[0]:.1f} % (trial {self.best[1]})"
        ending = f"{duration(left)} left" if self.done < self.total else duration(elapsed)
        print(f"sweep: {self.done}/{self.total} trials, {what}, best {best}, {ending}", flush=True)


def _reason(error: BaseException) -> str:
    """The error of a trial's code in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no reason given"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _ending(error_file: str | None) -> str:
    """Why a trial ended whose process left no reason: the first line that Ray noted below a headline with the time."""
    text = Path(error_file).read_text(encoding="utf-8") if error_file and Path(error_file).is_file() else ""
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    return lines[0] if lines else "its process ended without a reason"


def reason_file(folder: str | Path, trial_id: str) -> Path:
    """File in which a failing trial says why: Tune may not have its error yet when it reports the failure."""
    return Path(folder) / f"{trial_id}.reason"


def _explained_trial(config: dict[str, Any], *, job: SweepJob, data: SweepData, scratch: Path) -> dict[str, Any]:
    from ray import tune

    try:
        return run_trial(config, job=job, data=data)
    except Exception as error:
        write_text(reason_file(scratch, tune.get_context().get_trial_id()), _reason(error))
        raise


def _tune_callback(log: TrialLog) -> Any:
    from ray.tune import Callback

    class Finished(Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            log.finished(trial.config["number"], trial.last_result)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            told = reason_file(log.folder, trial.trial_id)
            reason = told.read_text(encoding="utf-8") if told.is_file() else _ending(trial.error_file)
            log.failed(trial.config["number"], reason)

    return Finished()


def sweep(
    job: SweepJob,
    data: SweepData,
    *,
    trials: int,
    name: str,
    seed: int = 0,
    cluster: ClusterConfig,
    concurrent: int | None = None,
) -> pd.DataFrame:
    """Run the trials that are missing, on the connected Ray.

    Args:
        job: the search space, and the run's folder.
        data: features of the source subjects.
        trials: finished trials to have at the end, including failed ones, but not interrupted ones.
        name: name of the study.
        seed: seed of the values that trials try.
        cluster: gives the share of a GPU per trial.
        concurrent: trials at a time; None: as many as fit. With one at a time, equal seeds try equal values, however
            often the run was stopped; with more, what Optuna knows depends on which trial ends first.

    Returns:
        All trials of the run, see `read_trials`.
    """
    study = open_study(job.folder, name)
    done = int(read_trials(study, job.space)["status"].isin(["ok", "failed"]).sum())
    if done < trials:
        _tune(job, data, study, seed=seed, total=trials, done=done, cluster=cluster, concurrent=concurrent)
    return read_trials(study, job.space)


def _tune(
    job: SweepJob,
    data: SweepData,
    study: Any,
    *,
    seed: int,
    total: int,
    done: int,
    cluster: ClusterConfig,
    concurrent: int | None,
) -> None:
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    gpu = gpu_share(cluster)
    fits = max(1, int(num_gpus() / gpu)) if gpu else num_cpus()
    search = OptunaSearch(
        job.space,
        metric=METRICS[0],
        mode="max",
        sampler=SeededSampler(seed),
        storage=_storage(job.folder),
        study_name=study.study_name,
    )
    scratch = (Path(job.folder) / f".ray_tune.{uuid.uuid4().hex[:8]}").absolute()
    trainable = tune.with_parameters(_explained_trial, job=job, data=data, scratch=scratch)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 0, "gpu": gpu} if gpu else {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            metric=METRICS[0],
            mode="max",
            num_samples=total - done,
            max_concurrent_trials=min(concurrent or fits, total - done),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            reuse_actors=True,  # A process that has loaded the backbone runs the next trial.
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch),
            verbose=0,
            callbacks=[_tune_callback(TrialLog(study, scratch, total=total, done=done))],
        ),
    )
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # It repeats at the end which trials failed.
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # What Tune keeps there is also in the study.


def check_counts(trials: int, concurrent: int | None) -> None:
    """Refuse numbers of trials that make no sense.

    Raises:
        ValueError: naming the setting.
    """
    for name, value in (("trials", trials), ("concurrent", concurrent)):
        if value is not None and value < 1:
            raise ValueError(
                f"{name}={value}: expected a whole number, at least 1" + (", or null" * (name == "concurrent"))
            )


def check_splits(manifest: Manifest) -> None:
    """Refuse a manifest without subjects to train or to select on.

    Raises:
        ValueError: naming the split.
    """
    for split in ("source_train", "source_val"):
        if not any(clip.split == split for clip in manifest.clips):
            raise ValueError(
                f"the manifest has no {split} clips; a sweep trains on source_train and selects on source_val"
            )


def main(cfg: DictConfig) -> int:
    """Run the job."""
    settings = resolved(cfg)
    manifest = load_manifest(cfg)
    check_counts(cfg.trials, cfg.concurrent)
    check_splits(manifest)
    train = instantiate(cfg.train)
    if train.features != "cached":
        raise ValueError(f"train.features={train.features!r}: a sweep works on stored features; set it to cached")
    space = make_space(settings.get("space") or {}, train=train, adapt=instantiate(cfg.adapt))
    extraction = extraction_config(cfg)
    settings["manifest_fingerprint"] = manifest.fingerprint
    run = open_run("sweep", cfg.name, settings, root=cfg.runs, ignore=(*IGNORED, "trials", "concurrent"))
    clips = manifest.of_split("source_train", "source_val")
    with connect(extraction.cluster):
        store, summary = extract(clips, extraction)
        report_failures(summary)
        refuse_lost(summary)
        footage, folder = training_footage(manifest, extraction.backbone), str(run.folder)
        job = SweepJob(extraction.backbone, store.spec, space, manifest.classes, manifest.fingerprint, folder, footage)
        options: dict[str, Any] = {"trials": cfg.trials, "name": cfg.name, "seed": cfg.seed}
        trials = sweep(
            job, load_data(manifest, store), cluster=extraction.cluster, concurrent=cfg.concurrent, **options
        )
    return write_results(job, trials, settings)
