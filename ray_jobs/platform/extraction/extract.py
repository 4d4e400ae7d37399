"""Fill the feature store with the missing features of some clips, on the connected Ray.

In: clips and an `ExtractionConfig`. Out: the store, and a summary with every clip that failed and why.
"""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.backbones.names import FOLDER
from clipautt.clips import Clip
from clipautt.evaluation.reports.extraction import Failure
from clipautt.features.clip_features import FeatureSpec
from clipautt.features.rebase import known_elsewhere
from clipautt.features.store import OK, SPAN, TRIED_AGAIN, ClipFacts, FeatureStore
from clipautt.video.augmentation import AugmentedPass
from clipautt.video.decoding import Sampling
from clipautt.video.faces import FaceConfig, make_detector
from clipautt.video.reader import FrameSpec
from clipautt.video.reader_process import ReadLimits
from ray_jobs.platform.cluster import ClusterConfig, gpu_share, num_gpus
from ray_jobs.platform.configuration import instantiate
from ray_jobs.platform.extraction.pipeline import EncodedClip, Pipeline, PipelineConfig, Usage
from ray_jobs.platform.extraction.probe import NoNodeError, unfit_nodes
from ray_jobs.platform.messages import MESSAGES
from ray_jobs.platform.metrics import JobMetrics
from ray_jobs.platform.progress import Progress, table

_WRITE_EVERY_SECONDS = 5.0
_ROWS_PER_FILE = 256
_SHOWN_FAILURES = 20


@dataclass(frozen=True)
class ExtractionConfig:
    """How clips become features: the model and preprocessing, the store, and the resources that extraction may use."""

    backbone: BackboneConfig
    """The model that encodes the frames."""
    store: str
    """Folder of the feature store."""
    sampling: Sampling = field(default_factory=Sampling)
    """Which moments of a clip are encoded."""
    faces: FaceConfig = field(default_factory=FaceConfig)
    """How faces are found and cropped."""
    limits: ReadLimits = field(default_factory=ReadLimits)
    """Limits for reading one clip."""
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    """How much of the cluster to use."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Which cluster to use, and the share of a GPU per encoder."""
    retry_failed: bool = False
    """Whether clips that failed before are tried again."""
    manifest: str | None = None
    """The manifest that the clips are from, for advice; None if unknown."""


class LostClipsError(ValueError):
    """Clips have no features for the fault of workers or nodes."""


def extraction_config(cfg: DictConfig) -> ExtractionConfig:
    """The extraction that a job's composed settings describe."""
    return ExtractionConfig(
        backbone=instantiate(cfg.backbone),
        store=str(Path(cfg.store).absolute()),
        sampling=instantiate(cfg.sampling),
        faces=instantiate(cfg.faces),
        limits=instantiate(cfg.limits),
        pipeline=instantiate(cfg.pipeline),
        cluster=instantiate(cfg.cluster),
        retry_failed=cfg.get("retry_failed", False),
        manifest=str(cfg.manifest),
    )


def checkpoint_extraction(
    cfg: DictConfig, backbone: BackboneConfig, frames: FrameSpec, *, manifest: str | None
) -> ExtractionConfig:
    """The extraction of the features that a checkpoint works with, by a job's composed settings.

    Args:
        cfg: settings with `store`, `limits`, `pipeline` and `cluster`.
        backbone: that of the checkpoint.
        frames: how the checkpoint's clips become frames.
        manifest: the manifest that the clips are from, for advice.
    """
    return ExtractionConfig(
        backbone,
        str(Path(cfg.store).absolute()),
        sampling=frames.sampling,
        faces=frames.faces,
        limits=instantiate(cfg.limits),
        pipeline=instantiate(cfg.pipeline),
        cluster=instantiate(cfg.cluster),
        retry_failed=cfg.get("retry_failed", False),
        manifest=manifest,
    )


