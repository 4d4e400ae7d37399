"""One trial of a sweep: train CLIP-AU or take it from the run folder, personalize to validation subjects, score.

In: a trial's values, a `SweepJob` and `SweepData`. Out: the trial's figures. Nothing of target subjects is read.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipautt.adaptation.agreement import Agreement, Decision, compare_decisions, pooled, subjects_to_compare
from clipautt.adaptation.driver import SubjectResult, adapt
from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.predictions import OK
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import Backbone, BackboneConfig, load_backbone
from clipautt.clips import Split
from clipautt.features.clip_features import ClipFeatures, FeatureSpec
from clipautt.features.store import FeatureStore
from clipautt.files import atomic
from clipautt.footage import Footage
from clipautt.manifest import Manifest
from clipautt.metrics import score
from clipautt.model.checkpoint import Checkpoint, is_checkpoint, load_checkpoint, save_checkpoint
from clipautt.model.network import initial_model
from clipautt.model.training import PHRASES, Example, TrainConfig, centre_subjects, fit, make_checkpoint
from clipautt.model.windows import clip_starts
from ray_jobs.sweep.space import SearchSpace

_COMPARED_SUBJECTS = 3
METRICS = ("uar", "war", "f1")
"""Means over validation subjects, in 0..1; trials are chosen by the first one."""


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
    """Fingerprint of the manifest, for the checkpoints."""
    folder: str
    """Run folder; `models/` in it holds one checkpoint per training configuration."""
    footage: Footage = field(default_factory=Footage)
    """What the training clips show, for the checkpoints."""


@dataclass(frozen=True, repr=False)
class SweepData:
    """Features of the source subjects, shared by all trials."""

    train: tuple[Example, ...]
    """Labelled clips to train on; no centre removed yet."""
    unseen: tuple[ClipFeatures, ...]
    """Clips of the validation subjects; they carry no labels."""
    answers: dict[str, int]
    """Clip id → class index of the validation clips, to score with."""


def load_data(manifest: Manifest, store: FeatureStore) -> SweepData:
    """The source subjects' features; none of target clips.

    Raises:
        ValueError: if a source split has no clip with features.
    """
    train, labels = _labelled(manifest, store, "source_train")
    unseen, answers = _labelled(manifest, store, "source_val")
    return SweepData(tuple(Example(clip, labels[clip.clip_id]) for clip in train), unseen, answers)


def _labelled(manifest: Manifest, store: FeatureStore, split: Split) -> tuple[tuple[ClipFeatures, ...], dict[str, int]]:
    clips = manifest.of_split(split)
    loaded = store.load(clips)
    if not loaded:
        raise ValueError(
            f"{len(clips)} {split} clips, none with features; a sweep trains on source_train and selects on source_val"
        )
    labels = {clip.clip_id: manifest.label_index(clip) for clip in clips if clip.clip_id in loaded}
    return tuple(loaded.values()), labels


def run_trial(config: dict[str, Any], *, job: SweepJob, data: SweepData) -> dict[str, Any]:
    """One trial: train or reuse the model, personalize to the validation subjects, score.

    Args:
        config: the trial's values by name of dimension; other keys are ignored.
        job: see `SweepJob`.
        data: see `SweepData`.

    Returns:
        `uar`, `war`, `f1`, and `seconds`, `trained` (whether it had to train), `agreement` (share of a few subjects'
        decisions in which an approximation agrees with the exact method; None if the method is exact) and `fallbacks`
        (number of clips predicted without adaptation because it went wrong).
    """
    began = time.perf_counter()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    training, adaptation = job.space.configs(config)
    backbone = _backbone(job.backbone)
    checkpoint, trained = trained_model(job, training, data, backbone)
    figures = score_unseen(Source(checkpoint, backbone), data, adaptation)
    return figures | {"seconds": time.perf_counter() - began, "trained": trained}


@lru_cache(maxsize=1)
def _backbone(config: BackboneConfig) -> Backbone:
    """The backbone, loaded once per process, which runs one trial after another."""
    return load_backbone(config).to("cuda" if torch.cuda.is_available() else "cpu")


def score_unseen(source: Source, data: SweepData, config: AdaptConfig) -> dict[str, Any]:
    """Personalize to every validation subject without labels, then score: means over subjects."""
    scores, fallbacks = [], 0
    results = adapt(source, data.unseen, config)
    for result in results.values():
        made = [prediction for prediction in result.predictions if prediction.made]
        if not made:
            continue
        true = [data.answers[prediction.clip_id] for prediction in made]
        predicted = [prediction.label_index for prediction in made]
        scores.append(asdict(score(predicted, true, num_classes=len(source.classes))))
        fallbacks += sum(prediction.status != OK for prediction in made)
    if not scores:
        raise ValueError("no clip of the validation subjects can be predicted: " + result.predictions[0].status)
    figures: dict[str, Any] = {name: float(np.mean([one[name] for one in scores])) for name in METRICS}
    return figures | {"fallbacks": fallbacks, "agreement": _agreement(source, data, config, results)}


def _agreement(
    source: Source, data: SweepData, config: AdaptConfig, results: Mapping[str, SubjectResult]
) -> float | None:
    """Share of a few subjects' decisions that agree with the exact method; None if the method is exact."""
    if config.exact is None:
        return None
    chosen = subjects_to_compare(results, _COMPARED_SUBJECTS)
    exact = adapt(source, [clip for clip in data.unseen if clip.subject_id in chosen], config.exact)
    parts: list[Agreement] = []
    for subject, result in exact.items():
        agreement = compare_decisions(_decisions(results[subject], source), _decisions(result, source))
        parts += [] if agreement is None else [agreement]
    return pooled(parts).share


