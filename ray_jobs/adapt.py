"""Personalize to every target subject without labels, and predict all their clips.

Subjects are units of work over a pool of actors; each finished subject is one result file, written whole, so a run that
was stopped goes on where it was. Labels are used afterwards, to draw the cohorts of the evaluation and to score.

Example:
    clipautt adapt manifest=data/hard/manifest.parquet checkpoint=runs/train/hard adapt=infomax_kl name=hard
    clipautt adapt manifest=data/hard/manifest.parquet compare=[zero_shot,clip_au,infomax_kl@median]
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from clipautt.adaptation import Personalization, SubjectResult, adapt, save_personalization, subject_file
from clipautt.backbone import BackboneConfig, load_backbone
from clipautt.clips import Clip, Manifest, by_subject
from clipautt.features import ClipFeatures
from clipautt.methods import AdaptConfig
from clipautt.model import CheckpointSpec, load_checkpoint
from clipautt.results import Cohort, ResultRow, predicted, read_rows, subject_scores, write_rows
from clipautt.source import Prediction, Source
from ray_jobs import cli
from ray_jobs.cluster import ClusterConfig, connect, gpu_share, num_cpus, num_gpus
from ray_jobs.configuration import compose, instantiate, resolved
from ray_jobs.extract import extract, report_failures
from ray_jobs.manifest import load_manifest
from ray_jobs.progress import Progress, table
from ray_jobs.runs import code_version, open_run
from ray_jobs.train import find_checkpoint

EVERY = "every clip"
"""Name of the group with all clips of a subject, labelled or not; its adapted prompts are kept."""
_IN_FLIGHT_PER_ACTOR = 2


@dataclass(frozen=True)
class AdaptJob:
    """What an adaptation run computes; plain values only."""

    backbone: BackboneConfig
    """Text tower and fingerprint."""
    checkpoint: str
    """Run folder of a training, or a checkpoint folder."""
    methods: tuple[AdaptConfig, ...]
    """Rows of the table; the first one is the run's own, whose prompts are kept."""
    folder: str
    """Run folder."""

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"two settings have the same name in the table: {', '.join(twice)}; leave one out of compare"
            )


@dataclass(frozen=True, repr=False)
class Group:
    """Clips of one subject that are adapted on together."""

    cohort: str
    """Name of the cohort, or `EVERY`."""
    draw: int
    """Number of the draw."""
    clip_ids: frozenset[str]
    """Members."""


GroupPredictions = list[tuple[str, Group, float, list[Prediction]]]
"""Method name, group, seconds per video, predictions."""


class AdaptActor:
    """Holds the source models and works on one subject at a time. It never sees a label."""

    def __init__(self, job: AdaptJob) -> None:
        import torch

        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        backbone = load_backbone(job.backbone)
        self.job = job
        self.sources: dict[str, Source] = {}
        for baseline in {method.subject_baseline for method in job.methods}:
            self.sources[baseline] = Source(load_checkpoint(find_checkpoint(job.checkpoint, baseline)), backbone)

    def run(self, clips: list[ClipFeatures], groups: list[Group]) -> GroupPredictions:
        """All methods on all groups of one subject; the kept prompts are written on the way."""
        found: GroupPredictions = []
        for method in self.job.methods:
            source = self.sources[method.subject_baseline]
            done: dict[frozenset[str], SubjectResult] = {}
            for group in sorted(groups, key=lambda group: group.cohort != EVERY):
                # Without a transductive part, what a clip gets does not depend on which other clips there are.
                key = group.clip_ids if method.transductive else groups_union(groups)
                if key not in done:
                    done[key] = adapt(source, [clip for clip in clips if clip.clip_id in key], method)[
                        clips[0].subject_id
                    ]
                result = done[key]
                if group.cohort == EVERY and method is self.job.methods[0]:
                    path = Path(self.job.folder) / "prompts" / subject_file(clips[0].subject_id)
                    save_personalization(
                        Personalization.of(result, method), path, checkpoint=source.checkpoint.fingerprint
                    )
                members = [p for p in result.predictions if p.clip_id in group.clip_ids]
                found.append((method.name, group, result.seconds / len(key), members))
        return found


def groups_union(groups: Sequence[Group]) -> frozenset[str]:
    """Every clip of the groups."""
    return frozenset().union(*(group.clip_ids for group in groups))


def make_groups(clips: Sequence[Clip], cohorts: Sequence[Cohort], *, positive: str, seed: int) -> list[Group]:
    """One subject's groups: every clip, and the draws of each cohort where the subject has labels of both classes."""
    groups = [Group(EVERY, 0, frozenset(clip.clip_id for clip in clips))]
    labelled = [clip for clip in clips if clip.label is not None]
    if len({clip.label for clip in labelled}) < 2:
        return groups
    for cohort in cohorts:
        for draw in range(cohort.draws):
            members = cohort.members(labelled, positive=positive, draw=draw, seed=seed)
            groups.append(Group(cohort.name, draw, frozenset(clip.clip_id for clip in members)))
    return groups


