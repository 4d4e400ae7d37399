"""The figure of an answer: named curves, and words where there are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from clipautt.prediction.answers import VideoPrediction
from clipautt.prediction.figure import CURVE, rendered
from clipautt.prediction.lettering import fitting, length, wrapped
from tests.clipautt.prediction.test_answers import answer, fallen, seen_clip


def curves(prediction: VideoPrediction) -> list[list[str]]:
    """Names of the curves of each chart."""
    charts = prediction.plot().axes
    return [[str(line.get_label()) for line in axes.lines if line.get_gid() == CURVE] for axes in charts]


def words(prediction: VideoPrediction) -> list[str]:
    return [text.get_text() for text in prediction.plot().findobj(Text) if text.get_text()]


def test_the_curves_have_names_and_values() -> None:
    found = answer(seen_clip())
    track, classes, units = curves(found)
    names = {code: f"{code} {name}" for code, name in found.top_action_units["name"].items()}
    assert track == [] and set(classes) == {"neutral", "pain"} and set(units) == set(names.values())
    likely = classes[-1]
    assert likely == found.label, "drawn last, above the others"
    line = next(line for line in found.plot().axes[1].lines if line.get_label() == likely)
    table = found.windows
    assert np.asarray(line.get_xdata()) == pytest.approx(table["time_seconds"])
    assert np.asarray(line.get_ydata()) == pytest.approx(table[f"probability_{likely}"], nan_ok=True)
    window = f"{found.window_start_seconds:.2f} to {found.window_end_seconds:.2f} s of 0.80 s"
    assert any(window in line and "face found in 80 % of the frames" in line for line in words(found))
    assert "! other_faces" in words(found) and "inferred" in words(found)


def test_words_say_why_there_are_no_curves() -> None:
    found = answer(seen_clip())
    count = len(found.action_unit_codes)
    unlearned = replace(found, not_learned=found.action_unit_codes)
    assert curves(unlearned)[2] == []
    assert f"no curves: the backbone has learned none of the model's {count} action units" in words(unlearned)
    nothing = replace(found, label=None, probabilities={}, curves=None, reason="too short: 3 frames")
    assert curves(nothing) == [[], [], []]
    assert {"no label", "too short: 3 frames", "no curves: too short: 3 frames"} <= set(words(nothing))
    assert [one[2] for one in rendered(nothing).charts] == [True, False, False]
    falls = fallen(found)
    assert curves(falls)[2] == [] and "no action unit rose over its usual level" in words(falls)
    assert [one[2] for one in rendered(falls).charts] == [True, True, False], "no cursor where there is no curve"
    some = replace(found, not_learned=found.action_unit_codes[:2])
    assert "left out: 2 AUs that the\nbackbone never learned" in words(some)
    assert not any(code in name for code in some.not_learned for name in curves(some)[2])


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    strange = replace(answer(seen_clip()), video="/d/a $x_1^2$\nb \\frac.mp4", cautions={"decoding": "$\\bad{ % & "})
    with Image.open(strange.plot(tmp_path / "new" / "f.png") and tmp_path / "new" / "f.png") as picture:
        assert picture.size == (1440, 1.5 * len(rendered(strange).pixels))
    assert {"a $x_1^2$ b \\frac.mp4", "$\\bad{ % &"} <= set(words(strange))


def test_a_figure_is_written_as_its_name_says_and_always_the_same(tmp_path: Path) -> None:
    found = answer(seen_clip())
    for name, begins in (("a.svg", b"<?xml"), ("a.PDF", b"%PDF"), ("a.png", b"\x89PNG")):
        found.plot(tmp_path / name)
        first = (tmp_path / name).read_bytes()
        found.plot(tmp_path / name)
        assert first.startswith(begins) and first == (tmp_path / name).read_bytes()
    with pytest.raises(ValueError, match=r"path=a\.jpg: allowed for a figure: names that end in \.png, \.svg or \.pdf"):
        found.plot("a.jpg")


def test_text_is_broken_and_shortened_to_the_width() -> None:
    text = f"one two {'x' * 60} three 表情 \u202e end"
    lines = wrapped(text, 150, 9)
    assert "".join(lines).replace(" ", "") == text.replace("\u202e", "").replace(" ", "")
    assert lines[0] == "one two" and all(length(line, 9) <= 150 for line in lines)
    assert wrapped(text, 150, 9, most=2)[1].endswith("x…") and len(wrapped(text, 150, 9, most=2)) == 2
    assert fitting("", 100, 9) == "" and fitting("A", 100, 9) == "A" and fitting("AB", 5, 9) == "…"
    assert fitting("a_long_name_of_a_clip.mp4", 100, 9) == "a_long_….mp4"
