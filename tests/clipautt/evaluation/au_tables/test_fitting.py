"""Whether a table belongs to a clip: its duration and its rate are those of the video, to 10 %."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipautt.clips import Clip
from clipautt.evaluation.au_tables.fitting import read_au_table_of
from tests.support.fakes import numbered_frames, write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 frames, 2 seconds."""
    return write_video(tmp_path_factory.mktemp("videos") / "long.mp4", numbered_frames(50))


def openface(path: Path, *, frames: int, rate: float = 25.0, first: float = 0.0) -> Path:
    rows = [f"{n + 1},{first + n / rate:.3f},0.98,1,{n % 5}" for n in range(frames)]
    path.write_text("\n".join(["frame,timestamp,confidence,success,AU04_r", *rows, ""]))
    return path


def whole(video: Path, clip_id: str = "c") -> Clip:
    return Clip(clip_id, "s", str(video), "target")


@pytest.mark.parametrize("frames", [50, 46, 54])
def test_a_table_of_the_clip_s_length_is_taken(tmp_path: Path, video: Path, frames: int) -> None:
    assert len(read_au_table_of(openface(tmp_path / "c.csv", frames=frames), whole(video)).intensities) == frames


@pytest.mark.parametrize(
    ("frames", "rate", "first", "told"),
    [
        (100, 1000.0, 0.0, "covers 0.10 s, and the clip lasts 2.00 s, so it is not the table of clip 'c'"),
        (44, 25.0, 0.0, "covers 1.76 s, and the clip lasts 2.00 s"),
        (56, 25.0, 0.0, "covers 2.24 s, and the clip lasts 2.00 s"),
        (50, 25.0, 3.0, "covers 3.00 to 5.00 s, and the clip lasts 2.00 s"),
        (60, 30.0, 0.0, "has 30.0 frames per second, and"),
        (40, 20.0, 0.0, "has 20.0 frames per second, and"),
    ],
)
def test_another_video_s_table_is_refused(
    tmp_path: Path, video: Path, frames: int, rate: float, first: float, told: str
) -> None:
    path = openface(tmp_path / "c.csv", frames=frames, rate=rate)
    if first:  # without frame numbers, so that the clock counts
        rows = [line.partition(",")[2] for line in openface(path, frames=frames, first=first).read_text().splitlines()]
        path.write_text("\n".join([*rows, ""]))
    with pytest.raises(ValueError) as caught:
        read_au_table_of(path, whole(video))
    assert told in str(caught.value) and str(caught.value).startswith(str(path))
    assert str(video) in str(caught.value)


def test_a_span_of_a_video_takes_the_video_s_table_or_its_own(tmp_path: Path, video: Path) -> None:
    span = Clip("c", "s", str(video), "target", start_seconds=0.4, end_seconds=1.2)
    of_video = read_au_table_of(openface(tmp_path / "long.csv", frames=50), span).intensities["time_seconds"]
    assert of_video.iloc[0] == -0.4 and len(of_video) == 50
    own = read_au_table_of(openface(tmp_path / "c.csv", frames=20), span).intensities["time_seconds"]
    assert own.iloc[0] == 0.0 and len(own) == 20
    by_frames = Clip("c", "s", str(video), "target", start_frame=10, end_frame=30)
    assert read_au_table_of(tmp_path / "c.csv", by_frames).intensities["time_seconds"].iloc[0] == 0.0
    assert read_au_table_of(tmp_path / "long.csv", by_frames).intensities["time_seconds"].iloc[0] == -0.4
    for name, frames, told in (
        ("c.csv", 50, "covers 2.00 s, and the clip lasts 0.80 s"),
        ("long.csv", 20, "covers 0.80 s, and its video lasts 2.00 s"),
    ):
        with pytest.raises(ValueError, match=told):
            read_au_table_of(openface(tmp_path / name, frames=frames), span)


def test_a_clock_that_does_not_begin_at_zero_is_set(tmp_path: Path, video: Path) -> None:
    path = openface(tmp_path / "c.csv", frames=50, first=1.4)
    assert read_au_table_of(path, whole(video)).intensities["time_seconds"].iloc[0] == 0.0


def test_without_the_video_the_features_say_how_long_a_clip_is(tmp_path: Path) -> None:
    gone = whole(tmp_path / "gone.mp4")
    path = openface(tmp_path / "c.csv", frames=50)
    assert len(read_au_table_of(path, gone, seconds=2.08).intensities) == 50
    with pytest.raises(ValueError, match=r"covers 2.00 s, and the clip lasts 4.00 s"):
        read_au_table_of(path, gone, seconds=4.0)


def test_frames_that_a_tool_skipped_change_no_rate(tmp_path: Path, video: Path) -> None:
    lines = openface(tmp_path / "c.csv", frames=50).read_text().splitlines()
    (tmp_path / "c.csv").write_text("\n".join([lines[0], *lines[1::3], ""]))
    assert len(read_au_table_of(tmp_path / "c.csv", whole(video)).intensities) == 17
    rows = [f"{40 * n},1,2,3" for n in range(0, 50, 2)]
    (tmp_path / "c.csv").write_text("\n".join(["Timestamp,Smile,Dimpler,Jaw Drop", *rows, ""]))
    assert len(read_au_table_of(tmp_path / "c.csv", whole(video)).intensities) == 25


@pytest.mark.parametrize(("seconds_per_frame", "fits"), [(0.04, True), (0.1, False)])
def test_py_feat_s_clock_must_agree_with_its_frames(tmp_path: Path, seconds_per_frame: float, fits: bool) -> None:
    video = write_video(tmp_path / "v.mp4", numbered_frames(100))
    rows = [
        f"{n},1,1,{int(n * seconds_per_frame) // 60:02d}:{int(n * seconds_per_frame) % 60:02d},0" for n in range(100)
    ]
    path = tmp_path / "c.csv"
    path.write_text("\n".join(["frame,FaceScore,FaceRectX,approx_time,AU04", *rows, ""]))
    if fits:
        assert len(read_au_table_of(path, whole(video)).intensities) == 100
        return
    with pytest.raises(ValueError, match=r"line \d+: approx_time is 00:0\d, and the frame is shown at .* another rate"):
        read_au_table_of(path, whole(video))
