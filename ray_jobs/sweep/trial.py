"""One trial of a sweep: fold by fold, train CLIP-AU or take it from the shelf, personalize to unseen subjects, score.

In: a trial's values, a `SweepJob` and `SweepData`. Out: the trial's figures so far, after every fold. Nothing of target
subjects is read.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clipautt.adaptation.agreement import pooled
from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.methods.clip_autt.method import CLIP_AU
from clipautt.backbones.loading import Backbone, BackboneConfig, load_backbone
from clipautt.features.clip_features import ClipFeatures, FeatureSpec
from clipautt.features.packed import PackedClips
from clipautt.footage import Footage
from clipautt.model.checkpoint import Checkpoint
from clipautt.model.training import (
    AugmentedBatches,
    Example,
    TrainConfig,
    augmented_batches,
    fit,
    labelled_examples,
    make_checkpoint,
    subject_centres,
    untrained,
)
from clipautt.model.windows import clip_starts
from clipautt.selection.folds import Division
from clipautt.selection.scoring import METRICS, Draw, FoldScore, score_fold
from clipautt.video.augmentation import Augmentation
from ray_jobs.sweep.models import Models
from ray_jobs.sweep.space import SearchSpace

_COMPARED_DRAWS = 1
"""Draws per fold on which an approximation is compared with the exact method."""


@dataclass(frozen=True)
class SweepJob:
    """What every trial needs to know; plain values only."""

    backbone: BackboneConfig
    """The backbone, for its text tower and its fingerprint."""
    features: FeatureSpec
    """Specification of the stored features."""
    space: SearchSpace
    """What trials choose from."""
    classes: tuple[str, ...]
    """Class names in label order."""
    manifest: str
    """Fingerprint of the source clips, for the checkpoints."""
    division: Division
    """Who is trained on, selected on and held out."""
    cohorts: tuple[str, ...]
    """Names of the shares of positives at which trials are scored."""
    repeats: int = 1
    """Trainings of every fold with different seeds."""
    footage: Footage = field(default_factory=Footage)
    """What the training clips show, for the checkpoints."""

    @property
    def steps(self) -> int:
        """Folds that a whole trial goes through, all repeats included."""
        return self.repeats * len(self.division.folds)


@dataclass(frozen=True, repr=False)
class SweepData:
    """Features and labels of the source subjects, shared by all trials."""

    packed: PackedClips
    """Features of the clips."""
    labels: Mapping[str, int]
    """Clip → class index, of the clips with features."""
    all_labels: Mapping[str, tuple[int, ...]]
    """Subject → class indices of all its clips, those without features included: the class shares of training."""
    draws: Mapping[str, tuple[Draw, ...]]
    """Subject → what is evaluated of it; labels only score."""
    passes: Mapping[Augmentation, tuple[PackedClips, ...]] = field(default_factory=dict)
    """Augmentation → features of every pass of it, of the clips that may be trained on."""


@dataclass(frozen=True)
class Part:
    """One fold of one trial."""

    score: FoldScore
    """Figures of its subjects."""
    trained: bool
    """Whether the source model was trained for it."""
    training_seconds: float
    """Time until the source model was there."""


class SweepTrial:
    """A trial in progress; `advance` does one fold of it.

    Args:
        values: the trial's values by name of dimension.
        job: what all trials know.
        data: what all trials share.
        models: where source models come from.
    """

    def __init__(self, values: Mapping[str, Any], *, job: SweepJob, data: SweepData, models: Models) -> None:
        self.job, self.data, self.models = job, data, models
        self.training, self.adaptation = job.space.configs(values)
        self.parts: list[Part] = []
        self.seconds = 0.0

    def advance(self) -> dict[str, Any]:
        """Do the next fold; returns the figures so far, see `figures`."""
        began = time.perf_counter()
        repeat, fold = divmod(len(self.parts), len(self.job.division.folds))
        training = replace(self.training, seed=self.training.seed + repeat)
        self.parts.append(
            score_part(self.job, self.data, self.models, training=training, adaptation=self.adaptation, fold=fold)
        )
        self.seconds += time.perf_counter() - began
        return self.figures()

    def figures(self) -> dict[str, Any]:
        """Plain values: `uar`, `war`, `f1` and one `uar_<cohort>` each as means over subjects, the times, what was
        trained, `fallbacks`, `unpredicted`, `agreement`, `folds` done, and `subjects`: mean UAR over cohorts of every
        subject of the folds done, in the order of `Division.subjects`.

        Raises:
            ValueError: if no clip of the folds done can be predicted.
        """
        scores = [part.score for part in self.parts]
        if not any(score.videos for score in scores):
            clips = sum(score.unpredicted for score in scores)
            why = next(score.why_not for score in scores if score.why_not)
            raise ValueError(f"none of {clips} clips can be predicted: {why}")
        values = per_subject(scores, folds=len(self.job.division.folds))
        means = values.mean(axis=0)
        agreements = [score.agreement for score in scores if score.agreement]
        videos, spent = sum(score.videos for score in scores), sum(score.seconds for score in scores)
        named = {f"uar_{name}": float(means[index, 0]) for index, name in enumerate(self.job.cohorts)}
        return {
            **{name: float(np.mean(means[:, index])) for index, name in enumerate(METRICS)},
            **named,
            "folds": len(self.parts),
            "seconds_per_video": spent / max(videos, 1),
            "seconds": self.seconds,
            "training_seconds": sum(part.training_seconds for part in self.parts),
            "adaptation_seconds": spent,
            "trained": sum(part.trained for part in self.parts),
            "fallbacks": sum(score.fallbacks for score in scores),
            "unpredicted": sum(score.unpredicted for score in scores),
            "agreement": pooled(agreements).share if agreements else None,
            "subjects": [round(float(one), 6) for one in values[:, :, 0].mean(-1)],
        }


def per_subject(scores: Sequence[FoldScore], *, folds: int) -> npt.NDArray[np.float64]:
    """Figures of every subject, means over the repeats done, [S, cohorts, 3]: fold by fold, then repeat by repeat.

    Args:
        scores: of the folds done, in the order in which trials do them.
        folds: number of folds.
    """
    groups = [np.stack([score.figures for score in scores[fold::folds]]) for fold in range(min(folds, len(scores)))]
    return np.concatenate([group.mean(0) for group in groups])


def score_part(
    job: SweepJob,
    data: SweepData,
    models: Models,
    *,
    training: TrainConfig,
    adaptation: AdaptConfig,
    fold: int | None,
) -> Part:
    """Score settings on the subjects of one fold, or on those held out.

    Args:
        job: what all trials know.
        data: what all trials share.
        models: where source models come from.
        training: how the source model is trained.
        adaptation: how subjects are personalized to.
        fold: index of the fold; None for the held-out subjects, whose model is trained on all folds.
    """
    began = time.perf_counter()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    backbone, clips = _backbone(job.backbone), data.packed.clips()
    subjects = job.division.trained_on(fold)
    key = model_key(training, subjects)
    source, trained = models.source(
        key, backbone, lambda: train_model(job, data, training, subjects=subjects, clips=clips, backbone=backbone)
    )
    training_seconds = time.perf_counter() - began
    scored = job.division.held_out if fold is None else job.division.folds[fold]
    draws = [draw for subject in scored for draw in data.draws[subject]]
    return Part(score_fold(source, clips, draws, adaptation, compare=_COMPARED_DRAWS), trained, training_seconds)


def reference(space: SearchSpace) -> tuple[TrainConfig, AdaptConfig]:
    """CLIP-AU with the sweep's own training settings and without any personalization: what gains refer to."""
    return replace(space.train, subject_baseline="none"), CLIP_AU


