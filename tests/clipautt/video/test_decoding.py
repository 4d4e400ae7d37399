"""Real files whose frames carry their number in their pixels: the right frames, whichever decoder reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from pydantic import ValidationError

from clipautt.clips import Clip
from clipautt.settings import one_line
from clipautt.video.decoding import DecodeError, Decoder, Sampling, choose_frames, decoders_of, stream_clip
from tests.support.fakes import numbered_frames, read_number, write_sound, write_video

DECODERS: tuple[Decoder, ...] = ("decord", "pyav")
FAST = ("plain.mp4", "b_frames.mp4", "irregular.mp4", "late.mp4", "fragmented.mp4", "b_frames.mkv")
"""Files of which decord's frames are proven; the others are left to PyAV."""
EVERY = Sampling(None)
IRREGULAR = np.cumsum([0] + [20, 60, 33, 47, 100] * 20)[:100].tolist()
"""Milliseconds of a hundred frames at a rate that varies; five frames take 0.26 s."""


def clip_of(path: Path, start: float | None = None, end: float | None = None, **options: Any) -> Clip:
    return Clip("c1", "s1", str(path), "target", start_seconds=start, end_seconds=end, **options)


def read(clip: Clip, sampling: Sampling = EVERY, *, decoder: Decoder | None = None) -> tuple[list[int], np.ndarray]:
    """Numbers on the frames and times."""
    decoder = decoder or decoders_of(clip.source)[0]
    found = [(read_number(frame), time) for time, frame in stream_clip(clip, sampling, decoder=decoder)]
    return [number for number, _ in found], np.array([time for _, time in found])


