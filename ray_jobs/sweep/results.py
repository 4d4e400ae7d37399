"""What a sweep leaves in its run folder: the table of trials, the best settings as words for other jobs, the page.

In: the trials, their study, the held-out judgement and the run's settings. Out: files, and what is printed at the end.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from omegaconf import OmegaConf

from clipautt.clips import Clip
from clipautt.commands import quoted, word
from clipautt.evaluation.reports.tables import cohort_title
from clipautt.evaluation.results import Cohort
from clipautt.files import write_table, write_text
from clipautt.manifest import Manifest, write_manifest
from clipautt.metrics import Interval
from clipautt.model.checkpoint import is_checkpoint
from clipautt.model.training import TrainConfig
from clipautt.selection.page import write_page
from clipautt.selection.report import HeldOut, SweepReport
from clipautt.selection.scoring import spread
from clipautt.selection.sentences import summary_lines
from clipautt.selection.trials import Dimension as Axis
from clipautt.selection.trials import Kind
from ray_jobs.platform.configuration import compose, flatten
from ray_jobs.platform.progress import table
from ray_jobs.platform.runs import versions
from ray_jobs.sweep.dimensions import Dimension
from ray_jobs.sweep.studies.records import TrialRecord, brief
from ray_jobs.sweep.table import best_record, subject_values
from ray_jobs.sweep.trial import SweepJob, model_key

_BEST_HEADER = """\
# {title} of a sweep. `clipautt train @THIS_FILE` and `clipautt adapt @THIS_FILE` take its settings; words after
# `@THIS_FILE` change them. `folds/` beside it has a manifest per fold, to repeat the trial's figures.
"""
TRIALS = "trials.parquet"
"""The table of trials in the run folder."""
_SHOWN_REASONS = 5
_SHARE_TOLERANCE = 0.03
_PLAIN_TEXT = re.compile(r"[A-Za-z_./][\w./:@+-]*")
_WORDS_OF_YAML = ("null", "true", "false", "nan", "inf")


@dataclass(frozen=True)
class SweepRun:
    """A sweep with everything that its results need."""

    job: SweepJob
    """What trials share."""
    folder: Path
    """The run folder."""
    settings: Mapping[str, Any]
    """The run's settings, plain, resolved and without secrets."""
    cohorts: tuple[Cohort, ...]
    """Shares of positives at which trials are scored."""
    objectives: tuple[str, ...]
    """Figures that are optimized."""
    reference: npt.NDArray[np.float64]
    """UAR of CLIP-AU for every subject of the folds, mean over the cohorts, [S]."""
    clip_worth: tuple[float, float]
    """By how much one decision changes the value: the median over clips and the largest, 0..1."""
    shares: tuple[float, ...]
    """Shares of positives that the clips allowed, one per cohort, 0..1."""
    num_clips: int
    """Clips of the source subjects with features."""


def held_out_record(
    run: SweepRun, record: TrialRecord, ours: npt.NDArray[np.float64], reference: npt.NDArray[np.float64], *, looks: int
) -> HeldOut:
    """How the chosen trial does on the subjects that no trial saw.

    Args:
        run: the sweep.
        record: the chosen trial.
        ours: UAR of every held-out subject with the trial's settings, mean over the cohorts, [S].
        reference: that of CLIP-AU, [S].
        looks: number of choices that these subjects have judged so far.
    """
    found = spread(ours, reference)
    return HeldOut(
        subjects=len(run.job.division.held_out),
        trial=record.number,
        uar=Interval(float(ours.mean()), found["uar_low"], found["uar_high"]),
        gain=Interval(found["gain"], found["gain_low"], found["gain_high"]),
        value=float(record.facts["uar"]),
        looks=looks,
    )


def write_manifests(folder: Path, manifest: Manifest, job: SweepJob) -> None:
    """Write a manifest per fold, `folds/fold-1.parquet` and so on, and `held_out.parquet`.

    In each, the subjects to score are source_val and those that their model is trained on are source_train, so that
    `clipautt train` and `clipautt adapt splits=[source_val]` repeat what a trial does.
    """
    parts: list[tuple[str, int | None, Sequence[str]]] = [
        (f"fold-{number + 1}", number, subjects) for number, subjects in enumerate(job.division.folds)
    ]
    parts += [("held_out", None, job.division.held_out)] if job.division.held_out else []
    for name, fold, scored in parts:
        trained = set(job.division.trained_on(fold))
        clips: list[Clip] = [
            replace(clip, split="source_val" if clip.subject_id in scored else "source_train")
            for clip in manifest.clips
            if clip.subject_id in trained or clip.subject_id in scored
        ]
        path = folder / "folds" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(clips, path, classes=manifest.classes)


