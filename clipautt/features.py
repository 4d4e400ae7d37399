"""The feature store: every frame is decoded and encoded once, then everything works on features.

A store is a folder with one subfolder per `FeatureSpec` fingerprint (backbone weights, preprocessing, sampling); in it
lie Parquet files with one row per clip. Rows are only ever added, one whole file at a time, and a clip is looked up by
the file it came from, so that neither a half-written file nor another data set's clip of the same name is ever used.
Reading needs nothing of ours: pandas, pyarrow and Ray Data open the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from clipautt.backbone import Backbone
from clipautt.clips import Clip
from clipautt.decoding import Sampling
from clipautt.faces import FaceConfig
from clipautt.reader import FrameChunk, FrameSpec
from clipautt.reader_process import ReadLimits, read_clip

OK = "ok"
SubjectBaseline = Literal["none", "mean", "median"]
SUBJECT_BASELINES: tuple[str, ...] = get_args(SubjectBaseline)


@dataclass(frozen=True)
class FeatureSpec:
    """What makes two features comparable."""

    backbone: str
    """Name of the backbone."""
    backbone_fingerprint: str
    """Of weights, preprocessing and precision."""
    frames: FrameSpec
    """Which moments of a clip are encoded, and what was made of its frames."""
    feature_dim: int
    """d."""

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that changes a feature, as plain values."""
        return asdict(self) | {"frames": self.frames.facts}

    @property
    def fingerprint(self) -> str:
        """Names the store's subfolder."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def of(cls, backbone: Backbone, sampling: Sampling, faces: FaceConfig | None = None) -> FeatureSpec:
        """The specification of features that this backbone makes; without `faces` the footage is taken as it is."""
        frames = FrameSpec(backbone.preprocessing, sampling, faces or FaceConfig())
        return cls(backbone.name, backbone.fingerprint, frames, backbone.feature_dim)


@dataclass(frozen=True, repr=False)
class ClipFeatures:
    """A clip as methods see it: features and times, and no label."""

    clip_id: str
    """As in the manifest."""
    subject_id: str
    """As in the manifest."""
    features: Tensor
    """Frozen image features of the sampled frames, not normalised, float32 [T, d], T ≥ 1."""
    times: npt.NDArray[np.float64]
    """Seconds from the start of the clip, [T]."""
    face_found: npt.NDArray[np.bool_] | None = None
    """Whether a face was found in the frame, [T]; None where it was not recorded."""

    def __repr__(self) -> str:
        return f"ClipFeatures({self.clip_id!r}, features={tuple(self.features.shape)})"


def clip_key(clip: Clip) -> str:
    """What identifies a clip's pixels: its file (path, size, time of change; for a folder the latter) and its span."""
    path = os.path.abspath(clip.source)
    stat = os.stat(path) if os.path.exists(path) else None
    span = [clip.start_seconds, clip.end_seconds, clip.start_frame, clip.end_frame, clip.frames_per_second]
    facts = [path, stat and stat.st_size, stat and stat.st_mtime_ns, *span]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def encode_clip(clip: Clip, backbone: Backbone, frames: FrameSpec, *, limits: ReadLimits | None = None) -> ClipFeatures:
    """Decode and encode one clip, without a store; memory holds a chunk of its frames.

    Raises:
        FileNotFoundError, DecodeError, NoFaceError: as `read_clip`.
    """
    encoded: list[tuple[FrameChunk, Tensor]] = []
    for chunk in read_clip(clip, frames, limits):
        features = backbone.encode_frames(chunk.frames)
        encoded.append((replace(chunk, frames=chunk.frames[:0]), features))
    kept = [(chunk, features) for chunk, features in encoded if chunk.decoder == encoded[-1][0].decoder]
    times, found = (np.concatenate([getattr(chunk, name) for chunk, _ in kept]) for name in ("times", "found"))
    return ClipFeatures(clip.clip_id, clip.subject_id, torch.cat([features for _, features in kept]), times, found)


