"""The vocabulary is what the prompts, the synthetic faces and the tasks all rest on."""

from __future__ import annotations

import pytest

from clipautt.action_units import RENDERED, RESTING_PHRASES, TASKS, VOCABULARY, content_hash, phrases, unit


def test_the_paper_s_number_of_prompts_in_facs_order() -> None:
    codes = [unit.code for unit in VOCABULARY]
    assert len(codes) == len(set(codes)) == 46
    assert codes[:5] == ["AU1", "AU2", "AU4", "AU5", "AU6"] and codes[-1] == "AU64"
    assert [int(code[2:]) for code in codes] == sorted(int(code[2:]) for code in codes)


def test_rendered_codes_are_those_with_a_held_out_wording() -> None:
    assert len(RENDERED) == 28
    assert RENDERED[:4] == ("AU1", "AU2", "AU4", "AU5") and "AU24" not in RENDERED


def test_every_wording_is_plain_lower_case_and_different() -> None:
    said = [text for unit in VOCABULARY for text in (unit.phrase, *unit.wordings, unit.held_out) if text]
    assert len(said) == len(set(said))
    for text in said:
        assert text == text.lower() == " ".join(text.split()) and "_" not in text


def test_no_class_name_stands_in_a_phrase() -> None:
    names = {name for task in TASKS.values() for name in task.classes}
    words = {word for unit in VOCABULARY for text in (unit.phrase, *unit.wordings) for word in text.split()}
    words |= {w for task in TASKS.values() for group in task.descriptions for text in group for w in text.split()}
    assert names == {"neutral", "pain", "stress", "ambivalence"}
    assert not names & words


def test_unit_finds_by_code_and_names_an_unknown_one() -> None:
    assert unit("AU4").phrase == "eyebrows lowered and pulled together"
    with pytest.raises(ValueError, match=r"unknown action unit 'AU3'; known are AU1, AU2, AU4"):
        unit("AU3")


def test_pain_is_described_by_the_units_of_prkachin_and_solomon() -> None:
    pain = TASKS["pain"]
    assert pain.positive == "pain" and pain.descriptions[0] == RESTING_PHRASES
    assert pain.descriptions[1][2] == "eyebrows lowered and pulled together and eyes closed"


def test_content_hash_depends_on_words_and_order() -> None:
    assert content_hash(["lips parted", "nose wrinkled"]) == "e923361847559799"
    assert content_hash(["nose wrinkled", "lips parted"]) != content_hash(["lips parted", "nose wrinkled"])
    assert content_hash(phrases()) != content_hash(phrases(VOCABULARY[:-1]))
