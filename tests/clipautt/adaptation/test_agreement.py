"""How far an approximation's decisions are the exact method's: counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clipautt.adaptation.agreement import (
    Agreement,
    Decision,
    compare_decisions,
    exact_counterparts,
    pooled,
    subjects_to_compare,
)
from tests.support.configs import ZERO_SHOT, adapt_config

EXACT = adapt_config(objective="infomax_kl", steps=3, learning_rate=0.5, subject_baseline="median", prior=0.2)


def decisions(**probabilities: float) -> dict[str, Decision]:
    """Clip → decision at this probability of pain."""
    return {clip: Decision("pain" if p > 0.5 else "neutral", p) for clip, p in probabilities.items()}


def test_equal_decisions_are_counted_and_differences_averaged() -> None:
    approximate = decisions(a=0.75, b=0.25, c=0.625, d=0.5625)
    found = compare_decisions(approximate, decisions(d=0.5625, a=0.5625, b=0.125, c=0.375))
    assert found == Agreement(videos=4, same=3, difference=(0.1875 + 0.125 + 0.25 + 0.0) / 4)
    assert found is not None and found.share == 0.75
    assert str(found) == "75.0 % of 4 decisions, probabilities 0.141 apart on average"


def test_the_class_decides_and_not_the_probability() -> None:
    """Where classes have a prior, or there are three, 0.5 is no threshold."""
    one, other = {"a": Decision("pain", 0.4)}, {"a": Decision("neutral", 0.4)}
    assert compare_decisions(one, other) == Agreement(videos=1, same=0, difference=0.0)


def test_only_clips_that_both_have_are_compared() -> None:
    approximate, exact = decisions(a=0.75, b=0.25), decisions(b=0.75, c=0.75)
    assert compare_decisions(approximate, exact) == Agreement(videos=1, same=0, difference=0.5)
    assert compare_decisions(approximate, decisions(c=0.75)) is None
    assert compare_decisions({}, exact) is None and compare_decisions(approximate, {}) is None


def test_subjects_count_by_their_clips() -> None:
    found = pooled([Agreement(videos=3, same=3, difference=0.1), Agreement(videos=1, same=0, difference=0.5)])
    assert (found.videos, found.same) == (4, 3) and found.difference == pytest.approx(0.2)
    assert pooled([found]) == found


def test_the_subjects_to_compare_are_the_same_in_every_order_and_among_further_ones() -> None:
    subjects = [f"s{i}" for i in range(10)]
    chosen = subjects_to_compare(subjects, 3)
    assert len(chosen) == 3 and subjects_to_compare(subjects[::-1], 3) == chosen
    # With a further subject at most one gives way.
    assert len(chosen & subjects_to_compare([*subjects, "later"], 3)) >= 2
    assert chosen < subjects_to_compare(subjects, 4)
    assert subjects_to_compare(subjects, 99) == set(subjects) and subjects_to_compare([], 3) == set()


def test_the_exact_counterpart_differs_in_what_is_approximated_only() -> None:
    approximate = replace(EXACT, method=replace(EXACT.method, tune="feature", precision="bf16"))  # type: ignore[type-var]
    assert exact_counterparts([approximate]) == {approximate.name: EXACT}


def test_what_is_exact_has_no_counterpart() -> None:
    """Also a setting that would approximate, where nothing is tuned."""
    tunes_nothing = [adapt_config(tune="feature"), adapt_config(objective="infomax", steps=0, tune="feature")]
    assert exact_counterparts([EXACT, adapt_config(), ZERO_SHOT, *tunes_nothing]) == {}
