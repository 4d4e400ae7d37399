"""Where no detector crops to the face, a few frames show whether one fills the picture."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipautt.clips import Clip
from clipautt.datasets.synthetic.identity import draw_identity
from clipautt.datasets.synthetic.renderer import render
from clipautt.datasets.synthetic.video import write_mp4
from clipautt.features.clip_features import FeatureSpec, encode_clip
from clipautt.video import face_check
from clipautt.video.decoding import Sampling
from clipautt.video.face_check import FrameSample, face_sides, face_warning, faces_warning
from clipautt.video.faces import FaceConfig
from clipautt.video.preprocessing import Frames
from tests.support.fakes import shared_backbone, write_video
from tests.support.photograph import photograph

FILLED, SMALL = (photograph(x=120, y=120, scale=scale, size=(240, 240)) for scale in (1.6, 0.8))
EMPTY = np.full((240, 240, 3), 90, np.uint8)


def rendered_faces(count: int) -> list[Frames]:
    rng = np.random.default_rng(0)
    return [
        render(draw_identity(seed), np.zeros(28), pose=np.zeros(3), translation=np.zeros(2), size=96, rng=rng)
        for seed in range(count)
    ]


def test_no_warning_where_a_face_fills_the_picture() -> None:
    assert face_sides([FILLED])[0] > 0.55 and face_warning(face_sides([FILLED] * 5)) is None
    assert face_warning(face_sides([FILLED, FILLED, EMPTY, EMPTY, FILLED])) is None
    assert face_warning([]) is None and faces_warning({}) is None and faces_warning({"a": [0.6], "b": [0.55]}) is None


def test_many_clips_are_counted_and_one_is_named() -> None:
    said = faces_warning({"a": [0.6, 0.7], "b": [0.2, 0.3], "c": [0.0]})
    assert said == (
        "Faces are not cropped here (faces=none), so a face must fill the picture, but in 2 of 3 clips looked at it "
        "does not (b: in 2 frames looked at it takes 25 % of the picture's side (55 % or more is expected)): crop the "
        "video to the face, or train a checkpoint with faces=cascade."
    )
    assert faces_warning({"b": [0.2, 0.3]}) == face_warning([0.2, 0.3])


def test_rendered_faces_fill_the_picture() -> None:
    assert min(face_sides(rendered_faces(12))) > 0.55


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([EMPTY] * 5, r"but no face was found in 5 frames looked at: crop the video to the face"),
        ([SMALL] * 3, r"but in 3 frames looked at it takes 3\d % of the picture's side \(55 % or more is expected\)"),
        ([SMALL], r"but in 1 frame looked at it takes"),
        ([EMPTY, FILLED, EMPTY], r"but of 3 frames looked at, 2 show no face, and in the rest it takes \d\d %"),
    ],
)
def test_the_warning_gives_the_share(frames: list[Frames], words: str) -> None:
    with_words = rf"^Faces are not cropped here \(faces=none\), so a face must fill the picture, {words}"
    said = face_warning(face_sides(frames))
    assert said is not None
    with pytest.raises(ValueError, match=with_words):
        raise ValueError(said)


def test_opencv_without_cascades_costs_the_check_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("cv2.data.haarcascades")
    monkeypatch.setattr(face_check, "_LOCAL", threading.local())
    sample = FrameSample()
    sample.add(EMPTY[None])
    said = face_warning(sample.sides())
    assert said is not None and said.startswith("Whether a face fills the picture was not checked: ")


@pytest.mark.parametrize("count", [1, 3, 5, 6, 64, 1000])
def test_the_sample_is_spread_over_a_stream_of_any_length(count: int) -> None:
    sample = FrameSample()
    numbered = np.arange(count, dtype=np.int64)[:, None, None, None].repeat(3, axis=3)
    for part in np.array_split(numbered, max(1, count // 50)):
        sample.add(part)  # type: ignore[arg-type]
    taken = [int(frame[0, 0, 0]) for frame in sample.frames]
    assert len(taken) == min(count, 5) and taken == sorted(set(taken))
    assert taken[0] == 0 and taken[-1] >= 0.9 * (count - 1)
    assert len(sample.frames) < 2 or max(np.diff(taken)) <= 0.35 * count + 1


def test_a_clip_is_checked_only_where_no_detector_crops(tmp_path: Path) -> None:
    backbone = shared_backbone()
    path = write_video(tmp_path / "v.mp4", np.stack([photograph(scale=0.8)] * 20))
    clip = Clip("c", "s", str(path), "target")
    cropped = FeatureSpec.of(backbone, Sampling(12.5), FaceConfig(detector="cascade")).frames
    assert encode_clip(clip, backbone, cropped).face_sides == ()
    taken = FeatureSpec.of(backbone, Sampling(12.5)).frames
    sides = encode_clip(clip, backbone, taken).face_sides
    assert len(sides) == 5 and str(face_warning(sides)).startswith("Faces are not cropped here")
    marked = tmp_path / "rendered.mp4"
    write_mp4(marked, np.stack([photograph(scale=0.8)] * 20))
    assert encode_clip(replace(clip, source=str(marked)), backbone, taken).face_sides == (), "rendered faces fill it"
