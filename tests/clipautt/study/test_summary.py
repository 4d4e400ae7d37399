"""The figures of a study, against figures worked out by hand and by SciPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from clipautt.study import Study, study
from tests.support.clip_tables import clip_row, tiny_table


def figures(table: pd.DataFrame, measure: str = "probability_pain", **where: str) -> dict[str, Any]:
    chosen = table[(table["measure"] == measure) & np.all([table[k] == v for k, v in where.items()] or [True], axis=0)]
    return chosen.squeeze(axis=0).to_dict()


def test_means_of_subjects_conditions_and_differences_are_those_worked_out_by_hand() -> None:
    made = study(tiny_table())
    assert repr(made) == "Study(3 subjects, 2 conditions, 10 of 10 clips)"
    pain = made.subjects.set_index(["subject", "condition"])["probability_pain"]
    expected = {("a", "pressure"): 0.6, ("a", "rest"): 0.2, ("b", "pressure"): 0.5, ("b", "rest"): 0.4}
    expected |= {("c", "pressure"): 0.9, ("c", "rest"): 0.3}
    assert pain.to_dict() == pytest.approx(expected)
    assert made.subjects["clips_usable"].tolist() == [3, 2, 1, 1, 1, 2]
    rest = figures(made.conditions, condition="rest")
    assert (rest["mean"], rest["subjects"], rest["clips"]) == (pytest.approx(0.3), 3, 5), "not 0.28, the mean of clips"
    assert rest["sd"] == pytest.approx(0.1) and rest["interval_kind"] == "few_subjects"
    shares = figures(made.conditions, "predicted_pain", condition="pressure")
    assert shares["mean"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    change = figures(made.differences)
    assert (change["condition_first"], change["condition_second"]) == ("pressure", "rest"), "in alphabetical order"
    assert change["difference"] == pytest.approx((-0.4 - 0.1 - 0.6) / 3)
    assert (change["mean_first"], change["mean_second"]) == (pytest.approx(2 / 3), pytest.approx(0.3))
    assert (change["low"], change["high"]) == (pytest.approx(-0.6), pytest.approx(-0.1)), "all resamples of one subject"


def random_table(people: int = 12, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        clip_row(
            f"s{person}", condition, rng.uniform(0, 0.6) + shift, number, AU4_rise=rng.normal(), AU6_rise=rng.normal()
        )
        for person in range(people)
        for condition, shift in (("a", 0.0), ("b", 0.2), ("c", 0.4))
        for number in range(1 + person % 3)
    ]
    return pd.DataFrame(rows)


def test_statistics_are_those_of_scipy() -> None:
    table = random_table()
    made = study(table)
    means = table.groupby(["subject", "condition"])["probability_pain"].mean().unstack()
    change = figures(made.differences, condition_first="a", condition_second="c")
    test = stats.ttest_rel(means["c"], means["a"])
    assert change["p"] == pytest.approx(test.pvalue) and change["dz"] * math.sqrt(12) == pytest.approx(test.statistic)
    assert change["interval_kind"] == "ok" and change["subjects"] == 12
    resampled = stats.bootstrap((means["c"] - means["a"],), np.mean, method="percentile", rng=1, n_resamples=20_000)
    ends = tuple(resampled.confidence_interval)
    assert (change["low"], change["high"]) == pytest.approx(ends, abs=0.01)
    units = made.differences[made.differences["measure_group"] == "action_units"].dropna(subset="p")
    assert len(units) == 6 and set(units["tests"]) == {6}, "two AUs that vary, three pairs"
    assert units["q"].tolist() == pytest.approx(stats.false_discovery_control(units["p"]).tolist())
    assert np.isnan(figures(made.differences, "AU4_mean", condition_first="a", condition_second="b")["p"]), "no spread"


def test_the_order_of_rows_changes_nothing() -> None:
    table = random_table()
    one, other = study(table), study(table.sample(frac=1, random_state=3))
    for name in ("clips", "subjects", "conditions", "differences", "validity"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)


def test_a_subject_with_a_hundred_clips_weighs_as_much_as_one_with_two() -> None:
    rows = [clip_row("a", "x", 0.9, number) for number in range(100)]
    rows += [clip_row("b", "x", 0.1, number) for number in range(2)]
    made = figures(study(pd.DataFrame(rows)).conditions)
    assert made["mean"] == pytest.approx(0.5) and made["subjects"] == 2 and made["clips"] == 102
    assert made["interval_kind"] == "none" and np.isnan(made["low"])


def test_excluded_clips_and_warnings_are_counted_where_they_stand() -> None:
    lost = {
        "status": "no_face",
        "reason": "no face",
        "prediction": "",
        "probability_neutral": None,
        "probability_pain": None,
    }
    rows = [
        clip_row("a", "x", 0.2),
        clip_row("a", "x", 0.0, 1, **lost),
        clip_row("a", "x", 0.8, 2, warnings="too_dark;few_faces"),
        clip_row("b", "x", 0.4, warnings="few_faces", personalized_for="b"),
        clip_row("b", "", 0.4),
        clip_row("", "x", 0.4),
    ]
    kept = study(pd.DataFrame(rows))
    assert kept.clips["excluded"].tolist() == ["no_subject", "", "no_face", "", "no_condition", ""]
    a, b = kept.subjects.to_dict("records")
    assert (a["clips"], a["clips_usable"], a["excluded_no_face"], a["clips_warned"]) == (3, 2, 1, 1)
    assert (a["warned_too_dark"], a["warned_few_faces"], a["warned_decoding"], b["clips_personalized"]) == (1, 1, 0, 1)
    assert a["probability_pain"] == pytest.approx(0.5)
    assert kept.notes == (
        "1 of 3 clips are personalized and the others are not, so that their figures are not comparable; predict all "
        "of them in one way.",
    )
    counted = kept.validity.set_index(["condition", "finding", "finding_code"])[["clips", "of_clips"]].T.to_dict("list")
    assert counted == {
        ("", "excluded", "no_condition"): [1, 1],
        ("x", "excluded", "no_face"): [1, 5],
        ("x", "excluded", "no_subject"): [1, 5],
        ("x", "warned", "few_faces"): [2, 3],
        ("x", "warned", "too_dark"): [1, 3],
    }
    strict = study(pd.DataFrame(rows), exclude_warnings=["too_dark"])
    assert strict.subjects.loc[0, ["clips_usable", "excluded_warning_too_dark"]].tolist() == [1, 1]
    assert strict.subjects.loc[0, "probability_pain"] == pytest.approx(0.2)
    row = figures(strict.conditions)
    assert (row["clips_usable"], row["clips_excluded"], row["warned_few_faces"]) == (2, 2, 1)
    with pytest.raises(
        ValueError, match=r"exclude_warnings='dark': no such warning; allowed: unseen_footage, few_faces"
    ):
        study(pd.DataFrame(rows), exclude_warnings=["dark"])


def test_only_subjects_with_both_conditions_are_compared() -> None:
    rows = [clip_row(name, condition, 0.5) for name in "abcd" for condition in "xy"]
    rows = [row for row in rows if row["clip"] not in ("a/x0", "b/y0", "c/y0")]
    change = figures(study(pd.DataFrame(rows)).differences)
    assert change["subjects"] == 1 and change["clips"] == 2
    assert (change["subjects_first_only"], change["subjects_second_only"]) == (2, 1)
    apart = figures(study(pd.DataFrame([clip_row("a", "x", 0.5), clip_row("b", "y", 0.5)])).differences)
    assert apart["subjects"] == 0 and np.isnan(apart["difference"]) and np.isnan(apart["p"])


def names(made: Study) -> list[tuple[str, str]]:
    pairs = made.differences[["condition_first", "condition_second"]].drop_duplicates()
    return list(pairs.itertuples(index=False, name=None))


def test_conditions_come_from_any_column_that_was_added() -> None:
    rows = [clip_row("a", c, 0.5, n, day=f"day {n}", camera="1") for c in "xy" for n in (2, 10)]
    table = pd.DataFrame(rows)
    assert study(table, by="day").names == ("day 2", "day 10"), "in the order in which people count"
    assert study(table, by=["condition", "day"]).names == ("x / day 2", "x / day 10", "y / day 2", "y / day 10")
    assert study(table, by=[]).names == ("all clips",) and study(table, by=[]).differences.empty
    assert study(table.drop(columns="condition")).by == () == study(table.assign(condition="")).by, "if there are none"
    assert names(study(table, by=["condition", "day"], reference="y / day 2")) == [
        ("y / day 2", "x / day 2"),
        ("y / day 2", "x / day 10"),
        ("y / day 2", "y / day 10"),
    ]


def test_clips_of_the_training_are_named() -> None:
    table = tiny_table()
    mixed = table.assign(split=["source_train"] * 2 + ["source_val"] + ["target"] * (len(table) - 3))
    assert study(mixed).notes == (
        "3 of 10 clips belong to the splits source_train or source_val: a model trained with this manifest has "
        "seen them, and agrees better with their labels than with those of other people.",
    )
    assert study(table.assign(split="target")).notes == ()


@pytest.mark.parametrize("name", ["label", "group", "unit", "kind", "code", "interval", "split", "about"])
def test_a_condition_may_have_a_common_name(name: str) -> None:
    """A manifest has `label`, and a study of patients and controls `group`."""
    made = study(tiny_table().rename(columns={"condition": name}), by=name)
    assert made.names == ("pressure", "rest")
    for table in (made.subjects, made.conditions, made.validity):
        assert list(table).count(name) == 1
    assert figures(made.differences)["difference"] == pytest.approx((-0.4 - 0.1 - 0.6) / 3)


def test_numbers_are_conditions_in_the_order_of_their_values() -> None:
    values = ["0.5", "1.25", "-10", "1.5", "2"]
    rows = [clip_row("a", value, 0.5) for value in values]
    assert study(pd.DataFrame(rows)).names == ("-10", "0.5", "1.25", "1.5", "2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "weather"}, r"by=weather: the table has no such column; allowed: condition$"),
        (
            {"by": "prediction"},
            r"by=prediction: describes the prediction and is no condition; allowed: condition$",
        ),
        ({"by": "take"}, r"by=take has 30 values, and a condition should have few; .* \(at most 20 values\)"),
        ({"by": ["condition", "condition"]}, r"names 'condition' more than once"),
        ({"by": "mean"}, r"by=mean: a study writes columns of this name itself; rename it in the table"),
        ({"by": "clips"}, r"by=clips: a study writes columns of this name itself; rename it in the table"),
        ({"by": "warned_x"}, r"by=warned_x: a study writes columns of this name itself; rename it in the table"),
        ({"reference": "z"}, r"reference='z' is no condition; allowed: x, y"),
        ({"measures": ["AU99_rise"]}, r"measures='AU99_rise': no such measure; allowed: face_share, brightness"),
    ],
)
def test_a_wrong_choice_says_what_is_allowed(options: dict[str, Any], message: str) -> None:
    rows = [clip_row("a", "xy"[n % 2], 0.5, n, take=str(n), mean="m", clips="1", warned_x="") for n in range(30)]
    with pytest.raises(ValueError, match=message):
        study(pd.DataFrame(rows), **options)
    with pytest.raises(ValueError, match=r"the table has a column 'excluded', which a study writes itself; rename"):
        study(pd.DataFrame(rows).assign(excluded=""))
    with pytest.raises(ValueError, match="no clip names its subject"):
        study(pd.DataFrame([clip_row("", "x", 0.5)]))


def test_action_units_that_were_never_learned_are_marked_and_not_tested() -> None:
    table = random_table().assign(not_learned="AU6")
    made = study(table).differences.set_index(["measure", "condition_first", "condition_second"])
    assert made.loc[("AU4_rise", "a", "b"), ["learned", "tests"]].tolist() == [True, 3]
    unlearned = made.loc[("AU6_rise", "a", "b")]
    assert not unlearned["learned"] and np.isnan(unlearned["p"]) and np.isnan(unlearned["q"])
    assert made.loc[("entropy", "a", "b"), "learned"] is pd.NA


def test_chosen_measures_keep_the_columns_of_validity() -> None:
    made = study(tiny_table(), measures=["AU4_rise"])
    assert [one.name for one in made.measures] == ["face_share", "other_faces", "AU4_rise"]
    assert {"clips_usable", "face_share", "other_faces", "AU4_rise"} <= set(made.subjects)


def test_doubtful_names_are_to_be_checked() -> None:
    rows = [clip_row(name, condition, 0.5) for name in ("Ana", "ben") for condition in ("rest", "pain")]
    made = study(pd.DataFrame([*rows, clip_row("ana", "Rest", 0.5)]))
    assert made.notes == (
        "subject has 'ana' beside 'Ana': two names, or one that is misspelt?",
        "condition has 'Rest' beside 'rest': two names, or one that is misspelt?",
    )
