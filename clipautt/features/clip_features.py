"""Features of a clip, their specification, and the key that identifies a clip's pixels.

In: a clip, a backbone and a `FrameSpec`. Out: `ClipFeatures`; `store` keeps them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from stat import S_ISDIR
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipautt.backbones.loading import Backbone
from clipautt.clips import Clip, id_number
from clipautt.footage import is_rendered_clip
from clipautt.video.augmentation import Augmentation, AugmentedPass, augmented_passes
from clipautt.video.decoding import VERSION, Sampling
from clipautt.video.face_check import sample_of
from clipautt.video.faces import FaceConfig
from clipautt.video.head_turn import MOST_TURNED
from clipautt.video.reader import Boxes, FrameChunk, FrameSpec
from clipautt.video.reader_process import ReadLimits, read_clip

SubjectBaseline = Literal["none", "mean", "median"]
SUBJECT_BASELINES: tuple[str, ...] = get_args(SubjectBaseline)


@dataclass(frozen=True)
class FeatureSpec:
    """Specification of features; only features of the same specification are comparable."""

    backbone: str
    """Name of the backbone."""
    backbone_fingerprint: str
    """Fingerprint of the backbone's weights, preprocessing and precision."""
    frames: FrameSpec
    """Which frames of a clip are encoded, and how they are cropped and preprocessed."""
    feature_dim: int
    """Width of a feature, d."""
    augmented: AugmentedPass | None = None
    """The random change of the frames before they are encoded; None leaves them as they are."""

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that changes a feature, as plain values."""
        facts = asdict(self) | {"frames": self.frames.facts}
        if self.augmented is None:  # as before there was augmentation, so that earlier stores are found
            del facts["augmented"]
        return facts

    @property
    def fingerprint(self) -> str:
        """Hash of the facts; the name of the store's subfolder."""
        return fingerprint_of(self.facts)

    @classmethod
    def of(cls, backbone: Backbone, sampling: Sampling, faces: FaceConfig | None = None) -> FeatureSpec:
        """The specification of features that this backbone makes; without `faces`, faces are not detected."""
        frames = FrameSpec(backbone.preprocessing, sampling, faces or FaceConfig())
        return cls(backbone.name, backbone.fingerprint, frames, backbone.feature_dim)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> FeatureSpec:
        """The inverse of `dataclasses.asdict`, for values read from JSON."""
        augmented = facts.get("augmented")
        made = {"frames": FrameSpec.from_json(facts["frames"])}
        return cls(**{**facts, **made, "augmented": None if augmented is None else AugmentedPass.from_json(augmented)})

    def passes(self, augmentation: Augmentation, *, passes: int, seed: int) -> list[FeatureSpec]:
        """The specifications of augmented features, one per pass; this one alone if the augmentation changes nothing.

        Args:
            augmentation: how much is changed.
            passes: how many times every clip is encoded, 1 or more.
            seed: the training's.
        """
        return [replace(self, augmented=one) for one in augmented_passes(augmentation, passes, seed=seed)]

    def key(self, clip: Clip) -> str:
        """The key of a clip's row in a store of these features, see `row_key`."""
        return row_key(clip, augmented=self.augmented is not None)


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    """Fingerprint of the facts of a `FeatureSpec`, fresh or read from JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False, repr=False)
class ClipFeatures:
    """A clip as methods see it: features and times, and no label."""

    clip_id: str
    """As in the manifest."""
    subject_id: str
    """As in the manifest."""
    features: Tensor
    """Frozen image features of the sampled frames, not normalized, float32 [T, d], T ≥ 1."""
    times: npt.NDArray[np.float64]
    """Seconds from the start of the clip, [T]."""
    face_found: npt.NDArray[np.bool_] | None = None
    """Whether a face was found in the frame, [T]; None where it was not recorded."""
    notes: tuple[str, ...] = ()
    """What could not be shown as it should be, see `FrameChunk.notes`."""
    min_share: float = 0.0
    """Share of a window's frames that must show the face, 0..1, see `FaceConfig.window_share`; 0 without a detector."""
    other_faces: int = 0
    """Faces beside the subject's that were followed through the clip and left out."""
    boxes: Boxes | None = None
    """Where the face is in each frame, see `reader.BOX`, [T, 5]; None where it was not recorded."""
    brightness: npt.NDArray[np.float32] | None = None
    """Mean luma of what each frame shows, 0..1, [T]; None where it was not recorded."""
    face_sides: tuple[float, ...] = ()
    """Without a detector: the side of the face as a share of the picture's in a few frames, see `face_check`; empty
    where nothing was looked at."""
    turned: npt.NDArray[np.float32] | None = None
    """Degrees by which the head is turned to either side in each frame, see `Face.turn`, [T]; nan where nothing tells,
    None where it was not recorded."""
    rendered: bool | None = None
    """Whether its faces are rendered, see `footage.is_rendered`; None if that is not known."""

    @classmethod
    def of(
        cls,
        clip: Clip,
        frames: FrameChunk,
        features: Tensor,
        *,
        faces: FaceConfig,
        sides: tuple[float, ...],
        rendered: bool | None,
    ) -> ClipFeatures:
        """What is known of a clip after it was decoded and encoded.

        Args:
            clip: the clip.
            frames: all its frames; their pixels are not looked at.
            features: of these frames, [T, d].
            faces: how faces were looked for.
            sides: `face_sides`.
            rendered: whether its faces are rendered, see `is_rendered_clip`.
        """
        return cls(
            clip.clip_id,
            clip.subject_id,
            features,
            frames.times,
            frames.found,
            notes=frames.notes,
            min_share=faces.window_share,
            other_faces=frames.other_faces,
            boxes=frames.boxes,
            brightness=frames.brightness,
            face_sides=sides,
            turned=frames.turned,
            rendered=rendered,
        )

    @property
    def face_share(self) -> float:
        """Share of the frames in which the face was found, 0..1; nan without a detector."""
        return share_of(self.face_found) if self.min_share else float("nan")

    @property
    def num_frames(self) -> int:
        """Number of frames T."""
        return len(self.times)

    @property
    def mean_brightness(self) -> float:
        """Mean luma of what the frames show, 0..1; nan where it was not recorded."""
        return mean_of(self.brightness)

    @property
    def face_pixels(self) -> float:
        """Median side of the face's box in pixels of the frame; nan without a detector, or if it was not recorded."""
        return side_of(self.boxes)

    @property
    def turned_share(self) -> float:
        """Share of the frames with the face in which it is turned away, 0..1; nan where nothing tells."""
        return turned_share_of(self.turned, self.face_found)

    @property
    def shown(self) -> Tensor:
        """Features of the frames that show the face, [N, d], for the subject's centre; all if it was never found."""
        if not self.min_share or self.face_found is None or not self.face_found.any():
            return self.features
        return self.features[torch.from_numpy(self.face_found).to(self.features.device)]

    def __repr__(self) -> str:
        return f"ClipFeatures({self.clip_id!r}, features={tuple(self.features.shape)})"


