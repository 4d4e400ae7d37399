"""Search settings of training and personalization on source subjects, by Ray Tune and Optuna.

The source subjects are divided into folds. A trial takes values from the space, trains CLIP-AU without the subjects of
a fold, personalizes to them as if they were unseen, and is scored by its mean UAR over all folds. Features, and models
of equal training settings, are shared by all trials. The chosen trial is then judged on source subjects that no trial
saw. Target subjects are never read. A sweep that is started again does only the trials that are missing.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clipautt.evaluation.results import Cohort
from clipautt.selection.scoring import clip_worth, positive_shares
from ray_jobs.platform.cluster import ClusterConfig, connect, gpu_share
from ray_jobs.platform.configuration import instantiate, resolved
from ray_jobs.platform.extraction.extract import extract, extraction_config, refuse_lost, report_failures
from ray_jobs.platform.footage import training_footage
from ray_jobs.platform.manifests import load_manifest
from ray_jobs.platform.runs import IGNORED, open_run
from ray_jobs.sweep.data import augmented_features, divided, load_data, source_manifest
from ray_jobs.sweep.loggers import check_loggers
from ray_jobs.sweep.progress import SweepProgress
from ray_jobs.sweep.results import TRIALS, SweepRun, write_manifests, write_results
from ray_jobs.sweep.scorer import Scorer, judge
from ray_jobs.sweep.search import Conductor, TuneConfig, run_trials, sweep_up
from ray_jobs.sweep.settings import SweepConfig, make_config
from ray_jobs.sweep.shelf import start_shelf
from ray_jobs.sweep.space import make_space
from ray_jobs.sweep.studies.samplers import make_sampler
from ray_jobs.sweep.studies.storage import open_storage, shown
from ray_jobs.sweep.studies.study import SweepStudy
from ray_jobs.sweep.table import MINIMIZED, best_record, trial_table
from ray_jobs.sweep.trial import SweepData, SweepJob

_USUAL_TRIALS = 20
_MAY_DIFFER = (*IGNORED, "trials", "concurrent", "loggers", "storage")


def main(cfg: DictConfig) -> int:
    """Run the job."""
    settings = resolved(cfg)
    config, cohorts = make_config(settings)
    check_loggers(config.loggers)
    sampler = make_sampler(config.sampler, config.seed, objectives=len(config.objectives))
    manifest = source_manifest(load_manifest(cfg))
    space = make_space(settings.get("space") or {}, train=instantiate(cfg.train), adapt=instantiate(cfg.adapt))
    grid = space.grid() if config.sampler == "grid" else None
    config = replace(config, trials=_wanted(config.trials, grid))
    divided(manifest, config)  # Too few subjects are told now; clips that fail may change who is where.
    extraction = extraction_config(cfg)
    settings |= {"manifest_fingerprint": manifest.fingerprint, "storage": shown(config.storage), "folds": config.folds}
    run = open_run("sweep", cfg.name, settings, root=cfg.runs, ignore=_MAY_DIFFER)
    storage = open_storage(config.storage, run.folder)
    with connect(extraction.cluster):
        store, summary = extract(manifest.clips, extraction)
        report_failures(summary)
        refuse_lost(summary)
        division, data = load_data(manifest, store, config, cohorts, window=space.train.window)
        data = replace(data, passes=augmented_features(manifest, space, division, extraction))
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
        study = SweepStudy.open(
            storage,
            cfg.name,
            directions=["minimize" if name in MINIMIZED else "maximize" for name in config.objectives],
            sampler=sampler,
            metrics=config.objectives,
            settings=deciding(settings, job, data),
        )
        sweep = Sweep(job, data, config, cohorts, extraction.cluster, run.folder, settings)
        with study:
            _refuse_other_trials(run.folder, study)
            write_manifests(run.folder, manifest, job)
            study.enqueue_all((grid or [])[: config.trials])
            try:
                return sweep.run(study)
            except KeyboardInterrupt:
                print("\nfinished trials are kept; the same command goes on with the others", flush=True)
                raise


def _wanted(trials: int | None, grid: Sequence[Any] | None) -> int:
    """How many trials there are to be."""
    if grid is None:
        return trials or _USUAL_TRIALS
    if trials is not None and trials < len(grid):
        print(
            f"trials={trials}: the first {trials} of the grid's {len(grid)} combinations; omit trials for all of them"
        )
    return min(trials or len(grid), len(grid))


def _refuse_other_trials(folder: Path, study: SweepStudy) -> None:
    """Refuse to replace the results of a study in another storage.

    Raises:
        ValueError: the folder has results, and the study has no trials.
    """
    if (folder / TRIALS).is_file() and not study.trials():
        raise ValueError(
            f"{folder} has results of trials that the study in {study.where} does not know; give the storage that they "
            "are in (storage=…), choose another name (name=…), or remove that folder to start over"
        )


def deciding(settings: Mapping[str, Any], job: SweepJob, data: SweepData) -> dict[str, Any]:
    """What drivers of one study must agree on; no subject is named."""
    names = ("train", "adapt", "space", "cohorts", "objectives", "folds", "repeats", "held_out", "seed", "sampler")
    more = ("stop", "grace_folds", "reduction", "manifest_fingerprint")
    sizes = [len(part) for part in (*job.division.folds, job.division.training, job.division.held_out)]
    known = {name: settings[name] for name in (*names, *more)}
    return known | {"features": job.features.fingerprint, "subjects": sizes, "clips with features": len(data.labels)}


@dataclass(frozen=True)
class Sweep:
    """A sweep that is ready to run on the connected Ray."""

    job: SweepJob
    """What trials know."""
    data: SweepData
    """What trials share."""
    config: SweepConfig
    """How settings are searched; `trials` is a number."""
    cohorts: tuple[Cohort, ...]
    """Shares of positives at which trials are scored."""
    cluster: ClusterConfig
    """Gives the share of a GPU per trial."""
    folder: Path
    """The run folder."""
    settings: Mapping[str, Any]
    """The run's settings, plain, resolved and without secrets."""

    def run(self, study: SweepStudy) -> int:
        """Run the trials that are missing, judge the chosen one, write the results; returns the exit code."""
        job, config = self.job, self.config
        sweep_up(self.folder, study.drivers.alive())
        shelf = start_shelf(self.folder / "models")
        scorer = Scorer(job, self.data, shelf, gpu_share(self.cluster))
        clip_au = scorer.reference(study)
        total = config.trials or 0
        run_trials(
            Conductor(
                study,
                job,
                total=total,
                objectives=config.objectives,
                stopping=config.stopping,
                progress=SweepProgress(total, config.objectives),
            ),
            self.data,
            shelf=shelf,
            config=TuneConfig(self.cluster, config.concurrent, config.loggers),
            folder=self.folder,
        )
        subjects = job.division.subjects
        draws = [draw for subject in subjects for draw in self.data.draws[subject]]
        run = SweepRun(
            job,
            self.folder,
            self.settings,
            self.cohorts,
            config.objectives,
            clip_au.subjects,
            clip_worth(draws),
            positive_shares(draws, positive=len(job.classes) - 1),
            len({clip for draw in draws for clip in draw.labels}),
        )
        records = study.trials()
        trials = trial_table(
            records, job.space, cohorts=job.cohorts, num_subjects=len(subjects), reference=clip_au.subjects
        )
        held_out = judge(run, scorer, study, best_record(records, config.objectives[0]), clip_au)
        front = [record.number for record in study.front()]
        return write_results(run, trials, records, front=front, held_out=held_out)
