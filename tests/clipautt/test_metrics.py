"""Literal figures, and the degenerate predictor that every row is compared with."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from sklearn.metrics import accuracy_score, f1_score, recall_score

from clipautt.metrics import (
    Scores,
    bootstrap,
    bootstraps,
    confusion,
    detectable_effect,
    intraclass_correlation,
    rank_correlation,
    roc_auc,
    roc_aucs,
    score,
)


def test_literal_scores() -> None:
    #             recall of 0: 3/4, of 1: 1/2; precision of 0: 3/4, of 1: 1/2
    assert score([0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1], num_classes=2) == Scores(
        war=pytest.approx(4 / 6), uar=pytest.approx(0.625), f1=pytest.approx((0.75 + 0.5) / 2)
    )


def test_three_classes_literal() -> None:
    result = score([0, 1, 1, 2, 0], [0, 1, 2, 2, 2], num_classes=3)
    assert result.war == pytest.approx(3 / 5)
    assert result.uar == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert result.f1 == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3)


def test_class_that_does_not_occur() -> None:
    """UAR averages over the classes that are there; F1 counts the absent one as 0."""
    assert score([0, 0], [0, 0], num_classes=2) == Scores(war=1.0, uar=1.0, f1=0.5)
    assert score([0, 1], [0, 0], num_classes=2) == Scores(war=0.5, uar=0.5, f1=pytest.approx(1 / 3))


@pytest.mark.parametrize("positives", [1, 5, 8, 10])
def test_a_constant_prediction_scores_p_over_one_plus_p(positives: int) -> None:
    labels = [1] * positives + [0] * (20 - positives)
    constant = score([0] * 20, labels, num_classes=2)
    share = (20 - positives) / 20
    assert constant.war == pytest.approx(share)
    assert constant.uar == pytest.approx(0.5)
    assert constant.f1 == pytest.approx(share / (1 + share))


@pytest.mark.parametrize("num_classes", [2, 3])
def test_scores_are_those_of_scikit_learn(num_classes: int) -> None:
    """Ours take the counts of thousands of groups at once."""
    rng = np.random.default_rng(num_classes)
    for length in (1, 3, 14):
        predicted, true = rng.integers(0, num_classes, (2, length))
        found, every = score(predicted, true, num_classes=num_classes), range(num_classes)
        options = {"average": "macro", "zero_division": 0}
        assert found.war == pytest.approx(accuracy_score(true, predicted), abs=1e-12)
        assert found.uar == pytest.approx(recall_score(true, predicted, labels=np.unique(true), **options), abs=1e-12)
        assert found.f1 == pytest.approx(f1_score(true, predicted, labels=every, **options), abs=1e-12)


def test_rank_correlation_is_defined_for_enough_pairs_that_differ() -> None:
    rising = np.array([1.0, 2.0, 4.0])
    assert rank_correlation(rising, np.array([3.0, 5.0, 4.0])) == pytest.approx(0.5)
    assert np.isnan(rank_correlation(rising, np.ones(3)))
    assert np.isnan(rank_correlation(rising, rising, fewest=4))


def test_roc_auc_counts_ties_as_half() -> None:
    values = np.array([0.1, 0.4, 0.4, 0.8])
    assert roc_auc(values, np.array([False, False, True, True])) == pytest.approx(0.875)
    assert np.isnan(roc_auc(values, np.ones(4, bool)))


def test_confusion_rows_are_true_classes() -> None:
    assert confusion([0, 1, 1, 1], [0, 0, 1, 0], num_classes=2).tolist() == [[1, 2], [0, 1]]


@pytest.mark.parametrize(("predictions", "labels"), [([], []), ([0], [0, 1])])
def test_unequal_or_empty_inputs_are_refused(predictions: list[int], labels: list[int]) -> None:
    message = f"{len(predictions)} predictions for {len(labels)} labels; both must be equal and at least 1"
    with pytest.raises(ValueError, match=message):
        score(predictions, labels, num_classes=2)


def test_interval_of_a_clear_difference_leaves_zero_out() -> None:
    interval = bootstrap([0.1, 0.12, 0.08, 0.11, 0.09, 0.1])
    assert interval.mean == pytest.approx(0.1)
    assert 0.08 <= interval.low < 0.1 < interval.high <= 0.12


def test_interval_of_no_difference_holds_zero() -> None:
    interval = bootstrap([0.1, -0.1, 0.05, -0.05, 0.2, -0.2])
    assert interval.low < 0 < interval.high and interval.mean == pytest.approx(0)


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = [bootstrap(rng.normal(1, 1, 30), draws=500, seed=i) for i in range(200)]
    assert 0.88 <= np.mean([i.low <= 1 <= i.high for i in covered]) <= 0.98


def test_interval_is_narrower_at_lower_confidence_and_repeats() -> None:
    values = np.arange(10.0)
    wide, narrow = bootstrap(values), bootstrap(values, confidence=0.5)
    assert wide.low < narrow.low < 4.5 < narrow.high < wide.high
    assert bootstrap(values) == wide


@pytest.mark.parametrize("values", [[], [0.1, float("nan")]])
def test_interval_refuses_what_is_not_finite(values: list[float]) -> None:
    with pytest.raises(ValueError, match="bootstrap needs finite values, got"):
        bootstrap(values)


def test_the_detectable_effect_is_the_one_of_the_power_tables() -> None:
    """Cohen's d of a paired t-test with 20 subjects, 5% two-sided, power 80%: 0.66; with 34: 0.50."""
    for num_subjects, expected in ((20, 0.66), (34, 0.50)):
        values = np.random.default_rng(1).normal(size=num_subjects)
        standard = (values - values.mean()) / values.std(ddof=1)
        assert detectable_effect(7 + 3 * standard) == pytest.approx(3 * expected, abs=3 * 0.006)


