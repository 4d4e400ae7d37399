"""Names that R, SPSS and pandas accept, whatever a class, a folder or a column is called."""

from __future__ import annotations

import re

import pytest

from clipautt.study.names import portable_names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AU4_rise", "AU4_rise"),
        ("probability_Schmerz, stark", "probability_Schmerz_stark"),
        ("probability_Größe", "probability_Grosse"),
        ("Ångström-été", "Angstrom_ete"),
        ("probability_疼痛", "probability_u75BCu75DB"),
        ("2nd visit", "v_2nd_visit"),
        ("by", "v_by"),
        ("NaN", "v_NaN"),
        ("_hidden_", "hidden"),
        ("½ dose", "v_1_2_dose"),
        ("🙂", "v"),
        ("", "v"),
        ("x" * 80, "x" * 64),
        ("x" * 63 + "_y", "x" * 63),
    ],
)
def test_a_name_is_spelt_in_plain_letters(name: str, expected: str) -> None:
    assert portable_names([name]) == {name: expected}


def test_no_two_names_are_the_same_in_any_spelling() -> None:
    given = ["Pain", "pain", "PAIN", "pain_2", "päin", "x" * 70, "X" * 70, "p/a", "p-a", "🙂", "🙃", "all", "ALL"]
    made = portable_names(given)
    assert list(made) == given and made["Pain"] == "Pain" and made["pain"] == "pain_2" and made["pain_2"] == "pain_2_2"
    assert len({name.casefold() for name in made.values()}) == len(given)
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name) and not name.endswith("_") for name in made.values())
    assert portable_names(given) == made
