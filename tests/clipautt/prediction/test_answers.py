"""The tables of an answer: every window and every frame has a row, and what is not known is left empty."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from clipautt.features.clip_features import ClipFeatures
from clipautt.model.windows import WindowSpec
from clipautt.prediction import answers
from clipautt.prediction.answers import VideoPrediction
from clipautt.prediction.cautions import CODES
from clipautt.prediction.columns import columns_of
from clipautt.prediction.shown import why_no_units
from clipautt.predictor import Predictor
from tests.support.configs import adapt_config
from tests.support.fakes import fake_clip, fake_source

HOPPING = WindowSpec(length=6, hop=4)


def seen_clip() -> ClipFeatures:
    """20 frames, 25 per second; the face is found in all but the frames 6 to 9."""
    found = np.ones(20, bool)
    found[6:10] = False
    boxes = np.column_stack([np.arange(20.0), np.full(20, 5), np.full(20, 40), np.full(20, -3), np.full(20, 0.9)])
    boxes[~found, 4] = np.nan
    light = np.linspace(0.4, 0.59, 20).astype(np.float32)
    faces = {"face_found": found, "min_share": 0.8, "boxes": boxes.astype(np.float32), "other_faces": 1}
    turned = np.where(found, np.arange(20) * 2, np.nan).astype(np.float32)
    return replace(fake_clip(), times=np.arange(20) / 25, brightness=light, turned=turned, **faces)


def answer(clip: ClipFeatures, window: WindowSpec = HOPPING) -> VideoPrediction:
    return Predictor(fake_source(), config=adapt_config(protocol="per_video", window=window)).predict_features(
        clip, video="clips/a.mp4"
    )


def with_similarities(found: VideoPrediction, values: npt.NDArray[np.floating]) -> VideoPrediction:
    """The answer, were its frames as similar as this to every AU, [T]."""
    assert found.curves is not None
    every = np.repeat(values[:, None], len(found.action_unit_codes), axis=1).astype(np.float32)
    return replace(found, curves=replace(found.curves, of_frames=every))


def fallen(found: VideoPrediction) -> VideoPrediction:
    """The answer, were every similarity lower by 0.1 in its window than elsewhere."""
    times = found.clip.times
    inside = (times >= found.window_start_seconds - 1e-9) & (times < found.window_end_seconds - 1e-9)
    return with_similarities(found, np.where(inside, 0.2, 0.3))


def test_what_fell_or_stayed_the_same_has_not_risen() -> None:
    """A flat clip, whose means differ by rounding; one in which all fall; one of a single window."""
    found = answer(fake_clip(num_frames=30))
    assert f"; rise in AU similarity (cosine): {found.top_action_units.index[0]} " in repr(found)
    falls, flat = fallen(found), with_similarities(found, np.full(30, 1 / 3))
    one = answer(fake_clip(num_frames=6))
    assert falls.rises().tolist() == pytest.approx([-0.1] * len(found.action_unit_codes))
    assert abs(flat.rises()).max() < 1e-6 and one.rises().tolist() == [0.0] * len(one.action_unit_codes)
    for made in (falls, flat, one):
        assert made.top_action_units.empty and list(made.top_action_units) == ["name", "rise"]
        assert "; no action unit rose over its usual level)" in repr(made)
    assert why_no_units(falls) == why_no_units(flat) == "no action unit rose over its usual level"
    assert why_no_units(one).endswith("usual level: the clip has one window only, so its level is the usual one")
    code = found.action_unit_codes[0]
    assert falls.row[f"{code}_rise"] == pytest.approx(-0.1), "the table keeps a fall, and calls it by its sign"
    least = with_similarities(found, np.where(found.clip.times < 0.1, 0.0, np.nan))
    assert least.top_action_units.empty


def test_every_window_has_a_row_and_those_that_do_not_count_no_numbers() -> None:
    found = answer(seen_clip())
    table = found.windows
    assert table["start_seconds"].tolist() == pytest.approx([0.0, 0.16, 0.32, 0.48, 0.56])
    assert table["end_seconds"].tolist() == pytest.approx([0.24, 0.4, 0.56, 0.72, 0.8])
    assert table["status"].tolist() == ["ok", "no_face", "no_face", "ok", "ok"]
    assert table["face_share"].tolist() == pytest.approx([1.0, 2 / 6, 4 / 6, 1.0, 1.0])
    assert table["face_x"].tolist() == pytest.approx([2.5, 6.5, 10.5, 14.5, 16.5]), "the mean over the frames"
    assert table["face_score"].tolist() == pytest.approx([0.9] * 5), "where the face was found"
    assert table["face_turn"].tolist() == pytest.approx([5.0, 9.0, 23.0, 29.0, 33.0]), "of the frames with the face"
    assert table["brightness"].tolist() == pytest.approx([0.425, 0.465, 0.505, 0.545, 0.565])
    codes = list(found.action_unit_codes)
    numbers = [*codes, *(f"{code}_evidence" for code in codes), "entropy", "probability_neutral", "probability_pain"]
    assert table[numbers].isna().all(axis=1).tolist() == [False, True, True, False, False]
    counted = table[table["status"] == "ok"]
    assert counted["entropy"].tolist() == pytest.approx(found.entropy.tolist())
    assert counted[codes].to_numpy() == pytest.approx(found.action_units.to_numpy())
    assert counted[[f"{code}_evidence" for code in codes]].to_numpy() == pytest.approx(found.evidence.to_numpy())
    assert (counted["probability_neutral"] + counted["probability_pain"]).tolist() == pytest.approx([1.0] * 3)
    assert (
        table["chosen"].sum() == 1 and table.loc[table["chosen"], "start_seconds"].item() == found.window_start_seconds
    )
    assert set(table["warnings"]) == {"other_faces"} and set(table["other_faces"]) == {1}


def test_similarities_are_cosines_of_the_frozen_backbone() -> None:
    """Neither training nor a subject's centre changes what is said of the face."""
    source, clip = fake_source(), seen_clip()
    found = answer(clip)
    frames = clip.features / clip.features.norm(dim=1, keepdim=True)
    phrases = source.text_features / source.text_features.norm(dim=1, keepdim=True)
    cosines = (frames @ phrases.T).numpy()
    assert found.action_units.iloc[1].to_numpy() == pytest.approx(cosines[12:18].mean(0), abs=1e-6)
    own = found.frames[list(found.action_unit_codes)].to_numpy()
    assert own[:5] == pytest.approx(cosines[:5], abs=1e-6) and np.isnan(own[5:13]).all()
    assert found.evidence.abs().to_numpy().max() <= 5 and not np.allclose(found.evidence, found.action_units)


