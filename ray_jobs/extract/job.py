"""Decode and encode every clip once, into the feature store.

Ray Data decodes on CPU tasks and encodes on a pool of actors; features stream to the store. A clip that cannot be read
costs one row with a reason. Started again after any interruption, the job does only what is missing.

Example:
    clipautt extract manifest=data/hard/manifest.parquet store=features
    clipautt extract dataset=biovid root=/data/biovid backbone=ViT-B-32-quickgelu
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from clipautt.evaluation.reports.extraction import Tile, write_extraction_report
from clipautt.features.store import FeatureStore
from clipautt.video.faces import FEW_FACES
from ray_jobs.platform.cluster import connect
from ray_jobs.platform.configuration import resolved
from ray_jobs.platform.extraction.extract import ExtractSummary, extract, extraction_config, report_failures
from ray_jobs.platform.extraction.faces_seen import face_lines, face_share, report_faces, shares_of
from ray_jobs.platform.extraction.pipeline import Usage
from ray_jobs.platform.manifests import load_manifest
from ray_jobs.platform.progress import duration
from ray_jobs.platform.runs import IGNORED, open_run


def write_report(folder: Path, store: FeatureStore, summary: ExtractSummary, *, clips: int) -> Path:
    """The page about an extraction."""
    done = Tile("encoded now", str(summary.extracted), (f"{summary.present} already in the store",))
    share = face_share(summary)
    faces = [] if math.isnan(share) else [Tile("frames with a face", f"{100 * share:.1f} %", tuple(_fewer(summary)))]
    tiles = [done, *faces, *([] if summary.usage is None else _speed(summary.usage))]
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
    notes = list(face_lines(summary))
    return write_extraction_report(
        folder, clips=clips, failures=summary.failures, tiles=tiles, facts=facts, notes=notes, shares=shares_of(summary)
    )


def _fewer(summary: ExtractSummary) -> Iterator[str]:
    low = sum(share < FEW_FACES for share in shares_of(summary).values())
    others = sum(seen.other_faces > 0 for seen in summary.faces.values())
    yield f"below {100 * FEW_FACES:.0f} % in {low} clip{'s' * (low != 1)}"
    yield f"other faces in {others} clip{'s' * (others != 1)}"


def _speed(usage: Usage) -> list[Tile]:
    if not usage.frames:
        return []
    busy = f"encoders {100 * usage.busy_share:.0f} % busy"
    return [
        Tile("frames per second", f"{usage.frames_per_second:.3g}", (busy, f"{len(usage.encoders)} encoders")),
        Tile("start-up", duration(usage.start_seconds), ("until the first frames were encoded",)),
    ]


def _run_name(cfg: DictConfig) -> str:
    """Name made from the manifest and the settings, so that another extraction gets another folder."""
    settings = {key: value for key, value in resolved(cfg).items() if key not in (*IGNORED, "retry_failed")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{Path(cfg.manifest).stem}-{digest}"


def main(cfg: DictConfig) -> int:
    """Run the job."""
    clips = load_manifest(cfg).clips
    config = extraction_config(cfg)
    ignored = (*IGNORED, "retry_failed")
    run = open_run("extract", cfg.name or _run_name(cfg), cfg, root=cfg.runs, ignore=ignored)
    with connect(config.cluster):
        store, summary = extract(clips, config)
    report_failures(summary)
    report_faces(summary)
    counts = f"{summary.extracted} clip{'s' * (summary.extracted != 1)} encoded, {summary.present} already in the store"
    print(f"{counts}, {len(summary.failures)} without features")
    page = write_report(run.folder, store, summary, clips=len(clips))
    print(f"store: {store.path}\nreport: {page}")
    return 1 if summary.lost or len(summary.failures) == len(clips) else 0
