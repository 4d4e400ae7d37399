"""What a notebook shows of an answer."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import pytest
from PIL import Image

from clipautt.prediction.answers import VideoPrediction
from clipautt.prediction.cautions import CODES
from tests.clipautt.prediction.test_answers import answer, fallen, seen_clip


@pytest.fixture(scope="module")
def found() -> VideoPrediction:
    return answer(seen_clip())


def cells(html: str) -> dict[str, str]:
    """Heading → text of each row."""
    rows = re.findall(r"<th [^>]*>(.*?)</th><td [^>]*>(.*?)</td>", html, re.S)
    return {name: re.sub(r"<[^>]*>", "", value) for name, value in rows}


def test_a_notebook_shows_the_answer_and_what_speaks_against_it(found: VideoPrediction) -> None:
    html = replace(found, cautions=CODES, personalized_for="ann")._repr_html_()
    shown = cells(html)
    assert list(shown) == [
        *("video", "prediction", "probabilities", "window", "action units", "status", "face", "other faces"),
        *("personalized for", "warnings"),
    ]
    assert shown["prediction"] == found.label and shown["status"] == "ok" and shown["other faces"] == "1"
    assert all(f"{name} {100 * value:.1f} %" in shown["probabilities"] for name, value in found.probabilities.items())
    assert shown["face"] == "face found in 80 % of the frames"
    assert all(f"{code}: {sentence}" in shown["warnings"] for code, sentence in CODES.items())
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]*)"', html)
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        assert image.size[0] == 960 and image.format == "PNG"
    assert f"{found.top_action_units.index[0]} " in shown["action units"]
    assert cells(fallen(found)._repr_html_())["action units"] == "no action unit rose over its usual level"
    assert len(html) < 60_000 and "<script" not in html


def test_text_of_others_is_escaped_and_a_missing_label_is_explained(found: VideoPrediction) -> None:
    attack = '"><script>alert(1)</script>{0}&'
    html = replace(
        found, video=attack, label=None, probabilities={}, curves=None, reason=attack, cautions={"decoding": attack}
    )._repr_html_()
    escaped = "&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;{0}&amp;"
    shown = cells(html)
    assert shown["video"] == shown["reason"] == escaped and shown["warnings"] == f"decoding: {escaped}"
    assert shown["prediction"] == "no label" and shown["status"] == "no_prediction" and "window" not in shown
    assert "<script" not in html
    chances = {attack: 0.6, "pain": 0.4}
    named = replace(found, label=attack, classes=(attack, "pain"), probabilities=chances, personalized_for=attack)
    shown = cells(named._repr_html_())
    assert shown["prediction"] == shown["personalized for"] == escaped
    assert shown["probabilities"] == f"{escaped} 60.0 %pain 40.0 %" and "<script" not in named._repr_html_()
