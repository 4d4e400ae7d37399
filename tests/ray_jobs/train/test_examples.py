"""What is trained on: labelled clips with features and a window that shows the face; what is left out has a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clipautt.clips import Clip
from clipautt.model.training import TrainConfig
from clipautt.model.windows import WindowSpec
from clipautt.video.faces import FaceConfig
from clipautt.video.preprocessing import Preprocessing
from clipautt.video.reader import FrameSpec
from ray_jobs.platform.extraction.extract import ExtractionConfig
from ray_jobs.platform.extraction.pipeline import EncodedClip
from ray_jobs.train.job import load_examples
from ray_jobs.train.streaming import StreamedClips
from tests.support.adapting import make_world

CONFIG = TrainConfig(window=WindowSpec(length=4), subject_baseline="median")


def test_stored_clips_without_a_window_that_counts_are_no_examples(tmp_path: Path) -> None:
    """They do not move the centre of their subject either."""
    world = make_world(tmp_path, subjects=1, per_subject=4, faceless=["s0c1"])
    examples = load_examples(world.read(), world.store, world.clips, CONFIG)
    assert [(example.clip.clip_id, example.label) for example in examples] == [("s0c0", 0), ("s0c2", 0), ("s0c3", 1)]
    middle = torch.cat([example.clip.features for example in examples]).median(0).values
    assert middle.abs().max() < 1e-6
    assert all(example.clip.min_share == 0.8 for example in examples)


@pytest.mark.parametrize(("faces", "found", "omitted"), [(3, True, True), (16, True, False), (3, False, False)])
def test_streamed_clips_without_a_window_that_counts_are_omitted(faces: int, found: bool, omitted: bool) -> None:
    """Where a face is looked for; the reason is told with the epoch."""
    settings = FaceConfig("cascade") if found else FaceConfig()
    stream = StreamedClips(
        [],
        {"c": 0},
        {},
        CONFIG,
        extraction=ExtractionConfig.__new__(ExtractionConfig),
        fingerprint="",
        frames=FrameSpec(Preprocessing(32, (0, 0, 0), (1, 1, 1), "area"), faces=settings),
    )
    features = np.zeros((20, 8), np.float32)
    found = np.arange(20) < faces
    clip = Clip("c", "s", "c.mp4", "source_train")
    encoded = EncodedClip(clip, "ok", times=np.arange(20.0), face_found=found, features=features)
    assert stream._usable(encoded) is not omitted
    assert list(stream.figures.omitted) == (["c"] if omitted else [])
    if omitted:
        assert stream.figures.omitted["c"].startswith("the face is found in 3 of 20 frames, and no window of 4 frames")
    else:
        example = stream._example(encoded)
        assert example.clip.min_share == settings.window_share and example.clip.face_found is encoded.face_found
