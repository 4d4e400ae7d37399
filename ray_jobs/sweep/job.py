"""Search settings of training and personalization on source subjects, by Ray Tune and Optuna.

The source subjects are divided into folds. A trial takes values from the space, trains CLIP-AU without the subjects of a
fold, personalizes to them as if they were unseen, and is scored by its mean UAR over all folds. Features, and models of
equal training settings, are shared by all trials. The chosen trial is then judged on source subjects that no trial saw.
Target subjects are never read. A sweep that is started again does only the trials that are missing.

The run folder then holds `report/report.html`, `best.yaml`, which `clipautt train` and `clipautt adapt` take,
`trials.parquet`, a manifest per fold and, unless `storage` says otherwise, `study.db` with the Optuna study.

Example:
    clipautt sweep manifest=data/hard/manifest.parquet trials=100 stop=asha name=hard
    clipautt sweep manifest=data/hard/manifest.parquet sweep=window name=window
    clipautt sweep manifest=data/hard/manifest.parquet sweep=my_space.yaml objectives=[uar,seconds_per_video]
    clipautt train @runs/sweep/hard/best.yaml
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from clipautt.clips import Clip
from clipautt.evaluation.results import Cohort
from clipautt.features.packed import PackedClips
from clipautt.features.store import FeatureStore
from clipautt.manifest import Manifest, by_subject
from clipautt.selection.folds import Division, divide
from clipautt.selection.page import HeldOut
from clipautt.selection.scoring import clip_worth, draws_of
from ray_jobs.platform.cluster import connect, gpu_share
from ray_jobs.platform.configuration import instantiate, resolved
from ray_jobs.platform.extraction.extract import extract, extraction_config, refuse_lost, report_failures
from ray_jobs.platform.footage import training_footage
from ray_jobs.platform.manifests import load_manifest
from ray_jobs.platform.runs import IGNORED, open_run
from ray_jobs.sweep.models import ShelvedModels, start_shelf
from ray_jobs.sweep.progress import SweepProgress
from ray_jobs.sweep.results import SweepRun, held_out_record, write_manifests, write_results
from ray_jobs.sweep.samplers import make_sampler
from ray_jobs.sweep.search import TuneConfig, run_trials, sweep_up
from ray_jobs.sweep.settings import SweepConfig, make_config
from ray_jobs.sweep.space import make_space
from ray_jobs.sweep.storage import open_storage, shown
from ray_jobs.sweep.study import TrialRecord, SweepStudy
from ray_jobs.sweep.table import MINIMIZED, best_record, trial_table
from ray_jobs.sweep.trial import SweepData, SweepJob, per_subject, reference, score_part

_MAY_DIFFER = (*IGNORED, "trials", "concurrent", "loggers", "storage")


def source_manifest(manifest: Manifest) -> Manifest:
    """The labelled source clips alone: nothing of target subjects goes further than this.

    Raises:
        ValueError: without source clips.
    """
    clips = tuple(clip for clip in manifest.of_split("source_train", "source_val") if clip.label is not None)
    if not clips:
        raise ValueError("the manifest has no labelled source_train or source_val clips; a sweep works on them alone")
    return Manifest(clips, manifest.classes)


def load_data(
    manifest: Manifest, store: FeatureStore, config: SweepConfig, cohorts: Sequence[Cohort]
) -> tuple[Division, SweepData]:
    """Divide the source subjects, and read their features.

    Args:
        manifest: labelled source clips.
        store: their features.
        config: folds, held-out share and seed.
        cohorts: shares of positives to score at.

    Raises:
        ValueError: without features, or with too few subjects.
    """
    loaded = store.load(manifest.clips)
    if not loaded:
        raise ValueError(f"{len(manifest.clips)} source clips, none with features; see the failures above")
    there = by_subject(clip for clip in manifest.clips if clip.clip_id in loaded)
    scorable = {subject: clips for subject, clips in there.items() if len({clip.label for clip in clips}) > 1}
    division = divide(
        {clip.subject_id for clip in manifest.of_split("source_train") if clip.subject_id in there},
        {clip.subject_id for clip in manifest.of_split("source_val") if clip.subject_id in there},
        scorable=scorable,
        folds=config.folds,
        held_out=config.held_out,
        seed=config.seed,
    )
    draws = draws_of(scorable, cohorts, classes=manifest.classes, seed=config.seed)
    return division, SweepData(
        PackedClips.of(loaded.values()),
        {clip.clip_id: manifest.label_index(clip) for clips in there.values() for clip in clips},
        {
            subject: tuple(manifest.label_index(clip) for clip in clips)
            for subject, clips in by_subject(manifest.clips).items()
        },
        {subject: tuple(draw for draw in draws if draw.subject_id == subject) for subject in scorable},
    )


def main(cfg: DictConfig) -> int:
    """Run the job."""
    settings = resolved(cfg)
    config, cohorts = make_config(settings)
    manifest = source_manifest(load_manifest(cfg))
    space = make_space(settings.get("space") or {}, train=instantiate(cfg.train), adapt=instantiate(cfg.adapt))
    extraction = extraction_config(cfg)
    settings |= {"manifest_fingerprint": manifest.fingerprint, "storage": shown(config.storage)}
    run = open_run("sweep", cfg.name, settings, root=cfg.runs, ignore=_MAY_DIFFER)
    storage = open_storage(config.storage, run.folder)
    with connect(extraction.cluster):
        store, summary = extract(manifest.clips, extraction)
        report_failures(summary)
        refuse_lost(summary)
        division, data = load_data(manifest, store, config, cohorts)
        job = SweepJob(
            extraction.backbone,
            store.spec,
            space,
            manifest.classes,
            manifest.fingerprint,
            division,
            tuple(cohort.name for cohort in cohorts),
            config.repeats,
            training_footage(manifest, extraction.backbone),
        )
        write_manifests(run.folder, manifest, job)
        study = SweepStudy.open(
            storage,
            cfg.name,
            directions=["minimize" if name in MINIMIZED else "maximize" for name in config.objectives],
            sampler=make_sampler(config.sampler, config.seed, objectives=len(config.objectives)),
            settings=deciding(settings, division),
        )
        with study:
            sweep_up(run.folder, study.drivers.alive())
            if config.sampler == "grid":
                study.enqueue_all(space.grid())
            return _search(job, data, study, config, cohorts, settings, extraction.cluster, run.folder)


def deciding(settings: Mapping[str, Any], division: Division) -> dict[str, Any]:
    """What drivers of one study must agree on, with the subjects' names left out."""
    names = ("train", "adapt", "space", "cohorts", "objectives", "folds", "repeats", "held_out", "seed", "sampler")
    more = ("stop", "grace_folds", "reduction", "sampling", "manifest_fingerprint")
    sizes = {"subjects_per_fold": [len(fold) for fold in division.folds], "subjects_held_out": len(division.held_out)}
    return {name: settings[name] for name in (*names, *more)} | sizes


