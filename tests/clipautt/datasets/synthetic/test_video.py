"""Clips survive H.264: same number of frames, same picture, same bytes each time."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from clipautt.datasets.synthetic.dynamics import DIFFICULTIES, draw_track
from clipautt.datasets.synthetic.identity import draw_identity
from clipautt.datasets.synthetic.renderer import render
from clipautt.datasets.synthetic.video import reencode, write_mp4


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    person, rng = draw_identity(11), np.random.default_rng(0)
    movements = draw_track(
        person, task="pain", positive=True, difficulty=DIFFICULTIES["standard"], rng=rng, num_frames=40
    )
    return np.stack([render(person, au, rng=rng) for au in movements.intensities])


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def test_mp4_holds_every_frame(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    path = tmp_path / "new folder" / "clip.mp4"
    write_mp4(path, frames, fps=20)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 20
        decoded = list(container.decode(video=0))
    np.testing.assert_allclose([frame.time for frame in decoded], np.arange(40) / 20, atol=1e-6)
    assert psnr(frames, np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])) > 30
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]  # nothing is left aside


def test_same_frames_give_the_same_file(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    files = [tmp_path / f"{number}.mp4" for number in range(8)]
    for file in files:
        write_mp4(file, frames)
    assert len({file.read_bytes() for file in files}) == 1


def test_reencode_changes_little_but_something(frames: NDArray[np.uint8]) -> None:
    result = reencode(frames)
    assert result.shape == frames.shape and result.dtype == np.uint8
    assert 30 < psnr(frames, result) < 60


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((3, 32, 32, 3), np.float32), r"frames is float32 \[3, 32, 32, 3\]; uint8"),
        (np.zeros((0, 32, 32, 3), np.uint8), r"frames is uint8 \[0, 32, 32, 3\]"),
        (np.zeros((3, 33, 32, 3), np.uint8), r"frames are 33 x 32 pixels; H.264 needs even"),
    ],
)
def test_wrong_frames_are_named_and_leave_no_file(tmp_path: Path, bad: NDArray[np.uint8], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_mp4(tmp_path / "clip.mp4", bad)
    assert not list(tmp_path.iterdir())


def test_failed_writing_keeps_what_was_there(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    (tmp_path / "clip.mp4").mkdir()  # a folder in the way: the final renaming fails
    with pytest.raises(OSError, match=r"clip\.mp4"):
        write_mp4(tmp_path / "clip.mp4", frames[:2])
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