def _decisions(result: SubjectResult, source: Source) -> dict[str, Decision]:
    return {
        one.clip_id: Decision(source.classes[one.label_index], float(one.probabilities[-1]))
        for one in result.predictions
        if one.made
    }


def trained_model(job: SweepJob, config: TrainConfig, data: SweepData, backbone: Backbone) -> tuple[Checkpoint, bool]:
    """The CLIP-AU of a training configuration, from the run folder or trained now.

    Returns:
        The checkpoint, and whether it was trained now.
    """
    folder = model_folder(job, config)
    if is_checkpoint(folder):
        return load_checkpoint(folder), False
    with torch.no_grad():
        prompts = backbone.tokenize(PHRASES, context=config.context)
        text = backbone.encode_prompts(prompts)
    labels = {example.clip.clip_id: example.label for example in data.train}
    clips = [example.clip for example in data.train if clip_starts(example.clip, config.window)]
    centred = centre_subjects(clips, config.subject_baseline)
    shape = (backbone.feature_dim, len(PHRASES), len(job.classes))
    model = initial_model(*shape, seed=config.seed, adapter_width=config.adapter_width).to(backbone.device)
    fit(model, text, [Example(clip, labels[clip.clip_id]) for clip in centred], config)
    checkpoint = make_checkpoint(
        model,
        config,
        labels=[*labels.values()],
        classes=job.classes,
        features=job.features,
        backbone=job.backbone,
        context_tokens=prompts.num_context,
        footage=job.footage,
        clip_frames=[len(clip.times) for clip in clips],
        manifest=job.manifest,
    )
    _keep(checkpoint, folder)
    return checkpoint, True


def model_folder(job: SweepJob, config: TrainConfig) -> Path:
    """Where the model of a training configuration is kept."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:12]
    return Path(job.folder) / "models" / digest


def _keep(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint as a whole; if two trials train the same model at once, the first one's is kept."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic(folder) as temporary:
            save_checkpoint(checkpoint, temporary)
    except OSError:
        if not is_checkpoint(folder):
            raise
