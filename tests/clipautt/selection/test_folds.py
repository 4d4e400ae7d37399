"""Who is trained on, selected on and held out."""

from __future__ import annotations

from typing import Any

import pytest

from clipautt.selection.folds import Division, divide

TRAIN, VALIDATION = [f"t{n}" for n in range(9)], ["v0", "v1", "v2"]


def division(**changes: Any) -> Division:
    given: dict[str, Any] = {"scorable": [*TRAIN, *VALIDATION], "folds": 3, "held_out": 0.25, "seed": 0}
    subjects = changes.pop("subjects", (TRAIN, VALIDATION))
    return divide(*subjects, **{**given, **changes})


def test_every_subject_is_in_one_part_and_no_model_saw_those_it_is_scored_on() -> None:
    parts = division()
    everybody = [*parts.subjects, *parts.training, *parts.held_out]
    assert sorted(everybody) == sorted([*TRAIN, *VALIDATION])
    assert [len(fold) for fold in parts.folds] == [3, 3, 3] and len(parts.held_out) == 3 and not parts.training
    for number, fold in enumerate(parts.folds):
        assert set(parts.trained_on(number)) == set(everybody) - set(fold) - set(parts.held_out)
    assert set(parts.trained_on(None)) == set(everybody) - set(parts.held_out)
    assert parts.subjects == parts.folds[0] + parts.folds[1] + parts.folds[2]
    assert repr(parts) == "Division(folds 3+3+3, 0 in training only, 3 held out)"


def test_the_division_follows_from_subjects_and_seed() -> None:
    parts = division()
    assert division(subjects=(TRAIN[::-1], set(VALIDATION))) == parts
    assert division(subjects=([*TRAIN, *VALIDATION], [])) == parts, "with folds, splits within the source play no part"
    assert division(seed=1) != parts
    assert division(held_out=0).held_out == () and len(division(held_out=0).subjects) == 12
    assert len(division(held_out=0.01).held_out) == 2, "an interval over subjects needs two"


def test_subjects_that_cannot_be_scored_are_trained_on() -> None:
    parts = division(scorable=[*TRAIN[1:], *VALIDATION])
    assert parts.training == ("t0",) and len(parts.subjects) + len(parts.held_out) == 11
    assert all("t0" in parts.trained_on(number) for number in (0, 1, 2, None))


def test_source_val_is_one_fold_and_the_held_out_come_from_source_train() -> None:
    parts = division(folds="source_val")
    assert parts.folds == (("v0", "v1", "v2"),)
    assert len(parts.held_out) == 3 and set(parts.held_out) < set(TRAIN)
    assert set(parts.trained_on(0)) == set(TRAIN) - set(parts.held_out)
    assert set(parts.trained_on(None)) == set(TRAIN) - set(parts.held_out) | set(VALIDATION)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"folds": 5, "scorable": TRAIN[:5]},
            r"^folds=5 with 5 source subjects that have clips of two classes, 2 of them held out; set held_out=0$",
        ),
        ({"folds": 8, "scorable": TRAIN[:3]}, r"two classes, 2 of them held out; set folds=3 held_out=0$"),
        (
            {"folds": 2, "scorable": [], "held_out": 0},
            r"^folds=2 with 0 source subjects that have .*; bring more subjects$",
        ),
        ({"folds": 1}, r"^folds=1; allowed: 2 or more, or source_val$"),
        (
            {"folds": "source_val", "subjects": (TRAIN, [])},
            r"^folds=source_val: the manifest has no source_val clips; set folds=5 to divide all source subjects$",
        ),
        ({"folds": "source_val", "scorable": TRAIN}, r"^folds=source_val: none of its subjects has clips of two cla"),
        ({"folds": "source_val", "subjects": (TRAIN[:2], VALIDATION)}, r"nobody is left to train on; set held_out=0 "),
    ],
)
def test_too_few_subjects_are_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        division(**changes)
