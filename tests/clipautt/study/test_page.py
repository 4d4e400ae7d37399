"""The page of a study: what it says about whom, the validity in every table, and that it needs nothing else."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from clipautt.study import study
from clipautt.study.page import HEADS, first_words, headline, write_study_page
from tests.support.clip_tables import clip_row, tiny_table


def written(folder: Path, table: pd.DataFrame, **options: Any) -> str:
    """The text of the page, without tags, each cell followed by a bar."""
    page = write_study_page(folder, study(table, **options)).read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)|@import|url\(", page), "it needs no other file"
    body = re.sub(r"<(style|head)\b.*?</\1>", "", page, flags=re.DOTALL)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", re.sub(r"</t[dh]>", " | ", body))))


def test_the_page_of_a_small_study(tmp_path: Path) -> None:
    text = written(tmp_path, tiny_table())
    assert "3 subjects, 2 conditions, 10 of 10 clips count" in text
    assert (
        "Probability of pain: 0.30 in rest, 0.67 in pressure; difference within subjects −0.37 (−0.60 to −0.10)*, "
        "3 subjects. *Fewer than 10 subjects: the interval is narrower than it should be." in text
    )
    assert "pressure | 3 | 5 | 5 | 0 | 0 | 90% | 0.00 |" in text and "No clip is excluded, and none carries" in text
    assert (
        "probability of pain | 3 | 0.67 | 0.30 | −0.37 (−0.60 to −0.10)* | −1.46 | 0.128 | 0.199 | 10 | 0 | 0 | 90%"
        in text
    )
    assert "clips of one person are never taken for independent" in text and "no diagnosis" in text
    assert text.count(" | ".join(HEADS)) >= 4, "the validity of the numbers is in every table of figures"
    assert "synthetic faces" not in text and "seen_footage" not in text
    order = ["What was measured, on whom", "Classes", "Action units", "Files for R, SPSS and pandas", "Facts"]
    assert [text.index(heading) for heading in order] == sorted(text.index(heading) for heading in order)
    with Image.open(tmp_path / "figures" / "classes.png") as picture:
        assert picture.width > picture.height > 400


def test_exclusions_and_warnings_are_lines_of_the_page(tmp_path: Path) -> None:
    rows = [clip_row(name, c, 0.5, warnings="unseen_footage") for name in "ab" for c in ("x", "y")]
    rows.append(clip_row("a", "x", 0.5, 1, status="unreadable", prediction=""))
    text = written(tmp_path, pd.DataFrame(rows))
    assert "4 of 4 clips carry the warning unseen_footage: the model was trained on another kind of faces" in text
    assert text.index("4 of 4 clips carry") < text.index("2 subjects, 2 conditions, 4 of 5 clips count")
    assert "excluded | unreadable | The video could not be decoded | 1 of 3 | 0 | – |" in text
    assert "warned | unseen_footage | Backbone or checkpoint were trained" in text and "| 2 of 2 | 2 of 2 | – |" in text
    assert "0.00 (no interval)" in text, "two subjects"


def test_action_units_are_exploratory_and_those_never_learned_are_left_out(tmp_path: Path) -> None:
    rises = {"a": 0.5, "b": 0.7, "c": 0.4, "d": 0.9}
    rows = [
        clip_row(name, c, 0.5, AU4_rise=rise * (c == "y"), AU6_rise=5 * rise * (c == "y"), not_learned="AU6")
        for name, rise in rises.items()
        for c in "xy"
    ]
    text = written(tmp_path, pd.DataFrame(rows))
    part = text[text.index("Action units exploratory") : text.index("Files for R")]
    assert "1 action unit with two measures each" in part and "give 1 test." in part, "one of them has no spread"
    assert "1 action unit that the backbone never learned is left out here" in part
    assert "AU4 Brow lowerer, rise | 4 | 0.000 | 0.625 | +0.625 (+0.450" in part and "AU6" not in part


@pytest.mark.parametrize("rise", [-0.02, 0.0])
def test_action_units_that_fell_are_not_called_risen(tmp_path: Path, rise: float) -> None:
    units = {"AU4_rise": rise, "AU6_rise": rise, "AU4_mean": 0.2, "AU6_mean": 0.2}
    text = written(tmp_path, pd.DataFrame([clip_row(name, "x", 0.5, **units) for name in "abc"]))
    part = text[text.index("Action units exploratory") : text.index("Files for R")]
    assert (
        "In the most expressive window, no action unit rose over its usual level in the mean of any condition." in part
    )
    assert "rise most" not in part and " | " not in part and not (tmp_path / "figures" / "action_units.png").exists()


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    rows = [clip_row(f"<b>{name}", c, 0.5) for name in "abc" for c in ("<script>alert(1)</script>", "{{ 7 * 7 }}")]
    page = write_study_page(tmp_path, study(pd.DataFrame(rows)), title="<i>mine</i>").read_text(encoding="utf-8")
    assert (
        "<script" not in page and "<i>mine" not in page and "&lt;script&gt;alert(1)" in page and "{{ 7 * 7 }}" in page
    )


@pytest.mark.parametrize("conditions", [0, 1, 3])
def test_any_number_of_conditions_has_a_page(tmp_path: Path, conditions: int) -> None:
    """And an earlier report's figure does not stay where there is none any more."""
    names = [f"a rather long name of a condition {number}" for number in range(max(1, conditions))]
    table = pd.DataFrame([clip_row(name, c, 0.25) for name in "abcd" for c in names])
    if not conditions:
        table = table.drop(columns=["condition", *[one for one in table if one.startswith("AU")]])
        (tmp_path / "figures").mkdir()
        (tmp_path / "figures" / "action_units.png").write_bytes(b"old")
    text = written(tmp_path, table)
    made = study(table)
    assert headline(made).startswith(f"4 subjects, {max(1, conditions)} condition")
    assert len(first_words(made)) == {0: 2, 1: 2, 3: 4}[conditions]
    name = "all clips" if not conditions else names[0]
    if conditions < 2:
        assert f"Probability of pain in {name}: 0.25 (0.25 to 0.25)*, mean over 4 subjects." in text
        assert "Differences within subjects" not in text and "Do the recordings differ" not in text
    assert (tmp_path / "figures" / "action_units.png").exists() == bool(conditions)


