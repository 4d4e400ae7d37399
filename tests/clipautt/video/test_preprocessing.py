"""Frames to squares: the right part, the right size, the filter that the model was trained with."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from open_clip.transform import image_transform
from PIL import Image
from pydantic import ValidationError
from skimage import data

from clipautt.settings import one_line
from clipautt.video.preprocessing import Preprocessing, fit_frame, resize


def shape(size: int, **options: Any) -> Preprocessing:
    return Preprocessing(size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), **options)


@pytest.mark.parametrize("interpolation", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(64, 128), (128, 64), (64, 64)])
def test_the_centre_square_is_taken(interpolation: Any, height: int, width: int) -> None:
    frame = np.full((height, width, 3), (255, 0, 0), np.uint8)
    top, left = (height - 64) // 2, (width - 64) // 2
    frame[top : top + 64, left : left + 64] = (0, 0, 255)
    for size in (64, 32, 96):
        square = fit_frame(frame, shape(size, interpolation=interpolation))
        assert square.shape == (size, size, 3)
        assert (square[size // 8 : -(size // 8), size // 8 : -(size // 8)] == (0, 0, 255)).all()


def test_squash_takes_everything() -> None:
    frame = np.zeros((40, 80, 3), np.uint8)
    frame[:, :40] = 200
    square = fit_frame(frame, shape(20, crop="squash"))
    assert square.shape == (20, 20, 3)
    assert (square[:, :8] == 200).all() and (square[:, 12:] == 0).all()


@pytest.mark.parametrize("interpolation", ["area", "bilinear", "bicubic"])
def test_flat_colours_stay(interpolation: Any) -> None:
    frame = np.full((50, 40, 3), (10, 20, 30), np.uint8)
    for size in (20, 40, 60):
        assert (fit_frame(frame, shape(size, interpolation=interpolation)) == (10, 20, 30)).all()


def test_area_averages() -> None:
    frame = np.zeros((4, 4, 3), np.uint8)
    frame[:2, :2] = [[[100], [0]], [[0], [100]]]
    assert fit_frame(frame, shape(2, interpolation="area"))[:, :, 0].tolist() == [[50, 0], [0, 0]]


def test_shrinking_does_not_alias() -> None:
    """Stripes one pixel wide become grey; a filter that looks at a few pixels only would show stripes."""
    frame = np.zeros((320, 320, 3), np.uint8)
    frame[:, ::2] = 255
    small = fit_frame(frame, shape(32)).astype(int)
    assert small.std() < 3 and abs(small.mean() - 127) < 3


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("crop", "mode"), [("centre", "shortest"), ("squash", "squash")])
@pytest.mark.parametrize(("height", "width"), [(90, 160), (161, 97), (480, 640), (24, 30), (224, 224)])
def test_equal_to_the_transform_of_open_clip(interpolation: Any, crop: Any, mode: str, height: int, width: int) -> None:
    theirs = image_transform(
        56, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, interpolation=interpolation
    )
    pictures = {
        "noise": np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8),
        "photograph": cv2.resize(data.astronaut(), (width, height), interpolation=cv2.INTER_AREA),
    }
    for name, frame in pictures.items():
        expected = (theirs(Image.fromarray(frame)) * 255).round().permute(1, 2, 0).numpy().astype(int)
        found = fit_frame(frame, shape(56, interpolation=interpolation, crop=crop)).astype(int)
        difference = np.abs(found - expected)
        # Of a part, Pillow may resize the rows before the columns, and what overshoots between the two is cut off.
        assert difference.mean() < 0.6 and difference.max() <= (3 if name == "photograph" else 10), name


def test_a_part_is_resized() -> None:
    frame = np.arange(10 * 10 * 3, dtype=np.uint8).reshape(10, 10, 3)
    assert (resize(frame, (2, 3, 6, 7), 4, "area") == frame[3:7, 2:6]).all()
    assert (resize(frame, (2, 3, 6, 7), 4, "bicubic") == frame[3:7, 2:6]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"interpolation": "nearest"},
            "interpolation='nearest': should be one of bicubic, bilinear, area",
        ),
        ({"crop": "face"}, "crop='face': should be one of centre, squash"),
        ({"size": 0}, "size=0: should be greater than 0"),
    ],
)
def test_wrong_values_are_named(options: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        shape(**{"size": 8, **options})
    assert one_line(caught.value) == message


def test_lists_from_json_become_tuples() -> None:
    assert Preprocessing(8, [0.1, 0.2, 0.3], [1, 1, 1]).mean == (0.1, 0.2, 0.3)  # type: ignore[arg-type]
