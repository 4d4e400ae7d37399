"""What the training job refuses."""

from __future__ import annotations

import pytest

from clipautt.clips import Clip
from ray_jobs.train.job import check_classes


def test_a_class_that_loses_all_its_clips_is_not_trained_on() -> None:
    labels = {"a": "pain", "b": "pain", "c": "neutral"}
    clips = [Clip(name, "s", f"{name}.mp4", "source_train", label=label) for name, label in labels.items()]
    check_classes(clips, {"a"})
    check_classes(clips, {"a", "b", "c"})  # training itself says that nothing is left
    with pytest.raises(ValueError, match="no clip of 'pain' is left to train on"):
        check_classes(clips, {"a", "b"})
