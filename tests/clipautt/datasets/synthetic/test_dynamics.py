"""Bursts are in positive clips only; everything else is the same in both classes."""

from __future__ import annotations

import numpy as np
import pytest

from clipautt.action_units import RENDERED, TASKS
from clipautt.datasets.synthetic.dynamics import DIFFICULTIES, Track, draw_track, envelope
from clipautt.datasets.synthetic.identity import INDEX, draw_identity

STANDARD = DIFFICULTIES["standard"]


def track(
    seed: int, *, task: str = "pain", positive: bool, difficulty: str = "standard", num_frames: int = 96
) -> Track:
    level = DIFFICULTIES[difficulty]
    person = draw_identity(seed, resting_bias=level.resting_bias, expressivity_spread=level.expressivity_spread)
    rng = np.random.default_rng([seed, 1])
    return draw_track(person, task=task, positive=positive, difficulty=level, rng=rng, num_frames=num_frames)


@pytest.mark.parametrize("num_frames", [24, 40, 96, 150])
@pytest.mark.parametrize("task", TASKS)
def test_positive_and_neutral_differ_in_the_burst_only(task: str, num_frames: int) -> None:
    for seed in range(8):
        neutral = track(seed, task=task, positive=False, num_frames=num_frames)
        positive = track(seed, task=task, positive=True, num_frames=num_frames)
        assert neutral.burst is None and positive.burst is not None
        start, end = positive.burst
        assert 0 <= start < end <= num_frames
        added = positive.intensities - neutral.intensities
        assert (added >= 0).all() and added[start:end].max() > 0.03
        assert not added[:start].any() and not added[end:].any()
        np.testing.assert_array_equal(positive.pose, neutral.pose)
        np.testing.assert_array_equal(positive.translation, neutral.translation)


def test_everyday_movements_have_the_same_distribution_in_both_classes() -> None:
    """Units that pain never uses: equal means over independent draws, within the error of the mean."""
    columns = [INDEX[code] for code in ("AU1", "AU2", "AU12", "AU14", "AU15", "AU23", "AU51", "AU55", "AU61", "AU64")]
    person = draw_identity(2)
    means = []
    for positive in (False, True):
        rngs = [np.random.default_rng([positive, seed]) for seed in range(250)]
        clips = [draw_track(person, task="pain", positive=positive, difficulty=STANDARD, rng=rng) for rng in rngs]
        means.append(np.stack([clip.intensities[:, columns].mean(axis=0) for clip in clips]))
    difference = means[0].mean(axis=0) - means[1].mean(axis=0)
    error = np.sqrt((means[0].var(axis=0) + means[1].var(axis=0)) / 250)
    assert (np.abs(difference) < 4 * error).all()
    assert (error > 0).all()


def test_neutral_clips_show_lone_parts_of_the_expression() -> None:
    moved = np.stack([np.ptp(track(seed, positive=False).intensities, axis=0) > 0.1 for seed in range(80)])
    share = dict(zip(RENDERED, moved.mean(axis=0), strict=True))
    assert all(share[code] > 0.02 for code in ("AU4", "AU7", "AU9", "AU10", "AU12", "AU43", "AU51", "AU61", "AU25"))
    assert all(value < 0.9 for value in share.values())


def test_pain_is_brow_with_eyes_and_nose_or_lip() -> None:
    for seed in range(20):
        added = (track(seed, positive=True).intensities - track(seed, positive=False).intensities).max(axis=0)
        at = dict(zip(RENDERED, added, strict=True))
        person = draw_identity(seed)
        free = [code for code in ("AU4", "AU6", "AU7", "AU9", "AU10") if person.bias[INDEX[code]] < 0.2]
        used = {code for code, value in at.items() if value > 0}
        assert used <= {"AU4", "AU6", "AU7", "AU9", "AU10", "AU43", "AU20", "AU25", "AU26", "AU17"}
        assert at["AU4"] > 0 or "AU4" not in free
        assert used & {"AU6", "AU7"} or not {"AU6", "AU7"} <= set(free)


def test_intensities_and_difficulties() -> None:
    peaks = {}
    for difficulty in DIFFICULTIES:
        clips = [
            (track(s, positive=True, difficulty=difficulty), track(s, positive=False, difficulty=difficulty))
            for s in range(60)
        ]
        assert all(p.intensities.min() >= 0 and p.intensities.max() <= 1 for p, _ in clips)
        assert all(
            p.intensities.shape == (96, 28) and p.pose.shape == (96, 3) and p.translation.shape == (96, 2)
            for p, _ in clips
        )
        peaks[difficulty] = np.mean([(p.intensities - n.intensities)[:, INDEX["AU4"]].max() for p, n in clips])
    assert 0.1 < peaks["hard"] < peaks["standard"] < 0.6


def test_gain_scales_the_burst_and_bias_lifts_everything() -> None:
    still = draw_identity(6, resting_bias=0, expressivity_spread=0)
    lively = draw_identity(6, resting_bias=0, expressivity_spread=1)
    resting = draw_identity(6, resting_bias=1, expressivity_spread=0)
    clips = [
        draw_track(p, task="pain", positive=True, difficulty=STANDARD, rng=np.random.default_rng(3)).intensities
        for p in (still, lively, resting)
    ]
    column, (start, end) = INDEX["AU4"], (0, 96)
    assert clips[1][start:end, column].max() == pytest.approx(clips[0][:, column].max() * lively.gain[column])
    np.testing.assert_allclose(clips[2][:, column], np.minimum(clips[0][:, column] + resting.bias[column], 1))


def test_everyone_blinks_fully() -> None:
    """Gain does not weaken reflexes."""
    person = draw_identity(1, resting_bias=0, expressivity_spread=1.4)
    rngs = [np.random.default_rng(seed) for seed in range(20)]
    clips = [draw_track(person, task="pain", positive=False, difficulty=STANDARD, rng=rng) for rng in rngs]
    assert sum(clip.intensities[:, INDEX["AU43"]].max() == 1 for clip in clips) > 8


def test_envelope_rises_holds_and_falls() -> None:
    shape = envelope(12, 2, 2, 3, 4)
    np.testing.assert_allclose(shape[[0, 2, 3, 4, 7, 9, 11]], [0, 0, 0.5, 1, 1, 0.5, 0])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"task='joy' is unknown; allowed: pain, stress, ambivalence"):
        track(1, task="joy", positive=True)
    with pytest.raises(ValueError, match=r"num_frames=10 is too few; 24 or more"):
        track(1, positive=True, num_frames=10)
