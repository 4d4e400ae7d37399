"""The annotated video shows the crop where the track says it is; the contact sheet shows every crop in its frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from clipautt.evaluation.reports.face_sheet import (
    crop_corners,
    draw_contact_sheet,
    evenly_chosen,
    write_annotated_video,
)
from clipautt.video.preprocessing import Frames
from clipautt.video.tracks import FaceTrack

BLUE, ORANGE = (86, 180, 233), (213, 94, 0)
CAPTION = 40
"""Rows of pixels with the time."""
TIMES = (0.5, 0.54, 0.62, 1.5)
TRACK = FaceTrack(
    centre=np.array([[240.0, 280.0], [240.0, 280.0], [320.0, 280.0], [400.0, 280.0]]),
    side=np.array([160.0] * 4),
    angle=np.zeros(4),
    found=np.array([True, True, False, True]),
    shown=np.ones(4, bool),
    eyes=np.array([[[210.0, 250.0], [270.0, 250.0]], *[[[np.nan] * 2] * 2] * 3]),
    score=np.array([1.0, 1.0, np.nan, 1.0]),
    turn=np.full(4, np.nan),
)


def grey_frames(height: int = 481, width: int = 641) -> Iterator[tuple[float, Frames]]:
    for seconds in TIMES:
        yield seconds, np.full((height, width, 3), 128, np.uint8)


def read(path: Path) -> tuple[list[float], list[Frames]]:
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        shown = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return [time for time, _ in shown], [frame for _, frame in shown]


def near(frame: Frames, colour: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    """Where a frame has a colour, as far as compression and its coarse colours let it."""
    return np.asarray(np.abs(frame.astype(int) - colour).sum(axis=2) < 110)


def extent(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Left, top, right and bottom of what is true below the caption."""
    rows, columns = np.nonzero(mask[CAPTION:])
    return [int(columns.min()), int(rows.min()) + CAPTION, int(columns.max()), int(rows.max()) + CAPTION]


def test_crops_are_drawn_where_they_are_with_the_times_of_the_video(tmp_path: Path) -> None:
    path = write_annotated_video(tmp_path / "new" / "annotated.mp4", grey_frames(), TRACK)
    times, frames = read(path)
    assert times == pytest.approx([0, 0.04, 0.12, 1.0], abs=1e-3)
    assert frames[0].shape == (480, 640, 3)
    assert extent(near(frames[0], BLUE)) == pytest.approx([160, 200, 320, 360], abs=3)
    assert extent(near(frames[2], ORANGE)) == pytest.approx([240, 200, 400, 360], abs=3)
    assert extent(near(frames[3], BLUE)) == pytest.approx([320, 200, 480, 360], abs=3)
    assert not near(frames[0], ORANGE)[CAPTION:].any() and not near(frames[2], BLUE)[CAPTION:].any()
    assert list(path.parent.iterdir()) == [path]


def test_the_line_between_the_eyes_is_drawn_where_they_were_seen(tmp_path: Path) -> None:
    _, frames = read(write_annotated_video(tmp_path / "annotated.mp4", grey_frames(), TRACK))
    between_the_eyes = slice(246, 254), slice(225, 255)
    assert near(frames[0], BLUE)[between_the_eyes].any() and not near(frames[1], BLUE)[between_the_eyes].any()


def test_a_large_video_is_reduced(tmp_path: Path) -> None:
    double = replace(TRACK, centre=2 * TRACK.centre, side=2 * TRACK.side, eyes=2 * TRACK.eyes)
    _, frames = read(write_annotated_video(tmp_path / "a.mp4", grey_frames(960, 1280), double, longest=640))
    assert frames[0].shape == (480, 640, 3)
    assert extent(near(frames[3], BLUE)) == pytest.approx([320, 200, 480, 360], abs=3)


@pytest.mark.parametrize("count", [0, 3, 5])
def test_frames_and_track_must_fit(tmp_path: Path, count: int) -> None:
    frames = [(float(i), np.zeros((32, 32, 3), np.uint8)) for i in range(count)]
    with pytest.raises(ValueError, match=rf"frames has {count} frames, but track has 4; the same number is needed"):
        write_annotated_video(tmp_path / "annotated.mp4", frames, TRACK)
    assert list(tmp_path.iterdir()) == []


def test_corners_of_a_turned_crop() -> None:
    turned = replace(TRACK, angle=np.full(4, math.pi / 2))
    assert np.allclose(crop_corners(TRACK, 0), [[160, 200], [320, 200], [320, 360], [160, 360]])
    assert np.allclose(crop_corners(turned, 0), [[320, 200], [320, 360], [160, 360], [160, 200]])


def test_evenly_chosen() -> None:
    assert evenly_chosen(0) == [] and evenly_chosen(1) == [0] and evenly_chosen(3) == [0, 1, 2]
    assert evenly_chosen(101, 5) == [0, 25, 50, 75, 100]
    chosen = evenly_chosen(1000)
    assert len(chosen) == 48 and chosen[0] == 0 and chosen[-1] == 999 and set(np.diff(chosen)) == {21, 22}


def test_crops_stand_in_rows_of_eight_in_the_order_of_time(tmp_path: Path) -> None:
    shades = [10 + 20 * i for i in range(11)]
    crops = [np.full((64, 64, 3), shade, np.uint8) for shade in shades]
    found = [i != 9 for i in range(11)]
    path = draw_contact_sheet(crops, [0.1 * i for i in range(11)], found, tmp_path / "new" / "sheet.png")
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (64 + 2 * 164 + 10, 10 + 8 * 146, 3)
    places = [(64 + 164 * (i // 8), 10 + 146 * (i % 8)) for i in range(11)]
    assert [int(sheet[y + 68, x + 68, 0]) for y, x in places] == shades
    frames = [tuple(int(v) for v in sheet[y + 1, x + 68]) for y, x in places]
    assert frames == [(217, 217, 217) if i != 9 else ORANGE for i in range(11)]
    assert (sheet[places[10][0], places[10][1] + 146 :] == 255).all()


def test_a_long_clip_shows_48_crops(tmp_path: Path) -> None:
    crops = [np.zeros((8, 8, 3), np.uint8)] * 500
    sheet = Image.open(
        draw_contact_sheet(crops, [0.0] * 500, [True] * 500, tmp_path / "s.png", title="long name " * 15)
    )
    assert sheet.size == (10 + 8 * 146, 64 + 6 * 164 + 10)


@pytest.mark.parametrize(("crops", "times"), [(0, 0), (2, 3)])
def test_a_sheet_needs_one_of_each_per_frame(tmp_path: Path, crops: int, times: int) -> None:
    with pytest.raises(ValueError, match=rf"there are {crops} crops, {times} times and 2 marks; one of each is needed"):
        draw_contact_sheet([np.zeros((8, 8, 3), np.uint8)] * crops, [0.0] * times, [True] * 2, tmp_path / "s.png")
