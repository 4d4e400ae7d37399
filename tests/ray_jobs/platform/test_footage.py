"""What jobs say of their footage before they work with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipautt.backbones.loading import BackboneConfig
from clipautt.clips import Clip
from clipautt.footage import Footage, truth_path
from clipautt.manifest import Manifest
from clipautt.video.decoding import Sampling
from clipautt.video.faces import FaceConfig
from clipautt.video.preprocessing import Frames
from clipautt.video.reader import FrameSpec
from ray_jobs.platform.footage import training_footage, uncropped_warning
from tests.support.fakes import PREPROCESSING, write_video
from tests.support.photograph import photograph

FRAMES = FrameSpec(PREPROCESSING, Sampling(12.5))
FILLED, EMPTY = photograph(x=120, y=120, scale=1.6, size=(240, 240)), np.full((240, 240, 3), 90, np.uint8)


def clips_of(folder: Path, *pictures: Frames, dataset: str = "") -> list[Clip]:
    """A clip of a few frames for each picture."""
    paths = [write_video(folder / f"{number}.mp4", np.stack([one] * 4)) for number, one in enumerate(pictures)]
    return [Clip(path.stem, "s", str(path), "source_train", "pain", dataset=dataset) for path in paths]


def test_training_clips_unlike_the_backbones_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = clips_of(tmp_path, FILLED, EMPTY, dataset="mine")
    truth_path(clips[1].source).touch()
    manifest = Manifest(tuple(clips), ("neutral", "pain"))
    assert training_footage(manifest, BackboneConfig()) == Footage("mixed", ("mine",))
    assert capsys.readouterr().out == (
        "warning: The backbone 'embedded' was trained on rendered faces only, and 1 of 2 clips are not marked as "
        "rendered: for the face of a real person the answer means nothing.\n"
    )
    assert training_footage(manifest, BackboneConfig("ViT-B-32-quickgelu")).faces == "mixed"
    assert capsys.readouterr().out == ""


def test_faces_that_do_not_fill_the_pictures_are_told_where_no_detector_crops(tmp_path: Path) -> None:
    clips = clips_of(tmp_path, *[EMPTY] * 6, FILLED)
    said = uncropped_warning(clips, FRAMES)
    assert said is not None and "of 5 frames looked at, 4 show no face, and in the rest it takes" in said
    assert uncropped_warning(clips, FrameSpec(PREPROCESSING, Sampling(12.5), FaceConfig(detector="cascade"))) is None
    assert uncropped_warning(clips[-1:], FRAMES) is None
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    elsewhere = [Clip(name, "s", str(tmp_path / name), "target") for name in ("broken.mp4", "gone.mp4")]
    assert uncropped_warning([*elsewhere, clips[-1]], FRAMES) is None
    assert uncropped_warning(elsewhere, FRAMES) is None


def test_rendered_clips_are_not_looked_at(tmp_path: Path) -> None:
    clips = clips_of(tmp_path, EMPTY)
    assert uncropped_warning(clips, FRAMES) is not None
    truth_path(clips[0].source).touch()
    assert uncropped_warning(clips, FRAMES) is None