def _search(
    job: SweepJob,
    data: SweepData,
    study: SweepStudy,
    config: SweepConfig,
    cohorts: tuple[Cohort, ...],
    settings: Mapping[str, Any],
    cluster: Any,
    folder: Path,
) -> int:
    """Run the missing trials on the connected Ray, judge the chosen one, write the results."""
    shelf = start_shelf(folder / "models")
    scorer = Scorer(job, data, shelf, gpu_share(cluster))
    clip_au = scorer.reference(study)
    run_trials(
        study,
        job,
        data,
        shelf=shelf,
        total=config.trials,
        objectives=config.objectives,
        stopping=config.stopping,
        config=TuneConfig(cluster, config.concurrent, config.loggers),
        folder=folder,
        progress=SweepProgress(config.trials, config.objectives),
    )
    records = study.trials()
    draws = [draw for subject in job.division.subjects for draw in data.draws[subject]]
    run = SweepRun(
        job, folder, settings, cohorts, config.objectives, clip_au, clip_worth(draws), len(data.packed.clip_ids)
    )
    size = len(job.division.subjects)
    trials = trial_table(records, job.space, cohorts=job.cohorts, num_subjects=size, reference=clip_au)
    held_out = judge(run, scorer, study, best_record(records, config.objectives[0]))
    return write_results(run, trials, records, front=[record.number for record in study.front()], held_out=held_out)


class Scorer:
    """Scores settings on the connected Ray, outside of trials.

    Args:
        job: what trials share.
        data: their features and labels.
        shelf: handle of the `ModelShelf`.
        gpu: share of a GPU per task; 0 without GPUs.
    """

    def __init__(self, job: SweepJob, data: SweepData, shelf: Any, gpu: float) -> None:
        import ray

        self.job, self.shelf = job, shelf
        self.shared = ray.put((job, data))
        self.options = {"num_cpus": 0, "num_gpus": gpu} if gpu else {"num_cpus": 1}

    def scores(self, training: Any, adaptation: Any, folds: Sequence[int | None]) -> npt.NDArray[np.float64]:
        """Mean UAR over the cohorts of every subject of these folds, [S]; None stands for the held-out subjects."""
        import ray

        task = ray.remote(_score).options(**self.options)
        parts = ray.get(
            [
                task.remote(self.shared, self.shelf, training, adaptation, repeat, fold)
                for repeat in range(self.job.repeats)
                for fold in folds
            ]
        )
        return per_subject([part.score for part in parts], folds=len(folds))[:, :, 0].mean(-1)

    def reference(self, study: SweepStudy) -> npt.NDArray[np.float64]:
        """CLIP-AU's UAR for every subject of the folds; computed once per study."""
        noted = study.study.user_attrs.get("reference")
        if noted is None:
            values = self.scores(*reference(self.job.space), range(len(self.job.division.folds)))
            noted = [round(float(one), 6) for one in values]
            study.study.set_user_attr("reference", noted)
        return np.asarray(noted, float)


def _score(shared: Any, shelf: Any, training: Any, adaptation: Any, repeat: int, fold: int | None) -> Any:
    """A Ray task: one fold of one repeat."""
    from dataclasses import replace

    import ray

    job, data = shared
    models = ShelvedModels(shelf, holder=ray.get_runtime_context().get_task_id())
    return score_part(
        job, data, models, training=replace(training, seed=training.seed + repeat), adaptation=adaptation, fold=fold
    )


def judge(run: SweepRun, scorer: Scorer, study: SweepStudy, best: TrialRecord | None) -> HeldOut | None:
    """The chosen trial on the held-out subjects; each choice is noted, as every further look makes the figure weaker."""
    if best is None or not run.job.division.held_out:
        return None
    noted: dict[str, list[float]] = study.study.user_attrs.get("held_out", {})
    for key, settings in (("reference", reference(run.job.space)), (str(best.number), run.job.space.configs(best.params))):
        if key not in noted:
            noted[key] = [round(float(one), 6) for one in scorer.scores(*settings, [None])]
    study.study.set_user_attr("held_out", noted)
    ours, clip_au = (np.asarray(noted[key], float) for key in (str(best.number), "reference"))
    return held_out_record(run, best, ours, clip_au, looks=len(noted) - 1)
