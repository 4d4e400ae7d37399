"""`Predictor` on stored features: it must say what adaptation said, with or without a personalization."""

from __future__ import annotations

from pathlib import Path

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


def test_a_subject_is_found_however_its_accents_are_typed(tmp_path: Path) -> None:
    source = fake_source()
    result = adapt(source, fake_clips(subjects=1), adapt_config(steps=1))["s0"]
    personalization = Personalization.of(result, adapt_config(steps=1))
    path = tmp_path / subject_file("Zo\u00eb")
    save_personalization(personalization, path, checkpoint=source.checkpoint.fingerprint)
    predictor = Predictor(source, personalizations=tmp_path)
    for typed in ("Zo\u00eb", "Zoe\u0308"):
        assert predictor.find_personalization(typed).clips == personalization.clips


def test_unknown_subject_names_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / subject_file("anna")).touch()
    with pytest.raises(FileNotFoundError, match=r"no adapted prompts for subject 'bob' in .*; there are: anna"):
        Predictor(fake_source(), personalizations=tmp_path).find_personalization("bob")
    with pytest.raises(ValueError, match="needs a folder of adapted prompts: give prompts=FOLDER"):
        Predictor(fake_source()).find_personalization("bob")
