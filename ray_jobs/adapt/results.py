"""The result files of an adaptation run, one per subject: reads them, plans what is left, writes what is done.

In: an `AdaptRun`, then the outcomes of each subject. Out: `SubjectPlan`s, and Parquet files of result rows. Labels
enter only here, after the predictions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from clipautt.adaptation.agreement import exact_counterparts, subjects_to_compare
from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.methods.clip_autt.method import CLIP_AU
from clipautt.adaptation.personalization import clips_of_personalization
from clipautt.adaptation.predictions import Prediction
from clipautt.clips import Clip
from clipautt.evaluation.au_tables.matching import match_au_tables
from clipautt.evaluation.results import COLUMNS, EVERY, ResultRow, as_table, settled, write_rows
from clipautt.features.store import FeatureStore
from clipautt.manifest import Manifest, by_subject
from clipautt.metrics import score
from clipautt.model.checkpoint import find_checkpoint, load_checkpoint
from ray_jobs.adapt.actor import Outcome
from ray_jobs.adapt.agreement import agreement_file, agreement_of, write_agreement
from ray_jobs.adapt.plan import FAILED, Group, SubjectPlan, make_groups, plan_subject, result_file, standing_rows
from ray_jobs.adapt.run import AdaptJob, AdaptRun
from ray_jobs.platform.runs import code_version


@dataclass(eq=False)
class ResultBook:
    """Reads and writes the run's result files, and counts subjects."""

    run: AdaptRun
    """The run."""
    settings: Mapping[str, dict[str, Any]] = field(init=False)
    """Name of a method → the columns that all its rows share."""
    failures: dict[str, str] = field(default_factory=dict)
    """Subject → why it failed."""
    not_compared: dict[str, str] = field(default_factory=dict)
    """Subject → why approximations were not compared with the exact method."""
    total: int = 0
    """Number of subjects."""
    done: int = 0
    """Subjects whose rows are complete."""
    gained: float = 0.0
    """Sum of `gain` over subjects, percentage points."""
    compared: int = 0
    """Number of subjects in `gained`."""

    def __post_init__(self) -> None:
        self.settings = shared_columns(self.run)
        self.results.mkdir(parents=True, exist_ok=True)

    @property
    def job(self) -> AdaptJob:
        """What the actors compute."""
        return self.run.job

    @property
    def manifest(self) -> Manifest:
        """The manifest, which names the classes."""
        return self.run.manifest

    @property
    def results(self) -> Path:
        """Folder of the result files."""
        return self.run.results

    def plans(self) -> dict[str, SubjectPlan]:
        """The subjects that have something left to do."""
        subjects = by_subject(self.run.clips)
        present = FeatureStore(self.job.store, self.job.features).present(c for cs in subjects.values() for c in cs)
        exact = exact_counterparts(self.job.methods)
        seen = {subject for subject, clips in subjects.items() if any(clip.clip_id in present for clip in clips)}
        compared = subjects_to_compare(seen, self.run.work.exact_sample) if exact else set()
        self.total = len(subjects)
        files, problems = self._au_files([clip for clips in subjects.values() for clip in clips])
        plans = {}
        for subject, clips in subjects.items():
            encoded = [clip for clip in clips if clip.clip_id in present]
            positive, seed = self.manifest.classes[-1], self.run.seed
            groups = make_groups(encoded, self.run.cohorts, positive=positive, seed=seed) if encoded else []
            asked = subject in compared and not agreement_file(self.results.parent, subject).is_file()
            rows = standing_rows(self.results / result_file(subject))
            self._settle(subject, rows)
            plan = plan_subject(
                clips,
                groups,
                self.job.methods,
                rows=rows,
                resumable=self._resumable(subject),
                exact=tuple(exact.values()) if asked else (),
                explained=self.job.explained(subject) if self.job.explain else None,
            )
            if plan is None:
                self._count(rows)
                continue
            ids = [clip.clip_id for clip in clips]
            work = replace(
                plan.work,
                au_files={clip_id: files[clip_id] for clip_id in ids if clip_id in files},
                au_problems={clip_id: problems[clip_id] for clip_id in ids if clip_id in problems},
            )
            plans[subject] = replace(plan, work=work)
        return plans

    def _au_files(self, clips: Sequence[Clip]) -> tuple[dict[str, Path], dict[str, str]]:
        """Other tools' tables, looked up once for all actors, and clip → why its table is not used."""
        return match_au_tables(self.job.aus, clips) if self.job.explain and self.job.aus else ({}, {})

    def _resumable(self, subject: str) -> tuple[str, ...] | None:
        if self.job.methods[0].protocol != "online":
            return None
        return clips_of_personalization(self.job.prompts(subject))

    def write(self, plan: SubjectPlan, outcomes: list[Outcome] | str) -> None:
        """Write a subject's file: valid rows, new ones, and those of clips without a prediction."""
        subject = plan.work.subject_id
        if isinstance(outcomes, str):
            self._write_rows(self._after_failure(plan, outcomes), subject)
            self.failures[subject] = outcomes
            return
        new = as_table([*self._rows(plan, outcomes), *self._without_features(plan)])
        rows = new if plan.kept.empty else pd.concat([self._standing(plan), new])[list(COLUMNS)]
        self._write_rows(rows, subject)
        if any(one.assignment.keep for one in outcomes):
            self._promote(subject)
        exact = exact_counterparts(self.job.methods)
        agreements = agreement_of(rows, outcomes, exact, classes=self.manifest.classes)
        write_agreement(self.results.parent, subject, agreements)
        self.not_compared.update((subject, one.failed) for one in outcomes if one.failed)
        self._count(rows)

    def _write_rows(self, rows: pd.DataFrame, subject: str) -> None:
        against = [self.run.cautions.get(clip_id, {}) for clip_id in rows["clip_id"]]
        said = rows.assign(
            warnings=[" ".join(one.values()) for one in against],
            cautions=[";".join(one) for one in against],
            other_faces=[self.run.other_faces.get(clip_id, 0) for clip_id in rows["clip_id"]],
        )
        write_rows(said, self.results / result_file(subject))

    def _count(self, rows: pd.DataFrame) -> None:
        """Count a subject whose rows are complete."""
        self.done += 1
        for points in gain(rows, self.manifest.classes, self.job.methods[0].name):
            self.gained, self.compared = self.gained + 100 * points, self.compared + 1

    def _promote(self, subject: str) -> None:
        """Replace the subject's saved state by the one that belongs to the rows just written."""
        fresh = self.job.fresh_prompts(subject)
        if fresh.is_file():
            fresh.replace(self.job.prompts(subject))

    def _settle(self, subject: str, rows: pd.DataFrame) -> None:
        """After a kill: keep a fresh state whose rows were written, and delete any other."""
        fresh = self.job.fresh_prompts(subject)
        clips = clips_of_personalization(fresh)
        if clips is not None:
            own = rows[(rows["method"] == self.job.methods[0].name) & (rows["cohort"] == EVERY)]
            if set(clips) == set(settled(own)["clip_id"]):
                self._promote(subject)
        fresh.unlink(missing_ok=True)

    def _standing(self, plan: SubjectPlan) -> pd.DataFrame:
        """The valid rows, with the groups and labels as they are now."""
        kept = []
        for method in self.job.methods:
            own = plan.kept[plan.kept["method"] == method.name]
            if method.transductive:
                kept.append(own)
                continue
            one_each = own.drop_duplicates("clip_id")
            for group in plan.groups:
                members = one_each[one_each["clip_id"].isin(group.clip_ids)]
                kept.append(members.assign(cohort=group.cohort, draw=group.draw))
        rows = pd.concat(kept) if kept else plan.kept
        return rows.assign(label=rows["clip_id"].map({clip.clip_id: clip.label or "" for clip in plan.clips}))

    def _rows(self, plan: SubjectPlan, outcomes: Sequence[Outcome]) -> Iterator[ResultRow]:
        clips = {clip.clip_id: clip for clip in plan.clips}
        for method in self.job.methods:
            for outcome in outcomes:
                for group in plan.groups:
                    if outcome.assignment.method == method and outcome.assignment.serves(group):
                        yield from self._of_group(method, group, outcome, clips)

    def _without_features(self, plan: SubjectPlan) -> Iterator[ResultRow]:
        present = plan.groups[0].clip_ids if plan.groups else frozenset()
        for clip in plan.clips:
            if clip.clip_id not in present:
                why = f"no features: {self.run.reasons.get(clip.clip_id, 'not extracted')}"
                for settings in self.settings.values():
                    yield _empty(clip, why, settings)

    def _after_failure(self, plan: SubjectPlan, why: str) -> pd.DataFrame:
        """All that is settled so far, and a row with the reason for each prediction that is missing."""
        kept = settled(plan.rows)
        there = set(zip(kept["method"], kept["cohort"], kept["draw"], kept["clip_id"], strict=True))
        clips = {clip.clip_id: clip for clip in plan.clips}
        lost = set()
        for one in plan.work.assignments:
            for group in plan.groups:
                if one.serves(group):
                    for clip_id in group.clip_ids.intersection(one.clip_ids):
                        every = (one.method.name, EVERY, 0, clip_id)  # one row for all groups, unless that row exists
                        lost.add((one.method.name, group.cohort, group.draw, clip_id) if every in there else every)
        rows = [
            replace(_empty(clips[clip_id], FAILED + why, self.settings[name]), cohort=cohort, draw=draw)
            for name, cohort, draw, clip_id in sorted(lost - there)
        ]
        return pd.concat([kept, as_table([*rows, *self._without_features(plan)])])[list(COLUMNS)]

    def _of_group(
        self, method: AdaptConfig, group: Group, outcome: Outcome, clips: Mapping[str, Clip]
    ) -> Iterator[ResultRow]:
        before = len(outcome.assignment.history_ids)
        for position, prediction in enumerate(outcome.predictions, before):
            if prediction.clip_id in group.clip_ids:
                yield ResultRow(
                    **_clip_facts(clips[prediction.clip_id]),
                    **_prediction_facts(prediction, self.manifest.classes),
                    prior=_assumed(prediction, self.settings[method.name]),
                    position=position,
                    cohort=group.cohort,
                    draw=group.draw,
                    seconds=outcome.seconds,
                    **self.settings[method.name],
                )

    def figures(self) -> dict[str, float]:
        """Name → value, for the metrics."""
        gained = {"gain_uar_points": self.gained / self.compared} if self.compared else {}
        return {"subjects_done": self.done, "subjects_failed": len(self.failures)} | gained

    def note(self) -> str:
        """The end of the progress line."""
        parts = [f"{self.done + len(self.failures)}/{self.total} subjects"]
        if self.failures:
            parts.append(f"{len(self.failures)} of them failed")
        if self.compared:
            parts.append(f"UAR {self.gained / self.compared:+.1f} points on {self.compared} labelled ones")
        return ", ".join(parts)


