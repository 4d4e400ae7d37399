"""An answer beside OpenFace's table of the same video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipautt.action_units import phrases
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.datasets.synthetic.generate import SyntheticConfig, generate, read_truth
from clipautt.manifest import read_manifest
from clipautt.prediction.comparison import compare
from clipautt.predictor import Predictor
from tests.support.fakes import fake_source


def write_openface(path: Path, truth: pd.DataFrame) -> Path:
    """The true intensities as OpenFace writes its own: 0 to 5, a row per frame."""
    units = {
        f"AU{int(name[2:]):02d}_r": 5 * truth[name] for name in ("AU4", "AU6", "AU7", "AU9", "AU10", "AU12", "AU25")
    }
    facts = {"frame": range(1, len(truth) + 1), "face_id": 0, "timestamp": truth["time_seconds"].round(3)}
    pd.DataFrame({**facts, "confidence": 0.98, "success": 1, **units}).to_csv(path, index=False, float_format="%.3f")
    return path


def test_similarities_follow_the_intensities_of_another_tool(tmp_path: Path) -> None:
    """The truth written as OpenFace's table: what the backbone has learned rises and falls with it."""
    config = SyntheticConfig(source_subjects=0, source_val_subjects=0, target_subjects=1, clips_per_target_subject=8)
    clips = read_manifest(generate(config, tmp_path / "data")).clips
    predictor = Predictor(fake_source(backbone=load_backbone(BackboneConfig()), phrases=phrases()))
    moved = []
    for clip in clips:
        truth = read_truth(clip.source)
        table = write_openface(tmp_path / f"{Path(clip.source).stem}.csv", truth)
        both = compare(predictor.predict(clip.source), table)
        moved += [row.spearman for row in both.itertuples() if np.ptp(truth[row.Index]) > 0.4]
    assert both.index.tolist() == ["AU4", "AU6", "AU7", "AU9", "AU10", "AU12", "AU25"] and both["learned"].all()
    assert both.loc["AU4", ["name", "tool"]].tolist() == ["Brow lowerer", "OpenFace 2"]
    assert set(both["windows"]) == {43}
    assert len(moved) >= 5 and min(moved) > 0.3
    with pytest.raises(FileNotFoundError):
        compare(predictor.predict(clips[0].source), tmp_path / "none.csv")
