"""Each code where its limit is passed, and none where it is just met."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from skimage import data

from clipautt.adaptation.source import Source
from clipautt.clips import Clip
from clipautt.features.clip_features import ClipFeatures, encode_clip
from clipautt.footage import Footage
from clipautt.model.checkpoint import Checkpoint
from clipautt.model.windows import WindowSpec
from clipautt.prediction.cautions import CODES, Code, cautions
from clipautt.video.decoding import Sampling
from clipautt.video.faces import FaceConfig
from tests.support.fakes import fake_clip, fake_source, shared_backbone, write_video


def source(**changes: Any) -> Source:
    """Windows of 6 frames; the resting face is the median of the clip."""
    checkpoint = fake_source(subject_baseline="median").checkpoint
    return Source(Checkpoint(checkpoint.model, replace(checkpoint.spec, **changes)), shared_backbone())


def boxes(num_frames: int, side: float = 100) -> npt.NDArray[np.float32]:
    return np.tile(np.array([0, 0, side, 0, 1], np.float32), (num_frames, 1))


def turned(share: float) -> npt.NDArray[np.float32]:
    """20 frames, this share of them turned by 31 degrees."""
    return np.where(np.arange(20) < 20 * share, 31, np.nan).astype(np.float32)


def clip(num_frames: int = 20, *, light: float = 0.5, found: float = 1.0, **changes: Any) -> ClipFeatures:
    """A clip with nothing against it, unless something is changed."""
    faces: dict[str, Any] = {
        "face_found": np.arange(num_frames) < found * num_frames,
        "min_share": 0.8,
        "face_sides": (0.6,) * 5,
        "boxes": boxes(num_frames),
        "turned": np.full(num_frames, 29, np.float32),
    }
    known = faces | {"brightness": np.full(num_frames, light, np.float32)}
    return replace(fake_clip(num_frames=num_frames), **known | changes)


def test_a_good_clip_has_none_and_every_limit_may_be_met() -> None:
    assert cautions(source(), clip()) == {}
    assert cautions(source(), clip(light=0.15, found=0.7, face_sides=(0.55, 0.55, 0.55, 0, 0))) == {}
    assert cautions(source(), clip(boxes=boxes(20, 8), turned=turned(0.3))) == {}
    assert cautions(source(), clip(boxes=None, turned=None)) == {}, "stored by an earlier version"
    assert cautions(source(), clip(12)) == {} and cautions(source(), clip(36)) == {}
    assert cautions(source(clip_frames=30), clip(60)) == {}
    assert list(cautions(source(clip_frames=30), clip(61))) == ["too_long"]


@pytest.mark.parametrize(
    ("code", "changed", "sentence"),
    [
        ("few_faces", clip(found=0.65), "The face is found in only 65 % of the frames; YuNet finds more faces"),
        (
            "small_face",
            clip(face_sides=(0.54,) * 5),
            "Faces are not cropped here (faces=none), so a face must fill the",
        ),
        (
            "small_face",
            clip(boxes=boxes(20, 7)),
            "The face is small: the side of its box has 7 pixels, where the model takes 23 and needs 8 or more; film "
            "it from nearby, or give the video in its full size.",
        ),
        (
            "turned_face",
            clip(turned=turned(0.35)),
            "The head is turned to a side by more than 30 degrees in 35 % of the frames that show the face; "
            "half-hidden expressions are read poorly: film the face from the front.",
        ),
        ("other_faces", clip(other_faces=1), "1 other face was left out; `clipautt predict` follows another one with"),
        ("decoding", clip(notes=("HDR is shown dark", "a frame is gone")), "HDR is shown dark; a frame is gone"),
        (
            "too_short",
            clip(11),
            "The clip has 11 frames, and its resting face is estimated from them; 12 or more are needed to tell it "
            "from the expression: use other clips of the person as well (`clipautt personalize`).",
        ),
        (
            "too_short",
            clip(1),
            "The clip has 1 frame, and its resting face is estimated from it; 12 or more are needed",
        ),
        (
            "too_long",
            clip(37),
            "The clip has 37 frames, and those of training had about 18: the label rests on its most certain window, "
            "and among so many some look expressive by chance. Cut it into clips of that length.",
        ),
        (
            "too_dark",
            clip(light=0.14),
            "The picture is dark: its brightness is 0.14 on a scale from 0 to 1, and below 0.15 answers are unreliable"
            "; use brighter footage.",
        ),
    ],
)
def test_beyond_its_limit_each_code_stands_alone(code: Code, changed: ClipFeatures, sentence: str) -> None:
    found = cautions(source(), changed)
    assert list(found) == [code] and code in CODES
    assert found[code].startswith(sentence)


def test_faces_of_a_kind_that_the_model_has_not_seen(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").touch()
    video = str(tmp_path / "film.mp4")
    found = cautions(source(footage=Footage("rendered")), clip(), video=video)
    assert list(found) == ["unseen_footage"]
    assert cautions(source(footage=Footage("rendered")), clip()) == {}, "nothing is known of the video"
    assert cautions(source(footage=Footage("other")), clip(), video=video) == {}


def test_a_resting_face_from_elsewhere_needs_no_long_clip() -> None:
    assert cautions(source(), clip(1), centred=True) == {}
    assert cautions(source(subject_baseline="none"), clip(1)) == {}
    assert list(cautions(source(subject_baseline="mean"), clip(1))) == ["too_short"]


def test_frames_are_counted_as_windows_take_them() -> None:
    every_other = source(window=WindowSpec(length=6, stride=2))
    assert cautions(every_other, clip(23)) == {}
    assert cautions(every_other, clip(22))["too_short"].startswith("The clip has 11 frames, ")


def test_whose_face_was_asked_for_leaves_no_doubt() -> None:
    assert cautions(source(), clip(other_faces=2), face="left") == {}
    assert cautions(source(), clip(other_faces=2))["other_faces"].startswith("2 other faces were left out; ")


def test_brightness_is_the_mean_of_what_is_known() -> None:
    light = np.full(20, np.nan, np.float32)
    assert cautions(source(), clip(brightness=light)) == {} and cautions(source(), clip(brightness=None)) == {}
    light[:2] = 0.04, 0.1
    assert cautions(source(), clip(brightness=light))["too_dark"].startswith(
        "The picture is dark: its brightness is 0.07"
    )


@pytest.mark.parametrize(("grey", "codes"), [(18, ["small_face", "too_dark"]), (90, ["small_face"])])
def test_a_dark_video_is_measured_as_it_is_read(tmp_path: Path, grey: int, codes: list[str]) -> None:
    path = write_video(tmp_path / "dark.mp4", np.full((30, 64, 64, 3), grey, np.uint8))
    spec = source().checkpoint.spec.features.frames
    seen = encode_clip(Clip("dark", "unknown", str(path), "target"), shared_backbone(), spec)
    found = cautions(source(), seen, video=str(path))
    assert list(found) == codes
    assert seen.brightness == pytest.approx(np.full(15, grey / 255), abs=0.01)


def test_a_man_in_profile_is_measured_as_he_is_read(tmp_path: Path) -> None:
    """The cascade for profiles finds him, and his face has 100 pixels, where this image tower takes 22."""
    picture = np.repeat(data.camera()[:400, :400, None], 3, axis=2)
    path = write_video(tmp_path / "m.mp4", np.stack([np.roll(picture, 2 * shift, axis=1) for shift in range(5)]))
    spec = replace(source().checkpoint.spec.features.frames, faces=FaceConfig("cascade"), sampling=Sampling(None))
    seen = encode_clip(Clip("m", "unknown", str(path), "target"), shared_backbone(), spec)
    assert seen.turned is not None and set(seen.turned[seen.face_found]) == {60.0} and 90 < seen.face_pixels < 130
    found = cautions(source(), seen)
    assert list(found) == ["turned_face", "too_short"] and "30 degrees in 100 % of the frames" in found["turned_face"]