def _empty(clip: Clip, why: str, settings: Mapping[str, Any]) -> ResultRow:
    """The row of a clip without a prediction, so that no clip is lost silently."""
    numbers = ("probability", "window_start_seconds", "window_end_seconds", "entropy", "seconds", "prior")
    nothing: dict[str, Any] = dict.fromkeys(numbers, float("nan"))
    nothing |= {"prediction": "", "status": why, "cohort": EVERY, "draw": 0, "position": -1}
    return ResultRow(**_clip_facts(clip), **nothing, **settings)


def gain(rows: pd.DataFrame, classes: Sequence[str], own: str) -> list[float]:
    """A subject's UAR under the run's own method minus that of CLIP-AU; empty without labels of both classes."""
    names = ("label", "prediction", "cohort", "draw", "method")
    label, predicted, cohort, draw, method = (rows[name].to_numpy(object) for name in names)
    shown = (label != "") & (predicted != "")
    shown &= cohort == ("balanced" if (shown & (cohort == "balanced")).any() else EVERY)
    shown &= draw == 0
    sides = [shown & (method == name) for name in (own, CLIP_AU.name)]
    if own == CLIP_AU.name or len(set(label[shown])) < 2 or not all(side.any() for side in sides):
        return []
    index = {name: i for i, name in enumerate(classes)}
    uars = [
        score(*([index[one] for one in column[side]] for column in (predicted, label)), num_classes=len(classes)).uar
        for side in sides
    ]
    return [uars[0] - uars[1]]


