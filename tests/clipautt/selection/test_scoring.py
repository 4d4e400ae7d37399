"""Scores per subject and cohort: those of single adaptations, blind to labels, honest about what is missing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from clipautt.adaptation.driver import adapt
from clipautt.adaptation.method import AdaptConfig
from clipautt.clips import Clip
from clipautt.evaluation.results import Cohort
from clipautt.features.clip_features import ClipFeatures
from clipautt.features.packed import PackedClips
from clipautt.metrics import score
from clipautt.model.windows import WindowSpec
from clipautt.selection.scoring import Draw, clip_worth, draws_of, positive_shares, score_fold, spread
from tests.support.configs import adapt_config
from tests.support.fakes import fake_clip, fake_source

CLASSES = ("neutral", "pain")
COHORTS = (Cohort(0.5), Cohort(0.2, draws=2))
CLIPS = {
    subject: [Clip(f"{subject}{n}", subject, "x.mp4", "source_train", CLASSES[n % 2]) for n in range(10)]
    for subject in ("s0", "s1", "s2")
}


def features() -> dict[str, ClipFeatures]:
    made = [
        fake_clip(clip.clip_id, clip.subject_id, positive=clip.label == "pain")
        for clips in CLIPS.values()
        for clip in clips
    ]
    return PackedClips.of(made).clips()


DRAWS = draws_of(CLIPS, COHORTS, classes=CLASSES, seed=3)


def test_draws_are_those_of_the_adapt_job() -> None:
    assert [(draw.subject_id, draw.cohort) for draw in DRAWS[:4]] == [("s0", 0), ("s0", 1), ("s0", 1), ("s1", 0)]
    drawn = COHORTS[1].members(CLIPS["s0"], positive="pain", draw=1, seed=3)
    assert dict(DRAWS[2].labels) == {clip.clip_id: CLASSES.index(clip.label or "") for clip in drawn}
    assert sum(DRAWS[0].labels.values()) == 5 and len(DRAWS[0].labels) == 10
    assert sum(DRAWS[1].labels.values()) == 1 and len(DRAWS[1].labels) == 6


@pytest.mark.parametrize("config", [adapt_config(), adapt_config(objective="infomax_kl", steps=2, learning_rate=0.3)])
def test_a_fold_is_scored_as_single_adaptations_would_be(config: AdaptConfig) -> None:
    source, clips = fake_source(), features()
    found = score_fold(source, clips, DRAWS, config)
    assert found.figures.shape == (3, 2, 3) and found.fallbacks == 0 and found.unpredicted == 0 and found.seconds > 0
    assert found.videos == sum(len(draw.labels) for draw in DRAWS) and found.agreement is None
    for row, subject in enumerate(CLIPS):
        for cohort in (0, 1):
            single = []
            for draw in (one for one in DRAWS if (one.subject_id, one.cohort) == (subject, cohort)):
                (result,) = adapt(source, [clips[one] for one in draw.labels], config).values()
                made = {one.clip_id: one.label_index for one in result.predictions}
                single.append(score([made[one] for one in draw.labels], [*draw.labels.values()], num_classes=2))
            expected = np.mean([[one.uar, one.war, one.f1] for one in single], axis=0)
            np.testing.assert_allclose(found.figures[row, cohort], expected, atol=1e-12)


def test_labels_only_score() -> None:
    """With every answer turned round, accuracies become their complements: no prediction saw a label."""
    source, clips, config = fake_source(), features(), adapt_config(objective="infomax_kl", steps=2)
    turned = [replace(draw, labels={one: 1 - label for one, label in draw.labels.items()}) for draw in DRAWS]
    war = [score_fold(source, clips, draws, config).figures[:, :, 1] for draws in (DRAWS, turned)]
    np.testing.assert_allclose(war[0] + war[1], 1)


def test_a_clip_without_a_prediction_counts_as_a_wrong_one() -> None:
    clips, config = features(), adapt_config()
    hidden = {name: replace(one, face_found=np.zeros(20, bool), min_share=0.5) for name, one in clips.items()}
    whole = score_fold(fake_source(), clips, DRAWS[:1], config)
    (result,) = adapt(fake_source(), [clips[one] for one in DRAWS[0].labels], config).values()
    right = [one.clip_id for one in result.predictions if one.label_index == DRAWS[0].labels[one.clip_id]]
    found = score_fold(fake_source(), clips | {right[0]: hidden[right[0]]}, DRAWS[:1], config)
    assert (found.videos, found.unpredicted) == (9, 1)
    assert found.why_not.startswith("the face is found in 0 of 20 frames")
    assert found.figures[0, 0, 1] == pytest.approx(whole.figures[0, 0, 1] - 0.1)
    nobody = score_fold(fake_source(), hidden, DRAWS[:1], config)
    assert (nobody.videos, nobody.unpredicted) == (0, 10) and nobody.figures[0, 0, 0] == 0
    short = adapt_config(protocol="per_video", subject_baseline="mean")
    source = fake_source(subject_baseline="mean", window=WindowSpec(21))
    assert score_fold(source, clips, DRAWS[:1], short).why_not.startswith("too short: 20 frames, fewer than a window ")


def test_an_approximation_is_compared_with_the_exact_method() -> None:
    config = adapt_config(objective="infomax", steps=2, tune="feature")
    found = score_fold(fake_source(), features(), DRAWS, config, compare=1)
    assert found.agreement is not None and found.agreement.videos == 10


def test_what_one_clip_is_worth() -> None:
    one = Draw("a", 0, {"1": 0, "2": 0, "3": 1, "4": 1})
    assert clip_worth([one]) == (0.25, 0.25)
    rare = Draw("b", 0, {"1": 0, "2": 0, "3": 0, "4": 0, "5": 1})
    assert clip_worth([rare]) == (1 / 8, 1 / 2)
    assert clip_worth([one, rare]) == pytest.approx((1 / 8, 1 / 4)), "two subjects: half of each"
    other = Draw("b", 0, {"6": 0, "7": 0, "8": 0, "9": 0, "10": 1})
    assert clip_worth([rare, other]) == (1 / 16, 1 / 4), "two draws of one subject: half of each"
    assert clip_worth([rare, rare]) == clip_worth([rare]), "a clip that is in both draws counts in both"
    even = Draw("b", 1, {"1": 0, "5": 1})
    assert clip_worth([rare, even]) == (1 / 16, (1 / 2 + 1 / 2) / 2), "clip 5 decides half of either cohort"


def test_the_share_of_positives_that_there_is() -> None:
    even, rare = Draw("a", 0, {"1": 0, "2": 1}), Draw("a", 1, {"1": 0, "2": 0, "3": 0, "4": 1})
    assert positive_shares([even, rare, Draw("b", 1, {"1": 0, "2": 1})], positive=1) == (0.5, 0.375)


def test_spread_over_subjects() -> None:
    values, reference = np.array([0.5, 0.75, 1.0, math.nan]), np.array([0.5, 0.5, 0.5, 0.9])
    found = spread(values, reference)
    assert found["uar_sd"] == pytest.approx(0.25) and found["gain"] == pytest.approx(0.25)
    assert 0.5 <= found["uar_low"] < 0.75 < found["uar_high"] <= 1
    assert found["gain_low"] == pytest.approx(found["uar_low"] - 0.5), "resamples are those of the same subjects"
    nothing = spread(np.array([math.nan]))
    assert all(math.isnan(value) for value in nothing.values())