def write_results(
    run: SweepRun,
    trials: pd.DataFrame,
    records: Sequence[TrialRecord],
    *,
    front: Sequence[int],
    held_out: HeldOut | None,
) -> int:
    """Write `trials.parquet`, `best.yaml` and the page into the run folder, and print what was found.

    Args:
        run: the sweep.
        trials: from `trial_table`.
        records: the same trials as the study has them.
        front: numbers of the trials that no other one beats in all objectives.
        held_out: the judgement of the chosen trial; None without held-out subjects.

    Returns:
        The exit code: 1 if no trial succeeded, else 0.
    """
    write_table(run.folder / TRIALS, trials)
    print_reasons(trials)
    best = best_record(records, run.objectives[0])
    commands: list[str] = []
    if best is not None:
        path = run.folder / "best.yaml"
        commands = write_settings(path, "The best trial", settings_of(run, best, trials, held_out=held_out))
        write_front(run, trials, [one for one in records if one.number in front])
    report = make_report(run, trials, records, front=front, held_out=held_out, commands=commands)
    page = write_page(run.folder / "report", report)
    for line in summary_lines(report):
        print(line)
    if best is None:
        print(f"no trial succeeded, so there is no best one; the reasons are in {run.folder / TRIALS}")
    else:
        print(f"\nTo use the best trial ({run.folder / 'best.yaml'}):")
        for command in commands:
            print(f"  {command}")
    print(f"\npage: {page}")
    return 0 if best is not None else 1


def make_report(
    run: SweepRun,
    trials: pd.DataFrame,
    records: Sequence[TrialRecord],
    *,
    front: Sequence[int],
    held_out: HeldOut | None,
    commands: Sequence[str],
) -> SweepReport:
    """What the page shows."""
    job, settings = run.job, run.settings
    size, best = len(job.division.subjects), best_record(records, run.objectives[0])
    return SweepReport(
        name=str(settings["name"]),
        trials=trials,
        subject_values={record.number: subject_values(record, size) for record in records if record.facts},
        reference_values=run.reference,
        dimensions=[axis_of(dimension) for dimension in job.space.dimensions],
        objectives=run.objectives,
        cohorts=job.cohorts,
        folds=len(job.division.folds),
        num_subjects=size,
        num_clips=run.num_clips,
        clip_points=(100 * run.clip_worth[0], 100 * run.clip_worth[1]),
        held_out=held_out,
        commands=commands,
        facts=facts_of(run),
        front=front,
        chosen=None if best is None else best.number,
        synthetic=job.footage.faces == "rendered",
    )


def axis_of(dimension: Dimension) -> Axis:
    """A dimension as the page knows it."""
    kinds: dict[str, Kind] = {"float64": "real", "Int64": "whole"}
    return Axis(dimension.name, dimension.label, kinds.get(dimension.dtype, "category"), dimension.log)


def facts_of(run: SweepRun) -> list[tuple[str, str]]:
    """What was held out and how trials were made, as names and values."""
    job, settings, division = run.job, run.settings, run.job.division
    folds = f"{len(division.folds)} of {' + '.join(str(len(fold)) for fold in division.folds)} subjects"
    known = versions()
    return [
        ("Folds", f"{folds}, each trained {job.repeats} times" if job.repeats > 1 else folds),
        ("Held out", f"{len(division.held_out)} source subjects that no trial saw" if division.held_out else "nobody"),
        ("Trained on only", f"{len(division.training)} subjects" if division.training else "nobody"),
        ("Shares of positives", ", ".join(map(_share_words, run.cohorts, run.shares))),
        ("Target subjects", "not loaded"),
        ("Sampler", f"{settings['sampler']}, seed {settings['seed']}" + ("; asha" if settings["stop"] else "")),
        ("Study", str(settings["storage"] or run.folder / "study.db")),
        (
            "Version",
            f"clipautt {known['clipautt']}, optuna {known['packages']['optuna']}, ray {known['packages']['ray']}",
        ),
    ]


def _share_words(cohort: Cohort, share: float) -> str:
    """Name of a cohort, with the share that there is where subjects have too few clips for the one that is named."""
    if abs(share - cohort.share) < _SHARE_TOLERANCE:
        return cohort_title(cohort.name)
    return f"{cohort_title(cohort.name)} (in fact {share:.0%}, as subjects have too few clips)"


