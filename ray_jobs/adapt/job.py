"""Personalize to every target subject without labels, and predict all their clips.

Subjects are units of work over a pool of actors; each finished subject is one result file, written whole, so a run that
was stopped goes on where it was, and clips that came later extend their subject. Labels are used afterwards, to draw
the cohorts of the evaluation and to score.

Example:
    clipautt adapt manifest=data/hard/manifest.parquet checkpoint=runs/train/hard adapt=infomax_kl name=hard
    clipautt adapt manifest=data/hard/manifest.parquet compare=[zero_shot,clip_au,infomax_kl@median]
    clipautt adapt manifest=data/hard/manifest.parquet adapt=infomax_kl adapt.tune=feature explain=true
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from clipautt.adaptation.source import Source
from clipautt.backbones.loading import load_backbone
from clipautt.clips import Clip, Manifest, by_subject
from clipautt.evaluation.openface import list_openface
from clipautt.evaluation.prompt_changes import read_explanations
from clipautt.evaluation.reports.prompt_changes_page import write_explanation_page
from clipautt.evaluation.results import EVERY, Cohort, predicted, read_rows, subject_scores
from clipautt.model.checkpoint import find_checkpoint, load_checkpoint
from ray_jobs.adapt.actor import AdaptActor, AdaptJob, Outcome, check_methods
from ray_jobs.adapt.agreement import FOLDER, read_agreement
from ray_jobs.adapt.checks import (
    check_earlier_clips,
    check_same_checkpoints,
    clips_of_splits,
    load_checkpoints,
    make_cohorts,
    rows_that_can_be_made,
)
from ray_jobs.adapt.plan import SubjectPlan, SubjectWork, make_tasks, result_file
from ray_jobs.adapt.results import ResultBook, shared_columns
from ray_jobs.platform.actor_pool import Done, PoolConfig, run_pool
from ray_jobs.platform.cluster import ClusterConfig, connect, gpu_share, num_cpus, num_gpus, num_nodes
from ray_jobs.platform.configuration import instantiate, resolved
from ray_jobs.platform.extraction.extract import extract, report_failures
from ray_jobs.platform.manifests import load_manifest
from ray_jobs.platform.methods import make_methods
from ray_jobs.platform.metrics import JobMetrics
from ray_jobs.platform.progress import Progress, table
from ray_jobs.platform.runs import IGNORED, open_run

_MAY_DIFFER = (*IGNORED, "work", "tuning", "explain", "openface")
"""Settings that may differ when a run goes on."""
_ATTEMPTS = 3
_SHOWN_CHANGES = 12


@dataclass(frozen=True)
class WorkConfig:
    """How subjects are spread over actors; nothing here changes a result by more than rounding."""

    actors: int | None = None
    """How many; None: as many as the GPUs have room for, or one per core."""
    clips_per_task: int = 128
    """Subjects are put together until they have so many clips, or fewer where actors would stay without work."""
    seconds_per_video: float = 120.0
    """A task that takes longer than this for each of its videos, under each method and cohort, is ended and tried
    again."""
    exact_sample: int = 3
    """Subjects on which cheap modes are compared with the exact one."""

    def __post_init__(self) -> None:
        for name, least in (("actors", 1), ("clips_per_task", 1), ("exact_sample", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value}; allowed are whole numbers from {least}")
        if not self.seconds_per_video > 0:
            raise ValueError(f"seconds_per_video={self.seconds_per_video}; allowed are positive numbers")


def run_adaptation(
    job: AdaptJob,
    manifest: Manifest,
    clips: Sequence[Clip],
    cohorts: Sequence[Cohort],
    *,
    cluster: ClusterConfig,
    work: WorkConfig | None = None,
    seed: int = 0,
    reasons: Mapping[str, str] | None = None,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Adapt to every subject that has something left to do, on the connected Ray.

    Args:
        job: what to compute.
        manifest: names the classes.
        clips: to predict; each without features gets a row that says why it has no prediction.
        cohorts: of the evaluation.
        cluster: the GPU share of an actor.
        work: how subjects are spread over actors.
        seed: of the cohorts.
        reasons: clip → why it has no features.

    Returns:
        All result rows of the run; and of the subjects that failed, which the others do not wait for, id → reason.

    Raises:
        PoolError: if no actor can start or be placed.
    """
    work = work or WorkConfig()
    results = Path(job.folder) / "subjects"
    results.mkdir(parents=True, exist_ok=True)
    subjects = by_subject(clips)
    book = ResultBook(job, manifest, results, reasons or {}, shared_columns(job, manifest, seed))
    plans = book.plans(subjects, cohorts, seed=seed, sample=work.exact_sample)
    with Progress("adapt", sum(plan.work.num_videos for plan in plans.values()), unit="videos") as progress:
        metrics = JobMetrics("adapt")
        progress.advance(0, note=book.note())
        with contextlib.closing(_work(job, plans, cluster=cluster, work=work, on_ready=progress.begin)) as done:
            for subject, outcomes in done:
                plan = plans.pop(subject)
                book.write(plan, outcomes)
                count = plan.work.num_videos
                progress.advance(count, failed=count * isinstance(outcomes, str), note=book.note())
                metrics.publish(progress.figures() | book.figures())
    for subject, why in book.not_compared.items():
        print(f"subject {subject!r}: the cheap modes were not compared with the exact one: {why}")
    return read_rows(results / result_file(subject) for subject in subjects), book.failures


