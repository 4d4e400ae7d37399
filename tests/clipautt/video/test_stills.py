"""Single JPEGs into frames of the image tower: as a video's frames, and never more than a picture's worth of work."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipautt.clips import Clip
from clipautt.video.decoding import DecodeError, Sampling
from clipautt.video.faces import FaceConfig
from clipautt.video.preprocessing import Frames, Preprocessing
from clipautt.video.reader import FrameSpec, decode_chunks
from clipautt.video.stills import Still, StillReader, read_jpeg
from tests.support.fakes import PREPROCESSING, shared_backbone, write_video
from tests.support.photograph import photograph
from tests.support.recordings import jpeg

SHAPE = Preprocessing(64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
FPS = 10


def fine(frame: Frames, **options: Any) -> bytes:
    """A frame as a JPEG of the highest quality, without subsampled colour."""
    return jpeg(frame, **{"quality": 98, "subsampling": 0} | options)


def with_size(content: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header declares another size."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def as_stream(frames: Frames, spec: FrameSpec) -> list[Still]:
    """What a stream of these frames gives."""
    look, stills = StillReader(spec), list[Still]()
    for number, frame in enumerate(frames):
        stills.append(look(fine(frame), seconds=number / FPS, seen=stills[-1].seen if stills else ()))
    return stills


def test_a_stream_gives_the_frames_and_features_of_a_video_with_the_same_pixels(tmp_path: Path) -> None:
    moving = np.stack([photograph(200 + 4 * i, 170 + 2 * i, 1.2, 0.01 * i) for i in range(10)])
    path = write_video(tmp_path / "face.mkv", moving, codec="ffv1", pixel_format="bgr0", fps=FPS)
    for faces in (FaceConfig(), FaceConfig(detector="cascade")):
        spec = FrameSpec(PREPROCESSING, Sampling(None), faces)
        (chunk,) = decode_chunks(Clip("c", "s", str(path), "target"), spec, decoder="pyav")
        stills = as_stream(moving, spec)
        assert [still.found for still in stills] == [True] * 10
        assert all(still.shown for still in stills)
        frames = np.stack([still.frame for still in stills])
        mine, theirs = (shared_backbone().encode_frames(one) for one in (frames, chunk.frames))
        alike = (mine * theirs).sum(1) / (mine.norm(dim=1) * theirs.norm(dim=1))
        assert float(alike.min()) > (0.9999 if faces.detector == "none" else 0.98)
        assert [still.brightness for still in stills] == pytest.approx(chunk.brightness.tolist(), abs=0.02)
    boxes = np.array([list(still.box.values()) for still in stills if still.box])
    away = np.abs(boxes[:, :3] - chunk.boxes[:, :3]).max(axis=1) / chunk.boxes[:, 2]
    assert away.max() < 0.08  # of the face's side: what lies ahead is not known
    assert len(stills[-1].seen) == 10
    assert stills[-1].seen[-1].shape == (360, 480)


def test_of_two_faces_the_one_followed_so_far_is_kept_and_a_short_absence_is_bridged() -> None:
    spec = FrameSpec(SHAPE, faces=FaceConfig(detector="cascade"))
    both = photograph(120, 180, 0.9)
    other = photograph(360, 180, 1.0)
    both[:, 240:] = other[:, 240:]
    alone = both.copy()
    alone[:, 240:] = 128
    empty = np.full_like(both, 128)
    stills = as_stream(np.stack([alone] * 6 + [both] * 3 + [empty] * 2), spec)
    assert [still.found for still in stills] == [True] * 9 + [False] * 2
    assert [still.shown for still in stills] == [True] * 11
    assert all(still.box is not None and still.box["x"] + still.box["side"] / 2 < 200 for still in stills)
    look = StillReader(spec)
    later = look(fine(empty), seconds=9.0, seen=stills[-1].seen)
    assert (later.found, later.shown, later.box) == (False, False, None)
    assert np.unique(later.frame).tolist() == [127]
    first = look(fine(empty))
    assert (first.found, first.shown, first.box, first.brightness) == (
        False,
        False,
        None,
        pytest.approx(np.nan, nan_ok=True),
    )


def test_a_long_stream_is_followed_with_bounded_memory() -> None:
    stills = as_stream(
        np.stack([np.full((64, 64, 3), 90, np.uint8)] * 60), FrameSpec(SHAPE, faces=FaceConfig(detector="cascade"))
    )
    assert len(stills[-1].seen) == 41


def test_pictures_are_turned_upright_and_become_colour() -> None:
    upright = photograph()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned = fine(np.rot90(upright).copy(), exif=exif)
    assert np.abs(read_jpeg(turned).astype(int) - upright).mean() < 2
    for mode in ("L", "CMYK"):
        file = io.BytesIO()
        Image.fromarray(upright).convert(mode).save(file, "JPEG", quality=98)
        shown = read_jpeg(file.getvalue())
        assert shown.shape == upright.shape
        assert np.abs(shown.mean() - upright.mean()) < 3
    assert read_jpeg(fine(upright, progressive=True)).shape == (360, 480, 3)
    tiny = StillReader(FrameSpec(SHAPE))(fine(np.full((1, 3, 3), 7, np.uint8)))
    assert tiny.frame.shape == (64, 64, 3)


def test_what_is_no_whole_jpeg_of_a_usual_size_is_refused_before_it_is_decoded() -> None:
    whole = fine(photograph())
    png = io.BytesIO()
    Image.fromarray(photograph()).save(png, "PNG")
    progressive = fine(photograph(), progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    broken_exif = whole[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff" + whole[2:]
    cases = {
        b"": "it is not a JPEG",
        b"hello": "it is not a JPEG",
        png.getvalue(): "it is not a JPEG",
        b"\xff\xd8\xff": "it is damaged or cut",
        whole[: len(whole) // 2]: "it is damaged or cut",
        whole[:300]: "it is damaged or cut",
        with_size(whole, 9000, 9000): "its frames have 9000 × 9000 pixels; at most 1,000,000 pixels are decoded",
        with_size(whole, 65000, 65000): "it has too many pixels",
        with_size(whole, 0, 480): "it is damaged or cut",
        progressive[:-2] + scan * 3000 + b"\xff\xd9": "it has more than 64 scans, which takes too long to decode",
    }
    for content, why in cases.items():
        with pytest.raises(DecodeError, match=f"^{why}$"):
            read_jpeg(content, max_pixels=1_000_000)
    assert read_jpeg(broken_exif).shape == (360, 480, 3)


def test_damage_anywhere_gives_a_picture_or_one_error() -> None:
    look = StillReader(FrameSpec(SHAPE), max_pixels=500_000)
    exif = Image.Exif()
    exif[0x0112] = 3
    whole = fine(photograph(), quality=60, exif=exif)
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        content = bytearray(whole)
        for at in rng.integers(2, 700 if rng.random() < 0.7 else len(content), size=3):
            content[at] = rng.integers(256)
        try:
            outcomes.add(look(bytes(content)).frame.shape)
        except DecodeError:
            outcomes.add("refused")
    assert outcomes == {(64, 64, 3), "refused"}
