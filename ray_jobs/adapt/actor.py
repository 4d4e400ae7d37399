"""The worker of an adaptation run: holds the source models and works on a few subjects at a time. It sees no label.

What this module does not know: which subjects there are, result rows, and what happens when it dies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from clipautt.adaptation.config import AdaptConfig
from clipautt.adaptation.driver import Centring, Past, SubjectResult, Unit, adapt_units
from clipautt.adaptation.personalization import (
    Personalization,
    load_personalization,
    save_personalization,
    subject_file,
)
from clipautt.adaptation.source import Prediction, Source
from clipautt.adaptation.tuning import Tuner, TuningConfig
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.evaluation.openface import OpenFaceTrack, read_openface_of
from clipautt.evaluation.prompt_changes import FACTS_FILE, explain_subject, write_explanation
from clipautt.features.clip_features import ClipFeatures, FeatureSpec
from clipautt.features.store import FeatureStore
from clipautt.memory import free_bytes
from clipautt.model.checkpoint import find_checkpoint, load_checkpoint
from ray_jobs.adapt.plan import COMPARED, Assignment, SubjectWork


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
    store: str
    """Feature store."""
    features: FeatureSpec
    """Of the store."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """How prompts are tuned."""
    explain: bool = False
    """Whether what changed is written for every subject."""
    openface: str | None = None
    """Folder with OpenFace's CSV files, to explain with."""

    def __post_init__(self) -> None:
        check_methods(self.methods, explain=self.explain)

    def prompts(self, subject_id: str) -> Path:
        """File of a subject's adapted prompts; they belong to the rows that stand."""
        return Path(self.folder) / "prompts" / subject_file(subject_id)

    def fresh_prompts(self, subject_id: str) -> Path:
        """Where they lie until the rows that belong to them are written: a try that is lost changes nothing."""
        return Path(self.folder) / "prompts" / ".fresh" / subject_file(subject_id)

    def explanation(self, subject_id: str) -> Path:
        """Folder of what adaptation changed for a subject."""
        return Path(self.folder) / "explain" / Path(subject_file(subject_id)).stem

    def explained(self, subject_id: str) -> list[str]:
        """Clips that a subject's explanation is of; none where there is none, or one without the OpenFace asked for."""
        file = self.explanation(subject_id) / FACTS_FILE
        facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        fits = self.openface is None or facts.get("openface") == self.openface
        return facts.get("clip_ids", []) if fits else []


def check_methods(methods: Sequence[AdaptConfig], *, explain: bool) -> None:
    """Refuse what no run can do.

    Raises:
        ValueError: for two methods of one name, or an own method without prompts that is to be explained.
    """
    if explain and methods[0].method != "clip_autt":
        raise ValueError(f"explain=true with adapt.method={methods[0].method!r}, which has no AU prompts")
    names = [method.name for method in methods]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two settings have the same name in the table: {', '.join(twice)}; leave one out of compare")


@dataclass(frozen=True, repr=False)
class Outcome:
    """What one assignment gave."""

    assignment: Assignment
    """What was asked for."""
    predictions: tuple[Prediction, ...]
    """One per clip, in the order of the visits."""
    seconds: float
    """Per video."""
    failed: str | None = None
    """Why there are no predictions; of comparisons only."""


