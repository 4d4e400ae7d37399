"""The overlay of an answer: every frame at its time, with box, cursor, bars and warnings, for browsers."""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from clipautt.clips import Clip
from clipautt.model.windows import WindowSpec
from clipautt.prediction.answers import VideoPrediction
from clipautt.prediction.figure import UNITS, Bar, Rendered, rendered, rgb
from clipautt.prediction.overlay import check_overlay, refuse_source, write_overlay
from clipautt.prediction.overlay_frames import write_frames
from clipautt.prediction.overlay_plan import plan_of
from clipautt.predictor import Predictor
from clipautt.video.containers import DecodeError
from tests.clipautt.prediction import test_answers
from tests.clipautt.prediction.test_answers import fallen
from tests.support.browser import find_chromium, open_page
from tests.support.configs import adapt_config
from tests.support.fakes import fake_clip, fake_source, write_video

BLUE, ORANGE, GREY = (86, 180, 233), (213, 94, 0), (120, 120, 120)
TIMES = [0, 40, 80, 120, 200, 210, 240, 320, 400, 480, 560]
"""Milliseconds of the frames: a variable rate."""


def answer(video: Path) -> VideoPrediction:
    """Looked at every 80 ms: the face is found at first, then inferred, then not seen."""
    found = np.array([True] * 6 + [False] * 2)
    boxes = np.tile(np.array([100, 60, 80, 0, 0.9], np.float32), (8, 1))
    boxes[1, 0], boxes[6, 4], boxes[7] = 110, np.nan, np.nan
    clip = replace(fake_clip(num_frames=8), times=np.arange(8) * 0.08, face_found=found, boxes=boxes, min_share=0.5)
    config = adapt_config(protocol="per_video", window=WindowSpec(length=4))
    said = Predictor(fake_source(), config=config).predict_features(clip, video=str(video))
    return replace(said, cautions={"too_dark": "The picture is dark."})


def grey_video(path: Path, **options: Any) -> Path:
    return write_video(path, np.full((len(TIMES), 320, 480, 3), GREY[0], np.uint8), milliseconds=TIMES, **options)


def frames_of(path: Path) -> tuple[list[float], list[npt.NDArray[np.uint8]]]:
    with av.open(str(path)) as container:
        pairs = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return [time for time, _ in pairs if time is not None], [pixels for _, pixels in pairs]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VideoPrediction]:
    """An overlay of a video with sound, and its answer."""
    folder = tmp_path_factory.mktemp("overlay")
    prediction = answer(grey_video(folder / "a b.mp4", sound_seconds=0.5))
    return write_overlay(prediction, folder / "new" / "overlay.mp4"), prediction


def near(pixel: npt.NDArray[np.uint8], colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() < 40)


def test_every_frame_is_there_at_its_time_in_a_file_for_browsers(made: tuple[Path, VideoPrediction]) -> None:
    path, prediction = made
    times, frames = frames_of(path)
    assert times == pytest.approx([time / 1000 for time in TIMES], abs=1e-4)
    content = path.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat"), "a browser begins before it has the whole file"
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.type, stream.codec_context.name, stream.codec_context.pix_fmt) == ("video", "h264", "yuv420p")
    still = rendered(prediction)
    assert frames[0].shape == (640 + len(still.pixels), 960, 3)
    assert np.abs(frames[3][: still.header].astype(int) - still.pixels[: still.header]).mean() < 4, "text and warnings"
    assert sorted(one.name for one in path.parent.iterdir()) == ["overlay.mp4"]


def test_the_box_lies_where_the_face_is_in_the_colour_of_what_is_known(made: tuple[Path, VideoPrediction]) -> None:
    path, prediction = made
    _, frames = frames_of(path)
    top = rendered(prediction).header
    edges = [[picture[top + 200, x] for x in (200, 210, 220)] for picture in frames]
    shown = [next((i for i, pixel in enumerate(pixels) if near(pixel, BLUE)), None) for pixels in edges]
    assert shown == [0, 1, 2, 1, 0, 0, 0, 0, 0, None, None], "between two looks the box moves evenly"
    assert near(edges[9][0], ORANGE), "its place is inferred"
    assert [near(pixel, GREY) for pixel in edges[10]] == [True] * 3, "no face is seen"
    assert near(frames[0][top + 120, 280], BLUE) and near(frames[0][top + 280, 280], BLUE)
    assert near(frames[0][top + 200, 280], GREY), "the face itself is not covered"


