"""Stories of single clips: what a report shows of what the model saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from clipautt.action_units import RENDERED, VOCABULARY, phrases
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import Backbone, BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.evaluation.clip_stories import Side, tell_story
from clipautt.evaluation.stories import ClipStory
from clipautt.features.clip_features import encode_clip
from tests.support.fakes import fake_checkpoint, numbered_frames, shared_backbone, write_video


def story_with(backbone: Backbone, folder: Path) -> tuple[ClipStory, Side]:
    """The story of a clip of two seconds, told by a model with this backbone and all 46 prompts."""
    side = Side(Source(fake_checkpoint(backbone=backbone, phrases=phrases()), backbone), {})
    path = write_video(folder / "clip.mp4", numbered_frames(50))
    clip = Clip("clip", "s0", str(path), "target", label="pain")
    features = encode_clip(clip, backbone, side.source.checkpoint.spec.features.frames)
    row = {"prediction": "pain", "probability": 0.8, "window_start_seconds": 0.16, "window_end_seconds": 0.64}
    row_of = pd.Series(row)
    return tell_story(clip, features, side, before=row_of, after=row_of, truth=None), side


def test_units_that_the_backbone_never_learned_are_left_out(tmp_path: Path) -> None:
    story, side = story_with(load_backbone(BackboneConfig()), tmp_path)
    assert story.codes == RENDERED
    clip = Clip("clip", "s0", str(tmp_path / "clip.mp4"), "target")
    source = side.source
    _, every, _ = side.track(encode_clip(clip, source.backbone, source.checkpoint.spec.features.frames))
    kept = [number for number, one in enumerate(VOCABULARY) if one.code in RENDERED]
    np.testing.assert_allclose(story.similarities, every[:, kept], atol=1e-5)


def test_where_nothing_is_known_of_the_backbone_all_units_stay(tmp_path: Path) -> None:
    story, _ = story_with(shared_backbone(), tmp_path)
    assert len(story.codes) == story.similarities.shape[1] == 46
