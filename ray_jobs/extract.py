"""Decode and encode every clip once, into the feature store.

Ray Data decodes on CPU tasks and encodes on a pool of actors; features stream to the store. A clip that cannot be read
costs one row with a reason. Started again, after whatever ended it, the job does only what is missing.

Example:
    clipautt extract manifest=data/hard/manifest.parquet store=features
    clipautt extract dataset=biovid root=/data/biovid backbone=ViT-B-32-quickgelu backbone.weights=ViT-B-32.pt
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clipautt.backbone import BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.decoding import Sampling
from clipautt.faces import FaceConfig, make_detector
from clipautt.feature_store import OK, SPAN, FeatureStore
from clipautt.features import FeatureSpec, clip_key
from clipautt.reader_process import ReadLimits
from clipautt.reports.extraction import Failure, Tile, write_extraction_report
from ray_jobs import cli
from ray_jobs.cluster import ClusterConfig, connect
from ray_jobs.configuration import instantiate, resolved
from ray_jobs.manifest import load_manifest
from ray_jobs.metrics import JobMetrics
from ray_jobs.pipeline import EncodedClip, Pipeline, PipelineConfig, Usage
from ray_jobs.progress import Progress, duration, table
from ray_jobs.runs import IGNORED, open_run

_WRITE_EVERY_SECONDS = 5.0
_ROWS_PER_FILE = 256
_SHOWN_FAILURES = 20


@dataclass(frozen=True)
class ExtractSummary:
    """What an extraction did."""

    extracted: int
    """Clips encoded now."""
    present: int
    """Clips that were in the store already."""
    failures: tuple[Failure, ...]
    """Of all clips asked for."""
    usage: Usage | None
    """Speed and start-up; None where nothing was left to do."""


def extract(
    clips: Sequence[Clip],
    backbone: BackboneConfig,
    sampling: Sampling,
    store_root: str,
    *,
    cluster: ClusterConfig,
    faces: FaceConfig | None = None,
    limits: ReadLimits | None = None,
    pipeline: PipelineConfig | None = None,
    retry_failed: bool = False,
) -> tuple[FeatureStore, ExtractSummary]:
    """Fill the store with the features of these clips, on the connected Ray.

    Returns:
        The store and what was done.

    Raises:
        ValueError: for a backbone or a face detector that cannot be loaded.
        BackboneError: if the backbone cannot be loaded by the workers, or encodes nothing.
    """
    faces = faces or FaceConfig()
    if faces.detector != "none":
        make_detector(faces)  # a mistake in its settings is one error here, and not a failure of every clip
    store = FeatureStore(store_root, FeatureSpec.of(load_backbone(backbone), sampling, faces))
    keys = {clip.clip_id: clip_key(clip) for clip in clips}  # as the files are now, whatever happens to them meanwhile
    missing = list({keys[clip.clip_id]: clip for clip in store.missing(clips, retry_failed=retry_failed)}.values())
    usage = None
    if missing:
        stream = Pipeline(
            backbone,
            store.spec.backbone_fingerprint,
            store.spec.frames,
            config=pipeline or PipelineConfig(),
            cluster=cluster,
            limits=limits or ReadLimits(),
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
    return store, ExtractSummary(extracted, len(clips) - len(missing), failures, usage)


def _fill(store: FeatureStore, stream: Pipeline, missing: Sequence[Clip], keys: dict[str, str]) -> None:
    """Run the pipeline into the store, with a line of progress."""
    with Progress("extract", len(missing)) as progress:
        writer = _Writer(store, progress, stream)
        stream.on_frames = writer.on_frames
        try:
            for encoded in stream.run(missing):
                writer.add(_row(_as_seen_here(encoded), keys[encoded.clip.clip_id]))
        finally:  # also where it is interrupted: what is encoded is kept
            writer.write()


class _Writer:
    """Collects rows into files, and counts a clip as done once it is in one."""

    def __init__(self, store: FeatureStore, progress: Progress, stream: Pipeline) -> None:
        self.store, self.progress, self.stream = store, progress, stream
        self.metrics = JobMetrics("extract")
        self.rows: list[dict[str, Any]] = []
        self.written = time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        """Take a clip."""
        self.rows.append(row)
        if len(self.rows) >= _ROWS_PER_FILE:
            self.write()

    def on_frames(self) -> None:
        """Frames have come: nothing waits longer than some seconds, however long the next clip takes."""
        if self.stream.usage.frames == 0:
            self.progress.begin()
        if time.monotonic() - self.written >= _WRITE_EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        """Write what there is as one file."""
        self.store.append(self.rows)
        failed = sum(1 for row in self.rows if row["status"] != OK)
        usage = self.stream.usage
        self.progress.advance(len(self.rows), failed=failed, note=_note(self.stream))
        speed = {"frames_per_second": usage.frames_per_second, "encoders_busy_share": usage.busy_share}
        self.metrics.publish(self.progress.figures() | (speed if usage.frames else {}))
        self.rows, self.written = [], time.monotonic()


def _as_seen_here(encoded: EncodedClip) -> EncodedClip:
    """A file that a worker did not find and this process does is no clip's fault."""
    if encoded.status != "missing" or not os.path.exists(encoded.clip.source):
        return encoded
    return replace(encoded, status="lost", reason=f"{encoded.reason} on a worker, but here it is: is it shared?")


