"""The annotated video: the same picture as an overlay, made from plain values, without PyTorch, for any browser."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.responses import FileResponse

from clipautt.prediction.answers import VideoPrediction
from clipautt.prediction.figure import Rendered, rendered
from clipautt.prediction.shown import why_no_units
from clipautt.video.decoding import DecodeError
from clipautt.video.reader_process import ReadLimits
from ray_jobs.serve.model.annotated import Shown, write_annotated
from ray_jobs.serve.model.answers import describe
from ray_jobs.serve.web.annotated_videos import AnnotatedVideos
from tests.clipautt.prediction import test_answers
from tests.clipautt.prediction.test_answers import fallen, seen_clip
from tests.clipautt.prediction.test_overlay import BLUE, answer, near
from tests.support.browser import find_chromium, open_page
from tests.support.fakes import fake_clip, write_video
from tests.support.listening import listening
from tests.support.web import Page, serving

LIMITS = ReadLimits()


def plain(prediction: VideoPrediction) -> dict[str, Any]:
    """The answer as it arrives from the encoder, through JSON."""
    said = describe(prediction) | {"duration_seconds": prediction.duration_seconds}
    values: dict[str, Any] = json.loads(json.dumps(said))
    return values


def drawn(prediction: VideoPrediction) -> tuple[Rendered, Rendered]:
    """The figure of a prediction, and of its plain values."""
    nameless = replace(prediction, video="", clip=replace(prediction.clip, other_faces=0))
    return rendered(nameless), rendered(Shown(plain(prediction)))


def test_plain_values_are_drawn_as_the_prediction_is() -> None:
    """With a gap where the face is not found, so that some windows do not count; where nothing rose; without boxes."""
    found = test_answers.answer(seen_clip())
    for prediction in (replace(found, personalized_for="ann"), fallen(found), test_answers.answer(fake_clip())):
        expected, made = drawn(prediction)
        assert made.pixels.shape == expected.pixels.shape
        assert (np.abs(made.pixels.astype(int) - expected.pixels).max(-1) > 60).mean() < 0.002
        assert made.charts == expected.charts and made.end_seconds == expected.end_seconds
    assert len(found.windows) == 5 and Shown(plain(found)).windows["status"].tolist() == ["ok", "no_face", "ok", "ok"]
    assert why_no_units(Shown(plain(fallen(found)))) == "no action unit rose over its usual level"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds, larger than what is shown."""
    frames = np.full((50, 480, 720, 3), 120, np.uint8)
    return write_video(
        tmp_path_factory.mktemp("video") / "v.webm",
        frames,
        codec="libvpx",
        options={"deadline": "realtime", "cpu-used": "8"},
    )


def test_every_browser_can_play_it(video: Path, tmp_path: Path) -> None:
    prediction = answer(video)
    target = tmp_path / "out.mp4"
    write_annotated(video, plain(prediction), target, limits=LIMITS)
    content = target.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat"), "it begins before it has arrived"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600 and [one.name for one in tmp_path.iterdir()] == ["out.mp4"]
    with av.open(str(target)) as container:
        (stream,) = container.streams
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt, codec.profile) == ("h264", "yuv420p", "High")
        pictures = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert codec.width == 960 and codec.height % 2 == 0
    still = rendered(replace(prediction, video=""))
    assert codec.height == 360 + len(still.pixels)
    assert len(pictures) == 30 and pictures[-1][0] == pytest.approx(1.96, abs=0.07), "15 per second"
    picture, top = pictures[0][1], still.header
    # 720 × 480 becomes 540 × 360 in the middle of 960; the box is at (100, 60) with a side of 80.
    assert near(picture[top + 75, 210 + 75], BLUE) and near(picture[top + 45, 210 + 105], BLUE)
    assert near(picture[top + 75, 210 + 105], (120, 120, 120)), "the face itself is not covered"
    assert np.abs(picture[:top].astype(int) - still.pixels[:top]).mean() < 6, "label and warnings"


def test_what_cannot_be_decoded_leaves_nothing(video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "in"
    broken.write_bytes(video.read_bytes()[:300])
    with pytest.raises(DecodeError):
        write_annotated(broken, plain(answer(video)), tmp_path / "out.mp4", limits=LIMITS)
    assert [one.name for one in tmp_path.iterdir()] == ["in"]


@contextmanager
def running(videos: AnnotatedVideos) -> Iterator[str]:
    """A server of the videos; its address."""
    app = FastAPI()

    @app.get("/api/videos/{name}")
    async def video(name: str) -> FileResponse:
        return videos.response(name)

    with listening(app) as listener:
        yield listener.url


@pytest.mark.slow
def test_a_browser_plays_it_from_another_site(video: Path, tmp_path: Path) -> None:
    """To its end, and from any place after a jump."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no chromium on this machine")
    videos = AnnotatedVideos(tmp_path / "videos")
    target = videos.begin()
    write_annotated(video, plain(answer(video)), target, limits=LIMITS)
    height = 360 + len(rendered(replace(answer(video), video="")).pixels)
    with running(videos) as url, serving() as site:
        html = f'<video muted src="{url}/api/videos/{videos.keep(target)}.mp4"></video>'
        site.pages["/"] = Page(html.encode(), headers={"Content-Type": "text/html"})
        asyncio.run(play(chromium, site.url, tmp_path, height))


async def play(chromium: str, url: str, folder: Path, height: int) -> None:
    async with open_page(chromium, folder / "profile", url) as tab:
        await tab.evaluate("v = document.querySelector('video'); v.addEventListener('canplay', () => v.ready = true)")
        await tab.wait_for("v.ready || v.readyState >= 3")
        assert await tab.evaluate("[v.videoWidth, v.videoHeight, v.error]") == [960, height, None]
        assert await tab.evaluate("v.duration") == pytest.approx(2.0, abs=0.08)
        await tab.evaluate("v.currentTime = 1.5")
        await tab.wait_for("!v.seeking && v.readyState >= 2")
        await tab.evaluate("v.play()")
        await tab.wait_for("v.ended")
        await tab.screenshot(folder / "shot.png")