@dataclass(frozen=True)
class ExtractSummary:
    """What an extraction did."""

    extracted: int
    """Number of clips encoded now."""
    present: int
    """Number of clips that were in the store already."""
    failures: tuple[Failure, ...]
    """The requested clips without features, and why."""
    usage: Usage | None
    """Speed and start-up time; None if nothing was left to do."""
    avoid: frozenset[str] = frozenset()
    """Ids of nodes that cannot see weights, store or clips."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """What could not be shown as it should be → number of the requested clips."""
    known: Mapping[str, ClipFacts] = field(default_factory=dict)
    """Clip id → what is known of it besides its features, of clips that have some."""
    face_settings: FaceConfig = field(default_factory=FaceConfig)
    """How they were found."""
    named: frozenset[str] = frozenset()
    """The clips that name whose face they show."""

    @property
    def faces(self) -> Mapping[str, ClipFacts]:
        """Clip id → what is known of its faces; empty without a face detector."""
        if self.face_settings.detector == "none":
            return {}
        return {clip_id: known for clip_id, known in self.known.items() if known.face_found is not None}

    @property
    def face_sides(self) -> dict[str, tuple[float, ...]]:
        """Clip id → how large the face is in a few frames; clips that were not looked at are omitted."""
        return {clip_id: known.face_sides for clip_id, known in self.known.items() if known.face_sides}

    @property
    def lost(self) -> int:
        """Number of clips without features for the fault of a worker or its node; the next extraction tries them."""
        return sum(failure.status in TRIED_AGAIN for failure in self.failures)


def extract(
    clips: Sequence[Clip], config: ExtractionConfig, *, augmented: AugmentedPass | None = None
) -> tuple[FeatureStore, ExtractSummary]:
    """Fill the store with the features of these clips, on the connected Ray.

    Args:
        clips: their ids are unique.
        config: see `ExtractionConfig`.
        augmented: the random change of the frames before they are encoded; such features have a folder of their own.
            Boxes, brightness and sizes of faces are those of the unchanged frames.

    Returns:
        The store, and what was done.

    Raises:
        ValueError: for a backbone or a face detector that cannot be loaded.
        BackboneError: if the backbone cannot be loaded by the workers, or encodes nothing.
        NoNodeError: if no node of the cluster can see weights, store and clips.
    """
    for face in {clip.face for clip in clips}:
        config.faces.following(face)  # a name of a face that is not allowed, or no detector to find it
    if config.faces.detector != "none":
        make_detector(config.faces)  # wrong settings are one error here, not a failure of every clip
    spec = replace(FeatureSpec.of(load_backbone(config.backbone), config.sampling, config.faces), augmented=augmented)
    store = FeatureStore(config.store, spec)
    keys = {clip.clip_id: spec.key(clip) for clip in clips}  # of the files as they are now
    to_make = store.missing(clips, retry_failed=config.retry_failed)
    missing = list({keys[clip.clip_id]: clip for clip in to_make}.values())
    avoid = frozenset(unfit_nodes([clip.source for clip in missing], _local_files(config), config.store))
    if avoid and gpu_share(config.cluster) and not num_gpus(avoid):
        raise NoNodeError("no node with a GPU is left; set cluster.num_gpus_per_actor=0 to encode on cores")
    usage = None
    if missing:
        _tell_known(store, missing, config)
        stream = Pipeline(
            config.backbone,
            store.spec.backbone_fingerprint,
            store.spec.frames,
            config=config.pipeline,
            cluster=config.cluster,
            limits=config.limits,
            augment=None if augmented is None else augmented.transform,
            avoid=avoid,
        )
        usage = stream.usage
        _fill(store, stream, missing, keys)
    status = store.status().set_index("clip_key")[["status", "reason"]]
    of_key = dict(zip(status.index, status.itertuples(index=False, name=None), strict=True))
    failures = tuple(
        Failure(clip.clip_id, clip.subject_id, clip.source, *map(str, of_key[keys[clip.clip_id]]))
        for clip in clips
        if of_key[keys[clip.clip_id]][0] != OK
    )
    asked = {clip.clip_id for clip in missing}
    extracted = len(missing) - sum(1 for failure in failures if failure.clip_id in asked)
    notes = Counter(of_key[key][1] for key in keys.values() if of_key[key][0] == OK and of_key[key][1])
    return store, ExtractSummary(
        extracted,
        len(clips) - len(missing),
        failures,
        usage,
        avoid,
        notes,
        known=store.facts(clips),
        face_settings=config.faces,
        named=frozenset(clip.clip_id for clip in clips if clip.face is not None),
    )


def _local_files(config: ExtractionConfig) -> list[str]:
    """The files of weights and models that every node has to have."""
    weights, name = config.backbone.weights or "", config.backbone.name
    paths = [weights, weights.partition(":")[2], config.faces.model if config.faces.detector != "none" else None]
    if name.startswith(FOLDER):
        paths += map(str, sorted(Path(name.removeprefix(FOLDER)).glob("*")))
    return [path for path in paths if path and os.path.isfile(path)]


def _tell_known(store: FeatureStore, missing: Sequence[Clip], config: ExtractionConfig) -> None:
    """Say how many clips are encoded again only because their files were moved or copied."""
    known = known_elsewhere(store.path, missing)
    if known:
        manifest = shlex.quote(f"manifests=[{config.manifest or 'MANIFEST'}]")
        command = f"clipautt store rebase {shlex.quote(f'store={config.store}')} {manifest} apply=true"
        print(
            f"{known} clips known under another path or time; they are encoded again. If the files are the same, stop "
            f"this job and take their features over: {command}",
            flush=True,
        )


def _fill(store: FeatureStore, stream: Pipeline, missing: Sequence[Clip], keys: dict[str, str]) -> None:
    """Run the pipeline into the store, with a progress line."""
    augmented = store.spec.augmented
    label = "extract" if augmented is None else f"extract pass {augmented.number + 1}"
    with Progress(label, len(missing)) as progress:
        writer = _Writer(store, progress, stream)
        stream.on_frames = writer.on_frames
        try:
            for encoded in stream.run(missing):
                writer.add(_row(encoded, keys[encoded.clip.clip_id]))
        finally:  # keep what is encoded, also when interrupted
            writer.write()


class _Writer:
    """Collects rows into files, and counts a clip as done once it is in a file."""

    def __init__(self, store: FeatureStore, progress: Progress, stream: Pipeline) -> None:
        self.store, self.progress, self.stream = store, progress, stream
        self.metrics = JobMetrics("extract")
        self.rows: list[dict[str, Any]] = []
        self.written = time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        """Add a clip's row."""
        self.rows.append(row)
        if len(self.rows) >= _ROWS_PER_FILE:
            self.write()

    def on_frames(self) -> None:
        """Write every few seconds while frames arrive, however long the next clip takes."""
        if self.stream.usage.frames == 0:
            self.progress.begin()
        if time.monotonic() - self.written >= _WRITE_EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the collected rows as one file."""
        self.store.append(self.rows)
        failed = sum(1 for row in self.rows if row["status"] != OK)
        usage = self.stream.usage
        self.progress.advance(len(self.rows), failed=failed, note=_note(self.stream))
        speed = {"frames_per_second": usage.frames_per_second, "encoders_busy_share": usage.busy_share}
        self.metrics.publish(self.progress.figures() | (speed if usage.frames else {}))
        self.rows, self.written = [], time.monotonic()


def _row(encoded: EncodedClip, key: str) -> dict[str, Any]:
    """The store's row of a clip."""
    of_clip = ("clip_id", "subject_id", "source", *SPAN)
    of_encoded = [field.name for field in fields(encoded) if field.name != "clip"]
    row = {name: getattr(encoded.clip, name) for name in of_clip}
    return {"clip_key": key} | row | {name: getattr(encoded, name) for name in of_encoded}


