"""Fields of forms: who may ask for what, and what can be the name of a person."""

from __future__ import annotations

import pytest

from ray_jobs.serve.refusals import RefusedError
from ray_jobs.serve.web.asked import Ask
from ray_jobs.serve.web.forms import ask_of, check_subject, models_of
from ray_jobs.serve.web.keys import Who

PREDICT, PERSONALIZE = Who("aaaaaaaa", "predict"), Who("bbbbbbbb", "personalize")


def test_only_who_may_erase_a_person_stores_something_of_one() -> None:
    fields = {"subject_id": ["anna"], "adapt": ["online"]}
    assert ask_of(fields, PERSONALIZE) == Ask(PERSONALIZE, (), "anna", "online")
    with pytest.raises(RefusedError) as caught:
        ask_of(fields, PREDICT)
    assert (caught.value.refusal.code, str(caught.value)) == (
        "key_scope",
        "this needs a key of scope personalize, and yours has scope predict",
    )
    assert ask_of({"adapt": ["per_video"]}, PREDICT) == Ask(PREDICT, (), None, "per_video")


def test_an_empty_field_names_no_model() -> None:
    fields = {"model": ["", "pain"]}
    assert models_of(fields) == ask_of(fields, PREDICT).models == ("pain",)


@pytest.mark.parametrize(
    "subject", ["", " ", "a\0", "a\nb", "\u202e", "\u200b", "x" * 201, "é" * 40, ".", "..", "Jos\ufffd"]
)
def test_what_cannot_name_a_person(subject: str) -> None:
    """In an address `.` and `..` reach another one, and bytes that are no UTF-8 all become the same letter."""
    with pytest.raises(RefusedError) as caught:
        check_subject(subject)
    assert caught.value.refusal.code == "wrong_field"


def test_odd_names_of_persons() -> None:
    for subject in ("...", "../a", "José", "a/b", "<i>", "x" * 200, "%2e%2e"):
        check_subject(subject)
