"""Decode and encode every clip once, into the feature store.

Ray Data decodes on CPU tasks and encodes on a pool of actors; results stream to the store. A clip that cannot be read
costs one row with a reason. A second run does only what is missing.

Example:
    clipautt extract manifest=data/hard/manifest.parquet store=features
    clipautt extract dataset=biovid root=/data/biovid backbone=ViT-B-32-quickgelu backbone.weights=ViT-B-32.pt
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig

from clipautt.backbone import BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.decoding import Sampling
from clipautt.faces import FaceConfig, make_detector
from clipautt.features import OK, FeatureSpec, FeatureStore, clip_key
from clipautt.reader import FrameSpec, NoFaceError
from clipautt.reader_process import ReadLimits, read_clip
from ray_jobs import cli
from ray_jobs.cluster import ClusterConfig, connect, gpu_share, num_cpus, num_gpus, ray_data
from ray_jobs.configuration import instantiate
from ray_jobs.manifest import load_manifest
from ray_jobs.progress import Progress, table

_CLIPS_PER_BLOCK = 4
_CHUNKS_PER_BATCH = 4
_ROWS_PER_FILE = 64


@dataclass(frozen=True)
class ExtractSummary:
    """What an extraction did."""

    extracted: int
    """Clips encoded now."""
    present: int
    """Clips that were in the store already."""
    failures: tuple[tuple[str, str], ...]
    """Of all clips asked for: id and reason."""


def extract(
    clips: Sequence[Clip],
    backbone: BackboneConfig,
    sampling: Sampling,
    store_root: str,
    *,
    cluster: ClusterConfig,
    faces: FaceConfig | None = None,
    limits: ReadLimits | None = None,
    encoders: int | None = None,
    retry_failed: bool = False,
) -> tuple[FeatureStore, ExtractSummary]:
    """Fill the store with the features of these clips, on the connected Ray.

    Returns:
        The store and what was done.

    Raises:
        ValueError: for a backbone or a face detector that cannot be loaded.
    """
    faces = faces or FaceConfig()
    if faces.detector != "none":
        make_detector(faces)  # a mistake in its settings is one error here, and not a failure of every clip
    store = FeatureStore(store_root, FeatureSpec.of(load_backbone(backbone), sampling, faces))
    keys = {clip.clip_id: clip_key(clip) for clip in clips}  # as the files are now, whatever happens to them meanwhile
    missing = list({keys[clip.clip_id]: clip for clip in store.missing(clips, retry_failed=retry_failed)}.values())
    if missing:
        _stream(
            [(keys[clip.clip_id], clip) for clip in missing],
            store,
            backbone,
            limits or ReadLimits(),
            cluster=cluster,
            encoders=encoders,
        )
    status = store.status().set_index("clip_key")
    rows = [(clip.clip_id, status.loc[keys[clip.clip_id]]) for clip in clips]
    failures = tuple((clip_id, str(row["reason"])) for clip_id, row in rows if row["status"] != OK)
    asked = {clip.clip_id for clip in missing}
    extracted = len(missing) - sum(1 for clip_id, _ in failures if clip_id in asked)
    return store, ExtractSummary(extracted, len(clips) - len(missing), failures)


def _stream(
    missing: Sequence[tuple[str, Clip]],
    store: FeatureStore,
    backbone: BackboneConfig,
    limits: ReadLimits,
    *,
    cluster: ClusterConfig,
    encoders: int | None,
) -> None:
    ray_data_module = ray_data()
    gpu = gpu_share(cluster)
    workers = encoders or num_gpus() or num_cpus()
    # On CPUs an encoder asks for half a core, so that decoding always finds a slot beside the pool.
    resources: dict[str, Any] = {"num_gpus": gpu} if gpu else {"num_cpus": 0.5}
    items = [{"clip": asdict(clip), "clip_key": key} for key, clip in missing]
    blocks = max(1, min(len(items) // _CLIPS_PER_BLOCK, 200))
    encoded = (
        ray_data_module.from_items(items, override_num_blocks=blocks)
        .flat_map(_Decode(store.spec.frames, limits), num_cpus=0.5)
        .map_batches(
            _Encode,
            fn_constructor_args=(backbone,),
            batch_size=_CHUNKS_PER_BATCH,
            compute=ray_data_module.ActorPoolStrategy(min_size=min(workers, blocks), max_size=workers),
            **resources,
        )
    )
    rows: list[dict[str, Any]] = []
    chunks = _Assembly(store.spec.feature_dim)
    with Progress("extract", len(missing)) as progress:
        for part in encoded.iter_rows():
            row = chunks.add(part)
            if row is None:
                continue
            rows.append(row)
            progress.advance(failed=int(row["status"] != OK))
            if len(rows) == _ROWS_PER_FILE:
                store.append(rows)
                rows = []
        store.append(rows)


class _Decode:
    """One clip to rows with a chunk of frames each, and a last row that says how it ended.

    A clip may be long: its frames leave this task chunk by chunk and are never in one row.
    """

    def __init__(self, frames: FrameSpec, limits: ReadLimits) -> None:
        self.frames, self.limits = frames, limits

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        clip = Clip(**row["clip"])
        facts = {name: getattr(clip, name) for name in ("clip_id", "subject_id", "source")}
        facts |= {"clip_key": row["clip_key"]}
        empty = {"status": "", "reason": "", "decoder": "", "number": 0, "times": b"", "found": b"", "frames": b""}
        sent: Counter[str] = Counter()
        decoder = ""
        try:
            for chunk in read_clip(clip, self.frames, self.limits):
                decoder = chunk.decoder
                content = {name: getattr(chunk, name).tobytes() for name in ("times", "found", "frames")}
                yield facts | empty | content | {"decoder": decoder, "number": sent[decoder]}
                sent[decoder] += 1
        except (ValueError, OSError) as error:
            yield facts | empty | {"status": _status(error), "reason": str(error)}
        else:
            yield facts | empty | {"status": OK, "decoder": decoder, "number": sent[decoder]}


def _status(error: Exception) -> str:
    if isinstance(error, NoFaceError):
        return "no_face"
    return "missing" if isinstance(error, FileNotFoundError) else "unreadable"


class _Encode:
    """An actor with the backbone. Each chunk is a batch of its own, so that no neighbour changes its numbers."""

    def __init__(self, config: BackboneConfig) -> None:
        import torch

        self.backbone = load_backbone(config)
        if torch.cuda.is_available():
            self.backbone.to("cuda")
        else:
            torch.set_num_threads(1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        size = self.backbone.preprocessing.size
        features = []
        for content in batch["frames"]:
            frames = np.frombuffer(content, np.uint8).reshape(-1, size, size, 3)
            features.append(self.backbone.encode_frames(frames.copy()).numpy().tobytes() if len(frames) else b"")
        return {name: value for name, value in batch.items() if name != "frames"} | {"features": features}


class _Assembly:
    """Chunks of clips, which arrive in any order, to whole store rows."""

    def __init__(self, feature_dim: int) -> None:
        self.feature_dim = feature_dim
        self.chunks: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
        self.ends: dict[str, dict[str, Any]] = {}

    def add(self, part: dict[str, Any]) -> dict[str, Any] | None:
        """Take a row; the store's row of its clip, once everything of it is there."""
        key = part["clip_key"]
        if part["status"]:
            self.ends[key] = part
        else:
            self.chunks.setdefault(key, {})[part["decoder"], part["number"]] = part
        end = self.ends.get(key)
        if end is None:
            return None
        needed = [(end["decoder"], number) for number in range(end["number"])]
        if not set(needed) <= self.chunks.get(key, {}).keys():
            return None
        chunks = self.chunks.pop(key, {})  # those of a decoder that failed midway may still come, and are not asked for
        return self._row(self.ends.pop(key), [chunks[name] for name in needed])

    def _row(self, end: dict[str, Any], chunks: list[dict[str, Any]]) -> dict[str, Any]:
        names = ("clip_key", "clip_id", "subject_id", "source", "status", "reason", "decoder")
        row = {name: end[name] for name in names} | {"times": None, "face_found": None, "features": None}
        if end["status"] != OK:
            return row
        features = np.frombuffer(b"".join(c["features"] for c in chunks), np.float32).reshape(-1, self.feature_dim)
        if not np.isfinite(features).all():
            return row | {"status": "not_finite", "reason": "the backbone gave features that are not finite"}
        times = np.frombuffer(b"".join(c["times"] for c in chunks), np.float64).tolist()
        found = np.frombuffer(b"".join(c["found"] for c in chunks), np.bool_).tolist()
        return row | {"times": times, "face_found": found, "features": features}


def report_failures(summary: ExtractSummary) -> None:
    """Print the clips without features and why."""
    if summary.failures:
        table([(clip_id, reason) for clip_id, reason in summary.failures[:20]], ["clip", "reason"])
        if len(summary.failures) > 20:
            print(f"… and {len(summary.failures) - 20} more")


def main(cfg: DictConfig) -> int:
    """Run the job."""
    clips = load_manifest(cfg).clips
    cluster = instantiate(cfg.cluster)
    with connect(cluster):
        store, summary = extract(
            clips,
            instantiate(cfg.backbone),
            instantiate(cfg.sampling),
            cfg.store,
            cluster=cluster,
            faces=instantiate(cfg.faces),
            limits=instantiate(cfg.limits),
            encoders=cfg.encoders,
            retry_failed=cfg.retry_failed,
        )
    report_failures(summary)
    print(f"{summary.extracted} clips encoded, {summary.present} were there, {len(summary.failures)} without features")
    print(f"store: {store.path}")
    return 1 if len(summary.failures) == len(clips) else 0


if __name__ == "__main__":
    raise SystemExit(cli.main(["extract", *sys.argv[1:]]))