def _row(encoded: EncodedClip, key: str) -> dict[str, Any]:
    """The store's row of a clip."""
    of_clip = ("clip_id", "subject_id", "source", *SPAN)
    of_frames = ("status", "reason", "decoder", "times", "face_found", "features")
    row = {name: getattr(encoded.clip, name) for name in of_clip}
    return {"clip_key": key} | row | {name: getattr(encoded, name) for name in of_frames}


def _note(stream: Pipeline) -> str:
    usage = stream.usage
    if not usage.frames:
        return ""
    rate = f"{usage.frames_per_second:.3g}" if usage.frames_per_second < 100 else f"{usage.frames_per_second:.0f}"
    return f"{rate} frames/s, {'GPUs' if stream.gpu else 'encoders'} {100 * usage.busy_share:.0f} % busy"


def report_failures(summary: ExtractSummary) -> None:
    """Print the clips without features and why."""
    failures = summary.failures
    if failures:
        table([(failure.clip_id, failure.reason) for failure in failures[:_SHOWN_FAILURES]], ["clip", "reason"])
        if len(failures) > _SHOWN_FAILURES:
            print(f"… and {len(failures) - _SHOWN_FAILURES} more")


def write_report(folder: Path, store: FeatureStore, summary: ExtractSummary, *, clips: int) -> Path:
    """The page about an extraction."""
    done = Tile("encoded now", str(summary.extracted), (f"{summary.present} were there",))
    tiles = [done, *([] if summary.usage is None else _speed(summary.usage))]
    spec = store.spec
    sampling = spec.frames.sampling.frames_per_second
    facts = [
        ("backbone", f"{spec.backbone}, fingerprint {spec.backbone_fingerprint}"),
        ("frames", f"{spec.frames.preprocessing.size} × {spec.frames.preprocessing.size} pixels"),
        ("moments", f"{sampling:g} per second" if sampling else "every frame"),
        ("faces", spec.frames.faces.detector),
        ("features", f"{spec.feature_dim} numbers per frame"),
        ("store", str(store.path)),
    ]
    return write_extraction_report(folder, clips=clips, failures=summary.failures, tiles=tiles, facts=facts)


def _speed(usage: Usage) -> list[Tile]:
    if not usage.frames:
        return []
    busy = f"encoders {100 * usage.busy_share:.0f} % busy"
    return [
        Tile("frames per second", f"{usage.frames_per_second:.3g}", (busy, f"{len(usage.encoders)} encoders")),
        Tile("start-up", duration(usage.start_seconds), ("until the first frames were encoded",)),
    ]


def _run_name(cfg: DictConfig) -> str:
    """Of the manifest and the settings, so that another extraction gets another folder."""
    settings = {key: value for key, value in resolved(cfg).items() if key not in (*IGNORED, "retry_failed")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{Path(cfg.manifest).stem}-{digest}"


def main(cfg: DictConfig) -> int:
    """Run the job."""
    clips = load_manifest(cfg).clips
    cluster = instantiate(cfg.cluster)
    ignored = (*IGNORED, "retry_failed")
    run = open_run("extract", cfg.name or _run_name(cfg), cfg, root=cfg.runs, ignore=ignored)
    with connect(cluster):
        store, summary = extract(
            clips,
            instantiate(cfg.backbone),
            instantiate(cfg.sampling),
            cfg.store,
            cluster=cluster,
            faces=instantiate(cfg.faces),
            limits=instantiate(cfg.limits),
            pipeline=instantiate(cfg.pipeline),
            retry_failed=cfg.retry_failed,
        )
    report_failures(summary)
    print(f"{summary.extracted} clips encoded, {summary.present} were there, {len(summary.failures)} without features")
    page = write_report(run.folder, store, summary, clips=len(clips))
    print(f"store: {store.path}\nreport: {page}")
    return 1 if len(summary.failures) == len(clips) else 0


if __name__ == "__main__":
    raise SystemExit(cli.main(["extract", *sys.argv[1:]]))