def share_of(face_found: npt.NDArray[np.bool_] | None) -> float:
    """Share of the frames with a face, 0..1; nan where it was not recorded."""
    return float("nan") if face_found is None else float(np.mean(face_found))


def mean_of(brightness: npt.NDArray[np.float32] | None) -> float:
    """Mean of the frames that show something; nan where nothing was recorded."""
    known = brightness is not None and np.isfinite(brightness).any()
    return float(np.nanmean(brightness)) if brightness is not None and known else float("nan")


def side_of(boxes: Boxes | None) -> float:
    """Median side of the boxes in pixels; nan where nothing was recorded."""
    known = boxes is not None and np.isfinite(boxes[:, 2]).any()
    return float(np.nanmedian(boxes[:, 2])) if boxes is not None and known else float("nan")


def turned_share_of(turned: npt.NDArray[np.float32] | None, face_found: npt.NDArray[np.bool_] | None) -> float:
    """Share of the frames with the face in which it is turned by more than `MOST_TURNED`, 0..1.

    Cascades tell of profiles only, so a frame of theirs of which nothing is known does not count as turned.

    Args:
        turned: degrees, [T]; None where they were not recorded.
        face_found: whether the face was found, [T].

    Returns:
        nan where it was not recorded, or no face was found.
    """
    if turned is None or face_found is None or not np.isfinite(turned).any():
        return float("nan")
    return float(np.mean(np.nan_to_num(turned[face_found]) > MOST_TURNED))


def clip_key(clip: Clip) -> str:
    """Hash that identifies a clip's pixels: path, size and modification time of its file or folder, span and face.

    For a video file, which an earlier version may have decoded otherwise, it has the version of decoding as well.
    """
    path = os.path.abspath(clip.source)
    return key_of(path, os.stat(path) if os.path.exists(path) else None, clip)


def row_key(clip: Clip, *, augmented: bool) -> str:
    """The key of a clip's row: `clip_key`, for augmented features followed by its id, which decides the change."""
    return f"{clip_key(clip)}-{id_number(clip.clip_id):x}" if augmented else clip_key(clip)


def pixels_of(key: str | None) -> str:
    """The `clip_key` in a `row_key`; empty in a damaged row without one."""
    return (key or "").partition("-")[0]


def key_of(path: str, stat: os.stat_result | None, clip: Clip) -> str:
    """The key that a clip of this span has if its file lies at `path`, with this size and time; None if it is gone."""
    span = [clip.start_seconds, clip.end_seconds, clip.start_frame, clip.end_frame, clip.frames_per_second]
    face = [] if clip.face is None else [clip.face]
    decoding = [] if stat and S_ISDIR(stat.st_mode) else [f"decoding {VERSION}"]
    facts = [path, stat and stat.st_size, stat and stat.st_mtime_ns, *span, *face, *decoding]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def encode_clip(clip: Clip, backbone: Backbone, frames: FrameSpec, *, limits: ReadLimits | None = None) -> ClipFeatures:
    """Decode and encode one clip, without a store; one chunk of its frames is in memory at a time.

    Without a face detector, a few frames are checked for a face that fills them.

    Raises:
        FileNotFoundError, DecodeError, NoFaceError: as `read_clip`.
    """
    encoded: list[tuple[FrameChunk, Tensor]] = []
    sample = sample_of(clip, frames.faces)
    for chunk in read_clip(clip, frames, limits):
        if encoded and encoded[-1][0].decoder != chunk.decoder:  # the clip is read again from its start
            sample = sample_of(clip, frames.faces)
        sample.add(chunk.frames)
        features = backbone.encode_frames(chunk.frames)
        encoded.append((replace(chunk, frames=chunk.frames[:0].copy()), features))  # a view would keep all frames
    kept = [(chunk, features) for chunk, features in encoded if chunk.decoder == encoded[-1][0].decoder]
    whole = FrameChunk.joined([chunk for chunk, _ in kept])
    return ClipFeatures.of(
        clip,
        whole,
        torch.cat([one for _, one in kept]),
        faces=frames.faces,
        sides=sample.sides(),
        rendered=is_rendered_clip(clip),
    )


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
    raise ValueError(f"subject_baseline={baseline!r}; allowed: {', '.join(SUBJECT_BASELINES)}")