def _note(stream: Pipeline) -> str:
    usage = stream.usage
    if not usage.frames:
        return ""
    rate = f"{usage.frames_per_second:.3g}" if usage.frames_per_second < 100 else f"{usage.frames_per_second:.0f}"
    return f"{rate} frames/s, {'GPUs' if stream.gpu else 'encoders'} {100 * usage.busy_share:.0f} % busy"


def report_failures(summary: ExtractSummary) -> None:
    """Print the clips without features and why, and what is not as it should be in the others."""
    failures = summary.failures
    if failures:
        table([(failure.clip_id, failure.reason) for failure in failures[:_SHOWN_FAILURES]], ["clip", "reason"])
        if len(failures) > _SHOWN_FAILURES:
            print(f"… and {len(failures) - _SHOWN_FAILURES} more")
    if summary.lost:
        print(_lost(summary) + (f". Ray's messages: {file}" if (file := MESSAGES.mention()) else ""))
    for note, count in summary.notes.items():
        print(f"{count} {'clip' if count == 1 else 'clips'} with features all the same: {note}")


def refuse_lost(summary: ExtractSummary) -> None:
    """Stop a job whose result would be another one without the clips that their workers lost.

    Raises:
        LostClipsError: if there are such clips.
    """
    if summary.lost:
        raise LostClipsError(f"{_lost(summary)}; if they fail again, omit them from the manifest")


def _lost(summary: ExtractSummary) -> str:
    return (
        f"{summary.lost} clips failed because of their workers, not because of the clips: run the same command to try "
        "them again"
    )