def cursor(picture: npt.NDArray[np.uint8], still: Rendered) -> float:
    """Column of the line in the lowest chart: the darkest."""
    first, last, _ = still.charts[-1]
    rows = picture[640 + first : 640 + last, round(still.left) + 3 : round(still.right) + 3].mean(axis=(0, 2))
    return float(np.argmin(rows)) + round(still.left) + 3


def test_the_cursor_moves_with_time(made: tuple[Path, VideoPrediction]) -> None:
    path, prediction = made
    _, frames = frames_of(path)
    still = rendered(prediction)
    assert still.end_seconds == pytest.approx(0.64)
    found = [cursor(frames[number], still) for number in (2, 4, 8, 10)]
    assert found == pytest.approx(
        [still.left + share * (still.right - still.left) for share in (0.125, 0.3125, 0.625, 0.875)], abs=2
    )


def lengths(picture: npt.NDArray[np.uint8], bars: list[Bar]) -> list[int]:
    """Pixels of each bar: right of the zero line, a quarter of the way, or below 0, left of it."""
    found = []
    for bar in bars:
        hit = np.abs(picture[640 + bar.rows[0] + 3, 706:946].astype(int) - bar.colour).max(-1) < 40
        found.append(int(hit[60:].sum()) - int(hit[:60].sum()))
    return found


def test_each_action_unit_has_a_bar_of_its_value_at_the_moment(tmp_path: Path) -> None:
    """Left of the zero line where it fell; none where no window speaks for the moment, or its value is not known."""
    prediction = answer(grey_video(tmp_path / "v.mp4"))
    still = rendered(prediction)
    assert len(still.bars) == len(prediction.top_action_units) == 4 and still.bar_columns == (706, 946)
    assert [bar.colour for bar in still.bars] == [rgb(colour) for colour in UNITS[:4]], "those of the curves"
    rows = [row for bar in still.bars for row in bar.rows]
    assert rows == sorted(rows) and still.charts[-1][0] < rows[0] < rows[-1] < len(still.pixels)
    rise = prediction.windows["AU4"] - prediction.windows["AU4"].median()
    assert still.bars[0].values == pytest.approx(rise.tolist()), "the highest first"
    values = [[-0.1, 0.1, 0.3], [0.0, 0.0, 0.0], [0.05, math.nan, 0.2], [0.3, 0.3, -0.1]]
    bars = [(*bar.rows, known, bar.colour) for bar, known in zip(still.bars, values, strict=True)]
    plan = plan_of(prediction, prediction.clip.times, prediction.clip.boxes)  # type: ignore[arg-type]
    drawn = replace(plan, curves=[], moments=[0.12, 0.2, 0.4], bars=bars, reach=0.05)
    target = tmp_path / "o.mp4"
    clip = Clip("v", "", prediction.video, "target")
    write_frames(clip, target=str(target), plan=asdict(drawn), decoder="pyav", max_pixels=10**6, on_frame=lambda: None)
    times, frames = frames_of(target)
    shown = {round(time, 2): lengths(picture, still.bars) for time, picture in zip(times, frames, strict=True)}
    assert shown[0.04] == shown[0.48] == [0, 0, 0, 0]
    expected = {0.08: [-60, 0, 30, 178], 0.12: [-60, 0, 30, 178], 0.2: [60, 0, 0, 178], 0.4: [178, 0, 119, -60]}
    for time, pixels in expected.items():
        assert shown[time] == pytest.approx(pixels, abs=6), time
    assert rendered(fallen(test_answers.answer(test_answers.seen_clip()))).bars == []