def write_front(run: SweepRun, trials: pd.DataFrame, front: Sequence[TrialRecord]) -> None:
    """With several objectives, write the settings of the trials on the Pareto front, `front/NUMBER.yaml`."""
    folder = run.folder / "front"
    shutil.rmtree(folder, ignore_errors=True)  # An earlier front may have had trials that are now beaten.
    for record in front if len(run.objectives) > 1 else ():
        folder.mkdir(exist_ok=True)
        title = f"Trial {record.number}, on the Pareto front"
        write_settings(folder / f"{record.number}.yaml", title, settings_of(run, record, trials))


def write_settings(path: Path, title: str, facts: Mapping[str, Any]) -> list[str]:
    """Write a trial's settings as YAML; returns the commands that take them from the file."""
    text = yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=True, width=1000)
    write_text(path, _BEST_HEADER.format(title=title) + text)
    return [f"clipautt {job} {word(f'@{path}')}" for job in ("train", "adapt")]


def settings_of(
    run: SweepRun, record: TrialRecord, trials: pd.DataFrame, *, held_out: HeldOut | None = None
) -> dict[str, Any]:
    """What `best.yaml` holds.

    Args:
        run: the sweep.
        record: the trial.
        trials: from `trial_table`.
        held_out: how it does on held-out subjects, if they judged it.

    Returns:
        The trial's number, figures, values and models, and the words for `clipautt train` and `clipautt adapt`.
        Training includes a model without subject baseline, which `adapt` compares with.
    """
    settings, job = run.settings, run.job
    training, adaptation = job.space.configs(record.params)
    name = f"{settings['name']}-best"
    shared = {key: settings[key] for key in ("manifest", "classes", "store", "runs") if key in settings}
    shared |= {"name": name}
    frames = {key: settings[key] for key in ("backbone", "faces", "sampling")}
    own = {key: value for key, value in asdict(training).items() if key != "subject_baseline"}
    baselines = list(dict.fromkeys(["none", adaptation.subject_baseline]))
    chosen = adaptation.facts
    chosen["method"].pop("name")
    evaluation = {
        "checkpoint": str(Path(settings["runs"]) / "train" / name),
        "adapt": chosen,
        "cohorts": [asdict(cohort) for cohort in run.cohorts],
        "seed": settings["seed"],
    }
    row = trials[trials["number"] == record.number].iloc[0]
    figures = ["uar", "uar_low", "uar_high", *(f"uar_{one}" for one in job.cohorts), "gain", "gain_low", "gain_high"]
    return {
        "trial": record.number,
        "in_trials": {one: round(float(row[one]), 6) for one in figures},
        "held_out": None if held_out is None else asdict(held_out),
        "values": dict(record.params),
        "models": [str(folder) for folder in models_of(run, training) if is_checkpoint(folder)],
        "train": words_for("train", shared | frames | {"train": own, "baselines": baselines}),
        "adapt": words_for("adapt", shared | evaluation, [f"adapt={_preset(adaptation.method.name)}"]),
    }


def models_of(run: SweepRun, training: TrainConfig) -> list[Path]:
    """Where the models of a training configuration are, fold by fold and repeat by repeat.

    Those of a trial that another driver ran are in that driver's run folder.
    """
    division = run.job.division
    return [
        run.folder / "models" / model_key(replace(training, seed=training.seed + repeat), division.trained_on(fold))
        for repeat in range(run.job.repeats)
        for fold in range(len(division.folds))
    ]


def _preset(method: str) -> str:
    """The preset of `conf/adapt` that has a method's class and no settings of its own."""
    return "clip_au" if method == "clip_autt" else method


def words_for(job: str, wanted: Mapping[str, Any], base: Sequence[str] = ()) -> list[str]:
    """The `key=value` words that turn a job's defaults into the wanted settings.

    Args:
        job: name of the job.
        wanted: settings; those that are not named stay at the job's defaults.
        base: words to begin with.
    """
    defaults = flatten(OmegaConf.to_container(compose(job, base), resolve=True, throw_on_missing=False))
    given = flatten(dict(wanted))
    return [*base, *(f"{key}={_written(value)}" for key, value in given.items() if defaults.get(key, ...) != value)]


def _written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_written(one)}' for key, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, str):
        plain = _PLAIN_TEXT.fullmatch(value) and value.lower() not in _WORDS_OF_YAML
        return value if plain else quoted(value)
    return repr(value)


def print_reasons(trials: pd.DataFrame) -> None:
    """Print why trials failed, each reason once."""
    failed = trials[trials["status"] == "failed"].drop_duplicates("reason")
    if len(failed):
        rows = [
            [number, brief(reason)] for number, reason in failed[["number", "reason"]].head(_SHOWN_REASONS).to_numpy()
        ]
        table(rows, ["failed trial", "reason"])