class AdaptActor:
    """Loads the models once; then takes subjects, a few small ones together or a large one alone.

    Args:
        job: see `AdaptJob`.
        workers: how many share the memory of this machine or GPU.
    """

    def __init__(self, job: AdaptJob, workers: int) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            # Several threads share out a product by its size: what a problem gives would depend on its batch by a
            # rounding error, which many large steps make visible. More actors take more cores instead.
            torch.set_num_threads(1)
        backbone = load_backbone(job.backbone).to(device)
        memory = job.tuning.memory_mb or max(1, free_bytes(device) // workers // 2**20)
        self.job = job
        self.store = FeatureStore(job.store, job.features)
        self.sources: dict[str, Source] = {}
        for baseline in {method.subject_baseline for method in job.methods}:
            self.sources[baseline] = Source(load_checkpoint(find_checkpoint(job.checkpoint, baseline)), backbone)
        tuning = replace(job.tuning, memory_mb=memory)
        self.tuners = {baseline: Tuner(source, tuning) for baseline, source in self.sources.items()}
        self.measured: set[tuple[str, str]] = set()

    def run(self, works: list[SubjectWork]) -> list[list[Outcome]]:
        """The outcomes of every subject; kept prompts and explanations are written on the way."""
        features = self.store.load([clip for work in works for clip in work.clips])
        found: list[dict[int, Outcome]] = [{} for _ in works]
        places = [(w, a) for w, work in enumerate(works) for a in range(len(work.assignments))]
        centring = Centring()
        for method in dict.fromkeys(works[w].assignments[a].method for w, a in places):
            own = [(w, a) for w, a in places if works[w].assignments[a].method == method]
            asked = [(works[w], works[w].assignments[a]) for w, a in own]
            try:
                outcomes = self._run_method(method, asked, features, centring)
            except Exception as error:
                if any(one.groups != COMPARED for _, one in asked):
                    raise
                # A comparison that fails costs no result; the next run tries it again.
                outcomes = [Outcome(one, (), 0.0, f"{type(error).__name__}: {error}") for _, one in asked]
            for (w, a), outcome in zip(own, outcomes, strict=True):
                found[w][a] = outcome
        return [[one[a] for a in sorted(one)] for one in found]

    def _run_method(
        self,
        method: AdaptConfig,
        asked: Sequence[tuple[SubjectWork, Assignment]],
        features: Mapping[str, ClipFeatures],
        centring: Centring,
    ) -> list[Outcome]:
        source, tuner = self.sources[method.subject_baseline], self.tuners[method.subject_baseline]
        key = (method.subject_baseline, method.tune)
        if method.tunes and len(asked) > 1 and key not in self.measured:
            tuner.measure_batch_size(method)
            self.measured.add(key)
        units = [self._unit(source, work, one, features) for work, one in asked]
        results = adapt_units(
            source, units, method, tuner=tuner, centring=centring, trace=any(one.explain for _, one in asked)
        )
        for (work, one), result in zip(asked, results, strict=True):
            if one.explain:
                self._explain(source.with_window(method.window), method, work, result)
            if one.keep:
                personalization = Personalization.of(result, method, earlier=one.past_ids)
                path = self.job.fresh_prompts(work.subject_id)
                save_personalization(personalization, path, checkpoint=source.checkpoint.fingerprint)
        return [
            Outcome(one, result.predictions, result.seconds / len(result.predictions))
            for (_, one), result in zip(asked, results, strict=True)
        ]

    def _unit(self, source: Source, work: SubjectWork, one: Assignment, features: Mapping[str, ClipFeatures]) -> Unit:
        gone = [clip_id for clip_id in (*one.clip_ids, *one.past_ids) if clip_id not in features]
        if gone:
            raise ValueError(f"the features of {', '.join(gone[:3])} are not in {self.job.store} any more")
        past = None
        if one.past_ids:
            saved = load_personalization(self.job.prompts(work.subject_id), source)
            if saved.clips != one.past_ids:
                raise ValueError(f"the prompts of subject {work.subject_id!r} were made from other clips than its rows")
            past = Past(saved.course(source), tuple(features[clip_id] for clip_id in one.past_ids))
        clips = tuple(features[clip_id] for clip_id in one.clip_ids)
        return Unit(work.subject_id, clips, past, in_order=one.in_order)

    def _explain(self, source: Source, method: AdaptConfig, work: SubjectWork, result: SubjectResult) -> None:
        assert result.trace is not None
        tracks, problems = _tracks(work)
        explanation = explain_subject(
            source,
            result.trace.clips,
            adapted=_together(result.trace.au_embeddings),
            predictions=result.predictions,
            window_choice=method.readout,
            openface=tracks,
            facts={"method": method.name, "openface": self.job.openface, "openface_problems": problems},
        )
        folder = self.job.explanation(work.subject_id)
        write_explanation(explanation, folder.parent, name=folder.name)


def _tracks(work: SubjectWork) -> tuple[dict[str, OpenFaceTrack], dict[str, str]]:
    """What OpenFace saw of a subject's clips; and of files that cannot be used, clip → why: they cost no result."""
    tracks, problems = {}, dict(work.openface_problems)
    for clip in work.clips:
        if clip.clip_id not in work.openface:
            continue
        try:
            tracks[clip.clip_id] = read_openface_of(work.openface[clip.clip_id], clip)
        except (ValueError, OSError) as error:
            problems[clip.clip_id] = str(error)
    return tracks, problems


def _together(embeddings: Sequence[torch.Tensor]) -> torch.Tensor:
    """[K, d] where all clips were predicted with the same prompts, else [clips, K, d]."""
    return embeddings[0] if len({id(one) for one in embeddings}) == 1 else torch.stack(list(embeddings))
