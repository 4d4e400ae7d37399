"""Folders of pictures and animated pictures: the right ones at the right times, or words that say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from clipautt.clips import Clip
from clipautt.video.decoding import DecodeError, Sampling, decoders_of, stream_clip
from clipautt.video.pictures import list_frames
from tests.support.fakes import numbered_frames, read_number

EVERY = Sampling(None)


def clip_of(path: Path, start: float | None = None, end: float | None = None, **options: Any) -> Clip:
    return Clip("c1", "s1", str(path), "target", start_seconds=start, end_seconds=end, **options)


def read(clip: Clip, sampling: Sampling = EVERY) -> tuple[list[int], np.ndarray]:
    """Numbers on the pictures and times."""
    assert decoders_of(clip.source) == ("images",)
    found = [(read_number(frame), time) for time, frame in stream_clip(clip, sampling, decoder="images")]
    return [number for number, _ in found], np.array([time for _, time in found])


def write_folder(folder: Path, names: dict[int, str]) -> Path:
    folder.mkdir()
    pictures = numbered_frames(max(names) + 1)
    for number, name in names.items():
        cv2.imwrite(str(folder / name), pictures[number][:, :, ::-1])
    return folder


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    """As strings, image_10 would come before image_2."""
    folder = write_folder(tmp_path / "f", {n: f"image_{n}.jpg" for n in range(1, 13)})
    (folder / "Thumbs.db").write_text("no picture")
    assert [path.name for *_, path in list_frames(folder, 25.0)][:3] == ["image_1.jpg", "image_2.jpg", "image_3.jpg"]
    numbers, times = read(clip_of(folder, frames_per_second=25.0))
    assert numbers == list(range(1, 13))
    np.testing.assert_allclose(times, np.arange(12) / 25)
    assert read(clip_of(folder, frames_per_second=25.0), Sampling(12.5))[0] == [1, 3, 5, 7, 9, 11]


def test_a_folder_may_count_milliseconds_and_lack_frames(tmp_path: Path) -> None:
    names = {n: f"image{n * 40}.png" for n in range(50, 60) if n not in (53, 54)}
    clip = clip_of(write_folder(tmp_path / "f", names), frames_per_second=1000.0)
    numbers, times = read(clip)
    assert numbers == [50, 51, 52, 55, 56, 57, 58, 59]
    np.testing.assert_allclose(times, [0, 0.04, 0.08, 0.2, 0.24, 0.28, 0.32, 0.36])
    assert read(clip, Sampling(12.5))[0] == [50, 52, 56, 58]  # at .16 the frame of .08 is still there


def test_a_span_of_a_folder_counts_by_the_numbers(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", {n: f"frame-{n}.jpg" for n in range(10, 40) if n != 20})
    numbers, times = read(clip_of(folder, start_frame=20, end_frame=24, frames_per_second=10.0))
    assert numbers == [21, 22, 23]
    np.testing.assert_allclose(times, [0.1, 0.2, 0.3])  # from frame 20, which is not there
    assert read(clip_of(folder, 3.0, 3.5, frames_per_second=10.0))[0] == [30, 31, 32, 33, 34]


def test_broken_folders_are_explained(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DecodeError, match="no pictures in the folder"):
        read(clip_of(tmp_path / "empty"))
    with pytest.raises(DecodeError, match=r"face\.jpg has no number in its name"):
        read(clip_of(write_folder(tmp_path / "unnumbered", {1: "f1.jpg", 2: "face.jpg"})))
    with pytest.raises(DecodeError, match=r"f01\.jpg and f1\.jpg have the same number"):
        read(clip_of(write_folder(tmp_path / "twice", {1: "f1.jpg", 2: "f01.jpg"})))
    damaged = write_folder(tmp_path / "damaged", {1: "f1.jpg", 2: "f2.jpg"})
    (damaged / "f2.jpg").write_bytes((damaged / "f2.jpg").read_bytes()[:15])
    with pytest.raises(DecodeError, match=r"f2\.jpg is not a picture that can be read"):
        read(clip_of(damaged))


@pytest.mark.parametrize("pattern", ["{:.2f}.jpg", "{}.jpg", "frame_{:.3f}.png", "take2-{:.2f}s.png"])
@pytest.mark.parametrize("point", [".", ","])
def test_names_that_are_decimal_seconds_are_times(tmp_path: Path, pattern: str, point: str) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    times = [0, 0.04, 0.08, 0.2, 1, 1.04, 10.5]
    for time, picture in zip(times, numbered_frames(len(times)), strict=True):
        stem, _, suffix = pattern.format(time).rpartition(".")
        Image.fromarray(picture).save(folder / f"{stem.replace('.', point)}.{suffix}")
    numbers, found = read(clip_of(folder, frames_per_second=25.0))  # whatever the data set says of whole numbers
    assert numbers == list(range(len(times)))
    np.testing.assert_allclose(found, times)
    assert read(clip_of(folder, 0.05, 1.02))[0] == [2, 3, 4]
    assert read(clip_of(folder, start_frame=1, end_frame=3))[0] == [1, 2]
    assert read(clip_of(folder), Sampling(12.5))[0] == [0, 2, 3, 5]  # at 10.48 that of 1.04 is still there


def test_points_in_other_names_are_no_decimal_points(tmp_path: Path) -> None:
    """A film editor writes `shot.0001`, and `take 2.0001` counts frames of the second take."""
    for folder, pattern in (("a", "shot.{:04d}.png"), ("b", "2.{:04d}.png"), ("c", "v1.5_{}.png"), ("d", "1.{}.png")):
        made = write_folder(tmp_path / folder, {n: pattern.format(n) for n in range(1, 12)})
        numbers, times = read(clip_of(made, frames_per_second=20.0))
        assert numbers == list(range(1, 12)), folder
        np.testing.assert_allclose(times, np.arange(11) / 20)


@pytest.mark.parametrize(
    "copy", ["3 (1).jpg", "3(1).jpg", "3 copy.jpg", "3 copy 2.jpg", "3 - Copy (2).jpg", "3 - Kopie.jpg"]
)
def test_a_copy_is_called_one(tmp_path: Path, copy: str) -> None:
    folder = write_folder(tmp_path / "f", {n: f"{n}.jpg" for n in range(2, 6)})
    (folder / copy).write_bytes((folder / "3.jpg").read_bytes())
    with pytest.raises(DecodeError) as caught:
        read(clip_of(folder))
    assert str(caught.value) == f"{copy} looks like a copy of 3.jpg; remove one of them"


def test_names_as_windows_numbers_them_are_no_copies(tmp_path: Path) -> None:
    for number, pattern in enumerate(("face ({}).jpg", "s1 - {}.jpg")):
        folder = write_folder(tmp_path / str(number), {n: pattern.format(n) for n in range(1, 12)})
        assert read(clip_of(folder))[0] == list(range(1, 12))


@pytest.mark.parametrize("suffix", [".webp", ".png", ".apng"])
def test_an_animated_picture_is_a_clip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"moving{suffix}"
    pictures = [Image.fromarray(picture) for picture in numbered_frames(6)]
    milliseconds = [40, 80, 40, 40, 200, 40]
    options = {"lossless": True} if suffix == ".webp" else {}
    kind = "WEBP" if suffix == ".webp" else "PNG"
    pictures[0].save(path, kind, save_all=True, append_images=pictures[1:], duration=milliseconds, **options)
    numbers, times = read(clip_of(path))
    assert numbers == list(range(6))
    np.testing.assert_allclose(times, np.cumsum([0, *milliseconds[:-1]]) / 1000)
    assert read(clip_of(path, 0.1), Sampling(12.5))[0] == [2, 3, 4]
    with pytest.raises(DecodeError, match="64 × 64 pixels"):
        next(stream_clip(clip_of(path), EVERY, decoder="images", max_pixels=4000))


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    path = tmp_path / "moving.png"
    layers = [Image.new("RGBA", (8, 8), (255, 0, 0, alpha)) for alpha in (0, 255)]
    layers[0].save(path, save_all=True, append_images=layers[1:], duration=40)
    shown = [frame[4, 4].tolist() for _, frame in stream_clip(clip_of(path), EVERY, decoder="images")]
    assert shown == [[255, 255, 255], [255, 0, 0]]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
def test_a_still_picture_is_refused_in_words(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"face{suffix}"
    Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(
        DecodeError, match=r"^a still picture \((JPEG|PNG|WEBP|BMP|TIFF)\); a clip is a video, an animated"
    ):
        read(clip_of(path))
    path.write_text("no picture at all")
    with pytest.raises(DecodeError, match="not a picture that can be read"):
        read(clip_of(path))
