"""Tables of a report, against figures worked out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from clipautt.evaluation.reports.tables import (
    assumed_shares,
    at_share,
    chosen_method,
    cohort_order,
    comparison,
    differences,
    figures_at,
    long_table,
    markdown,
    method_table,
    one_class,
    percent,
    points,
    prior_scores,
    prior_table,
    redecided,
    selection_table,
    share_name,
    with_priors,
)
from clipautt.metrics import score


def make_scores(
    methods: Mapping[str, Mapping[tuple[int, str], float]], *, split: str = "target", cohort: str = "balanced"
) -> pd.DataFrame:
    """A score table from UAR per method, seed and subject; WAR is 0.05 and F1 0.1 below it."""
    return pd.DataFrame(
        {
            "method": method,
            "split": split,
            "cohort": cohort,
            "seed": seed,
            "subject_id": subject,
            "war": uar - 0.05,
            "uar": uar,
            "f1": uar - 0.1,
            "num_clips": 20.0,
            "positive_share": {"balanced": 0.5, "20%": 0.2, "5%": 0.05}[cohort],
            "majority_war": 0.5,
            "majority_uar": 0.5,
            "majority_f1": 1 / 3,
        }
        for method, people in methods.items()
        for (seed, subject), uar in people.items()
    )


TWO_SEEDS = {
    "before": {(0, "a"): 0.6, (0, "b"): 0.8, (1, "a"): 0.7, (1, "b"): 0.7},
    "after": {(0, "a"): 0.9, (0, "b"): 0.9, (1, "a"): 0.8, (1, "b"): 0.6},
}


def test_means_spread_and_gain_are_those_worked_out_by_hand() -> None:
    figures = figures_at(method_table(make_scores(TWO_SEEDS), reference="before"), "after", "balanced")
    assert figures is not None
    assert figures["uar"] == pytest.approx(0.8)  # (0.9 + 0.9 + 0.8 + 0.6) / 4
    assert figures["war"] == pytest.approx(0.75)
    assert figures["f1"] == pytest.approx(0.7)
    assert figures["uar_spread"] == pytest.approx(0.1 * math.sqrt(2))  # seeds have 0.9 and 0.7
    assert figures["uar_gain"] == pytest.approx(0.1)
    assert (figures["num_subjects"], figures["num_videos"]) == (4, 80)
    assert figures["majority_f1"] == pytest.approx(1 / 3)


def test_subjects_shared_by_seeds_count_once() -> None:
    own = differences(make_scores(TWO_SEEDS), "after", "before")
    assert own["person"].tolist() == ["a, seed 0", "a, seed 1", "b, seed 0", "b, seed 1"]
    assert own["change"].tolist() == pytest.approx([0.3, 0.1, 0.1, -0.1])
    shared = differences(make_scores(TWO_SEEDS), "after", "before", shared_people=True)
    assert shared["person"].tolist() == ["a", "b"]
    assert shared["change"].tolist() == pytest.approx([0.2, 0.0])
    figures = figures_at(
        method_table(make_scores(TWO_SEEDS), reference="before", shared_people=True), "after", "balanced"
    )
    assert figures is not None
    assert (figures["num_subjects"], figures["num_videos"]) == (2, 40)


def test_one_seed_has_no_spread() -> None:
    scores = make_scores({"only": {(0, "a"): 0.6, (0, "b"): 0.8}})
    figures = figures_at(method_table(scores, reference="only"), "only", "balanced")
    assert figures is not None
    assert math.isnan(figures["uar_spread"])
    assert math.isnan(figures["uar_gain"])


@pytest.mark.parametrize(
    ("changes", "signs"),
    [([0.1] * 8, (1, 1)), ([-0.1, -0.2, -0.1, -0.05] * 2, (-1, -1)), ([0.2, -0.2, 0.1, -0.1] * 2, (-1, 1))],
)
def test_interval_of_a_comparison_lies_where_the_changes_lie(changes: list[float], signs: tuple[int, int]) -> None:
    before = {(0, f"s{i}"): 0.6 for i in range(len(changes))}
    after = {(0, f"s{i}"): 0.6 + change for i, change in enumerate(changes)}
    interval = comparison(make_scores({"before": before, "after": after}), "after", "before", "uar", "balanced")
    assert interval.mean == pytest.approx(np.mean(changes))
    assert (np.sign(interval.low), np.sign(interval.high)) == signs


def test_comparison_is_paired() -> None:
    """Subjects differ widely, the change is the same for all: the interval has no width."""
    before = {(0, f"s{i}"): 0.1 * i for i in range(8)}
    after = {key: value + 0.05 for key, value in before.items()}
    interval = comparison(make_scores({"before": before, "after": after}), "after", "before", "war", "balanced")
    assert (interval.low, interval.high) == (pytest.approx(0.05), pytest.approx(0.05))


def test_people_whom_only_one_method_has_are_left_out() -> None:
    scores = make_scores({"before": {(0, "a"): 0.5, (0, "b"): 0.5}, "after": {(0, "b"): 0.7, (0, "c"): 1.0}})
    assert differences(scores, "after", "before")["person"].tolist() == ["b"]


@pytest.mark.parametrize("labels", [(0, 0, 0, 1, 1), (0, 1, 0, 1)])
def test_exactly_the_constant_predictors_are_flagged(labels: tuple[int, ...]) -> None:
    guesses = list(itertools.product((0, 1), repeat=len(labels)))
    figures = [score(guess, labels, num_classes=2) for guess in guesses]
    table = pd.DataFrame([{"war": one.war, "uar": one.uar, "f1": one.f1} for one in figures])
    flagged = [guess for guess, flag in zip(guesses, one_class(table), strict=True) if flag]
    assert flagged == [(0,) * len(labels), (1,) * len(labels)]


def test_constant_predictor_of_three_classes_is_flagged() -> None:
    constant = score([1] * 6, [0, 0, 0, 1, 2, 2], num_classes=3)
    other = score([1, 0, 1, 1, 2, 1], [0, 0, 0, 1, 2, 2], num_classes=3)
    table = pd.DataFrame([{"war": one.war, "uar": one.uar, "f1": one.f1} for one in (constant, other)])
    assert one_class(table).tolist() == [True, False]


def test_a_method_is_degenerate_when_it_is_constant_for_everybody() -> None:
    scores = make_scores({"some": {(0, "a"): 0.5, (0, "b"): 0.9}, "all": {(0, "a"): 0.5, (0, "b"): 0.5}})
    constant = scores["uar"] == 0.5
    scores.loc[constant, ["war", "f1"]] = (0.8, 0.8 / 1.8)  # p / (1 + p) at p = 0.8
    table = method_table(scores, reference=None)
    some, every = figures_at(table, "some", "balanced"), figures_at(table, "all", "balanced")
    assert some is not None and every is not None
    assert (some["degenerate"], some["num_one_class"]) == (0, 1)
    assert (every["degenerate"], every["num_one_class"]) == (1, 2)


def test_cohorts_stand_from_balanced_to_rare() -> None:
    people = {"m": {(0, "a"): 0.7}}
    scores = pd.concat([make_scores(people, cohort=name) for name in ("5%", "balanced", "20%")])
    assert cohort_order(scores) == ["balanced", "20%", "5%"]


def test_a_method_absent_from_a_cohort_has_no_figures_there() -> None:
    both = make_scores({"before": {(0, "a"): 0.7}, "after": {(0, "a"): 0.8}})
    table = method_table(pd.concat([both, make_scores({"before": {(0, "a"): 0.6}}, cohort="20%")]), reference="before")
    assert figures_at(table, "after", "20%") is None
    assert figures_at(table, "after", "5%") is None
    long = long_table(table)
    assert long[["method", "cohort"]].to_numpy().tolist() == [
        ["before", "balanced"],
        ["after", "balanced"],
        ["before", "20%"],
    ]
    assert long["num_subjects"].tolist() == [1, 1, 1]
    assert "|  |  |  |" in markdown(table)


def test_unknown_methods_are_named() -> None:
    scores = make_scores(TWO_SEEDS)
    with pytest.raises(ValueError, match=r"reference='nobody' is not a method of split 'target'; allowed: \['before'"):
        method_table(scores, reference="nobody")
    with pytest.raises(ValueError, match=r"method='nobody' has no row in cohort 'balanced'.*\['after', 'before'\]"):
        comparison(scores, "nobody", "before", "uar", "balanced")


def test_nobody_in_common_is_an_error() -> None:
    scores = make_scores({"before": {(0, "a"): 0.5}, "after": {(0, "b"): 0.7}})
    with pytest.raises(ValueError, match="'after' and 'before' have no subject in common in cohort 'balanced'"):
        comparison(scores, "after", "before", "uar", "balanced")


def test_the_default_is_chosen_on_source_validation_alone() -> None:
    seen = {"x": {(0, "v"): 0.9}, "y": {(0, "v"): 0.8}}
    unseen = {"x": {(0, "t"): 0.1}, "y": {(0, "t"): 1.0}}
    scores = pd.concat([make_scores(seen, split="source_val"), make_scores(unseen)])
    assert chosen_method(scores, ["y", "x"]) == "x"
    assert selection_table(scores, reference="not evaluated there").index.tolist() == ["x", "y"]


def test_all_cohorts_count_in_the_choice_and_a_tie_goes_to_the_first() -> None:
    balanced = make_scores({"x": {(0, "v"): 0.9}, "y": {(0, "v"): 0.8}}, split="source_val")
    rare = make_scores({"x": {(0, "v"): 0.5}, "y": {(0, "v"): 0.8}}, split="source_val", cohort="5%")
    scores = pd.concat([balanced, rare])
    assert chosen_method(scores, ["x", "y"]) == "y"
    tied = make_scores({"x": {(0, "v"): 0.7}, "y": {(0, "v"): 0.7}}, split="source_val")
    assert chosen_method(tied, ["y", "x"]) == "y"


def test_candidates_of_different_cohorts_cannot_be_compared() -> None:
    scores = make_scores({"x": {(0, "v"): 0.9}}, split="source_val")
    with pytest.raises(
        ValueError, match=r"same source_val cohorts, at least one; they have \{'x': \('balanced',\), 'y': \(\)"
    ):
        chosen_method(scores, ["x", "y"])
    with pytest.raises(ValueError, match=r"candidates=\[\]"):
        chosen_method(scores, [])


def test_empty_selection() -> None:
    table = selection_table(make_scores(TWO_SEEDS))
    assert len(table) == 0
    assert len(long_table(table)) == 0


def test_markdown_literal() -> None:
    same = {(0, f"s{i}"): 0.6 for i in range(6)}
    scores = make_scores({"a|b": same, "after": {key: 0.7 for key in same}})
    assert markdown(method_table(scores, reference="a|b")) == (
        "| method | balanced UAR | balanced WAR | balanced F1 |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| a\\|b | 60.0 | 55.0 | 50.0 |\n"
        "| after | 70.0 (+10.0, +10.0 to +10.0) | 65.0 | 60.0 |\n"
        "| majority predictor | 50.0 | 50.0 | 33.3 |\n"
    )


def test_rounding() -> None:
    assert [percent(value) for value in (0.8604, 0.6875, 0.1 + 0.5875, 1.0, 0.0)] == [
        "86.0",
        "68.8",
        "68.8",
        "100.0",
        "0.0",
    ]
    assert [points(value) for value in (0.091, -0.0125, 0.0, -0.0001)] == ["+9.1", "\N{MINUS SIGN}1.3", "0.0", "0.0"]


CLASSES = ("neutral", "pain")


def make_rows(people: Mapping[str, list[tuple[str, float]]], *, method: str = "m", prior: float = 0.5) -> pd.DataFrame:
    """Result rows from subject to (label, probability); positive above one half."""
    return pd.DataFrame(
        {
            "method": method,
            "split": "target",
            "cohort": "balanced",
            "seed": 0,
            "draw": 0,
            "subject_id": subject,
            "clip_id": f"{subject}{number}",
            "label": label,
            "prediction": CLASSES[int(probability > 0.5)],
            "probability": probability,
            "prior": prior,
            "training_prior": 0.5,
        }
        for subject, clips in people.items()
        for number, (label, probability) in enumerate(clips)
    )


ONE = {"a": [("neutral", 0.1), ("neutral", 0.75), ("neutral", 0.3), ("pain", 0.9)]}


def test_rows_are_decided_again_by_hand() -> None:
    """At even shares inside, 20% asks for a probability above 80%, 70% for one above 30%; an even one is neutral."""
    rows = make_rows(ONE)
    assert rows["prediction"].tolist() == ["neutral", "pain", "neutral", "pain"]
    assert redecided(rows, 0.2, classes=CLASSES)["prediction"].tolist() == ["neutral", "neutral", "neutral", "pain"]
    assert redecided(rows, 0.75, classes=CLASSES)["prediction"].tolist() == ["neutral", "pain", "pain", "pain"]
    assert redecided(rows, 0.05, classes=CLASSES)["prediction"].tolist() == ["neutral"] * 4
    shifted = make_rows(ONE, prior=0.2)  # the same probabilities, made with 20%: 9 to 1 are 36 to 1 at even shares
    assert redecided(shifted, 0.05, classes=CLASSES)["prediction"].tolist() == ["neutral"] * 3 + ["pain"]


def test_a_row_keeps_its_decision_at_the_share_it_was_made_with() -> None:
    rows = make_rows(ONE).assign(prediction="pain")  # not what the probabilities say
    assert redecided(rows, 0.5, classes=CLASSES)["prediction"].tolist() == ["pain"] * 4
    assert redecided(rows, 0.500001, classes=CLASSES)["prediction"].tolist() == ["neutral", "pain", "neutral", "pain"]


def test_rows_without_priors_are_taken_as_even() -> None:
    rows = make_rows(ONE)
    old = with_priors(rows.drop(columns=["prior", "training_prior"]))
    assert old[["prior", "training_prior"]].to_numpy().tolist() == [[0.5, 0.5]] * 4
    mixed = with_priors(rows.assign(training_prior=[0.3, 0.3, math.nan, 0.3], prior=[math.nan, 0.1, math.nan, 0.1]))
    assert mixed["training_prior"].tolist() == [0.3, 0.3, 0.5, 0.3]
    assert mixed["prior"].tolist() == [0.3, 0.1, 0.5, 0.1]


def test_scores_under_assumed_shares_by_hand() -> None:
    two = ONE | {"b": [("neutral", 0.4), ("pain", 0.7)]}
    unseen = make_rows({"v": [("pain", 0.1)]}).assign(split="source_val")
    assumed = prior_scores(pd.concat([make_rows(two), unseen]), classes=CLASSES, shares=(0.2, 0.75))
    table = prior_table(assumed)
    assert table["own"].tolist() == [True, False, False]
    assert table["assumed_share"].tolist() == [0.5, 0.2, 0.75]
    # own: a has 3 of 4 (UAR 5/6), b both; at 20% a has all, b misses its pain; at 75% a has 2, b only its pain
    assert table["war"].tolist() == pytest.approx([7 / 8, 3 / 4, 1 / 2])
    assert table["uar"].tolist() == pytest.approx([11 / 12, 3 / 4, (2 / 3 + 1 / 2) / 2])
    assert table["positive_share"].tolist() == pytest.approx([3 / 8] * 3)
    assert table["num_subjects"].tolist() == [2, 2, 2]
    assert at_share(assumed, 0.2)["subject_id"].tolist() == ["a", "b"]


def test_draws_count_once_within_the_subject_under_an_assumed_share() -> None:
    rows = make_rows(ONE)
    drawn = pd.concat([rows, rows.assign(draw=1, probability=0.1, prediction="neutral")])
    table = prior_table(prior_scores(drawn, classes=CLASSES, shares=(0.2,)))
    assert table.loc[~table["own"], "war"].item() == pytest.approx((1 + 3 / 4) / 2)


def test_own_shares_are_averaged_over_people() -> None:
    rows = pd.concat([make_rows(ONE, prior=0.2), make_rows({"b": ONE["a"]}, prior=0.4)])
    rows["clip_id"] += rows["subject_id"]
    assumed = prior_scores(rows, classes=CLASSES, shares=(0.5,))
    assert assumed.loc[assumed["own"], "assumed_share"].tolist() == pytest.approx([0.2, 0.4])
    table = prior_table(assumed)
    assert table["assumed_share"].tolist() == pytest.approx([0.3, 0.5])
    assert table["prior"].tolist() == pytest.approx([0.3, 0.3])


def test_assumed_shares_hold_the_true_ones() -> None:
    people = {"m": {(0, "a"): 0.7}}
    known = pd.concat([make_scores(people, cohort=name) for name in ("5%", "balanced", "20%")])
    assert assumed_shares(known) == (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
    assert assumed_shares(known.assign(positive_share=0.154)) == (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7)
    assert assumed_shares(known.assign(positive_share=0.001))[0] == 0.01


def test_shares_are_assumed_for_two_classes_only() -> None:
    with pytest.raises(
        ValueError, match=r"classes=\['a', 'b', 'c'\]; a share can be assumed for the positive one of two"
    ):
        prior_scores(make_rows(ONE), classes=("a", "b", "c"))


def test_shares_by_name() -> None:
    assert [share_name(share) for share in (0.05, 0.2, 0.4837, 0.5)] == ["5%", "20%", "48.4%", "50%"]
