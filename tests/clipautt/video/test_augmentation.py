"""Augmentation: off to the last bit, one change per clip, and each of the three does what it says."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from clipautt.settings import one_line
from clipautt.video.augmentation import Augmentation, AugmentedPass, augmented_passes

SIZE = 16
EVERYTHING = Augmentation(flip=0.5, crop=0.4, colour=0.5)


def pictures(count: int = 5) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)


def change(augmentation: Augmentation, frames: npt.NDArray[np.uint8], number: int = 0) -> npt.NDArray[np.uint8]:
    return augmentation.transform(f"clip {number}", seed=0, epoch=0)(frames)


def test_off_is_the_identity() -> None:
    frames = pictures()
    assert np.array_equal(change(Augmentation(), frames), frames) and not Augmentation().on
    assert all(Augmentation(**{name: 0.1}).on for name in ("flip", "crop", "colour"))


@pytest.mark.parametrize("number", range(8))
def test_all_frames_of_a_clip_change_alike_in_one_part_or_in_several(number: int) -> None:
    frames = np.repeat(pictures(2), [3, 2], axis=0)
    before = frames.copy()
    changed = change(EVERYTHING, frames, number)
    assert changed.shape == frames.shape and changed.dtype == np.uint8 and changed.flags.c_contiguous
    assert np.array_equal(frames, before) and not np.array_equal(changed, frames)
    assert (changed[:3] == changed[0]).all() and (changed[3:] == changed[4]).all()
    parts = [change(EVERYTHING, part, number) for part in (frames[:1], frames[1:])]
    assert np.array_equal(np.concatenate(parts), changed)


def test_the_change_follows_from_seed_epoch_and_clip() -> None:
    frames = pictures(1)
    one = EVERYTHING.transform("a", seed=1, epoch=2)(frames)
    assert np.array_equal(one, EVERYTHING.transform("a", seed=1, epoch=2)(frames))
    for clip_id, seed, epoch in (("b", 1, 2), ("a", 2, 2), ("a", 1, 3)):
        assert not np.array_equal(one, EVERYTHING.transform(clip_id, seed=seed, epoch=epoch)(frames))


@pytest.mark.parametrize(("flip", "low", "high"), [(0.0, 0, 0), (0.25, 30, 70), (1.0, 200, 200)])
def test_clips_are_mirrored_with_the_probability_asked_for(flip: float, low: int, high: int) -> None:
    frames = pictures(2)
    mirrored = 0
    for number in range(200):
        changed = change(Augmentation(flip=flip), frames, number)
        same = np.array_equal(changed, frames)
        assert same or np.array_equal(changed, frames[:, :, ::-1])
        mirrored += not same
    assert low <= mirrored <= high


def test_a_crop_leaves_away_no_more_than_asked_and_reaches_every_edge() -> None:
    """Of a picture that is a ramp, the crop is a flatter ramp: its ends tell where the crop lies."""
    ramp = np.linspace(0, 240, SIZE).astype(np.uint8)
    across = np.broadcast_to(ramp[None, None, :, None], (1, SIZE, SIZE, 3)).copy()
    down = across.transpose(0, 2, 1, 3).copy()
    kept, starts = [], []
    for number in range(200):
        wide, high = (change(Augmentation(crop=0.4), frames, number)[0].astype(float) for frames in (across, down))
        assert np.ptp(wide, axis=0).max() == 0 and np.ptp(high, axis=1).max() == 0
        spans = [wide[0, -3, 0] - wide[0, 2, 0], high[-3, 0, 0] - high[2, 0, 0]]
        kept += [span / (ramp[-3] - ramp[2]) for span in spans]
        starts.append((wide[0, 0, 0], 240 - wide[0, -1, 0], high[0, 0, 0], 240 - high[-1, 0, 0]))
        assert abs(spans[0] - spans[1]) <= 3  # a square stays a square
    assert 0.58 <= min(kept) < 0.65 and 0.95 < max(kept) <= 1.02
    assert np.min(starts) <= 1 and (np.max(starts, axis=0) > 60).all() and np.max(starts) <= 0.4 * 256 + 8


def test_half_the_side_is_enlarged_between_pixel_centres() -> None:
    """Literal: the left half of 0, 100, 200, 250 is 0 and 100, and pixel centres lie at quarters between them."""
    from clipautt.video.augmentation import _changed, _crop_map

    row = np.array([0, 100, 200, 250], np.uint8)
    frame = np.broadcast_to(row[None, :, None], (4, 4, 3)).copy()
    found = _changed(frame, _crop_map(0.5, 0.0, 0.0), None)
    assert found[0, :, 0].tolist() == [0, 25, 75, 125]
    assert _changed(frame, _crop_map(0.5, 1.0, 1.0), None)[0, :, 0].tolist() == [175, 213, 238, 250]


@pytest.mark.parametrize(
    ("factors", "pixel", "expected"),
    [
        ((1.0, 1.0, 1.0), (10, 200, 77), (10, 200, 77)),
        ((1.5, 1.0, 1.0), (10, 200, 77), (15, 255, 116)),
        ((1.0, 0.5, 1.0), (127, 27, 227), (127, 77, 177)),
        ((1.0, 1.0, 0.0), (100, 50, 200), (82, 82, 82)),  # 0.299 × 100 + 0.587 × 50 + 0.114 × 200
        ((1.0, 0.5, 0.0), (100, 50, 200), (105, 105, 105)),
    ],
)
def test_brightness_contrast_and_saturation(
    factors: tuple[float, float, float], pixel: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
    from clipautt.video.augmentation import _changed, _colour_map

    frame = np.array([[pixel]], np.uint8)
    found = _changed(frame, None, _colour_map(*factors))[0, 0].astype(int)
    assert np.abs(found - expected).max() <= 1


def test_colours_change_by_no_more_than_asked_and_by_that_much() -> None:
    grey = np.full((1, SIZE, SIZE, 3), 100, np.uint8)
    found = [int(change(Augmentation(colour=0.2), grey, number)[0, 0, 0, 0]) for number in range(300)]
    darkest, brightest = 0.8 * 1.2 * 100 - 0.2 * 127.5, 1.2 * 1.2 * 100 - 0.2 * 127.5
    assert darkest - 1 <= min(found) < 78 and 116 < max(found) <= max(brightest, 0.8 * 1.2 * 100 + 0.2 * 127.5) + 1


def test_switching_one_on_leaves_the_others_as_they_were() -> None:
    frames = np.broadcast_to(np.arange(0, 240, 15, dtype=np.uint8)[None, None, :, None], (1, SIZE, SIZE, 3)).copy()
    for number in range(20):
        alone = change(Augmentation(flip=0.5), frames, number)
        both = change(Augmentation(flip=0.5, colour=0.1), frames, number)
        assert (alone[0, 0, 0, 0] > alone[0, 0, -1, 0]) == (both[0, 0, 0, 0] > both[0, 0, -1, 0])


def test_decoding_workers_need_no_torch() -> None:
    code = "import sys, clipautt.video.augmentation; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.1}, "train.augmentation.flip=1.1: should be less than or equal to 1"),
        ({"flip": -0.1}, "train.augmentation.flip=-0.1: should be greater than or equal to 0"),
        ({"crop": 0.6}, "train.augmentation.crop=0.6: should be less than or equal to 0.5"),
        ({"colour": float("nan")}, "train.augmentation.colour=nan: should be a finite number"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Augmentation(**options)
    assert one_line(caught.value, "train.augmentation") == message


def test_a_pass_makes_the_frames_of_its_epoch() -> None:
    frames, passes = pictures(2), augmented_passes(EVERYTHING, 2, seed=3)
    for epoch, one in enumerate(passes):
        assert one is not None
        assert np.array_equal(one.transform("a")(frames), EVERYTHING.transform("a", seed=3, epoch=epoch)(frames))
    assert passes == [AugmentedPass(EVERYTHING, 3, 0), AugmentedPass(EVERYTHING, 3, 1)]
    assert str(AugmentedPass(Augmentation(flip=0.5, colour=0.25), 3, 1)) == "flip 0.5, colour 0.25; pass 2, seed 3"
    assert augmented_passes(Augmentation(), 5, seed=3) == [None]
    with pytest.raises(ValueError, match="passes=0; allowed: 1 or more"):
        augmented_passes(EVERYTHING, 0, seed=3)
