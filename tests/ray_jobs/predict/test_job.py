"""`clipautt predict` on videos with too little of a face, too little at all, or too many people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.features.clip_features import FeatureSpec
from clipautt.model.checkpoint import save_checkpoint
from clipautt.video.decoding import Sampling
from clipautt.video.faces import FaceConfig
from ray_jobs import cli
from ray_jobs.predict.job import show
from tests.clipautt.prediction.test_answers import answer, fallen, seen_clip
from tests.support.fakes import fake_checkpoint, numbered_frames, write_video
from tests.support.photograph import photograph

PEOPLE = [np.concatenate([photograph(240, 180, 1.1), photograph(200 + 3 * i, 180, 0.8)], 1) for i in range(12)]
UNSEEN = (
    "The backbone 'embedded' was trained on rendered faces only, and this video is not marked as rendered: for the "
    "face of a real person the answer means nothing."
)
BACKGROUND = np.full((360, 480, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of windows of six frames, of every frame, that was trained with a face detector."""
    backbone, folder = load_backbone(BackboneConfig()), tmp_path_factory.mktemp("checkpoint")
    made = fake_checkpoint(backbone=backbone, subject_baseline="median")
    features = FeatureSpec.of(backbone, Sampling(None), FaceConfig("cascade"))
    save_checkpoint(replace(made, spec=replace(made.spec, features=features)), folder)
    return folder


def predict(checkpoint: Path, video: Path, *words: str) -> int:
    return cli.main(["predict", str(video), f"checkpoint={checkpoint}", *words])


def moving(count: int) -> list[np.ndarray]:
    return [photograph(150 + 4 * i, 180, 0.9) for i in range(count)]


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (
            [*moving(4), *[BACKGROUND] * 20],
            "no label: the face is found in 4 of 24 frames, and no window of 6 frames shows it in 80 % of them",
        ),
        (moving(1), "no label: too short: 1 frame, fewer than a window of 6 has"),
        ([photograph()] * 20, "no label: the picture does not move: its 20 frames are the same"),
    ],
)
def test_a_video_without_a_label_says_why(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], frames: list[np.ndarray], said: str
) -> None:
    video = write_video(tmp_path / "v.mp4", np.stack(frames))
    assert predict(checkpoint, video) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"{video}: {said}" in "\n".join(lines)
    warned = [line for line in lines if line.startswith("warning ")]
    assert lines[: len(warned)] == warned and lines[0] == f"warning unseen_footage: {UNSEEN}", "before the label"
    share = 100 * (4 / 24 if len(frames) == 24 else 1)
    assert f"face found in {share:.0f} % of the frames" in lines
    assert any("YuNet" in line for line in lines) == (share < 50)


def test_what_fell_is_not_printed_as_a_rise(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(seen_clip())
    for shown, said in ((found, "rise in the window"), (fallen(found), "no action unit rose over its usual level\n")):
        show(shown)
        printed = capsys.readouterr().out
        assert said in printed and ("no action unit rose" in printed) == ("no action unit" in said)
        assert "-0." not in printed


def test_other_people_are_counted_and_may_be_chosen(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "v.mp4", np.stack(PEOPLE))
    answers = {}
    for face in ("null", "left", "right"):
        assert predict(checkpoint, video, f"face={face}") == 0
        lines = capsys.readouterr().out.splitlines()
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{video}: "))
        first, rest = lines[at], lines[at + 1 :]
        answers[face] = first
        others = (
            "warning other_faces: 1 other face was left out; `clipautt predict` follows another one with face=left, "
        )
        assert any(line.startswith(others) for line in lines[:at]) == (face == "null")
        assert "face found in 100 % of the frames" in rest
    assert answers["null"] == answers["left"] != answers["right"]
    assert predict(checkpoint, video, "face=above") == 2
    assert "face='above'; allowed: largest, left, right, center, or a number from 1" in capsys.readouterr().err
    assert predict(checkpoint, video, "face=3") == 2
    assert "face 3 was asked for, and 2 faces were found" in capsys.readouterr().err


def test_a_video_without_any_face_says_what_to_try(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "v.mp4", numbered_frames(12, height=184, width=240))
    assert predict(checkpoint, video) == 2
    said = capsys.readouterr().err
    assert "no face was found in 12 frames; YuNet finds more faces" in said and len(said.splitlines()) == 1
