"""`Predictor` on stored features: it must say what adaptation said, with or without a personalization."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipautt.adaptation.driver import adapt
from clipautt.adaptation.personalization import Personalization, save_personalization, subject_file
from clipautt.model.windows import WindowSpec
from clipautt.predictor import Predictor
from tests.support.configs import adapt_config
from tests.support.fakes import fake_clip, fake_clips, fake_source

LONGER = WindowSpec(length=10, hop=2)


@pytest.mark.parametrize("window", [None, LONGER])
@pytest.mark.parametrize("objective", ["none", "infomax"])
def test_a_personalized_prediction_is_the_one_of_its_adaptation(
    tmp_path: Path, objective: str, window: WindowSpec | None
) -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    config = adapt_config(objective=objective, window=window, steps=2)  # type: ignore[arg-type]
    result = adapt(source, clips, config)["s0"]
    path = tmp_path / subject_file("s0")
    save_personalization(Personalization.of(result, config), path, checkpoint=source.checkpoint.fingerprint)
    predictor = Predictor(source, personalizations=tmp_path)
    by_id = {clip.clip_id: clip for clip in clips}
    for expected in result.predictions:
        found = predictor.predict_features(
            by_id[expected.clip_id], personalization=predictor.find_personalization("s0")
        )
        assert list(found.probabilities.values()) == pytest.approx(expected.probabilities.tolist(), abs=1e-6)
        assert found.window_start_seconds == expected.window_start_seconds
        assert found.window_end_seconds == expected.window_end_seconds
        spec = window or source.window
        assert len(found.entropy) == -(-(20 - spec.length) // spec.hop) + 1
        assert found.personalized_for == "s0"


def test_the_curve_is_lowest_at_the_window_of_the_answer() -> None:
    found = Predictor(fake_source()).predict_features(fake_clip(), video="face.mp4")
    middle = (found.window_start_seconds + found.window_end_seconds) / 2
    assert found.entropy.idxmin() == pytest.approx(middle)
    assert isinstance(found.action_units, pd.DataFrame) and found.action_units.index.equals(found.entropy.index)
    assert found.video == "face.mp4" and found.personalized_for is None


def test_windows_of_the_given_settings_count() -> None:
    found = Predictor(fake_source(), config=adapt_config(protocol="per_video", window=LONGER)).predict_features(
        fake_clip()
    )
    assert len(found.entropy) == 6


def test_unknown_subject_names_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / subject_file("anna")).touch()
    with pytest.raises(FileNotFoundError, match=r"no adapted prompts for subject 'bob' in .*; there are: anna"):
        Predictor(fake_source(), personalizations=tmp_path).find_personalization("bob")
    with pytest.raises(ValueError, match="needs a folder of adapted prompts: give prompts=FOLDER"):
        Predictor(fake_source()).find_personalization("bob")


def test_too_few_frames_of_a_face_have_a_reason_and_no_label() -> None:
    gone = replace(fake_clip(), face_found=np.arange(20) < 3, min_share=0.8, other_faces=2)
    found = Predictor(fake_source()).predict_features(gone, video="face.mp4")
    assert found.label is None and found.probabilities == {} and np.isnan(found.window_start_seconds)
    assert found.reason.startswith("the face is found in 3 of 20 frames, and no window of 6 frames shows it in 80 %")
    assert found.face_share == 0.15 and found.other_faces == 2
    assert found.action_units.empty and found.entropy.empty and len(found.action_units.columns) > 0
    assert repr(found) == f"VideoPrediction(None: {found.reason})"


def test_a_short_clip_has_a_label_with_the_centre_of_its_subject(tmp_path: Path) -> None:
    source, config = fake_source(subject_baseline="median"), adapt_config(subject_baseline="median")
    result = adapt(source, fake_clips(subjects=1), config)["s0"]
    path = tmp_path / subject_file("s0")
    save_personalization(Personalization.of(result, config), path, checkpoint=source.checkpoint.fingerprint)
    predictor, short = Predictor(source, personalizations=tmp_path), fake_clip(num_frames=1)
    alone = predictor.predict_features(short)
    assert alone.label is None and alone.reason.startswith("too short: 1 frame, fewer than a window of 6")
    known = predictor.predict_features(short, personalization=predictor.find_personalization("s0"))
    assert known.label is not None and known.reason == "" and np.isnan(known.face_share)
    faceless = replace(fake_clip(), face_found=np.zeros(20, bool), min_share=0.8)
    gone = predictor.predict_features(faceless, personalization=predictor.find_personalization("s0"))
    assert gone.label is None and gone.personalized_for == "s0" and gone.reason.startswith("the face is found in 0 of")


def test_windows_without_the_face_have_no_row() -> None:
    half = replace(fake_clip(num_frames=40), face_found=np.arange(40) < 20, min_share=1.0)
    found = Predictor(fake_source()).predict_features(half)
    assert len(found.entropy) == len(found.action_units) == 15 and found.face_share == 0.5
    assert found.label is not None and found.window_end_seconds <= 20 / 12.5 + 1e-9