def test_a_study_of_which_no_clip_counts_says_why(tmp_path: Path) -> None:
    lost = {"status": "missing", "prediction": "", "probability_neutral": None, "probability_pain": None}
    text = written(tmp_path, pd.DataFrame([clip_row(name, c, 0.0, **lost) for name in "abc" for c in "xy"]))
    assert "0 subjects, 2 conditions, 0 of 6 clips count" in text
    assert (
        "No subject has clips that count in two conditions, so nothing is compared within subjects. These are" in text
    )
    assert "excluded | missing | The video was not there | 3 of 3 | 3 of 3 | – |" in text


def test_groups_of_different_people_have_means_and_many_conditions_say_where_the_rest_is(tmp_path: Path) -> None:
    groups = pd.DataFrame([clip_row(f"{g}{n}", g, 0.5) for g in ("patient", "control") for n in range(3)])
    assert first_words(study(groups)) == [
        "No subject has clips that count in two conditions, so nothing is compared within subjects.",
        "Probability of pain in control: 0.50 (0.50 to 0.50)*, mean over 3 subjects.",
        "Probability of pain in patient: 0.50 (0.50 to 0.50)*, mean over 3 subjects.",
        "*Fewer than 10 subjects: the interval is narrower than it should be.",
    ]
    text = written(tmp_path, groups)
    assert "patient, control: no subject in both" in text and "probability of pain | 0" not in text
    many = study(pd.DataFrame([clip_row(who, f"day {n}", 0.5) for who in "abc" for n in range(6)]))
    assert (
        first_words(many)[12]
        == "3 more pairs of conditions: differences.csv; reference=CONDITION compares with one only."
    )


def test_names_with_dollar_signs_are_no_formulas(tmp_path: Path) -> None:
    names = ["$\\frac$", "$\\foo{$"]
    text = written(tmp_path, pd.DataFrame([clip_row(who, c, 0.5) for who in ("$a$", "b", "c") for c in names]))
    assert "difference within subjects 0.00 (0.00 to 0.00)*, 3 subjects" in text and "in $\\frac$" in text
