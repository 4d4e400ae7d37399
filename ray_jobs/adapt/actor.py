"""The actor of an adaptation run: holds the source models and works on a few subjects at a time. It sees no label.

In: an `AdaptJob` once, then lists of `SubjectWork`. Out: an `Outcome` per assignment; adapted states and explanations
are written along the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from clipautt.adaptation.driver import Centring, History, SubjectResult, Unit, adapt_units
from clipautt.adaptation.method import AdaptConfig, BatchedMethod, Session
from clipautt.adaptation.personalization import (
    Personalization,
    load_personalization,
    save_personalization,
)
from clipautt.adaptation.predictions import Prediction
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import load_backbone
from clipautt.evaluation.au_tables.fitting import read_au_table_of
from clipautt.evaluation.au_tables.reading import AuTrack
from clipautt.evaluation.prompt_changes import explain_subject, write_explanation
from clipautt.features.clip_features import ClipFeatures
from clipautt.features.store import FeatureStore
from clipautt.memory import free_bytes
from clipautt.model.checkpoint import find_checkpoint, load_checkpoint
from ray_jobs.adapt.plan import Assignment, SubjectWork
from ray_jobs.adapt.run import AdaptJob


@dataclass(frozen=True, repr=False)
class Outcome:
    """The result of one assignment."""

    assignment: Assignment
    """The assignment that was carried out."""
    predictions: tuple[Prediction, ...]
    """One per clip, in the order in which the clips were visited."""
    seconds: float
    """Time per video, seconds."""
    failed: str | None = None
    """Why there are no predictions; only a comparison may have none."""


class AdaptActor:
    """Loads the models once, then takes subjects: several small ones together, a large one alone.

    Args:
        job: what to compute.
        workers: number of actors that share the memory of this machine or GPU.
    """

    def __init__(self, job: AdaptJob, workers: int) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            # Several threads split a product by its size, so a problem's result would depend on its batch by a rounding
            # error, which many large steps magnify. More cores are used by more actors instead.
            torch.set_num_threads(1)
        backbone = load_backbone(job.backbone).to(device)
        memory = job.tuning.memory_mb or max(1, free_bytes(device) // workers // 2**20)
        self.job = job
        self.store = FeatureStore(job.store, job.features)
        self.sources: dict[str, Source] = {}
        for baseline in {method.subject_baseline for method in job.methods}:
            self.sources[baseline] = Source(load_checkpoint(find_checkpoint(job.checkpoint, baseline)), backbone)
        self.tuning = replace(job.tuning, memory_mb=memory)
        self.prepared: set[AdaptConfig] = set()

    def run(self, works: list[SubjectWork]) -> list[list[Outcome]]:
        """The outcomes of every subject; adapted states and explanations are written along the way."""
        features = self.store.load([clip for work in works for clip in work.clips])
        done: list[dict[int, Outcome]] = [{} for _ in works]
        places = [(w, a) for w, work in enumerate(works) for a in range(len(work.assignments))]
        centring = Centring()
        for method in dict.fromkeys(works[w].assignments[a].method for w, a in places):
            chosen = [(w, a) for w, a in places if works[w].assignments[a].method == method]
            asked = [(works[w], works[w].assignments[a]) for w, a in chosen]
            try:
                outcomes = self._run_method(method, asked, features, centring)
            except Exception as error:
                if any(one.purpose != "comparison" for _, one in asked):
                    raise
                # A comparison that fails costs no result; the next run tries it again.
                outcomes = [Outcome(one, (), 0.0, f"{type(error).__name__}: {error}") for _, one in asked]
            for (w, a), outcome in zip(chosen, outcomes, strict=True):
                done[w][a] = outcome
        return [[of_subject[a] for a in sorted(of_subject)] for of_subject in done]

    def _run_method(
        self,
        config: AdaptConfig,
        asked: Sequence[tuple[SubjectWork, Assignment]],
        features: Mapping[str, ClipFeatures],
        centring: Centring,
    ) -> list[Outcome]:
        source = self.sources[config.subject_baseline]
        session = Session.open(source, config, self.tuning)
        if len(asked) > 1 and config not in self.prepared and isinstance(config.method, BatchedMethod):
            config.method.prepare(session)
            self.prepared.add(config)
        units = [self._unit(session, source, work, one, features) for work, one in asked]
        results = adapt_units(session, units, centring=centring, trace=any(one.explain for _, one in asked))
        for (work, one), result in zip(asked, results, strict=True):
            if one.explain:
                self._explain(source.with_window(config.window), config, work, result)
            if one.keep:
                personalization = Personalization.of(result, config, earlier=one.history_ids)
                path = self.job.fresh_prompts(work.subject_id)
                save_personalization(personalization, path, checkpoint=source.checkpoint.fingerprint)
        return [
            Outcome(one, result.predictions, result.seconds / len(result.predictions))
            for (_, one), result in zip(asked, results, strict=True)
        ]

    def _unit(
        self,
        session: Session,
        source: Source,
        work: SubjectWork,
        one: Assignment,
        features: Mapping[str, ClipFeatures],
    ) -> Unit:
        gone = [clip_id for clip_id in (*one.clip_ids, *one.history_ids) if clip_id not in features]
        if gone:
            raise ValueError(f"the features of {', '.join(gone[:3])} are no longer in {self.job.store}")
        history = None
        if one.history_ids:
            saved = load_personalization(self.job.prompts(work.subject_id), source)
            if saved.clips != one.history_ids:
                raise ValueError(f"the prompts of subject {work.subject_id!r} were made from other clips than its rows")
            history = History(saved.after(session), tuple(features[clip_id] for clip_id in one.history_ids))
        clips = tuple(features[clip_id] for clip_id in one.clip_ids)
        return Unit(work.subject_id, clips, history, in_order=one.in_order)

    def _explain(self, source: Source, config: AdaptConfig, work: SubjectWork, result: SubjectResult) -> None:
        assert result.trace is not None
        if not result.trace.clips:
            return
        tracks, problems = _tracks(work, result.trace.clips)
        explanation = explain_subject(
            source,
            result.trace.clips,
            adapted=_together(result.trace.au_embeddings),
            predictions=[prediction for prediction in result.predictions if prediction.made],
            readout=config.readout,
            aus=tracks,
            facts={"method": config.name, "aus": self.job.aus, "au_problems": problems},
        )
        folder = self.job.explanation(work.subject_id)
        write_explanation(explanation, folder.parent, name=folder.name)


def _tracks(work: SubjectWork, features: Sequence[ClipFeatures]) -> tuple[dict[str, AuTrack], dict[str, str]]:
    """Clip → another tool's track, for a subject; and clip → why its table cannot be used, which costs no result."""
    tracks, problems = {}, dict(work.au_problems)
    seconds = {one.clip_id: _seconds(one) for one in features}
    for clip in work.clips:
        if clip.clip_id not in work.au_files:
            continue
        try:
            tracks[clip.clip_id] = read_au_table_of(
                work.au_files[clip.clip_id], clip, seconds=seconds.get(clip.clip_id)
            )
        except (ValueError, OSError) as error:
            problems[clip.clip_id] = str(error)
    tools = Counter(track.tool for track in tracks.values())
    for clip_id, track in list(tracks.items()):
        (tool, _), *others = tools.most_common()
        if others and track.tool != tool:
            problems[clip_id] = f"{track.path} is by {track.tool}, and most tables of this subject are by {tool}"
            del tracks[clip_id]
    return tracks, problems


def _seconds(features: ClipFeatures) -> float | None:
    """How long a clip is, judging by its sampled frames."""
    times = features.times
    return float(times[-1] - times[0] + np.median(np.diff(times))) if len(times) > 1 else None


def _together(embeddings: Sequence[torch.Tensor]) -> torch.Tensor:
    """The AU embeddings, [K, d] if all clips were predicted with the same prompts, else [clips, K, d]."""
    return embeddings[0] if len({id(one) for one in embeddings}) == 1 else torch.stack(list(embeddings))
