"""Features of a clip: how they are made, and the centre of a subject's."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clipautt.clips import Clip
from clipautt.features import clip_features
from clipautt.features.clip_features import (
    ClipFeatures,
    FeatureSpec,
    clip_key,
    encode_clip,
    fingerprint_of,
    pixels_of,
    subject_centre,
)
from clipautt.video.augmentation import Augmentation
from clipautt.video.decoding import DecodeError, Sampling
from clipautt.video.faces import FaceConfig
from clipautt.video.preprocessing import Preprocessing
from clipautt.video.reader import FrameChunk, FrameSpec
from tests.support.fakes import FEATURE_DIM, numbered_frames, shared_backbone, write_video

SPEC = FrameSpec(shared_backbone().preprocessing)


def test_encode_clip_is_decoding_and_the_image_tower(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", numbered_frames(26))
    features = encode_clip(Clip("c1", "s1", str(path), "target", end_seconds=1.0), shared_backbone(), SPEC)
    assert (features.clip_id, features.subject_id) == ("c1", "s1")
    assert features.features.shape == (13, FEATURE_DIM) and features.times.shape == (13,)
    assert features.face_found is not None and features.face_found.tolist() == [True] * 13
    assert not features.features.requires_grad and (features.features - features.features[0]).abs().max() > 0.01
    assert features.features.is_inference() is False
    with pytest.raises(DecodeError, match="clip 'c1'"):
        broken = tmp_path / "broken.mp4"
        broken.write_text("x")
        encode_clip(Clip("c1", "s1", str(broken), "target"), shared_backbone(), SPEC)


def test_specification_survives_json() -> None:
    spec = FeatureSpec.of(shared_backbone(), Sampling(None), FaceConfig("cascade", margin=0.3))
    again = FeatureSpec.from_json(json.loads(json.dumps(asdict(spec))))
    assert again == spec and again.fingerprint == spec.fingerprint
    assert fingerprint_of(json.loads(json.dumps(spec.facts))) == spec.fingerprint


def test_fingerprint_literal() -> None:
    """Stores that are there are found by it, so it may not change by itself."""
    frames = FrameSpec(Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "area"), Sampling(12.5))
    assert FeatureSpec("fake", "0123456789abcdef", frames, 16).fingerprint == "b40dd3b8bd94a936"


def test_augmentation_enters_the_specification_only_where_it_changes_something(tmp_path: Path) -> None:
    """Features of unchanged frames keep their folder and their keys; every pass, seed and strength has its own."""
    clean = FeatureSpec.of(shared_backbone(), Sampling(12.5))
    assert set(clean.facts) == {"backbone", "backbone_fingerprint", "frames", "feature_dim"}
    assert clean.passes(Augmentation(), passes=3, seed=0) == [clean]
    specs = [clean, *clean.passes(Augmentation(flip=0.5), passes=2, seed=0)]
    specs += clean.passes(Augmentation(flip=0.5), passes=1, seed=1)
    specs += clean.passes(Augmentation(flip=0.25, crop=0.1), passes=1, seed=0)
    assert len({spec.fingerprint for spec in specs}) == 5
    assert specs[2].facts["augmented"] == {
        "augmentation": {"flip": 0.5, "crop": 0.0, "colour": 0.0},
        "seed": 0,
        "number": 1,
        "version": 1,
    }
    for spec in specs:
        again = FeatureSpec.from_json(json.loads(json.dumps(asdict(spec))))
        assert again == spec and fingerprint_of(json.loads(json.dumps(spec.facts))) == spec.fingerprint
    clip = Clip("one", "s", str(tmp_path), "source_train")
    other = replace(clip, clip_id="two")
    assert clean.key(clip) == clean.key(other) == clip_key(clip)
    assert specs[1].key(clip) == specs[2].key(clip) != specs[1].key(other), "the id decides how frames are changed"
    assert pixels_of(specs[1].key(clip)) == pixels_of(clean.key(clip)) == clip_key(clip)


def test_clip_features_have_no_label() -> None:
    assert "label" not in ClipFeatures.__dataclass_fields__


def test_the_key_of_a_video_file_has_the_version_of_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of frames as an earlier version decoded them are not found again; those of folders of pictures are."""
    (tmp_path / "v.mp4").touch()
    (tmp_path / "folder").mkdir()
    video, folder = (Clip("c", "s", str(tmp_path / name), "target") for name in ("v.mp4", "folder"))
    before = clip_key(video), clip_key(folder)
    monkeypatch.setattr(clip_features, "VERSION", clip_features.VERSION + 1)
    assert clip_key(video) != before[0] and clip_key(folder) == before[1]


def test_subject_centres_literal() -> None:
    frames = torch.tensor([[0.0, 1.0], [1.0, 1.0], [8.0, 4.0]])
    assert subject_centre(frames, "none").tolist() == [0, 0]
    assert subject_centre(frames, "mean").tolist() == [3, 2]
    assert subject_centre(frames, "median").tolist() == [1, 1]
    with pytest.raises(ValueError, match="subject_baseline='mode'; allowed: none, mean, median"):
        subject_centre(frames, "mode")  # type: ignore[arg-type]


def test_median_stays_at_the_resting_face_where_the_mean_moves_away() -> None:
    rest = torch.randn(80, 4, generator=torch.Generator().manual_seed(0)) * 0.1
    frames = torch.cat([rest, rest[:30] + 10])
    assert subject_centre(frames, "median").abs().max() < 0.15
    assert subject_centre(frames, "mean").abs().min() > 2


def test_only_one_chunk_of_frames_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long video takes no more memory than a short one: frames go when they are encoded."""
    backbone = shared_backbone()
    size, alive = backbone.preprocessing.size, []

    def chunks(*_: object) -> Iterator[FrameChunk]:
        kept: list[weakref.ref[np.ndarray]] = []
        for number in range(4):
            frames = np.zeros((3, size, size, 3), np.uint8)
            kept.append(weakref.ref(frames))
            boxes, light = np.zeros((3, 5), np.float32), np.zeros(3, np.float32)
            yield FrameChunk("pyav", frames, np.arange(3) + 3.0 * number, np.ones(3, bool), boxes, light, light)
            del frames
            alive.append(sum(one() is not None for one in kept))

    monkeypatch.setattr(clip_features, "read_clip", chunks)
    spec = FeatureSpec.of(backbone, Sampling(None)).frames
    assert encode_clip(Clip("c", "s", "v.mp4", "target"), backbone, spec).features.shape[0] == 12
    assert alive == [1, 1, 1, 1], "the loop holds the last one"
