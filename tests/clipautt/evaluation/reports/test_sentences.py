"""What a report says: literal sentences for literal figures."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from pytest import approx

from clipautt.evaluation.reports.sentences import (
    MethodFacts,
    addition_sentence,
    additions,
    caveats,
    effect_of,
    method_facts,
    most_changed,
    prior_sentences,
    seeds_share_people,
    selection_sentence,
    verdict,
)
from clipautt.evaluation.reports.tables import differences, method_table
from clipautt.metrics import Interval, detectable_effect

MINUS = "\N{MINUS SIGN}"
FACTS = MethodFacts(
    "m", False, "head", "none", "per_video", "none", "best_window", "16", "1", "4", "0", "0.001", 10, 0, "", 5.0
)


def make_scores(
    uar: dict[str, list[float]], *, split: str = "target", cohort: str = "balanced", war: dict[str, float] | None = None
) -> pd.DataFrame:
    """A score table of one seed: UAR per method and subject."""
    share = {"balanced": 0.5, "5%": 0.05}[cohort]
    return pd.DataFrame(
        {
            "method": method,
            "split": split,
            "cohort": cohort,
            "seed": 0,
            "subject_id": f"s{number}",
            "war": (war or {}).get(method, value),
            "uar": value,
            "f1": value - 0.01,
            "num_clips": 20.0,
            "positive_share": share,
            "majority_war": 1 - share,
            "majority_uar": 0.5,
            "majority_f1": 0.4,
        }
        for method, values in uar.items()
        for number, value in enumerate(values)
    )


def say(before: list[float], after: list[float]) -> tuple[str, str]:
    found = verdict(make_scores({"old": before, "new": after}), personalized="new", reference="old")
    return found.headline, found.sentence


def test_it_helped() -> None:
    headline, sentence = say([0.6] * 8, [0.7] * 6 + [0.6, 0.55])
    assert headline == "Personalization helped"
    assert sentence == (
        "“new” raised mean UAR by 6.9 points, from 60.0 to 66.9, over 8 unseen subjects "
        "(95% interval +2.5 to +10.0; with this many subjects, 6.8 points or more can be detected)."
    )


def test_it_hurt_and_the_page_says_so() -> None:
    headline, sentence = say([0.7] * 8, [0.6] * 6 + [0.7, 0.7])
    assert headline == "Personalization hurt"
    assert sentence.startswith("“new” lowered mean UAR by 7.5 points, from 70.0 to 62.5, over 8 unseen subjects (95% ")


def test_an_interval_with_zero_is_no_effect_and_tells_what_could_have_been_seen() -> None:
    headline, sentence = say([0.7] * 8, [0.8, 0.6] * 4)
    assert headline == "No clear effect of personalization"
    assert "changed mean UAR by 0.0 points, from 70.0 to 70.0, over 8 unseen subjects (95% interval" in sentence
    assert sentence.endswith("includes zero; with this many subjects, 12.3 points or more can be detected).")


def test_a_few_subjects_are_no_proof_however_they_agree() -> None:
    scores = make_scores({"old": [0.6] * 3, "new": [0.9] * 3})
    found = verdict(scores, personalized="new", reference="old")
    assert found.headline == "No clear effect of personalization"
    assert found.sentence == (
        "“new” changed mean UAR by +30.0 points, from 60.0 to 90.0, over 3 unseen subjects: "
        "too few for a verdict, which needs at least 6."
    )
    assert found.detectable is None


def test_the_verdict_counts_people() -> None:
    scores = make_scores({"old": [0.6] * 8, "new": [0.7] * 6 + [0.6, 0.55]})
    found = verdict(scores, personalized="new", reference="old")
    assert found.counts == "6 helped, 1 hurt, 1 unchanged."
    changes = [0.1] * 6 + [0.0, -0.05]
    assert found.detectable == approx(detectable_effect(changes))


@pytest.mark.parametrize(
    ("low", "high", "people", "effect"),
    [(0.01, 0.2, 6, "helped"), (-0.2, -0.01, 6, "hurt"), (0.0, 0.2, 6, "unclear"), (0.01, 0.2, 5, "unclear")],
)
def test_effect(low: float, high: float, people: int, effect: str) -> None:
    assert effect_of(Interval((low + high) / 2, low, high), people) == effect


def test_who_gained_and_who_lost() -> None:
    people = differences(make_scores({"old": [0.5, 0.9, 0.7], "new": [0.95, 0.85, 0.7]}), "new", "old")
    assert most_changed(people) == ("Gained most: s0 (50.0 to 95.0).", "Lost: s1 (90.0 to 85.0).")
    gained = people[people["change"] > 0]
    assert most_changed(gained)[1] == "Nobody lost."


def test_caveats_name_losses_where_the_verdict_is_good() -> None:
    common = make_scores({"old": [0.6] * 8, "new": [0.9] * 8})
    rare = make_scores({"old": [0.7, 0.8] * 4, "new": [0.8, 0.7] * 4}, cohort="5%", war={"old": 0.96, "new": 0.8})
    scores = pd.concat([common, rare])
    said = caveats(method_table(scores, reference="old"), scores, personalized="new", reference="old")
    assert said[0] == f"At 5% positives, WAR fell from 96.0 to 80.0 ({MINUS}16.0 to {MINUS}16.0)."
    assert said[1].startswith(f"At 5% positives, UAR shows no clear effect: 75.0 to 75.0 ({MINUS}")
    assert said[2] == "At 5% positives, WAR is 80.0, below the majority predictor's 95.0."
    assert len(said) == 3


def test_caveats_name_subjects_with_a_single_class() -> None:
    scores = make_scores({"old": [0.6] * 8, "new": [0.9] * 6 + [0.5] * 2})
    scores.loc[scores["uar"] == 0.5, "f1"] = 1 / 3
    said = caveats(method_table(scores, reference="old"), scores, personalized="new", reference="old")
    assert said == ["With balanced classes, it predicts a single class for 2 of 8 subjects."]


def tuned(method: str, baseline: str, readout: str, objective: str = "infomax") -> MethodFacts:
    return replace(
        FACTS,
        method=method,
        subject_baseline=baseline,
        readout=readout,
        objective=objective,
        adapts=objective != "none",
    )


def test_prompt_tuning_is_compared_with_its_own_readout_and_baseline() -> None:
    facts = [
        tuned("best", "none", "best_window", "none"),
        tuned("mean", "none", "mean_windows", "none"),
        tuned("base", "median", "mean_windows", "none"),
        tuned("tuned mean", "none", "mean_windows"),
        tuned("tuned base", "median", "best_window"),
        replace(tuned("zero", "none", "whole_clip", "none"), logits_from="class_text"),
    ]
    level = {"best": 0.6, "mean": 0.62, "base": 0.8, "tuned mean": 0.7, "tuned base": 0.75, "zero": 0.5}
    found = additions(make_scores({name: [value] * 8 for name, value in level.items()}), facts)
    assert [(one.method, one.alone, one.effect) for one in found] == [
        ("tuned mean", "mean", "helped"),
        ("tuned base", "base", "hurt"),
    ]
    assert found[0].difference.mean == approx(0.08)
    assert addition_sentence(found) == (
        "On top of the median baseline, adaptation hurts: UAR 80.0 alone, 75.0 with “tuned base” "
        f"(difference {MINUS}5.0, 95% interval {MINUS}5.0 to {MINUS}5.0)."
    )
    assert addition_sentence(found[:1]).startswith("No row combines adaptation with a subject baseline")
    several = addition_sentence([found[1], replace(found[0], subject_baseline="mean")])
    assert several.startswith(
        "Adaptation on top of a subject baseline helps in 1 of 2 rows, has no clear effect in 0 and hurts in 1; the "
        "most favourable is “tuned mean” with +8.0"
    )


def test_selection_sentence() -> None:
    facts = [
        replace(FACTS, method="x"),
        replace(FACTS, method="y"),
        replace(FACTS, method="z", logits_from="class_text"),
    ]
    scores = make_scores({"x": [0.7], "y": [0.8], "z": [0.99]}, split="source_val")
    start = "On source-validation subjects, treated as unseen, “y” has the best UAR (80.0); "
    assert selection_sentence(scores, facts, personalized="y") == f"{start}it is the default reported here."
    assert selection_sentence(scores, facts, personalized="x") == f"{start}the default reported here, “x”, has 70.0."
    assert selection_sentence(scores, facts, personalized="w").endswith("“w”, was not among them.")
    assert selection_sentence(scores[:0], facts, personalized="y").startswith("No source-validation subjects")


def test_facts_of_methods_and_their_order() -> None:
    settings = {"protocol": "per_video", "readout": "best_window", "window_length": 16, "window_stride": 1}
    settings |= {"context_tokens": 4, "steps": 10, "learning_rate": 0.001}
    rows = pd.DataFrame(
        [
            {"method": "base", "objective": "none", "subject_baseline": "median", "status": "ok", "seconds": 0.1},
            {"method": "tuned", "objective": "infomax", "subject_baseline": "none", "status": "ok", "seconds": 0.1},
            {"method": "tuned", "objective": "infomax", "subject_baseline": "none", "status": "lost", "seconds": 0.3},
            {"method": "plain", "objective": "none", "subject_baseline": "none", "status": "ok", "seconds": 0.0},
        ]
    ).assign(**settings, logits_from="head")
    rows["adapts"] = rows["objective"] != "none"
    rows.loc[1, "window_length"] = 8
    found = method_facts(rows)
    assert [one.method for one in found] == ["plain", "tuned", "base"]
    assert (found[1].window_length, found[1].steps, found[1].learning_rate) == ("several", "10", "0.001")
    assert (found[1].num_fallbacks, found[1].num_rows, found[1].fallback) == (1, 2, "lost")
    assert found[1].videos_per_second == approx(5.0)


def test_seeds_share_people_when_they_share_a_manifest() -> None:
    rows = pd.DataFrame({"seed": [0, 0, 1, 1], "manifest": ["a", "a", "b", "b"]})
    assert not seeds_share_people(rows)
    assert seeds_share_people(rows.assign(manifest="a"))


def assume(
    uar: dict[float | None, list[float]], *, cohort: str = "5%", war: dict[float | None, list[float]] | None = None
) -> pd.DataFrame:
    """As from `prior_scores`: UAR of every subject per assumed share; None for the decisions as they stand, at 50%."""
    parts = []
    for share, values in uar.items():
        scores = make_scores({"m": values}, cohort=cohort).assign(own=share is None, assumed_share=share or 0.5)
        parts.append(scores.assign(war=(war or uar)[share], prior=0.5, training_prior=0.5))
    return pd.concat(parts, ignore_index=True)


def test_the_true_share_is_compared_with_the_decisions_as_they_stand() -> None:
    uar = {None: [0.9] * 6, 0.05: [0.7, 0.8, 0.7, 0.8, 0.7, 0.8], 0.5: [0.9] * 6}
    war = {None: [0.8] * 6, 0.05: [0.96] * 6, 0.5: [0.8] * 6}
    assert prior_sentences(assume(uar, war=war), "m") == [
        "At 5% positives, assuming 5% instead of 50% raises WAR from 80.0 to 96.0 (+16.0 to +16.0) and lowers UAR from "
        f"90.0 to 75.0 ({MINUS}18.3 to {MINUS}11.7); always predicting the most frequent class gives WAR 95.0."
    ]


def test_what_is_not_clear_or_not_there_is_called_so() -> None:
    uar = {None: [0.8] * 6, 0.05: [0.7, 0.9] * 3}
    war = {None: [0.8] * 6, 0.05: [0.8] * 6}
    (said,) = prior_sentences(assume(uar, war=war), "m")
    assert f"leaves WAR at 80.0 and changes UAR from 80.0 to 80.0 ({MINUS}6.7 to +6.7);" in said


def test_the_most_harmful_wrong_share_is_named_once() -> None:
    """In both cohorts 50% is as it stands; what costs most is 5% where half are positive."""
    balanced = assume({None: [0.9] * 6, 0.5: [0.9] * 6, 0.05: [0.6] * 6}, cohort="balanced")
    rare = assume({None: [0.9] * 6, 0.05: [0.9] * 6, 0.5: [0.8] * 6})
    said = prior_sentences(pd.concat([balanced, rare]), "m")
    assert said[0] == "With balanced classes, the decisions as they stand already assume 50%: UAR 90.0 and WAR 90.0."
    assert said[1].startswith("At 5% positives, assuming 5% instead of 50% leaves WAR at 90.0 and leaves UAR at 90.0;")
    assert said[2:] == [
        "A wrong share costs most with balanced classes: assuming 5% lowers UAR from 90.0 to 60.0 "
        f"({MINUS}30.0 to {MINUS}30.0)."
    ]


def test_estimated_shares_are_given_as_their_mean() -> None:
    assumed = assume({None: [0.9] * 6, 0.05: [0.9] * 6})
    assumed.loc[assumed["own"], "assumed_share"] = [0.01, 0.09] * 3
    assumed["prior"] = 0.05
    (said,) = prior_sentences(assumed, "m")
    assert said.startswith("At 5% positives, assuming 5% instead of the subjects' own shares (5% on average) leaves")
