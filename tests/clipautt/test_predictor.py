"""`Predictor` on stored features: it must say what adaptation said, with or without a personalization."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipautt.action_units import RENDERED, VOCABULARY, phrases, unit
from clipautt.adaptation.driver import adapt
from clipautt.adaptation.personalization import Personalization, save_personalization
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.datasets.synthetic.video import write_mp4
from clipautt.footage import Footage
from clipautt.model.checkpoint import Checkpoint
from clipautt.model.windows import WindowSpec
from clipautt.predictor import Predictor
from clipautt.subjects import subject_file
from tests.support.configs import adapt_config, changed
from tests.support.fakes import fake_clip, fake_clips, fake_source, shared_backbone, write_video
from tests.support.photograph import photograph

REAL = "for the face of a real person the answer means nothing."
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


def trained_on(footage: Footage, *, embedded: bool = False) -> Source:
    """A source of a checkpoint trained on this footage, with the embedded backbone or one of which nothing is known."""
    made = fake_source(backbone=load_backbone(BackboneConfig()) if embedded else shared_backbone(), phrases=phrases())
    checkpoint = made.checkpoint
    return Source(Checkpoint(checkpoint.model, replace(checkpoint.spec, footage=footage)), made.backbone)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face that fills the picture."""
    frame = photograph(x=120, y=120, scale=1.6, size=(240, 240))
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", np.stack([frame] * 30))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Marked as rendered; the same face."""
    frame = photograph(x=120, y=120, scale=1.6, size=(240, 240))
    path = tmp_path_factory.mktemp("rendered") / "rendered.mp4"
    write_mp4(path, np.stack([frame] * 30))
    return path


@pytest.mark.parametrize(
    ("footage", "embedded", "who"),
    [
        (Footage("rendered"), True, "The backbone 'embedded' and the checkpoint were"),
        (Footage("other"), True, "The backbone 'embedded' was"),
        (Footage("rendered"), False, "The checkpoint was"),
        (Footage("other"), False, None),
        (Footage(), False, None),
    ],
)
def test_footage_that_the_model_has_never_seen_is_warned_of(
    film: Path, rendered: Path, footage: Footage, embedded: bool, who: str | None
) -> None:
    predictor = Predictor(trained_on(footage, embedded=embedded))
    expected = f"{who} trained on rendered faces only, and this video is not marked as rendered: {REAL}"
    found = predictor.predict(film)
    assert found.warnings == (() if who is None else (expected,))
    assert ("; warning: " in repr(found)) == (who is not None)
    if footage.faces != "other":
        assert predictor.predict(rendered).warnings == ()


def test_a_rendered_face_is_unlike_films(rendered: Path) -> None:
    (warning,) = Predictor(trained_on(Footage("other", ("BioVid",)))).predict(rendered).warnings
    assert warning.endswith("and this video is rendered: for a rendered face the answer means nothing.")


def test_notes_on_the_footage_become_warnings(tmp_path: Path) -> None:
    """The share that a face takes is checked when the video is read; what stands in the features is passed on."""
    small = write_video(tmp_path / "small.mp4", np.stack([photograph(x=120, y=120, scale=0.7, size=(240, 240))] * 20))
    predictor = Predictor(fake_source())
    (warning,) = predictor.predict(small).warnings
    assert "a face must fill the picture, but in 5 frames looked at it takes 2" in warning
    found = predictor.predict_features(replace(fake_clip(), notes=("HDR is shown dark", "a frame is gone")))
    assert found.cautions == {"decoding": "HDR is shown dark; a frame is gone"}


def test_the_top_five_are_those_that_the_backbone_has_learned_with_their_names() -> None:
    source = trained_on(Footage(), embedded=True)
    found = Predictor(source).predict_features(fake_clip(feature_dim=128))
    assert len(found.not_learned) == 18 and not set(found.not_learned) & set(RENDERED)
    assert list(found.action_units.columns) == [one.code for one in VOCABULARY], "the curves of all are kept"
    top = found.top_action_units
    inside = found.action_units.loc[found.window_start_seconds : found.window_end_seconds]
    rise = (inside.mean() - found.action_units.median()).sort_values(ascending=False)
    assert not set(rise.index[:5]) <= set(RENDERED), "the test's clip has no AU to leave out"
    assert top.index.tolist() == [code for code in rise.index if code in RENDERED][:5]
    assert top["name"].tolist() == [unit(code).name for code in top.index]
    assert top["rise"].tolist() == pytest.approx(rise[top.index].tolist())
    code, name, rise_of_first = top.index[0], top["name"].iloc[0], top["rise"].iloc[0]
    assert f"; rise in AU similarity (cosine): {code} {name} {rise_of_first:+.3f}, " in repr(found)


def test_where_nothing_is_known_of_the_backbone_no_action_unit_is_left_out() -> None:
    found = Predictor(fake_source()).predict_features(fake_clip())
    assert found.not_learned == () and len(found.top_action_units) == 5


def test_too_few_frames_of_a_face_have_a_reason_and_no_label() -> None:
    gone = replace(fake_clip(), face_found=np.arange(20) < 3, min_share=0.8, other_faces=2)
    found = Predictor(fake_source()).predict_features(gone, video="face.mp4")
    assert found.label is None and found.probabilities == {} and np.isnan(found.window_start_seconds)
    assert found.reason.startswith("the face is found in 3 of 20 frames, and no window of 6 frames shows it in 80 %")
    assert found.face_share == 0.15 and found.other_faces == 2
    assert list(found.cautions) == ["few_faces", "other_faces"]
    assert found.warnings[0].startswith("The face is found in only 15 % of the frames; YuNet finds more faces")
    assert found.warnings[1].startswith("2 other faces were left out; ")
    assert found.action_units.empty and found.entropy.empty and len(found.action_units.columns) > 0
    assert found.top_action_units.empty
    warned = "; warning: ".join(found.warnings)
    assert repr(found) == f"VideoPrediction(None: {found.reason}; warning: {warned})"


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


def test_a_prediction_without_the_adaptation_that_was_asked_for_says_so() -> None:
    source, config = fake_source(), adapt_config(objective="entropy", steps=2)
    result = adapt(source, fake_clips(subjects=1), config)["s0"]
    stopped = replace(Personalization.of(result, config), fallback="not adapted: all 8 clips fell into 'pain'")
    said = "Adaptation went wrong, and the prediction is made without it: all 8 clips fell into 'pain'."
    assert Predictor(source).predict_features(fake_clip(), personalization=stopped).cautions["not_adapted"] == said
    wild = changed(config, protocol="per_video", learning_rate=1e4, max_drift=1.0)
    found = Predictor(source, config=wild).predict_features(fake_clip())
    assert "not_adapted" in found.cautions
    assert found.probabilities == Predictor(source).predict_features(fake_clip()).probabilities
    assert "not_adapted" not in Predictor(source).predict_features(fake_clip()).cautions


def test_windows_without_the_face_have_no_row() -> None:
    half = replace(fake_clip(num_frames=40), face_found=np.arange(40) < 20, min_share=1.0)
    found = Predictor(fake_source()).predict_features(half)
    assert len(found.entropy) == len(found.action_units) == 15 and found.face_share == 0.5
    assert found.label is not None and found.window_end_seconds <= 20 / 12.5 + 1e-9