FILES: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "b_frames.mp4": {"options": {"bf": "3", "g": "60"}},
    "irregular.mp4": {"milliseconds": IRREGULAR, "options": {"bf": "2"}},
    "late.mp4": {"milliseconds": [m + 1500 for m in IRREGULAR]},
    "b_frames.mkv": {"options": {"bf": "3", "g": "30"}},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "vp8.webm": {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "irregular.webm": {"codec": "libvpx", "milliseconds": IRREGULAR},
    "mpeg4.avi": {"codec": "mpeg4"},
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, options in FILES.items():
        write_video(folder / name, numbered_frames(100), **options)
    write_video(folder / "thirty.mp4", numbered_frames(100), fps=30)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_every_frame_is_given_in_order(videos: Path, name: str) -> None:
    for decoder in DECODERS if name in FAST else DECODERS[1:]:
        found, times = read(clip_of(videos / name), decoder=decoder)
        assert found == list(range(100)), decoder
        expected = np.array(IRREGULAR) / 1000 if "irregular" in name or "late" in name else np.arange(100) / 25
        np.testing.assert_allclose(times, expected, atol=1e-4)


SPANS = [(None, None), (1.0, 2.5), (2.01, None), (None, 0.5), (2.3, 2.55)]


@pytest.mark.parametrize("name", FAST)
def test_both_decoders_choose_the_same_frames(videos: Path, name: str) -> None:
    for number, span in enumerate(SPANS):
        sampling = Sampling(12.5 if number % 2 else 4.0)
        (one, times), (other, other_times) = (
            read(clip_of(videos / name, *span), sampling, decoder=decoder) for decoder in DECODERS
        )
        assert one == other and len(one) >= 1, span
        np.testing.assert_allclose(times, other_times, atol=1e-4)


def test_frames_are_chosen_by_time_at_25_frames_per_second(videos: Path) -> None:
    numbers, times = read(clip_of(videos / "plain.mp4"), Sampling(12.5))
    assert numbers == list(range(0, 100, 2))
    np.testing.assert_allclose(times, np.arange(50) * 0.08, atol=1e-6)


def test_frames_are_chosen_by_time_at_30_frames_per_second(videos: Path) -> None:
    """The moments 0, 0.08, 0.16, … fall into frames 0, 2.4, 4.8, …: the frame then on display is shown."""
    numbers, _ = read(clip_of(videos / "thirty.mp4"), Sampling(12.5))
    assert numbers[:11] == [0, 2, 4, 7, 9, 12, 14, 16, 19, 21, 24]
    assert numbers[-1] == 98 and len(numbers) == 42  # the last frame shows at 3.3 s


def test_frames_are_chosen_by_time_at_a_variable_rate(videos: Path) -> None:
    #  frames begin at 0, .02, .08, .113, .16, .26, .28, .34, .373, .42, .52, …; frame 4 is still there at .24
    numbers, times = read(clip_of(videos / "irregular.mp4"), Sampling(12.5))
    assert numbers[:10] == [0, 2, 4, 6, 8, 9, 11, 13, 14, 16]
    np.testing.assert_allclose(times[:5], [0, 0.08, 0.16, 0.28, 0.373], atol=1e-6)


def test_span_starts_are_included_and_ends_are_not(videos: Path) -> None:
    numbers, times = read(clip_of(videos / "plain.mp4", 1.0, 2.0))
    assert numbers == list(range(25, 50))
    np.testing.assert_allclose(times, np.arange(25) / 25, atol=1e-6)  # counted from the start of the clip
    assert read(clip_of(videos / "plain.mp4", 1.0, 2.0), Sampling(12.5))[0] == list(range(25, 50, 2))


def test_the_same_moments_at_any_frame_rate(tmp_path: Path) -> None:
    """A clock that shows tenths of a second, filmed at three rates, reads the same."""
    for fps in (20, 30, 50):
        clock = numbered_frames(256)[np.arange(3 * fps) * 10 // fps]
        path = write_video(tmp_path / f"{fps}.mp4", clock, fps=fps)
        assert read(clip_of(path), Sampling(10.0))[0] == list(range(30)), fps


@pytest.mark.parametrize(
    ("name", "decoder"),
    [*((name, decoder) for name in FAST for decoder in DECODERS), ("vp8.webm", "pyav"), ("mpeg4.avi", "pyav")],
)
def test_spans_in_frames(videos: Path, name: str, decoder: Decoder) -> None:
    numbers, times = read(clip_of(videos / name, start_frame=30, end_frame=41), decoder=decoder)
    assert numbers == list(range(30, 41)) and times[0] == 0
    assert read(clip_of(videos / name, end_frame=3), decoder=decoder)[0] == [0, 1, 2]
    assert read(clip_of(videos / name, start_frame=98), decoder=decoder)[0] == [98, 99]
    assert read(clip_of(videos / name, start_frame=100), decoder=decoder)[0] == []


def test_a_span_in_frames_is_sampled_by_time(videos: Path) -> None:
    assert read(clip_of(videos / "plain.mp4", start_frame=31, end_frame=41), Sampling(12.5))[0] == [31, 33, 35, 37, 39]


@pytest.mark.parametrize("name", ["hevc.mp4", "hevc.mkv"])
def test_decord_takes_frames_of_open_groups_of_pictures_for_others(tmp_path: Path, name: str) -> None:
    """Why they are left to PyAV: asked out of order, decord alone is right where the groups are closed and only there.

    Without its choice of frames: `VideoReader` itself, with one group of pictures in ten frames.
    """
    import decord

    wrong: dict[str, list[int]] = {}
    for groups in ("open", "closed"):
        x265 = f"log-level=none:open-gop={groups == 'open':d}:keyint=10:bframes=3:b-adapt=0:scenecut=0"
        path = tmp_path / f"{groups}_{name}"
        write_video(path, numbered_frames(100), codec="libx265", options={"x265-params": x265})
        reader = decord.VideoReader(str(path), num_threads=1)
        assert [read_number(reader[index].asnumpy()) for index in range(100)] == list(range(100))
        anywhere = np.random.default_rng(0).permutation(100).tolist()
        wrong[groups] = [index for index in anywhere if read_number(reader[index].asnumpy()) != index]
        assert read(clip_of(path), decoder="pyav")[0] == list(range(100))
        for index in wrong[groups]:
            assert read(clip_of(path, start_frame=index, end_frame=index + 1), decoder="pyav")[0] == [index]
    assert len(wrong["open"]) >= 1 and wrong["closed"] == []


def test_the_stream_that_players_show_is_read(tmp_path: Path) -> None:
    """A file with two videos; PyAV takes the one that is marked as default, and both count for the budget of pixels."""
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        streams: list[Any] = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, size in zip(streams, (64, 256), strict=True):
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
        for number in range(20):
            for stream, size in zip(streams, (64, 256), strict=True):
                pixels = numbered_frames(20, height=size, width=size)[number if size == 256 else 0]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    with pytest.raises(DecodeError, match="several video streams"):
        read(clip_of(path), decoder="decord")
    assert {frame.shape for _, frame in stream_clip(clip_of(path), EVERY, decoder="pyav")} == {(64, 64, 3)}
    for decoder in DECODERS:
        with pytest.raises(DecodeError, match="256 × 256 pixels"):
            list(stream_clip(clip_of(path), EVERY, decoder=decoder, max_pixels=5000))


def test_frames_before_a_span_show_that_the_decoder_is_alive(videos: Path) -> None:
    alive: list[int] = []
    clip = clip_of(videos / "plain.mp4", start_frame=90)
    frames = stream_clip(clip, EVERY, decoder="pyav", on_frame=lambda: alive.append(1))
    next(frames)
    assert len(alive) >= 90


def test_ten_bits_grey_and_odd_sizes_are_read_by_both_decoders(tmp_path: Path) -> None:
    kinds = {"ten.mp4": "yuv420p10le", "grey.mp4": "gray", "odd.mp4": "yuv444p"}
    for name, pixel_format in kinds.items():
        frames = numbered_frames(20, height=72, width=61 if name == "odd.mp4" else 64)
        path = write_video(tmp_path / name, frames, pixel_format=pixel_format)
        for decoder in DECODERS:
            assert read(clip_of(path), decoder=decoder)[0] == list(range(20)), (name, decoder)


def test_a_file_damaged_in_the_middle_is_refused_by_pyav(videos: Path, tmp_path: Path) -> None:
    content = bytearray((videos / "b_frames.mp4").read_bytes())
    at = content.index(b"mdat") + 2500
    content[at : at + 40] = bytes(40)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(bytes(content))
    with pytest.raises(DecodeError, match=r"damaged at frame \d+"):
        read(clip_of(path), decoder="pyav")


def test_a_webm_that_ends_early_gives_the_frames_until_there(videos: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.webm"
    path.write_bytes((videos / "vp8.webm").read_bytes()[: (videos / "vp8.webm").stat().st_size * 2 // 3])
    numbers, _ = read(clip_of(path), decoder="pyav")
    assert 30 < len(numbers) < 95 and numbers == list(range(len(numbers)))


def test_too_many_pixels_are_refused_before_decoding(videos: Path) -> None:
    for decoder in DECODERS:
        frames = stream_clip(clip_of(videos / "plain.mp4"), EVERY, decoder=decoder, max_pixels=64 * 64 - 1)
        with pytest.raises(DecodeError, match=r"frames have 64 × 64 pixels; at most 4,095 pixels are decoded"):
            next(frames)
        assert len([*stream_clip(clip_of(videos / "plain.mp4"), EVERY, decoder=decoder, max_pixels=64 * 64)]) == 100


def test_long_videos_are_sampled_evenly_by_both_decoders(tmp_path: Path) -> None:
    """decord's single-precision times once put every third moment of a long video one frame early."""
    path = write_video(tmp_path / "long.mp4", numbered_frames(1500), options={"preset": "ultrafast"})
    for decoder in DECODERS:
        _, times = read(clip_of(path), Sampling(5.0), decoder=decoder)
        np.testing.assert_allclose(np.diff(times), 0.2, atol=1e-3)
        assert len(times) == 300


@pytest.mark.parametrize(
    ("fps", "span", "expected"),
    [
        (12.5, (None, None), [0, 2, 4]),
        (25.0, (None, None), [0, 1, 2, 3, 4, 5]),
        (None, (None, None), [0, 1, 2, 3, 4, 5]),
        (100.0, (None, None), [0, 1, 2, 3, 4, 5]),
        (1.0, (None, None), [0]),
        (12.5, (0.05, None), [2, 3]),
        (12.5, (0.04, 0.12), [1]),
        (None, (0.04, 0.12), [1, 2]),
        (12.5, (0.5, None), []),
        (12.5, (0.0, 0.0005), []),
    ],
)
def test_chosen_frames_literal(fps: float | None, span: tuple[float | None, float | None], expected: list[int]) -> None:
    frames = [(i, time, i) for i, time in enumerate([0.0, 0.04, 0.08, 0.12, 0.16, 0.20])]
    assert [i for _, i in choose_frames(frames, Sampling(fps), clip_of(Path("x"), *span))] == expected


def test_chosen_frames_are_those_on_display_at_the_moments() -> None:
    """Against the definition, over random times, rates and spans."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        times = np.cumsum(rng.uniform(0.005, 0.3, 60))
        rate, start, end = rng.uniform(0.5, 60), *sorted(rng.uniform(times[0], times[-1], 2))
        inside = np.flatnonzero((times >= start - 1e-3) & (times < end - 1e-3))
        expected: list[int] = []
        if len(inside):
            moments = start + np.arange(0, int((times[inside[-1]] - start + 1e-3) * rate) + 1) / rate
            shown = np.searchsorted(times, moments + 1e-3, side="right") - 1
            expected = np.unique(shown.clip(inside[0], inside[-1])).tolist()
        frames = [(i, float(time), i) for i, time in enumerate(times)]
        clip = clip_of(Path("x"), float(start), float(end))
        assert [i for _, i in choose_frames(frames, Sampling(float(rate)), clip)] == expected, seed


def test_nothing_behind_the_span_is_asked_for() -> None:
    def frames() -> Any:
        yield from ((i, i * 0.04, i) for i in range(10))
        raise AssertionError("read on")

    assert [i for _, i in choose_frames(frames(), EVERY, clip_of(Path("x"), None, 0.2))] == [0, 1, 2, 3, 4]


def test_times_that_go_back_are_an_error() -> None:
    frames = [(0, 0.0, 0), (1, 0.04, 1), (2, 0.02, 2)]
    with pytest.raises(DecodeError, match=r"the time stamps go back from 0\.040 to 0\.020 s at frame 2"):
        list(choose_frames(frames, EVERY, clip_of(Path("x"))))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_sampling_rate_must_be_positive(rate: float) -> None:
    with pytest.raises(ValidationError) as caught:
        Sampling(rate)
    message = r"frames_per_second=\S+: should be (greater than 0|a finite number)"
    assert re.fullmatch(message, one_line(caught.value))


@pytest.mark.parametrize("kind", ["text", "empty", "sound", "header only"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_file_without_frames_is_an_error(tmp_path: Path, kind: str, decoder: Decoder) -> None:
    path = tmp_path / "clip.mp4"
    if kind == "text":
        path.write_text("this is not a video\n" * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "sound":
        write_sound(path)
    else:
        path.write_bytes(write_video(path, numbered_frames(10)).read_bytes()[:200])
    with pytest.raises(Exception, match=r"\w{3}"):
        list(stream_clip(clip_of(path), EVERY, decoder=decoder))
