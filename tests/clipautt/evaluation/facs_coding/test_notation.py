"""The written forms of codes and intensities."""

from __future__ import annotations

import math

import pytest

from clipautt.evaluation.facs_coding.notation import Code, is_code, read_codes, read_intensity


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("AU12", [Code("AU12")]),
        ("au04", [Code("AU4")]),
        ("12.0", [Code("AU12")]),  # as spreadsheets write numbers
        ("12C", [Code("AU12", 3.0)]),
        ("L12", [Code("AU12", math.nan, "left")]),
        ("R14b", [Code("AU14", 2.0, "right")]),
        ("AU 4 L", [Code("AU4", math.nan, "left")]),
        ("AU12_right", [Code("AU12", math.nan, "right")]),
        ("B24", [Code("AU24", math.nan, "bottom")]),
        ("AU12+25", [Code("AU12"), Code("AU25")]),
        ("6B + 12D+ 25", [Code("AU6", 2.0), Code("AU12", 4.0), Code("AU25")]),
    ],
)
def test_notations_that_are_understood(text: str, codes: list[Code]) -> None:
    assert repr(read_codes(text)) == repr(tuple(codes))  # NaN is not equal to itself


@pytest.mark.parametrize("text", ["", "smile", "AU", "AU0", "0", "12F", "123", "12,25", "12+", "12-25", "M59", "１２é"])
def test_other_text_is_refused_with_what_is_understood(text: str) -> None:
    assert not is_code(text)
    with pytest.raises(ValueError, match=r"is no action unit; AU12, 12, 12C, L12, R14B, 'AU 4 L' and combinations"):
        read_codes(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("A", 1.0), ("e", 5.0), ("0", 0.0), ("3", 3.0), ("2,5", 2.5), ("9", None), ("", None), ("NaN", None)],
)
def test_intensities(text: str, value: float | None) -> None:
    found = read_intensity(text)
    assert math.isnan(found) if value is None else found == value


@pytest.mark.parametrize("text", ["6", "-1", "F", "strong", "inf", "A-B", "999"])
def test_other_intensities_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no intensity; allowed: A to E, 0 to 5, and 9 or an empty cell"):
        read_intensity(text)
