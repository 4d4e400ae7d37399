"""What jobs say of their footage before they work with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipautt.backbones.loading import BackboneConfig
from clipautt.clips import Clip
from clipautt.footage import Footage, truth_path
from clipautt.manifest import Manifest
from clipautt.video.preprocessing import Frames
from ray_jobs.platform.footage import training_footage
from tests.support.fakes import write_video
from tests.support.photograph import photograph

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