def _work(
    job: AdaptJob,
    plans: Mapping[str, SubjectPlan],
    *,
    cluster: ClusterConfig,
    work: WorkConfig,
    on_ready: Callable[[], None],
) -> Generator[tuple[str, list[Outcome] | str], None, None]:
    """Subject → outcomes, or why there are none, in order of completion."""
    idle = [subject for subject, plan in plans.items() if not plan.work.assignments]
    yield from ((subject, []) for subject in sorted(idle))
    gpu = gpu_share(cluster)
    actors = work.actors or (max(1, int(num_gpus() / gpu)) if gpu else num_cpus())
    left = [plan.work for plan in plans.values() if plan.work.assignments]
    tasks = make_tasks(left, clips_per_task=work.clips_per_task, actors=actors)
    if not tasks:
        return
    count = min(len(tasks), actors)
    if any(one.method.tune == "first_order" for task in tasks for each in task for one in each.assignments):
        _prepare_jacobians(job, gpu)
    config = PoolConfig(
        actors=count,
        num_cpus=0.0 if gpu else min(1.0, num_cpus() / count),
        num_gpus=gpu,
        attempts=_ATTEMPTS,
        seconds_per_item=work.seconds_per_video,
    )
    workers = -(-count // max(1, num_nodes())) if not gpu else max(1, round(1 / gpu))
    pool = run_pool(AdaptActor, (job, workers), tasks, config=config, size=_videos, on_ready=on_ready)
    with contextlib.closing(pool) as outcomes:
        for outcome in outcomes:
            yield outcome.item.subject_id, outcome.result if isinstance(outcome, Done) else outcome.reason


def _videos(one: SubjectWork) -> float:
    """Videos to predict, each as often as methods and cohorts ask for it."""
    return float(sum(len(assignment.clip_ids) for assignment in one.assignments))


def _prepare_jacobians(job: AdaptJob, gpu: float) -> None:
    """Compute what `first_order` needs once, before many actors would; it is kept beside the checkpoints."""
    import ray

    baselines = sorted({m.subject_baseline for m in job.methods if m.tune == "first_order"})
    ray.get(ray.remote(num_cpus=1, num_gpus=gpu)(_keep_jacobian).remote(job, baselines))


def _keep_jacobian(job: AdaptJob, baselines: Sequence[str]) -> None:
    import torch

    backbone = load_backbone(job.backbone).to("cuda" if torch.cuda.is_available() else "cpu")
    for baseline in baselines:
        Source(load_checkpoint(find_checkpoint(job.checkpoint, baseline)), backbone).linearised_tower()


def main(cfg: DictConfig) -> int:
    """Run the job."""
    cluster, own = instantiate(cfg.cluster), instantiate(cfg.adapt)
    checkpoint = load_checkpoint(find_checkpoint(cfg.checkpoint, own.subject_baseline))
    spec = checkpoint.spec
    methods = rows_that_can_be_made(make_methods(own, cfg.compare), checkpoint, cfg.checkpoint)
    checkpoints = load_checkpoints(methods, cfg.checkpoint)
    manifest = load_manifest(cfg, classes=spec.classes)
    backbone, frames = instantiate(cfg.backbone) or spec.backbone, spec.features.frames
    cohorts = make_cohorts(resolved(cfg)["cohorts"])
    tuning, work = instantiate(cfg.tuning), instantiate(cfg.work)
    check_methods(methods, explain=cfg.explain)
    if cfg.explain and not own.tunes:
        print(f"{own.name!r} tunes no prompts: what is explained is the same before and after")
    if cfg.openface:
        list_openface(cfg.openface)
    clips = clips_of_splits(manifest, cfg.splits)
    run = open_run("adapt", cfg.name, cfg, root=cfg.runs, ignore=_MAY_DIFFER)
    check_same_checkpoints(run.path("checkpoints.json"), checkpoints)
    check_earlier_clips(run.folder, manifest, clips)
    with connect(cluster):
        store, summary = extract(
            clips,
            backbone,
            frames.sampling,
            cfg.store,
            cluster=cluster,
            faces=frames.faces,
            limits=instantiate(cfg.limits),
            pipeline=instantiate(cfg.pipeline),
        )
        report_failures(summary)
        job = AdaptJob(
            backbone,
            str(Path(cfg.checkpoint).absolute()),
            methods,
            str(run.folder),
            str(Path(cfg.store).absolute()),
            store.spec,
            tuning,
            cfg.explain,
            cfg.openface and str(Path(cfg.openface).absolute()),
        )
        rows, failed = run_adaptation(
            job,
            manifest,
            clips,
            cohorts,
            cluster=cluster,
            work=work,
            seed=cfg.seed,
            reasons={failure.clip_id: failure.reason for failure in summary.failures},
        )
    print_summary(rows, manifest)
    for name, agreement in read_agreement((run.folder / FOLDER).glob("*.json")).items():
        print(f"{name}: agrees with the exact mode in {agreement}")
    if cfg.explain:
        explained = read_explanations(run.folder / "explain")
        if explained:
            page = write_explanation_page(run.folder / "explain", explained, title=f"What changed: {own.name}")
            print(f"what changed: {page}")
            problems = [p for one in explained.values() for p in one.facts.get("openface_problems", {}).items()]
            if problems:
                table(problems[:_SHOWN_CHANGES], ["clip", f"{len(problems)} files of OpenFace cannot be used"])
    print(f"results: {run.folder}; `clipautt report run={run.folder}` draws them")
    if failed:
        table(failed.items(), ["subject without a result", "reason"])
        print(f"{len(failed)} of {len(by_subject(clips))} subjects failed; the same command tries them again")
    return 1 if failed else 0


def print_summary(rows: pd.DataFrame, manifest: Manifest) -> None:
    """A short table of mean WAR and UAR over subjects, balanced cohort where there is one."""
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