def _clip_facts(clip: Clip) -> dict[str, Any]:
    return {name: getattr(clip, name) for name in ("clip_id", "subject_id", "split")} | {"label": clip.label or ""}


def _prediction_facts(prediction: Prediction, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "prediction": classes[prediction.label_index] if prediction.made else "",
        "probability": float(prediction.probabilities[-1]),
        "window_start_seconds": prediction.window_start_seconds,
        "window_end_seconds": prediction.window_end_seconds,
        "entropy": prediction.entropy,
        "status": prediction.status,
        "face_share": prediction.face_share,
    }


def _assumed(prediction: Prediction, settings: Mapping[str, Any]) -> float:
    return settings["training_prior"] if prediction.prior is None else float(prediction.prior[-1])


def shared_columns(run: AdaptRun) -> dict[str, dict[str, Any]]:
    """Name of a method → the columns that all its rows share."""
    facts = {"seed": run.seed, "manifest": run.manifest.fingerprint, "code_version": code_version()}
    return {config.name: _method_columns(config, run.job) | facts for config in run.job.methods}


def _method_columns(config: AdaptConfig, job: AdaptJob) -> dict[str, Any]:
    spec = (checkpoint := load_checkpoint(find_checkpoint(job.checkpoint, config.subject_baseline))).spec
    method, window = config.method, config.window or spec.window
    tuned = {"steps": 0, "learning_rate": 0.0, "tune": "none"}
    shares = spec.class_shares if method.logits_from == "head" else (1 / len(spec.classes),) * len(spec.classes)
    return {
        "method": config.name,
        "method_key": method.name,
        "adapts": method.adapts,
        "logits_from": method.logits_from,
        "settings": json.dumps(config.facts, sort_keys=True),
        "objective": getattr(method, "objective", method.name),
        "protocol": config.protocol,
        "subject_baseline": config.subject_baseline,
        "readout": config.readout,
        "window_length": window.length,
        "window_stride": window.stride,
        "context_tokens": spec.context_tokens,
        **{name: getattr(method, name, none) if method.adapts else none for name, none in tuned.items()},
        "training_prior": shares[-1],
        "backbone": f"{spec.features.backbone} {spec.features.backbone_fingerprint}",
        "checkpoint": checkpoint.fingerprint,
    }