def test_an_effect_of_that_size_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    effect = 2 * detectable_effect(np.repeat([-1.0, 1.0], 10)) / np.std(np.repeat([-1, 1], 10), ddof=1)
    changes = rng.normal(effect, 2, (4000, 20))
    found = (ttest_1samp(changes, 0, axis=1).pvalue < 0.05).mean()
    assert 0.77 < found < 0.83


def test_the_detectable_effect_follows_size_and_certainty_and_not_the_mean() -> None:
    values = np.array([0.1, 0.3, -0.2, 0.4, 0.0, 0.2])
    effect = detectable_effect(values)
    assert detectable_effect(values + 5) == pytest.approx(effect)
    assert detectable_effect(np.tile(values, 4)) < effect / 2
    assert detectable_effect(values, power=0.5) < effect < detectable_effect(values, confidence=0.99)
    assert detectable_effect([0.2, 0.2, 0.2]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("values", [[], [0.1], [0.1, float("nan")]])
def test_the_detectable_effect_needs_two_finite_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match="detectable_effect needs at least two finite values, got"):
        detectable_effect(values)


@pytest.mark.parametrize("subjects", [1, 7, 1500])  # with many, not all resamples are in memory at once
def test_bootstraps_are_those_of_every_column(subjects: int) -> None:
    values = np.random.default_rng(0).normal(size=(subjects, 2))
    for found, column in zip(bootstraps(values), values.T, strict=True):
        alone = bootstrap(column)
        assert (found.mean, found.low, found.high) == pytest.approx((alone.mean, alone.low, alone.high), abs=1e-12)
    with pytest.raises(ValueError, match="bootstraps needs finite values"):
        bootstraps(np.array([[0.5, np.nan]]))


def test_icc_of_the_example_of_shrout_and_fleiss() -> None:
    """Table 2 of the paper: four judges rate six targets; ICC(3,1) is .71."""
    judges = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
    assert intraclass_correlation(judges) == pytest.approx(0.7148, abs=1e-4)
    first = judges[:, :1]
    assert intraclass_correlation(np.hstack([first, first + 3])) == pytest.approx(1.0)  # a constant difference
    assert intraclass_correlation(np.hstack([first, 2 * first])) == pytest.approx(0.8)  # a scale: 2 · 2 / (1 + 4)
    assert np.isnan(intraclass_correlation(np.ones((4, 2)))) and np.isnan(intraclass_correlation(judges[:1]))


def test_roc_aucs_of_columns_are_those_of_each() -> None:
    values = np.random.default_rng(0).integers(0, 5, (40, 3)).astype(float)  # with ties
    positive = values[:, 0] + values[:, 1] > 4
    assert roc_aucs(values, positive) == pytest.approx([roc_auc(column, positive) for column in values.T])
    assert np.isnan(roc_aucs(values, np.ones(40, bool))).all()