@pytest.mark.parametrize("size", [(64, 64), (6, 320), (480, 270)])
def test_frames_of_any_size_have_a_place(tmp_path: Path, size: tuple[int, int]) -> None:
    video = write_video(tmp_path / "v.mp4", np.full((3, *size, 3), 90, np.uint8))
    prediction = answer(video)
    _, frames = frames_of(write_overlay(prediction, tmp_path / "o.mp4"))
    factor = min(960 / size[1], 640 / size[0], 8)
    assert len(frames) == 3 and frames[0].shape[1] == 960
    assert frames[0].shape[0] - len(rendered(prediction).pixels) == pytest.approx(size[0] * factor, abs=1)


def test_a_span_and_a_video_without_a_label_are_shown_as_well(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", np.full((20, 64, 64, 3), 90, np.uint8))
    nothing = replace(answer(video), label=None, probabilities={}, curves=None, reason="too short")
    span = Clip("v", "ann", str(video), "target", start_seconds=0.2, end_seconds=0.4)
    times, _ = frames_of(write_overlay(nothing, tmp_path / "o.mp4", clip=span))
    assert times == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16], abs=1e-4)


def test_a_video_that_cannot_be_decoded_leaves_nothing(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(grey_video(tmp_path / "whole.mp4").read_bytes()[:700])
    with pytest.raises(DecodeError, match="cannot be decoded"):
        write_overlay(answer(video), tmp_path / "o.mp4")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["v.mp4", "whole.mp4"]


def test_a_prediction_from_features_needs_its_clip(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not say which video it is of; give clip=Clip\(…\) with its source"):
        write_overlay(replace(answer(tmp_path), video=""), tmp_path / "o.mp4")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("o.avi", "path={}/o.avi: an overlay is an MP4 video; allowed: names that end in .mp4"),
        ("d.mp4", "path={0}/d.mp4 is a folder; give the name of a file, such as {0}/d.mp4/overlay.mp4"),
        ("v.mp4", "path={}/v.mp4 is the video itself, which would be overwritten; give another name"),
        ("link.mp4", "path={}/link.mp4 is the video itself, which would be overwritten; give another name"),
    ],
)
def test_names_that_cannot_be_written_are_refused(tmp_path: Path, name: str, said: str) -> None:
    video = tmp_path / "v.mp4"
    video.touch()
    (tmp_path / "d.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(video)
    with pytest.raises(ValueError) as caught:
        check_overlay(tmp_path / name, video)
    assert str(caught.value) == said.format(tmp_path)


def test_only_overlays_are_replaced(made: tuple[Path, VideoPrediction], tmp_path: Path) -> None:
    """Nor does a picture go into a folder of frames, where it would be one of them."""
    overlay, video = made[0], tmp_path / "v.mp4"
    assert check_overlay(overlay, video) == overlay
    write_video(tmp_path / "other.mp4", np.full((3, 64, 64, 3), 90, np.uint8))
    with pytest.raises(
        FileExistsError, match=r"path=.*/other\.mp4 is a file, but no overlay; give another name, or rem"
    ):
        check_overlay(tmp_path / "other.mp4", video)
    with pytest.raises(ValueError, match=r"figure=.*/f\.png lies in .*, the folder of frames; give another name"):
        refuse_source(tmp_path / "f.png", tmp_path, name="figure")


def test_a_browser_plays_it(made: tuple[Path, VideoPrediction], tmp_path: Path) -> None:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no chromium on this machine")
    page = tmp_path / "page.html"
    page.write_text(f'<body style="margin:0"><video muted autoplay src="{made[0].as_uri()}"></video>')
    asyncio.run(play(chromium, page, tmp_path, height=640 + len(rendered(made[1]).pixels)))


async def play(chromium: str, page: Path, folder: Path, *, height: int) -> None:
    """Look at the video element of a page until it has played to the end."""
    async with open_page(chromium, folder / "profile", page.as_uri()) as tab:
        await tab.wait_for("document.querySelector('video').readyState >= 2")
        await tab.wait_for("document.querySelector('video').ended")
        shape = await tab.evaluate("(v => [v.videoWidth, v.videoHeight, v.error])(document.querySelector('video'))")
        assert shape == [960, height, None]
        times = await tab.evaluate("(v => [v.currentTime, v.duration])(document.querySelector('video'))")
        assert times == pytest.approx([0.64, 0.64], abs=0.02)
