"""What the tests of `clipautt predict` share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.features.clip_features import FeatureSpec
from clipautt.model.checkpoint import save_checkpoint
from clipautt.video.decoding import Sampling
from clipautt.video.faces import FaceConfig
from tests.support.fakes import fake_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of windows of six frames, of every frame, that was trained with a face detector."""
    backbone, folder = load_backbone(BackboneConfig()), tmp_path_factory.mktemp("checkpoint")
    made = fake_checkpoint(backbone=backbone, subject_baseline="median")
    features = FeatureSpec.of(backbone, Sampling(None), FaceConfig("cascade"))
    save_checkpoint(replace(made, spec=replace(made.spec, features=features)), folder)
    return folder
