"""Clips that show too little of a face, or too little at all, take no part: they have a reason and move nobody else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from clipautt.adaptation.driver import History, SubjectResult, Unit, adapt, adapt_units
from clipautt.adaptation.method import AdaptConfig, Session
from clipautt.adaptation.personalization import Personalization
from clipautt.adaptation.predictions import NO_PREDICTION, OK
from clipautt.features.clip_features import ClipFeatures, subject_centre
from clipautt.model.windows import WindowSpec
from tests.support.configs import adapt_config
from tests.support.fakes import fake_clip, fake_clips, fake_source

PROTOCOLS = ("per_video", "online", "per_subject")


def seen(clip: ClipFeatures, found: Sequence[bool]) -> ClipFeatures:
    """The clip as a face detector would leave it; where the face was not found, something else is in its features."""
    shown = np.array(found)
    features = clip.features.clone()
    features[torch.from_numpy(~shown)] = 50.0
    return replace(clip, features=features, face_found=shown, min_share=0.8)


def configured(protocol: str, **options: Any) -> AdaptConfig:
    baseline = options.pop("subject_baseline", "median")
    return adapt_config(protocol=protocol, subject_baseline=baseline, objective="infomax", steps=2, **options)


def statuses(result: SubjectResult) -> dict[str, str]:
    return {prediction.clip_id: prediction.status for prediction in result.predictions}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("readout", ["best_window", "mean_windows", "whole_clip"])
def test_clips_without_a_window_that_counts_change_nothing(protocol: str, readout: Any) -> None:
    """The others are predicted as if they had never been there."""
    source, config = fake_source(subject_baseline="median"), configured(protocol, readout=readout)
    clips = [seen(clip, [True] * 20) for clip in fake_clips(subjects=1, per_subject=6)]
    faceless = [seen(clip, [i < 4 for i in range(20)]) for clip in clips[4:]]
    expected, found = (adapt(source, part, config)["s0"] for part in (clips[:4], [*clips[:4], *faceless]))
    assert len(found.predictions) == 6 and torch.equal(found.centre, expected.centre)
    without = {p.clip_id: p for p in found.predictions if not p.made}
    assert sorted(without) == ["s0c4", "s0c5"]
    for prediction in without.values():
        length = 20 if readout == "whole_clip" else 6
        assert prediction.status == (
            f"{NO_PREDICTION}the face is found in 4 of 20 frames, and no window of {length} frames shows it in 80 % of "
            "them (faces.min_share)"
        )
        assert prediction.probabilities.isnan().all() and np.isnan(prediction.window_start_seconds)
        assert prediction.face_share == 0.2 and repr(prediction).startswith(f"Prediction({prediction.clip_id!r}, no ")
    made = [prediction for prediction in found.predictions if prediction.made]
    for one, other in zip(made, expected.predictions, strict=True):
        assert one.clip_id == other.clip_id and torch.equal(one.probabilities, other.probabilities)
        assert one.face_share == 1.0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_only_frames_that_show_the_face_count(protocol: str) -> None:
    """The face is gone in the second half: the window lies in the first one, and the centre is that of its frames."""
    source, clip = fake_source(subject_baseline="median"), fake_clip(num_frames=40, positive=True)
    halved = seen(clip, [i < 20 for i in range(40)])
    first = replace(clip, features=clip.features[:20], times=clip.times[:20])
    config = adapt_config(protocol=protocol, subject_baseline="median", objective="none")
    found, expected = (adapt(source, [one], config)["s0"] for one in (halved, first))
    assert torch.equal(found.centre, subject_centre(clip.features[:20], "median"))
    assert torch.equal(found.centre, expected.centre)
    (prediction,) = found.predictions
    assert prediction.status == OK and prediction.face_share == 0.5
    # A window of 6 frames needs the face in 5 of them, so it ends with the first frame after at most.
    assert prediction.window_end_seconds <= clip.times[20] + 1 / 12.5 + 1e-9
    views = source.views(halved)
    assert views.starts.tolist() == list(range(16)) and torch.equal(
        views.embeddings[:15], source.views(first).embeddings
    )


def test_windows_are_refused_where_none_counts() -> None:
    clip = seen(fake_clip(), [False] * 20)
    with pytest.raises(ValueError, match=r"clip 'c0': the face is found in 0 of 20 frames, and no window of 6 frames"):
        fake_source().views(clip)


def test_without_a_detector_nothing_is_asked() -> None:
    clip = replace(fake_clip(), face_found=np.zeros(20, bool))
    assert np.isnan(clip.face_share) and torch.equal(clip.shown, clip.features)
    assert len(fake_source().views(clip).starts) == 15


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_clip_shorter_than_a_window_has_no_label_where_its_own_centre_is_removed(protocol: str, frames: int) -> None:
    clip, source = fake_clip(num_frames=frames), fake_source(subject_baseline="median")
    (prediction,) = adapt(source, [clip], configured(protocol))["s0"].predictions
    counted = "1 frame" if frames == 1 else "5 frames"
    assert prediction.status.startswith(f"{NO_PREDICTION}too short: {counted}, fewer than a window of 6 has; ")
    plain = adapt(fake_source(), [clip], configured(protocol, subject_baseline="none"))["s0"].predictions[0]
    assert plain.status == OK


def test_short_clips_count_where_the_subject_has_enough_frames() -> None:
    """Together under `per_subject`; one after the other under `online`, where clips without a label stay out."""
    clips = [fake_clip(f"c{i}", num_frames=8 if i == 3 else 3) for i in range(4)]
    source = fake_source(subject_baseline="median")
    assert set(statuses(adapt(source, clips, configured("per_subject"))["s0"]).values()) == {OK}
    unit = Unit("s0", tuple(clips[i] for i in (0, 3, 1, 2)), in_order=True)
    (online,) = adapt_units(Session.open(source, configured("online")), [unit])
    assert [prediction.made for prediction in online.predictions] == [False, True, True, True]
    of_the_rest = subject_centre(torch.cat([clips[i].features for i in (3, 1, 2)]), "median")
    assert torch.equal(online.centre, of_the_rest)


def test_stride_lengthens_a_window() -> None:
    source = fake_source(subject_baseline="median", window=WindowSpec(length=4, stride=3))
    made = {
        frames: adapt(source, [fake_clip(num_frames=frames)], configured("per_video"))["s0"].predictions[0].made
        for frames in (9, 10)
    }
    assert made == {9: False, 10: True}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("noise", "still"), [(0.0, True), (1e-3, True), (0.1, False)])
def test_a_still_picture_has_no_label(protocol: str, noise: float, still: bool) -> None:
    """As a video of one picture: nothing but the noise of the codec is left of it."""
    clip = fake_clip(num_frames=20)
    generator = torch.Generator().manual_seed(0)
    features = clip.features[:1] + noise * torch.randn(clip.features.shape, generator=generator)
    source = fake_source(subject_baseline="median")
    (found,) = adapt(source, [replace(clip, features=features)], configured(protocol))["s0"].predictions
    assert found.made != still
    if still:
        assert "the picture does not move: its 20 frames are the same" in found.status


def test_a_video_that_stands_still_for_most_of_its_time_has_a_label() -> None:
    clip = fake_clip(num_frames=20, positive=True)
    frozen = replace(clip, features=clip.features[[0] * 12 + list(range(8))])
    source = fake_source(subject_baseline="median")
    assert adapt(source, [frozen], configured("per_video"))["s0"].predictions[0].made


def test_still_pictures_count_beside_clips_that_move() -> None:
    """Together under `per_subject`; under `online` after the first clip that moves."""
    moving = fake_clip("c1")
    still = [replace(fake_clip(name), features=moving.features[[0] * 20]) for name in ("c0", "c2")]
    source, clips = fake_source(subject_baseline="median"), (still[0], moving, still[1])
    assert set(statuses(adapt(source, clips, configured("per_subject"))["s0"]).values()) == {OK}
    (online,) = adapt_units(Session.open(source, configured("online")), [Unit("s0", clips, in_order=True)])
    assert [prediction.made for prediction in online.predictions] == [False, True, True]


def test_a_subject_none_of_whose_clips_can_be_predicted() -> None:
    source, config = fake_source(subject_baseline="median"), configured("online")
    clips = [seen(clip, [False] * 20) for clip in fake_clips(subjects=2, per_subject=2)]
    clips[2:] = [seen(clip, [True] * 20) for clip in fake_clips(subjects=2, per_subject=2)[2:]]
    results = adapt(source, clips, config)
    assert not any(prediction.made for prediction in results["s0"].predictions)
    assert all(prediction.made for prediction in results["s1"].predictions)
    assert not results["s0"].centre.any()
    saved = Personalization.of(results["s0"], config)
    assert sorted(saved.clips) == ["s0c0", "s0c1"]


def test_an_online_run_is_resumed_past_clips_without_a_prediction() -> None:
    """In two runs as in one, also where the second run adds nothing."""
    source, config = fake_source(subject_baseline="median"), configured("online")
    clips = [seen(clip, [i % 3 == 0 or n != 1 for i in range(20)]) for n, clip in enumerate(fake_clips(subjects=1))]
    session = Session.open(source, config)
    (whole,) = adapt_units(session, [Unit("s0", tuple(clips), in_order=True)])
    (first,) = adapt_units(session, [Unit("s0", tuple(clips[:2]), in_order=True)])
    history = History(first.after, tuple(clips[:2]))
    (second,) = adapt_units(session, [Unit("s0", tuple(clips[2:]), history, in_order=True)])
    assert [p.made for p in whole.predictions] == [True, False, True, True]
    for one, other in zip([*first.predictions, *second.predictions], whole.predictions, strict=True):
        assert one.status == other.status
        assert torch.equal(one.probabilities.nan_to_num(), other.probabilities.nan_to_num())
    faceless = seen(fake_clip("more"), [False] * 20)
    (nothing,) = adapt_units(session, [Unit("s0", (faceless,), History(whole.after, tuple(clips)))])
    assert not nothing.predictions[0].made and nothing.after is whole.after
    assert torch.equal(nothing.centre, whole.centre)
