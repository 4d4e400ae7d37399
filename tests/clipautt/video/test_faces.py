"""Faces are found where they are, with their eyes; a wrong setting or file says what is wrong."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError
from skimage import data

from clipautt.action_units import RENDERED
from clipautt.datasets.synthetic.identity import draw_identity
from clipautt.datasets.synthetic.renderer import render
from clipautt.settings import one_line
from clipautt.video.faces import Eyes, Face, FaceConfig, Point, choose_eyes, few_faces, make_detector
from tests.support.fake_yunet import write_fake_yunet
from tests.support.photograph import PHOTO_EYES, PHOTO_FACE, photograph

CASCADE = FaceConfig(detector="cascade")


def test_the_face_in_a_photograph() -> None:
    (face,) = make_detector(CASCADE)(data.astronaut())
    assert face.centre == pytest.approx(PHOTO_FACE, abs=6)
    assert 85 < face.side < 110
    assert face.eyes is not None
    assert np.allclose(face.eyes, PHOTO_EYES, atol=4)


@pytest.mark.parametrize("detect_pixels", [240, 960])
def test_boxes_are_in_pixels_of_the_full_frame(detect_pixels: int) -> None:
    large = cv2.resize(data.astronaut(), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    (face,) = make_detector(FaceConfig(detector="cascade", detect_pixels=detect_pixels))(large)
    assert face.centre == pytest.approx((2 * PHOTO_FACE[0], 2 * PHOTO_FACE[1]), abs=14)
    assert face.eyes is not None and np.allclose(face.eyes, 2 * np.array(PHOTO_EYES), atol=8)


def test_a_face_turned_clockwise_has_a_positive_angle() -> None:
    detect = make_detector(CASCADE)
    angles = []
    for turned in (-0.17, 0.0, 0.17):
        (face,) = detect(photograph(turned=turned, scale=1.5))
        assert face.angle is not None
        angles.append(face.angle)
    assert np.diff(angles) == pytest.approx([0.17, 0.17], abs=0.04)


@pytest.mark.parametrize("change", ["dark", "bright", "noisy", "half hidden"])
def test_a_face_in_poor_footage(change: str) -> None:
    frame = photograph(scale=1.4).astype(np.float64)
    if change == "dark":
        frame *= 0.08
    elif change == "bright":
        frame += 140
    elif change == "noisy":
        frame += np.random.default_rng(0).normal(0, 25, frame.shape)
    else:
        frame[:, 250:] = 90
    (face,) = make_detector(CASCADE)(frame.clip(0, 255).astype(np.uint8))
    assert face.centre == pytest.approx((240, 180), abs=16)


def test_synthetic_faces_and_their_eyes() -> None:
    detect = make_detector(CASCADE)
    neutral = np.zeros(len(RENDERED))
    for seed in range(1_000_000, 1_000_006):
        tilts = []
        for roll in (-0.15, 0.15):
            frame = render(draw_identity(seed), neutral, pose=(0, 0, roll), size=128, rng=np.random.default_rng(seed))
            (face,) = detect(frame)
            assert 70 < face.side < 128 and face.centre == pytest.approx((64, 64), abs=16)
            assert face.angle is not None
            tilts.append(face.angle)
        assert abs(tilts[1] - tilts[0]) == pytest.approx(0.3, abs=0.06)


def test_a_turned_face_is_found_on_either_side() -> None:
    man_in_profile = np.repeat(data.camera()[:, :, None], 3, axis=2)
    detect = make_detector(CASCADE)
    (face,), (mirrored,) = detect(man_in_profile), detect(np.ascontiguousarray(man_in_profile[:, ::-1]))
    assert face.centre == pytest.approx((230, 145), abs=15) and face.eyes is None
    assert face.turn == mirrored.turn == 60, "only the cascade for profiles finds it"
    assert detect(photograph())[0].turn is None, "a frontal face, of which the cascades tell no angle"
    assert mirrored.centre == pytest.approx((512 - face.centre[0], face.centre[1]), abs=3)


@pytest.mark.parametrize("name", ["coffee", "rocket", "gravel", "clock"])
def test_pictures_without_a_face(name: str) -> None:
    picture = getattr(data, name)()
    frame = picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)
    assert make_detector(CASCADE)(frame) == ()


def test_a_face_smaller_than_asked_is_left_out() -> None:
    """Its box is 0.19 of the picture; one that was found is followed down to 0.7 of the smallest that counts."""
    assert make_detector(FaceConfig(detector="cascade", min_face=0.35))(data.astronaut()) == ()
    (face,) = make_detector(FaceConfig(detector="cascade", min_face=0.25))(data.astronaut())
    assert face.size == face.side


def test_a_small_frame_is_enlarged_for_a_small_face() -> None:
    """A face of 17 pixels, where the cascades need 20."""
    frame = cv2.resize(data.astronaut(), (96, 96), interpolation=cv2.INTER_AREA)
    (face,) = make_detector(CASCADE)(frame)
    assert face.centre == pytest.approx(np.array(PHOTO_FACE) * 96 / 512, abs=2) and 15 < face.side < 22


def test_eyes_are_found_in_the_dark_too() -> None:
    dark = (data.astronaut() * 0.08).astype(np.uint8)
    (face,) = make_detector(CASCADE)(dark)
    assert face.eyes is not None and np.allclose(face.eyes, PHOTO_EYES, atol=4)


def test_yunet_sees_dark_frames_equalized(tmp_path: Path) -> None:
    """The stand-in is certain of a face by how red it is: a tenth of it is not enough, equalized it is."""
    model = str(write_fake_yunet(tmp_path / "yunet.onnx"))
    frame = np.full((128, 128, 3), 2, np.uint8)
    frame[40:48, 40:48] = (60, 2, 2)
    config = FaceConfig(detector="yunet", model=model, min_score=0.5)
    assert len(make_detector(config)(frame)) == 1
    bright = frame.copy()
    bright[:, 112:] = (0, 255, 255)
    assert make_detector(config)(bright) == ()


def test_the_least_certain_face_is_a_setting(tmp_path: Path) -> None:
    model = str(write_fake_yunet(tmp_path / "yunet.onnx"))
    frame = np.zeros((128, 128, 3), np.uint8)
    frame[40:48, 40:48], frame[:, 112:] = (150, 0, 0), (0, 255, 255)
    found = {
        score: len(make_detector(FaceConfig(detector="yunet", model=model, min_score=score))(frame))
        for score in (0.5, 0.7)
    }
    assert found == {0.5: 1, 0.7: 0}


def test_a_frame_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"frame is float64 \[4, 4, 3\]; uint8 \[height, width, 3\] is needed"):
        make_detector(CASCADE)(np.zeros((4, 4, 3)))
    assert make_detector(CASCADE)(np.zeros((4, 4, 3), np.uint8)) == ()


@pytest.mark.parametrize(
    ("points", "pair"),
    [
        ([(30, 38), (71, 38)], ((30, 38), (71, 38))),
        ([(71, 38), (30, 38)], ((30, 38), (71, 38))),
        ([(30, 40), (71, 36), (33, 60), (70, 8)], ((30, 40), (71, 36))),
        ([(30, 38)], None),
        ([(30, 38), (45, 38)], None),
        ([(60, 38), (95, 38)], None),
        ([(30, 24), (71, 50)], None),
        ([(30, 70), (71, 70)], None),
        ([(5, 38), (95, 38)], None),
        ([], None),
    ],
)
def test_two_points_are_eyes_when_they_lie_like_eyes(points: list[Point], pair: Eyes | None) -> None:
    assert choose_eyes(points, side=100) == pair


def test_geometry_of_a_face() -> None:
    face = Face(10, 20, 30, 50, 1.0, ((10, 20), (30, 40)))
    assert face.centre == (25, 45) and face.side == 50
    assert face.angle == pytest.approx(math.pi / 4)
    assert Face(0, 0, 1, 1, 1.0).angle is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"detector": "haar"}, "faces.detector='haar': should be one of none, cascade, yunet"),
        ({"missing": "skip"}, "faces.missing='skip': should be one of drop, fill"),
        ({"align": "yes"}, "faces.align='yes': should be true or false"),
        ({"margin": -0.1}, "faces.margin=-0.1: should be greater than or equal to 0"),
        ({"smooth_seconds": math.nan}, "faces.smooth_seconds=nan: should be a finite number"),
        ({"max_gap_seconds": "2"}, "faces.max_gap_seconds='2': should be a number"),
        ({"detect_pixels": 10}, "faces.detect_pixels=10: should be greater than or equal to 64"),
        ({"min_share": 0}, "faces.min_share=0: should be greater than 0"),
        ({"min_score": 1}, "faces.min_score=1: should be less than 1"),
        ({"which": "above"}, "faces.which='above': should be one of largest, left, right, center or an integer"),
        ({"which": 0}, "faces.which=0: should be one of largest, left, right, center or greater than 0"),
        ({"min_face": 0}, "faces.min_face=0: should be greater than or equal to 0.01"),
        ({"detector": "yunet"}, "faces.model=None; faces.detector='yunet' needs the path of YuNet's ONNX file"),
        (
            {"detector": "yunet", "model": "/nowhere/yunet.onnx"},
            "faces.model='/nowhere/yunet.onnx' is not there; give the path of YuNet's ONNX file",
        ),
    ],
)
def test_a_wrong_setting_names_itself(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        FaceConfig(**setting)  # type: ignore[arg-type]
    assert one_line(error.value, "faces") == message


def test_none_makes_no_detector() -> None:
    with pytest.raises(ValueError, match=r"faces.detector='none' finds no faces; cascade and yunet do"):
        make_detector(FaceConfig())


def test_opencv_without_cascades(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cv2.data, "haarcascades", f"{tmp_path}/")
    with pytest.raises(
        ValueError, match=r"comes without haarcascade_.*install opencv-python-headless 4.x, or give faces"
    ):
        make_detector(CASCADE)


def test_facts_hold_what_changes_a_crop(tmp_path: Path) -> None:
    here, there = write_fake_yunet(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    shutil.copy(here, there)
    first, second = (FaceConfig(detector="yunet", model=str(path)) for path in (here, there))
    assert first.facts == second.facts and str(tmp_path) not in json.dumps(first.facts)
    assert len(first.model_hash) == 16 and first.facts["model_hash"] == first.model_hash
    assert FaceConfig(**first.facts).facts == first.facts
    assert FaceConfig(margin=0.5).facts == FaceConfig().facts == {"detector": "none"}
    assert CASCADE.facts != FaceConfig(detector="cascade", margin=0.5).facts
    assert CASCADE.facts == FaceConfig(detector="cascade", model="unused.onnx").facts
    # What decides which windows count changes no crop; what came later is left out at its default.
    assert CASCADE.facts == FaceConfig(detector="cascade", min_share=0.5, min_score=0.5).facts
    assert FaceConfig(detector="cascade", which="left").facts == CASCADE.facts | {"which": "left"}
    less = FaceConfig(detector="yunet", model=str(here), min_score=0.5)
    assert less.facts == first.facts | {"min_score": 0.5} and FaceConfig(**less.facts).facts == less.facts


def test_stored_features_and_checkpoints_of_earlier_versions_stay_valid() -> None:
    assert CASCADE.facts == {
        "detector": "cascade",
        "margin": 0.2,
        "align": True,
        "smooth_seconds": 0.15,
        "missing": "fill",
        "max_gap_seconds": 2.0,
        "detect_pixels": 480,
        "min_face": 0.15,
    }


@pytest.mark.parametrize(
    ("config", "share"), [(FaceConfig(), 0.0), (CASCADE, 0.8), (FaceConfig(detector="cascade", missing="drop"), 1.0)]
)
def test_share_of_a_window_that_must_show_the_face(config: FaceConfig, share: float) -> None:
    assert config.window_share == share


def test_a_clip_may_name_its_face() -> None:
    assert CASCADE.following(None) is CASCADE
    assert CASCADE.following("left").which == "left" and CASCADE.following("2").which == 2
    for face in ("above", "0", "-1", "²", ""):
        with pytest.raises(ValueError, match=r"allowed: largest, left, right, center, or a number from 1"):
            CASCADE.following(face)
    with pytest.raises(ValueError, match=r"face='left' needs a face detector"):
        FaceConfig().following("left")


def test_few_faces_name_another_detector() -> None:
    assert few_faces(0.7, CASCADE) is None and few_faces(math.nan, FaceConfig()) is None
    said = few_faces(0.161, CASCADE)
    assert said is not None and said.startswith("the face is found in only 16 % of the frames; YuNet finds more faces")
    assert "faces=yunet faces.model=" in said and "https://" in said
    with_yunet = few_faces(0.1, FaceConfig(detector="yunet", model_hash="x"))
    assert with_yunet is not None and "faces.min_score below 0.7" in with_yunet


def test_path_of_the_model_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    write_fake_yunet(Path("yunet.onnx"))
    for given in ("yunet.onnx", "~/yunet.onnx", f"{tmp_path}/yunet.onnx"):
        assert FaceConfig(detector="yunet", model=given).model == f"{tmp_path}/yunet.onnx"
    assert FaceConfig(model="gone.onnx").model == "gone.onnx"


@pytest.mark.parametrize("degrees", [-15, 15])
def test_a_tilted_face_is_found(degrees: int) -> None:
    detect = make_detector(CASCADE)
    for scale in (0.9, 1.2, 1.5, 1.9):
        (face,) = detect(photograph(scale=scale, turned=math.radians(degrees)))
        assert face.centre == pytest.approx((240, 180), abs=16 * scale)


def test_yunet_boxes_and_eyes(tmp_path: Path) -> None:
    """The stand-in finds a face of 32 × 40 pixels around a red cell of 8 × 8 in the picture reduced to one half."""
    model = str(write_fake_yunet(tmp_path / "yunet.onnx"))
    detect = make_detector(FaceConfig(detector="yunet", model=model, detect_pixels=320))
    frame = np.zeros((480, 640, 3), np.uint8)
    frame[:, 600:] = (0, 255, 255)  # not a dark frame
    assert detect(frame) == ()
    frame[80:96, 32:48] = (0, 0, 255)
    assert detect(frame) == ()
    frame[160:176, 320:336] = (255, 0, 0)
    assert detect(frame) == (Face(296, 128, 64, 80, 1.0, ((308, 152), (340, 168)), pytest.approx(0, abs=1e-3)),)
    # A box of 64 × 80 counts as 72 pixels, 0.149 of 480, and is followed where 0.149 / 0.7 is the smallest that counts.
    for min_face, found in ((0.21, 1), (0.22, 0)):
        config = FaceConfig(detector="yunet", model=model, detect_pixels=320, min_face=min_face)
        assert len(make_detector(config)(frame)) == found


def test_yunet_takes_frames_of_any_size(tmp_path: Path) -> None:
    detect = make_detector(FaceConfig(detector="yunet", model=str(write_fake_yunet(tmp_path / "yunet.onnx"))))
    for height, width in ((100, 130), (31, 33), (130, 100)):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[8:16, 16:24] = (255, 0, 0)
        assert detect(frame) == (Face(4, -8, 32, 40, 1.0, ((10, 4), (26, 12)), pytest.approx(0, abs=1e-3)),)


def test_yunet_file_must_be_the_one_it_was(tmp_path: Path) -> None:
    model = write_fake_yunet(tmp_path / "yunet.onnx")
    config = FaceConfig(detector="yunet", model=str(model))
    model.write_bytes(model.read_bytes() + b"\x10\x01")
    message = (
        r"faces\.model='.*yunet\.onnx' is not the file that the checkpoint was trained with: its SHA-256 begins with "
        rf"\w{{16}}, not {config.model_hash}, so its crops differ; give that file as faces\.model$"
    )
    with pytest.raises(ValueError, match=message):
        make_detector(config)
    model.unlink()
    with pytest.raises(ValueError, match=r"faces.model='.*yunet.onnx' is not there"):
        make_detector(config)
    with pytest.raises(ValueError, match=r"faces.model=None"):
        make_detector(FaceConfig(**config.facts))


@pytest.mark.parametrize("content", [b"", b"not a model " * 9, "another model"])
def test_a_file_that_is_no_yunet(tmp_path: Path, content: bytes | str) -> None:
    model = write_fake_yunet(tmp_path / "yunet.onnx")
    model.write_bytes(content if isinstance(content, bytes) else model.read_bytes().replace(b"cls_8", b"out_8"))
    with pytest.raises(
        ValueError, match=r"faces.model='.*yunet.onnx' is not a YuNet ONNX file that OpenCV can read \("
    ):
        make_detector(FaceConfig(detector="yunet", model=str(model)))