@lru_cache(maxsize=1)
def _backbone(config: BackboneConfig) -> Backbone:
    """The backbone, loaded once per process, which runs one trial after another."""
    return load_backbone(config).to("cuda" if torch.cuda.is_available() else "cpu")


def train_model(
    job: SweepJob,
    data: SweepData,
    config: TrainConfig,
    *,
    subjects: Sequence[str],
    clips: Mapping[str, ClipFeatures],
    backbone: Backbone,
) -> Checkpoint:
    """Train CLIP-AU on some of the source subjects, as the train job does.

    Args:
        job: what all trials know.
        data: what all trials share.
        config: how to train.
        subjects: whom to train on.
        clips: features by clip id, with no centre removed.
        backbone: its text tower gives the prompts' features.
    """
    members = set(subjects)
    chosen = [
        clip
        for clip_id, clip in clips.items()
        if clip.subject_id in members and clip_id in data.labels and clip_starts(clip, config.window)
    ]
    begun = untrained(backbone, config, num_classes=len(job.classes))
    model = begun.model.to(backbone.device)
    fit(model, begun.text_features, training_examples(data, config, chosen), config)
    return make_checkpoint(
        model,
        config,
        labels=[label for subject in subjects for label in data.all_labels[subject]],
        classes=job.classes,
        features=job.features,
        backbone=job.backbone,
        context_tokens=begun.context_tokens,
        footage=job.footage,
        clip_frames=[len(clip.times) for clip in chosen],
        manifest=job.manifest,
    )


def training_examples(
    data: SweepData, config: TrainConfig, clips: Sequence[ClipFeatures]
) -> list[Example] | AugmentedBatches:
    """What `fit` trains on: these clips with their subjects' centres removed, or their augmented passes."""
    if config.features != "augmented":
        return labelled_examples(clips, data.labels, config)
    chosen = {clip.clip_id for clip in clips}
    passes = [
        {name: clip for name, clip in packed.clips().items() if name in chosen}
        for packed in data.passes[config.augmentation][: config.num_passes]
    ]
    labels = {name: data.labels[name] for name in chosen}
    return augmented_batches(passes, labels, subject_centres(clips, config.subject_baseline), config)


def model_key(config: TrainConfig, subjects: Sequence[str]) -> str:
    """Name of the folder of a model: equal settings and equal subjects share it."""
    facts = json.dumps([asdict(config), list(subjects)], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:12]
