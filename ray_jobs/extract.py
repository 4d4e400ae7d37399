"""Decode and encode every clip once, into the feature store.

Ray Data decodes on CPU tasks and encodes on a pool of actors; results stream to the store. A clip that cannot be read
costs one row with a reason. A second run does only what is missing.

Example:
    clipautt extract manifest=data/hard/manifest.parquet store=features
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig

from clipautt.backbone import Backbone, BackboneConfig, Preprocessing, load_backbone
from clipautt.clips import Clip, read_manifest
from clipautt.decoding import Sampling, decode_clip
from clipautt.features import OK, FeatureSpec, FeatureStore, clip_key
from ray_jobs import cli
from ray_jobs.cluster import ClusterConfig, connect, gpu_share, num_cpus, num_gpus, ray_data
from ray_jobs.configuration import instantiate
from ray_jobs.progress import Progress, table

_CLIPS_PER_BATCH = 4
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
    encoders: int | None = None,
    retry_failed: bool = False,
) -> tuple[FeatureStore, ExtractSummary]:
    """Fill the store with the features of these clips, on the connected Ray.

    Returns:
        The store and what was done.
    """
    loaded = load_backbone(backbone)
    store = FeatureStore(store_root, FeatureSpec.of(loaded, sampling))
    missing = store.missing(clips, retry_failed=retry_failed)
    if missing:
        _stream(missing, loaded, backbone, sampling, store, cluster=cluster, encoders=encoders)
    status = store.status().set_index("clip_key")
    rows = [(clip.clip_id, status.loc[clip_key(clip)]) for clip in clips]
    failures = tuple((clip_id, str(row["reason"])) for clip_id, row in rows if row["status"] != OK)
    extracted = len(missing) - sum(1 for clip_id, _ in failures if clip_id in {clip.clip_id for clip in missing})
    return store, ExtractSummary(extracted, len(clips) - len(missing), failures)


def _stream(
    missing: Sequence[Clip],
    loaded: Backbone,
    config: BackboneConfig,
    sampling: Sampling,
    store: FeatureStore,
    *,
    cluster: ClusterConfig,
    encoders: int | None,
) -> None:
    ray_data_module = ray_data()
    gpu = gpu_share(cluster)
    workers = encoders or num_gpus() or num_cpus()
    # On CPUs an encoder asks for half a core, so that decoding always finds a slot beside the pool.
    resources: dict[str, Any] = {"num_gpus": gpu} if gpu else {"num_cpus": 0.5}
    items = [{"clip": asdict(clip), "clip_key": clip_key(clip)} for clip in missing]
    encoded = (
        ray_data_module.from_items(items, override_num_blocks=max(1, min(len(items) // _CLIPS_PER_BATCH, 200)))
        .map(_Decode(loaded.preprocessing, sampling), num_cpus=0.5)
        .map_batches(
            _Encode,
            fn_constructor_args=(config,),
            batch_size=_CLIPS_PER_BATCH,
            compute=ray_data_module.ActorPoolStrategy(min_size=min(workers, len(items)), max_size=workers),
            **resources,
        )
    )
    rows: list[dict[str, Any]] = []
    with Progress("extract", len(missing)) as progress:
        for row in encoded.iter_rows():
            rows.append(_store_row(row, store.spec.feature_dim))
            progress.advance(failed=int(row["status"] != OK))
            if len(rows) == _ROWS_PER_FILE:
                store.append(rows)
                rows = []
        store.append(rows)


class _Decode:
    """One clip to frames as bytes, or a status row."""

    def __init__(self, preprocessing: Preprocessing, sampling: Sampling) -> None:
        self.preprocessing, self.sampling = preprocessing, sampling

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        clip = Clip(**row["clip"])
        facts = {name: getattr(clip, name) for name in ("clip_id", "subject_id", "source")} | {
            "clip_key": row["clip_key"]
        }
        empty = {"decoder": "", "times": b"", "frames": b""}
        try:
            shape = self.preprocessing
            decoded = decode_clip(clip, size=shape.size, sampling=self.sampling, interpolation=shape.interpolation)
        except (ValueError, OSError) as error:
            return facts | empty | {"status": "unreadable", "reason": str(error)}
        content = {"decoder": decoded.decoder, "times": decoded.times.tobytes(), "frames": decoded.frames.tobytes()}
        return facts | content | {"status": OK, "reason": ""}


class _Encode:
    """An actor with the backbone. Each clip is a batch of its own, so that its neighbours cannot change its numbers."""

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
            features.append(self.backbone.encode_frames(frames.copy()).numpy().tobytes())
        return {name: value for name, value in batch.items() if name != "frames"} | {"features": features}


def _store_row(row: dict[str, Any], feature_dim: int) -> dict[str, Any]:
    values = {
        name: row[name] for name in ("clip_key", "clip_id", "subject_id", "source", "status", "reason", "decoder")
    }
    if row["status"] != OK:
        return values | {"times": None, "features": None}
    features = np.frombuffer(row["features"], np.float32).reshape(-1, feature_dim)
    if not np.isfinite(features).all():
        reason = "the backbone gave features that are not finite"
        return values | {"status": "not_finite", "reason": reason, "times": None, "features": None}
    return values | {"times": np.frombuffer(row["times"], np.float64).tolist(), "features": features}


def report_failures(summary: ExtractSummary) -> None:
    """Print the clips without features and why."""
    if summary.failures:
        table([(clip_id, reason) for clip_id, reason in summary.failures[:20]], ["clip", "reason"])
        if len(summary.failures) > 20:
            print(f"… and {len(summary.failures) - 20} more")


def main(cfg: DictConfig) -> int:
    """Run the job."""
    clips = read_manifest(cfg.manifest).clips
    cluster = instantiate(cfg.cluster)
    with connect(cluster):
        store, summary = extract(
            clips,
            instantiate(cfg.backbone),
            instantiate(cfg.sampling),
            cfg.store,
            cluster=cluster,
            encoders=cfg.encoders,
            retry_failed=cfg.retry_failed,
        )
    report_failures(summary)
    print(f"{summary.extracted} clips encoded, {summary.present} were there, {len(summary.failures)} without features")
    print(f"store: {store.path}")
    return 1 if len(summary.failures) == len(clips) else 0


if __name__ == "__main__":
    raise SystemExit(cli.main(["extract", *sys.argv[1:]]))