class FeatureStore:
    """Rows of one feature specification.

    Args:
        root: folder of the store; the subfolder of the specification is created on the first write.
        spec: what the features must be.
    """

    def __init__(self, root: str | Path, spec: FeatureSpec) -> None:
        self.spec = spec
        self.path = Path(root) / spec.fingerprint
        self.schema = pa.schema(
            [
                ("clip_key", pa.string()),
                ("clip_id", pa.string()),
                ("subject_id", pa.string()),
                ("source", pa.string()),
                ("status", pa.string()),
                ("reason", pa.string()),
                ("decoder", pa.string()),
                ("times", pa.list_(pa.float64())),
                ("face_found", pa.list_(pa.bool_())),
                ("features", pa.list_(pa.list_(pa.float32(), spec.feature_dim))),
            ]
        )

    def append(self, rows: Sequence[dict[str, Any]]) -> Path | None:
        """Add rows as one file, written aside and renamed.

        Args:
            rows: the columns of the schema; `features` as an array [T, d], or None where status is not `ok`.

        Returns:
            The file, or None when there are no rows.

        Raises:
            ValueError: for features that are not finite, naming the clip.
        """
        if not rows:
            return None
        for row in rows:
            if row["features"] is not None and not np.isfinite(row["features"]).all():
                raise ValueError(f"features of clip {row['clip_id']!r} are not finite")
        self.path.mkdir(parents=True, exist_ok=True)
        # Readers of Parquet folders pass over names that begin with an underscore.
        spec_file = self.path / "_spec.json"
        if not spec_file.exists():
            _replace(spec_file, json.dumps(self.spec.facts, indent=2).encode())
        columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in self.schema.names}
        columns["features"] = [None if f is None else list(np.asarray(f, np.float32)) for f in columns["features"]]
        table = pa.table(columns, schema=self.schema)
        file = self.path / f"part-{uuid.uuid4().hex}.parquet"
        aside = file.with_suffix(".tmp")
        pq.write_table(table, aside)
        os.replace(aside, file)
        return file

    def _files(self) -> list[Path]:
        """In the order of writing, so that of several failures of a clip the last one's reason counts."""
        found = self.path.glob("part-*.parquet") if self.path.is_dir() else ()
        return sorted(found, key=lambda file: (file.stat().st_mtime_ns, file.name))

    def status(self) -> pd.DataFrame:
        """One row per stored clip: `clip_key, clip_id, status, reason, decoder`; a later success replaces a failure."""
        columns = ["clip_key", "clip_id", "status", "reason", "decoder"]
        tables = [pq.read_table(file, columns=columns).to_pandas() for file in self._files()]
        if not tables:
            return pd.DataFrame(columns=columns)
        every: pd.DataFrame = pd.concat(tables, ignore_index=True)
        ordered = every.sort_values("status", key=lambda s: s.eq(OK), kind="stable")
        return ordered.drop_duplicates("clip_key", keep="last")

    def missing(self, clips: Iterable[Clip], *, retry_failed: bool = False) -> list[Clip]:
        """The clips that have no row yet; with `retry_failed`, also those whose row is a failure."""
        status = self.status()
        done = set(status["clip_key"] if not retry_failed else status.loc[status["status"] == OK, "clip_key"])
        return [clip for clip in clips if clip_key(clip) not in done]

    def load(self, clips: Iterable[Clip]) -> dict[str, ClipFeatures]:
        """Features of the clips that have some, by `clip_id`; clips without are left out."""
        wanted: dict[str, list[Clip]] = {}
        for clip in clips:
            wanted.setdefault(clip_key(clip), []).append(clip)
        loaded: dict[str, ClipFeatures] = {}
        for file in self._files():
            table = pq.read_table(file, columns=["clip_key", "status", "times", "face_found", "features"])
            keep = pc.and_(
                pc.equal(table["status"], OK), pc.is_in(table["clip_key"], pa.array(list(wanted), pa.string()))
            )
            for row in table.filter(keep).to_batches():
                for index in range(row.num_rows):
                    flat = row["features"][index].values.flatten().to_numpy().reshape(-1, self.spec.feature_dim)
                    features, times = torch.from_numpy(flat.copy()), np.array(row["times"][index].values.to_numpy())
                    found = np.array(row["face_found"][index].as_py(), bool)
                    for clip in wanted[row["clip_key"][index].as_py()]:
                        loaded[clip.clip_id] = ClipFeatures(clip.clip_id, clip.subject_id, features, times, found)
        return dict(sorted(loaded.items()))


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    aside.write_bytes(content)
    os.replace(aside, path)


def subject_centre(frames: Tensor, baseline: SubjectBaseline) -> Tensor:
    """The centre of a subject's frame features, which stands for the resting face.

    Most frames of a subject are neutral, so the coordinate-wise median estimates the resting face; the mean moves with
    the share of expressive frames. The same correction is known from AU intensities as person-specific calibration.

    Args:
        frames: every frame feature of one subject, [N, d].
        baseline: `none` (zeros), `mean`, or `median`.

    Returns:
        [d], to be subtracted from every frame feature of the subject, in training and at test time alike.

    Raises:
        ValueError: for another baseline.
    """
    if baseline == "none":
        return frames.new_zeros(frames.shape[-1])
    if baseline == "mean":
        return frames.mean(0)
    if baseline == "median":
        return frames.median(0).values
    raise ValueError(f"subject_baseline={baseline!r}; allowed are {', '.join(SUBJECT_BASELINES)}")
