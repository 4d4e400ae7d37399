"""Personalize to every target subject without labels, and predict all their clips.

Subjects are spread over a pool of actors. Each finished subject is one result file, written as a whole, so a run that
was stopped resumes where it stopped, and new clips extend their subject. Labels are used only afterwards, to draw the
cohorts of the evaluation and to score.

Example:
    clipautt adapt manifest=data/hard/manifest.parquet checkpoint=runs/train/hard adapt=infomax_kl name=hard
    clipautt adapt manifest=data/hard/manifest.parquet 'compare=[zero_shot,clip_au,infomax_kl@median]'
    clipautt adapt manifest=data/hard/manifest.parquet adapt=infomax_kl adapt.method.tune=feature explain=true
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from clipautt.adaptation.predictions import NO_PREDICTION
from clipautt.commands import setting
from clipautt.evaluation.au_tables.matching import match_au_tables
from clipautt.evaluation.prompt_changes import read_explanations
from clipautt.evaluation.reports.prompt_changes_page import write_explanation_page
from clipautt.evaluation.results import EVERY, make_cohorts, predicted, read_rows, subject_scores
from clipautt.manifest import Manifest, by_subject
from clipautt.model.checkpoint import find_checkpoint, load_checkpoint
from ray_jobs.adapt.actor import AdaptActor, Outcome
from ray_jobs.adapt.agreement import FOLDER, read_agreement
from ray_jobs.adapt.checks import (
    cautions_of,
    check_earlier_clips,
    check_same_checkpoints,
    clips_of_splits,
    footage_warning,
    load_checkpoints,
    rows_that_can_be_made,
)
from ray_jobs.adapt.plan import SubjectPlan, SubjectWork, make_tasks, result_file
from ray_jobs.adapt.results import ResultBook
from ray_jobs.adapt.run import AdaptJob, AdaptRun
from ray_jobs.platform.actor_pool import Done, PoolConfig, run_pool
from ray_jobs.platform.cluster import connect, gpu_share, num_cpus, num_gpus, usable_nodes
from ray_jobs.platform.configuration import instantiate, resolved
from ray_jobs.platform.extraction.extract import checkpoint_extraction, extract, report_failures
from ray_jobs.platform.extraction.faces_seen import report_faces
from ray_jobs.platform.footage import warn
from ray_jobs.platform.manifests import load_manifest
from ray_jobs.platform.methods import make_methods
from ray_jobs.platform.metrics import JobMetrics
from ray_jobs.platform.progress import Progress, table
from ray_jobs.platform.runs import IGNORED, open_run

_MAY_DIFFER = (*IGNORED, "work", "tuning", "explain", "aus")
"""Settings that may differ when a run is resumed."""
_ATTEMPTS = 3
_SHOWN_PROBLEMS = 12


def main(cfg: DictConfig) -> int:
    """Run the job."""
    run = make_run(cfg)
    with connect(run.cluster):
        run = with_features(run, cfg)
        plan = plan_run(run)
        execute(plan)
    return finish(plan)


@dataclass(frozen=True)
class Plan:
    """A run and what is left to do."""

    run: AdaptRun
    """The run as a whole."""
    book: ResultBook
    """Reads and writes the result files, and counts subjects."""
    subjects: dict[str, SubjectPlan]
    """Subject → its plan, for subjects with something left to do."""


def make_run(cfg: DictConfig) -> AdaptRun:
    """The run that the settings describe; makes its folder.

    Raises:
        FileNotFoundError: if checkpoint, manifest or the folder of tables is missing.
        ValueError: for settings that cannot work, or that do not fit the results in the folder.
    """
    own = instantiate(cfg.adapt)
    checkpoint = load_checkpoint(find_checkpoint(cfg.checkpoint, own.subject_baseline))
    spec = checkpoint.spec
    methods = rows_that_can_be_made(make_methods(own, cfg.compare), checkpoint, cfg.checkpoint)
    checkpoints = load_checkpoints(methods, cfg.checkpoint)
    manifest = load_manifest(cfg, classes=spec.classes)
    cohorts = make_cohorts(resolved(cfg)["cohorts"])
    clips = clips_of_splits(manifest, cfg.splits)
    if cfg.aus and not cfg.explain:
        raise ValueError(f"aus={cfg.aus}: tables are compared with explanations; add explain=true")
    if cfg.aus and not any(match_au_tables(cfg.aus, clips)):
        raise ValueError(f"aus={cfg.aus}: no table there is named after a clip or its video, as {clips[0].clip_id}.csv")
    job = AdaptJob(
        instantiate(cfg.backbone) or spec.backbone,
        str(Path(cfg.checkpoint).absolute()),
        methods,
        "",
        str(Path(cfg.store).absolute()),
        spec.features,
        instantiate(cfg.tuning),
        cfg.explain,
        cfg.aus and str(Path(cfg.aus).absolute()),
    )
    if cfg.explain and not own.method.adapts:
        print(f"{own.name!r} does not adapt: the explanation shows the same before and after")
    warning = footage_warning(clips, spec, job.backbone)
    warn(warning)
    folder = open_run("adapt", cfg.name, cfg, root=cfg.runs, ignore=_MAY_DIFFER)
    check_same_checkpoints(folder.path("checkpoints.json"), checkpoints)
    check_earlier_clips(folder.folder, manifest, clips)
    return AdaptRun(
        replace(job, folder=str(folder.folder)),
        manifest,
        tuple(clips),
        tuple(cohorts),
        instantiate(cfg.cluster),
        instantiate(cfg.work),
        cfg.seed,
        warning=warning,
    )


def with_features(run: AdaptRun, cfg: DictConfig) -> AdaptRun:
    """Extract the missing features on the connected Ray; returns the run with its feature spec and why clips failed."""
    config = checkpoint_extraction(cfg, run.job.backbone, run.job.features.frames, manifest=str(cfg.manifest))
    store, summary = extract(run.clips, config)
    report_failures(summary)
    report_faces(summary)
    reasons = {failure.clip_id: failure.reason for failure in summary.failures}
    job = replace(run.job, features=store.spec)
    others = {clip_id: known.other_faces for clip_id, known in summary.known.items() if known.other_faces}
    against = cautions_of(run, summary.known)
    left = {"reasons": reasons, "lost": summary.lost, "avoid": summary.avoid}
    return replace(run, job=job, cautions=against, other_faces=others, **left)  # type: ignore[arg-type]


def plan_run(run: AdaptRun) -> Plan:
    """What is left to do for every subject; finished work is not repeated."""
    book = ResultBook(run)
    return Plan(run, book, book.plans())


def execute(plan: Plan) -> None:
    """Adapt to the planned subjects on the connected Ray, and write a file for each as it finishes.

    Raises:
        PoolError: if no actor can be placed or started.
    """
    book, subjects = plan.book, dict(plan.subjects)
    with Progress("adapt", sum(one.work.num_videos for one in subjects.values()), unit="videos") as progress:
        metrics = JobMetrics("adapt")
        progress.advance(0, note=book.note())
        with contextlib.closing(_outcomes(plan.run, subjects, on_ready=progress.begin)) as done:
            for subject, outcomes in done:
                left = subjects.pop(subject)
                book.write(left, outcomes)
                count = left.work.num_videos
                progress.advance(count, failed=count * isinstance(outcomes, str), note=book.note())
                metrics.publish(progress.figures() | book.figures())
    for subject, why in book.not_compared.items():
        print(f"subject {subject!r}: approximations were not compared with the exact method: {why}")


def finish(plan: Plan) -> int:
    """Print the results and where they are; returns the exit code, 1 if a subject failed or a clip was lost."""
    run, failures = plan.run, plan.book.failures
    rows = rows_of(run)
    print_summary(rows, run.manifest)
    print_not_predicted(rows)
    warn(run.warning)
    folder = Path(run.job.folder)
    for name, agreement in read_agreement((folder / FOLDER).glob("*.json")).items():
        print(f"{name}: agrees with the exact method in {agreement}")
    if run.job.explain:
        _write_explanations(run)
    labelled = bool((rows["label"] != "").any())
    drawn = f"; `clipautt report {setting('run', str(folder))}` draws them" if labelled else ""
    print(f"results: {folder}{drawn}")
    if failures:
        table(failures.items(), ["subject without a result", "reason"])
        print(
            f"{len(failures)} of {len(by_subject(run.clips))} subjects failed; run the same command to try them again"
        )
    return 1 if failures or run.lost else 0


def rows_of(run: AdaptRun) -> pd.DataFrame:
    """All result rows of a run."""
    return read_rows(run.results / result_file(subject) for subject in by_subject(run.clips))


def _outcomes(
    run: AdaptRun, subjects: Mapping[str, SubjectPlan], *, on_ready: Callable[[], None]
) -> Generator[tuple[str, list[Outcome] | str], None, None]:
    """Pairs of a subject and its outcomes, or why there are none, in order of completion."""
    idle = [subject for subject, plan in subjects.items() if not plan.work.assignments]
    yield from ((subject, []) for subject in sorted(idle))
    gpu = gpu_share(run.cluster)
    cores = num_cpus(run.avoid)
    actors = run.work.actors or (max(1, int(num_gpus(run.avoid) / gpu)) if gpu else cores)
    left = [plan.work for plan in subjects.values() if plan.work.assignments]
    tasks = make_tasks(left, clips_per_task=run.work.clips_per_task, actors=actors)
    if not tasks:
        return
    count = min(len(tasks), actors)
    config = PoolConfig(
        actors=count,
        num_cpus=0.0 if gpu else min(1.0, cores / count),
        num_gpus=gpu,
        attempts=_ATTEMPTS,
        seconds_per_item=run.work.seconds_per_video,
        avoid=run.avoid,
    )
    sharing = -(-count // max(1, len(usable_nodes(run.avoid)))) if not gpu else max(1, round(1 / gpu))
    pool = run_pool(AdaptActor, (run.job, sharing), tasks, config=config, size=_videos, on_ready=on_ready)
    with contextlib.closing(pool) as outcomes:
        for outcome in outcomes:
            yield outcome.item.subject_id, outcome.result if isinstance(outcome, Done) else outcome.reason


def _videos(work: SubjectWork) -> float:
    """Videos to predict, each counted once per assignment that predicts it."""
    return float(sum(len(assignment.clip_ids) for assignment in work.assignments))


def print_not_predicted(rows: pd.DataFrame) -> None:
    """Print the clips that have features and cannot be predicted from them, by which methods, and why."""
    failed = rows[rows["status"].str.startswith(NO_PREDICTION)]
    without = failed.drop_duplicates("clip_id")
    if len(without):
        methods = failed.groupby("clip_id")["method"].unique()
        names = [
            "every method" if len(methods[clip_id]) == rows["method"].nunique() else ", ".join(methods[clip_id])
            for clip_id in without["clip_id"]
        ]
        reasons = without["status"].str.removeprefix(NO_PREDICTION)
        shown = list(zip(without["clip_id"], names, reasons, strict=True))[:_SHOWN_PROBLEMS]
        table(shown, [f"{len(without)} clip{'s' * (len(without) != 1)} without a prediction", "by", "reason"])


def _write_explanations(run: AdaptRun) -> None:
    """Write the page of what adaptation changed, if there is anything to show."""
    folder = Path(run.job.folder) / "explain"
    explained = read_explanations(folder)
    if not explained:
        return
    title, warnings = f"What changed: {run.job.methods[0].name}", [run.warning] if run.warning else []
    page = write_explanation_page(folder, explained, title=title, warnings=warnings)
    print(f"what changed: {page}")
    facts = [one.facts for one in explained.values()]
    problems = [problem for one in facts for problem in one.get("au_problems", {}).items()]
    if problems:
        table(problems[:_SHOWN_PROBLEMS], ["clip", f"{len(problems)} tables of action units cannot be used"])
    notes = [
        (clip_id, note) for one in facts for clip_id, file in one.get("au_files", {}).items() for note in file["notes"]
    ]
    if notes:
        table(notes[:_SHOWN_PROBLEMS], ["clip", f"{len(notes)} notes on tables of action units"])


def print_summary(rows: pd.DataFrame, manifest: Manifest) -> None:
    """Print mean WAR, UAR and F1 over subjects, for the balanced cohort if there is one."""
    labelled = predicted(rows[rows["label"] != ""])
    cohort = "balanced" if (labelled["cohort"] == "balanced").any() else EVERY
    shown = labelled[labelled["cohort"] == cohort]
    if shown.empty:
        counts = [predicted(rows)[name].nunique() for name in ("clip_id", "subject_id")]
        print(f"{counts[0]} clips of {counts[1]} subjects predicted; no labels to compare with")
        return
    scores = subject_scores(shown, classes=manifest.classes)
    means = scores.groupby(["split", "method"], sort=False)[["war", "uar", "f1"]].mean().reset_index()
    lines = [
        (row["split"], row["method"], *(f"{100 * float(row[name]):.1f} %" for name in ("war", "uar", "f1")))
        for row in means.to_dict("records")
    ]
    table(lines, ["split", f"method ({cohort})", "WAR", "UAR", "F1"])