def run_adaptation(
    job: AdaptJob,
    manifest: Manifest,
    clips: Sequence[Clip],
    features: dict[str, ClipFeatures],
    cohorts: Sequence[Cohort],
    *,
    cluster: ClusterConfig,
    actors: int | None = None,
    seed: int = 0,
    reasons: Mapping[str, str] | None = None,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Adapt to every subject that has no result file yet, on the connected Ray.

    Args:
        job: what to compute.
        manifest: names the classes.
        clips: to predict.
        features: of those clips that have some; each of the others gets a row that says why it has no prediction.
        cohorts: of the evaluation.
        cluster: the GPU share of an actor.
        actors: how many; by default one per GPU, or per core.
        seed: of the cohorts.
        reasons: clip → why it has no features.

    Returns:
        All result rows of the run; and of the subjects that failed, which the others do not wait for, id → reason.
    """
    subjects = by_subject(clips)
    results = Path(job.folder) / "subjects"
    results.mkdir(parents=True, exist_ok=True)
    todo = {subject: own for subject, own in subjects.items() if not _is_done(results / result_file(subject), features)}
    facts = {"seed": seed, "manifest": manifest.fingerprint, "code_version": code_version()}
    settings = {method.name: _method_facts(method, job) | facts for method in job.methods}
    failures: dict[str, str] = {}
    total = sum(map(len, todo.values()))
    with Progress("adapt", total, unit="videos") as progress:
        for subject, outcome in _work(
            job, todo, features, cohorts, manifest, cluster=cluster, actors=actors, seed=seed
        ):
            if isinstance(outcome, Exception):
                failures[subject] = str(outcome).strip().splitlines()[-1]
            else:
                own = {clip.clip_id: clip for clip in todo[subject]}
                rows = [*_rows(outcome, own, manifest, settings)]
                rows += _empty_rows(own.values(), features, reasons or {}, settings)
                aside = results / f".{result_file(subject)}"
                write_rows(rows, aside)
                aside.replace(results / result_file(subject))
            progress.advance(len(todo[subject]), failed=len(todo[subject]) * isinstance(outcome, Exception))
    return read_rows(results / result_file(subject) for subject in subjects if subject not in failures), failures


def result_file(subject_id: str) -> str:
    """File name of a subject's result rows."""
    return Path(subject_file(subject_id)).with_suffix(".parquet").name


def _work(
    job: AdaptJob,
    todo: dict[str, list[Clip]],
    features: dict[str, ClipFeatures],
    cohorts: Sequence[Cohort],
    manifest: Manifest,
    *,
    cluster: ClusterConfig,
    actors: int | None,
    seed: int,
) -> Iterator[tuple[str, GroupPredictions | Exception]]:
    """Subjects over a pool of actors, a few in flight per actor; yields in order of completion."""
    import ray

    hollow = {subject for subject, own in todo.items() if not any(clip.clip_id in features for clip in own)}
    yield from ((subject, []) for subject in sorted(hollow))
    todo = {subject: own for subject, own in todo.items() if subject not in hollow}
    if not todo:
        return
    count = min(len(todo), actors or num_gpus() or num_cpus())
    gpu = gpu_share(cluster)
    remote = ray.remote(num_cpus=0 if gpu else 1, num_gpus=gpu, max_restarts=3, max_task_retries=1)(AdaptActor)
    pool = [remote.remote(job) for _ in range(count)]
    waiting, running = list(todo.items()), {}

    def submit(actor: Any) -> None:
        subject, listed = waiting.pop(0)
        own = [clip for clip in listed if clip.clip_id in features]
        groups = make_groups(own, cohorts, positive=manifest.classes[-1], seed=seed)
        running[actor.run.remote([features[clip.clip_id] for clip in own], groups)] = (subject, actor)

    for _ in range(_IN_FLIGHT_PER_ACTOR):
        for actor in pool:
            if waiting:
                submit(actor)
    while running:
        done, _ = ray.wait(list(running))
        subject, actor = running.pop(done[0])
        try:
            outcome: GroupPredictions | Exception = ray.get(done[0])
        except ray.exceptions.RayError as error:
            outcome = error
        if waiting:
            submit(actor)
        yield subject, outcome


def _is_done(file: Path, features: Mapping[str, ClipFeatures]) -> bool:
    """Whether a subject's rows are there, and none of its clips had to wait for features that have come since."""
    if not file.is_file():
        return False
    rows = read_rows([file])
    return not set(rows.loc[rows["prediction"] == "", "clip_id"]) & features.keys()


def _rows(
    found: GroupPredictions, clips: dict[str, Clip], manifest: Manifest, settings: Mapping[str, dict[str, Any]]
) -> Iterator[ResultRow]:
    for name, group, seconds, predictions in found:
        for prediction in predictions:
            yield ResultRow(
                **_clip_facts(clips[prediction.clip_id]),
                prediction=manifest.classes[prediction.label_index],
                probability=float(prediction.probabilities[-1]),
                window_start_seconds=prediction.window_start_seconds,
                window_end_seconds=prediction.window_end_seconds,
                entropy=prediction.entropy,
                status=prediction.status,
                cohort=group.cohort,
                draw=group.draw,
                seconds=seconds,
                **settings[name],
            )


def _empty_rows(
    clips: Iterable[Clip],
    features: Mapping[str, ClipFeatures],
    reasons: Mapping[str, str],
    settings: Mapping[str, dict[str, Any]],
) -> Iterator[ResultRow]:
    """One row per clip without features and method, so that no clip is lost in silence."""
    numbers = ("probability", "window_start_seconds", "window_end_seconds", "entropy", "seconds")
    for of_method in settings.values():
        for clip in clips:
            if clip.clip_id not in features:
                why = {"prediction": "", "status": f"no features: {reasons.get(clip.clip_id, 'not extracted')}"}
                nothing: dict[str, Any] = dict.fromkeys(numbers, float("nan")) | why | {"cohort": EVERY, "draw": 0}
                yield ResultRow(**_clip_facts(clip), **nothing, **of_method)


def _clip_facts(clip: Clip) -> dict[str, Any]:
    return {name: getattr(clip, name) for name in ("clip_id", "subject_id", "split")} | {"label": clip.label or ""}


def _method_facts(method: AdaptConfig, job: AdaptJob) -> dict[str, Any]:
    checkpoint = load_checkpoint(find_checkpoint(job.checkpoint, method.subject_baseline))
    window = method.window or checkpoint.spec.window
    return {
        "method": method.name,
        "objective": "zero_shot" if method.method == "zero_shot" else method.objective,
        "protocol": method.protocol,
        "subject_baseline": method.subject_baseline,
        "readout": method.readout,
        "window_length": window.length,
        "window_stride": window.stride,
        "context_tokens": checkpoint.spec.context_tokens,
        "steps": method.steps if method.tunes else 0,
        "learning_rate": method.learning_rate if method.tunes else 0.0,
        "backbone": f"{checkpoint.spec.features.backbone} {checkpoint.spec.features.backbone_fingerprint}",
        "checkpoint": checkpoint.fingerprint,
    }


def named_method(option: str) -> AdaptConfig:
    """An option of `conf/adapt`, or `option@baseline` with another subject baseline.

    Raises:
        ValueError: for an unknown option or baseline.
    """
    name, _, baseline = option.partition("@")
    config: AdaptConfig = instantiate(compose("adapt", [f"adapt={name}"]).adapt)
    return replace(config, subject_baseline=baseline) if baseline else config  # type: ignore[arg-type]


def make_methods(own: AdaptConfig, compare: Sequence[str]) -> tuple[AdaptConfig, ...]:
    """The run's own method first, then those to compare with; one that stands there already is not repeated."""
    methods = {own.name: own}
    for option in compare:
        method = named_method(option)
        methods.setdefault(method.name, method)
    return tuple(methods.values())


def rows_to_compare(compare: Sequence[str], spec: CheckpointSpec) -> list[str]:
    """The options without the zero-shot row where nothing describes the classes in words."""
    if spec.descriptions or "zero_shot" not in compare:
        return list(compare)
    print(f"no zero-shot row: the classes {', '.join(spec.classes)} have no descriptions in words")
    return [option for option in compare if option != "zero_shot"]


def main(cfg: DictConfig) -> int:
    """Run the job."""
    cluster, own = instantiate(cfg.cluster), instantiate(cfg.adapt)
    spec = load_checkpoint(find_checkpoint(cfg.checkpoint, own.subject_baseline)).spec
    methods = make_methods(own, rows_to_compare(cfg.compare, spec))
    manifest = load_manifest(cfg, classes=spec.classes)
    backbone, frames = instantiate(cfg.backbone) or spec.backbone, spec.features.frames
    cohorts = [Cohort(**cohort) for cohort in resolved(cfg)["cohorts"]]
    run = open_run("adapt", cfg.name, resolved(cfg) | {"manifest_fingerprint": manifest.fingerprint}, root=cfg.runs)
    job = AdaptJob(backbone, str(Path(cfg.checkpoint).absolute()), methods, str(run.folder))
    clips = manifest.of_split(*cfg.splits)
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
        rows, failed = run_adaptation(
            job,
            manifest,
            clips,
            store.load(clips),
            cohorts,
            cluster=cluster,
            actors=cfg.actors,
            seed=cfg.seed,
            reasons={failure.clip_id: failure.reason for failure in summary.failures},
        )
    print_summary(rows, manifest)
    if failed:
        table(failed.items(), ["subject without a result", "reason"])
    print(f"results: {run.folder}; `clipautt report run={run.folder}` draws them")
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


if __name__ == "__main__":
    raise SystemExit(cli.main(["adapt", *sys.argv[1:]]))