def test_every_frame_has_the_numbers_of_the_window_around_it() -> None:
    found = answer(seen_clip())
    table, windows = found.frames, found.windows
    assert table["time_seconds"].tolist() == pytest.approx((np.arange(20) / 25).tolist())
    assert table["window"].tolist() == [0] * 5 + [1] * 4 + [2] * 4 + [3] * 3 + [4] * 4
    assert table["face_found"].tolist() == [True] * 6 + [False] * 4 + [True] * 10
    expected = windows.loc[table["window"], "entropy"]
    assert table["entropy"].tolist() == pytest.approx(expected.tolist(), nan_ok=True)
    assert table["status"].tolist() == windows.loc[table["window"], "status"].tolist()
    assert table["face_x"].tolist() == list(range(20))
    assert table["face_turn"].iloc[[0, 5, 6, 19]].tolist() == pytest.approx([0, 10, np.nan, 38], nan_ok=True)


@pytest.mark.parametrize("stride", [1, 3])
def test_the_window_around_a_frame_contains_it(stride: int) -> None:
    found = answer(fake_clip(num_frames=50), WindowSpec(length=6, stride=stride))
    table = found.frames.join(found.windows.set_index("window")[["start_seconds", "end_seconds"]], on="window")
    late = table["time_seconds"] - table["end_seconds"]
    assert (table["start_seconds"] <= table["time_seconds"] + 1e-9).all() and late.max() < 0.08 * stride


def _middle(found: VideoPrediction) -> float:
    return float(found.windows.loc[found.windows["chosen"], "time_seconds"].item())


def test_the_row_of_a_clip() -> None:
    found = answer(seen_clip())
    row = found.row
    assert row["status"] == "ok" and row["reason"] == "" and row["source"] == "clips/a.mp4"
    assert row["prediction"] == found.label and row["probability_pain"] == found.probabilities["pain"]
    assert (row["frames"], row["windows"], row["windows_counted"], row["face_share"]) == (20, 5, 3, 0.8)
    assert row["turned_share"] == 0.25, "4 of the 16 frames with the face"
    assert row["duration_seconds"] == pytest.approx(0.8) and row["brightness"] == pytest.approx(0.495)
    code = found.action_unit_codes[0]
    assert row[f"{code}_evidence"] == pytest.approx(found.evidence[code].loc[_middle(found)])
    assert row[f"{code}_mean"] == pytest.approx(found.action_units[code].mean())
    assert row[f"{code}_rise"] == pytest.approx(found.rises()[code])
    assert row["warnings"] == "other_faces" and row["personalized_for"] == ""


def test_a_clip_without_a_prediction_keeps_its_rows() -> None:
    """Nothing is lost: the frames and their faces are there, and every number is missing."""
    gone = replace(seen_clip(), face_found=np.arange(20) < 2)
    found = answer(gone)
    assert found.row["status"] == "no_prediction" and found.row["reason"].startswith("the face is found in 2 of 20")
    assert found.row["windows"] == 5 and found.row["windows_counted"] == 0 and np.isnan(found.row["probability_pain"])
    for table, rows in ((found.windows, 5), (found.frames, 20)):
        assert len(table) == rows and set(table["status"]) == {"no_prediction"}
        assert table[["entropy", *found.action_unit_codes]].isna().all(axis=None)


def test_without_a_detector_faces_are_unknown_not_absent() -> None:
    found = answer(fake_clip())
    assert found.windows[["face_share", "face_x", "brightness"]].isna().all(axis=None)
    assert found.frames["face_found"].isna().all()
    assert isinstance(found.frames["face_found"].dtype, pd.BooleanDtype)


def test_columns_are_those_that_are_documented() -> None:
    found = answer(seen_clip())
    names = {"classes": found.classes, "action_units": found.action_unit_codes}
    for table, made in (("clips", list(found.row)), ("windows", list(found.windows)), ("frames", list(found.frames))):
        columns = columns_of(table, **names)
        assert made == [column.name for column in columns]
        assert len({column.name for column in columns}) == len(columns) and all(one.about for one in columns)
    assert set(found.cautions) <= set(CODES)


def test_the_readme_describes_every_column_and_every_code() -> None:
    text = (Path(answers.__file__).parent / "README.md").read_text(encoding="utf-8")
    for table in ("clips", "windows", "frames"):
        rows = [
            f"| `{column.name}` | {column.about} | {column.unit} |"
            for column in columns_of(table, classes=["<class>"], action_units=["<AU>"])
        ]
        assert "\n".join(rows) in text, f"the table of {table}"
    assert all(f"| `{code}` | {meaning} |" in text for code, meaning in CODES.items())
