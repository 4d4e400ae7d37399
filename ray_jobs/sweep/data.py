"""What the trials of a sweep share: who is in which fold, and the features and labels of the source subjects.

In: a manifest, a feature store. Out: a `Division` and `SweepData`. Target subjects are left out at the first step.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipautt.commands import setting
from clipautt.evaluation.results import Cohort
from clipautt.features.packed import PackedClips
from clipautt.features.store import FeatureStore
from clipautt.manifest import Manifest, by_subject
from clipautt.model.windows import WindowSpec, clip_starts
from clipautt.selection.folds import Division, divide
from clipautt.selection.scoring import draws_of
from clipautt.video.augmentation import Augmentation
from ray_jobs.platform.extraction.augmented import extract_passes
from ray_jobs.platform.extraction.extract import ExtractionConfig
from ray_jobs.sweep.settings import SweepConfig
from ray_jobs.sweep.space import SearchSpace
from ray_jobs.sweep.trial import SweepData


def source_manifest(manifest: Manifest) -> Manifest:
    """The labelled source clips alone: nothing of target subjects goes further than this.

    Raises:
        ValueError: without labelled source clips, or without those of a class; a class that target clips alone have
            would change the models.
    """
    clips = tuple(clip for clip in manifest.of_split("source_train", "source_val") if clip.label is not None)
    if not clips:
        raise ValueError("the manifest has no labelled source_train or source_val clips; a sweep works on them alone")
    found = {clip.label for clip in clips}
    if len(found) == 1:
        raise ValueError(f"all labelled source clips are {clips[0].label!r}; a sweep needs clips of two classes")
    missing = [name for name in manifest.classes if name not in found]
    if missing:
        raise ValueError(
            f"no source clip has the label {missing[0]!r}, so that nothing can be selected for it; correct the labels, "
            f"or name the others, {setting('classes', [name for name in manifest.classes if name in found])}"
        )
    return Manifest(clips, manifest.classes)


def divided(manifest: Manifest, config: SweepConfig) -> Division:
    """Divide the subjects of labelled source clips.

    Those without clips of the positive (last) class, or with no others, cannot be scored at a share of positives; they
    are trained on.

    Raises:
        ValueError: with too few subjects; the message says what to set.
    """
    subjects, positive = by_subject(manifest.clips), manifest.classes[-1]
    return divide(
        {clip.subject_id for clip in manifest.of_split("source_train")},
        {clip.subject_id for clip in manifest.of_split("source_val")},
        scorable=[name for name, clips in subjects.items() if len({clip.label == positive for clip in clips}) > 1],
        folds=config.folds,
        held_out=config.held_out,
        seed=config.seed,
    )


def load_data(
    manifest: Manifest, store: FeatureStore, config: SweepConfig, cohorts: Sequence[Cohort], *, window: WindowSpec
) -> tuple[Division, SweepData]:
    """Divide the source subjects, and read their features.

    Clips that have no window of the usual length that shows the face are left out for all trials alike.

    Args:
        manifest: labelled source clips.
        store: their features.
        config: folds, held-out share and seed.
        cohorts: shares of positives to score at.
        window: the windows that all trials have unless they are searched.

    Raises:
        ValueError: without features, or with too few subjects.
    """
    loaded = store.load(manifest.clips)
    if not loaded:
        raise ValueError(f"{len(manifest.clips)} source clips, none with features; see the failures above")

    usual = {clip_id for clip_id, clip in loaded.items() if clip_starts(clip, window)}
    kept = Manifest(tuple(clip for clip in manifest.clips if clip.clip_id in usual), manifest.classes)
    division, there = divided(kept, config), by_subject(kept.clips)
    scorable = {subject: there[subject] for subject in (*division.subjects, *division.held_out)}
    draws = draws_of(scorable, cohorts, classes=manifest.classes, seed=config.seed)
    return division, SweepData(
        PackedClips.of(loaded.values()),
        {clip.clip_id: manifest.label_index(clip) for clip in manifest.clips if clip.clip_id in loaded},
        {
            subject: tuple(manifest.label_index(clip) for clip in clips)
            for subject, clips in by_subject(manifest.clips).items()
        },
        {subject: tuple(draw for draw in draws if draw.subject_id == subject) for subject in scorable},
    )


def augmented_features(
    manifest: Manifest, space: SearchSpace, division: Division, extraction: ExtractionConfig
) -> dict[Augmentation, tuple[PackedClips, ...]]:
    """Encode the augmentations that trials may choose, before the first trial; only what is missing is encoded."""
    subjects = set(division.trained_on(None))
    clips = [clip for clip in manifest.clips if clip.subject_id in subjects]
    found = {}
    for number, augmentation in enumerate(chosen := space.augmentations(), start=1):
        count = space.train.augmented_passes
        times = f"{count} pass{'es' * (count != 1)} over {len(clips)} clips"
        print(f"augmentation {number} of {len(chosen)}: {augmentation}, {times}")
        stores = extract_passes(clips, extraction, augmentation, passes=count, seed=space.train.seed)
        found[augmentation] = tuple(PackedClips.of(store.load(clips).values()) for store in stores)
    return found
