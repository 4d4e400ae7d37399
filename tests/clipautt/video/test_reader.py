"""From a clip to frames of the image tower: every layout of every data set, and faces found, filled or dropped."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipautt.clips import Clip
from clipautt.datasets.bah import BAH
from clipautt.datasets.biovid import BioVid
from clipautt.datasets.folder import Folder
from clipautt.datasets.stressid import StressID
from clipautt.video import reader
from clipautt.video.decoding import DecodeError, Sampling, decoders_of
from clipautt.video.faces import FaceConfig
from clipautt.video.preprocessing import Preprocessing
from clipautt.video.reader import FrameChunk, FrameSpec, NoFaceError, decode_chunks
from tests.support import trees
from tests.support.fakes import numbered_frames, read_number, write_video
from tests.support.photograph import photograph

SHAPE = Preprocessing(96, (0, 0, 0), (1, 1, 1), "area")
EVERY = Sampling(None)


def frames_of(clip: Clip, spec: FrameSpec) -> FrameChunk:
    """The whole clip as one chunk."""
    chunks = list(decode_chunks(clip, spec, decoder=decoders_of(clip.source)[0]))
    return FrameChunk.joined(chunks)


@pytest.mark.parametrize(
    ("reader_of", "build", "options", "frames"),
    [
        (BioVid, lambda root: trees.biovid_videos(root, frames=20), {}, 20),
        (BioVid, lambda root: trees.biovid_frames(root, decodable=True), {}, 3),
        (StressID, lambda root: trees.stressid_videos(root, frames=20), {}, 20),
        (StressID, lambda root: trees.stressid_frames(root, decodable=True), {}, None),
        (BAH, lambda root: trees.bah_videos(root, frames=20), {}, 20),
        (BAH, lambda root: trees.bah_segments(root, frames=20), {"unit": "segments"}, 10),
        (Folder, lambda root: trees.own_videos(root, frames=20), {}, 20),
    ],
)
def test_every_layout_of_every_data_set_is_read(
    tmp_path: Path, reader_of: Any, build: Callable[[Path], Path], options: dict[str, Any], frames: int | None
) -> None:
    build(tmp_path)
    clips = reader_of(str(tmp_path), strict=False, validation_subjects=1, **options).read().clips
    assert len(clips) >= 4
    for clip in clips:
        numbers = [read_number(frame) for frame in frames_of(clip, FrameSpec(SHAPE, EVERY)).frames]
        assert numbers == sorted(numbers) and len(numbers) == (frames or len(numbers))


def test_segments_are_read_where_they_lie_and_lose_no_tail(tmp_path: Path) -> None:
    """Frames 5 to 14 of each video, in clips of four frames and a tail of two."""
    trees.bah_segments(tmp_path, frames=20)
    data = BAH(str(tmp_path), strict=False, validation_subjects=1, unit="segments", clip_frames=4)
    found: dict[str, list[int]] = {}
    for clip in data.read().clips:
        numbers = [read_number(frame) for frame in frames_of(clip, FrameSpec(SHAPE, EVERY)).frames]
        assert len(numbers) == (2 if clip.end_frame == 15 else 4)
        found.setdefault(clip.source, []).extend(numbers)
    assert len(found) == 8 and all(sorted(numbers) == list(range(5, 15)) for numbers in found.values())


@pytest.fixture(scope="module")
def face_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face that moves through a large frame and is hidden in frames 20 to 29."""
    frames = [photograph(150 + 2 * i, 180, 0.9) for i in range(60)]
    for hidden in frames[20:30]:
        hidden[:] = 90
    return write_video(tmp_path_factory.mktemp("face") / "face.mp4", np.stack(frames))


def test_a_face_is_cropped_and_frames_without_it_are_filled_or_dropped(face_video: Path) -> None:
    clip = Clip("c", "s", str(face_video), "target")
    filled = frames_of(clip, FrameSpec(SHAPE, EVERY, FaceConfig("cascade")))
    assert filled.found.tolist() == [True] * 20 + [False] * 10 + [True] * 30
    np.testing.assert_allclose(filled.times, np.arange(60) / 25, atol=1e-4)
    dropped = frames_of(clip, FrameSpec(SHAPE, EVERY, FaceConfig("cascade", missing="drop")))
    assert np.array_equal(dropped.found, filled.found) and np.array_equal(dropped.times, filled.times)
    assert np.array_equal(dropped.frames[filled.found], filled.frames[filled.found])
    assert (dropped.frames[~filled.found] == 127).all() and (filled.frames[~filled.found] != 127).any()
    near = frames_of(clip, FrameSpec(SHAPE, EVERY, FaceConfig("cascade", max_gap_seconds=0.1)))
    assert [(frame == 127).all() for frame in near.frames[20:30]] == [False] * 2 + [True] * 6 + [False] * 2
    # The crop follows: what is shown stays the same, though the face moves by more than its width.
    seen = filled.frames[filled.found].astype(float)
    assert np.abs(seen[0] - seen[-1]).mean() < 12
    plain = frames_of(clip, FrameSpec(SHAPE, EVERY)).frames.astype(float)
    assert np.abs(plain[0] - plain[-1]).mean() > 30


def test_frames_too_large_to_be_kept_are_decoded_again(face_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, spec = Clip("c", "s", str(face_video), "target"), FrameSpec(SHAPE, Sampling(5.0), FaceConfig("cascade"))
    kept = frames_of(clip, spec)
    monkeypatch.setattr(reader, "_KEPT_BYTES", 1_000_000)
    again = frames_of(clip, spec)
    assert len(kept.times) == 12
    assert np.array_equal(kept.frames, again.frames) and np.array_equal(kept.times, again.times)


def test_a_clip_without_a_face_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "nobody.mp4", numbered_frames(12, height=184, width=240))
    spec = FrameSpec(SHAPE, Sampling(12.5), FaceConfig("cascade"))
    with pytest.raises(NoFaceError, match=r"no face was found in 6 frames$"):
        frames_of(Clip("c", "s", str(path), "target"), spec)


def test_a_face_that_is_too_small_is_called_that(tmp_path: Path) -> None:
    """Too small even to be followed; the way out that is named works."""
    path = write_video(tmp_path / "far.mp4", np.stack([photograph(100 + i, 240, 0.45) for i in range(12)]))
    clip, spec = Clip("c", "s", str(path), "target"), FrameSpec(SHAPE, EVERY, FaceConfig("cascade", min_face=0.3))
    with pytest.raises(NoFaceError, match=r"no face was found in 12 frames: the face is too small, 1\d % of") as told:
        frames_of(clip, spec)
    lower = float(re.findall(r"set faces\.min_face=([\d.]+),", str(told.value))[0])
    assert frames_of(clip, FrameSpec(SHAPE, EVERY, FaceConfig("cascade", min_face=lower))).found.all()


def test_two_people_of_one_video_are_two_clips(tmp_path: Path) -> None:
    """One moves, the other stays; each clip shows its own, and says that there is another."""
    frames = [np.concatenate([photograph(240, 180, 1.0), photograph(200 + 4 * i, 180, 0.7)], 1) for i in range(15)]
    path, spec = write_video(tmp_path / "two.mp4", np.stack(frames)), FrameSpec(SHAPE, EVERY, FaceConfig("cascade"))
    shown = {}
    for face in ("largest", "left", "right", "2"):
        clip = Clip(face, face, str(path), "target", face=face)
        (chunk,) = decode_chunks(clip, spec, decoder="pyav")
        assert chunk.other_faces == 1 and chunk.found.all()
        shown[face] = chunk.frames
    assert np.array_equal(shown["largest"], shown["left"]) and np.array_equal(shown["right"], shown["2"])
    assert np.abs(shown["left"].astype(int) - shown["right"]).mean() > 5
    with pytest.raises(ValueError, match="face='left' needs a face detector"):
        list(decode_chunks(Clip("c", "s", str(path), "target", face="left"), FrameSpec(SHAPE), decoder="pyav"))


@pytest.mark.parametrize("detector", ["none", "cascade"])
def test_an_empty_span_is_an_error(face_video: Path, detector: Any) -> None:
    clip = Clip("c", "s", str(face_video), "target", start_seconds=60.0)
    with pytest.raises(DecodeError, match="no frames in the span"):
        frames_of(clip, FrameSpec(SHAPE, EVERY, FaceConfig(detector)))


def test_what_changes_a_frame_is_in_the_facts() -> None:
    spec = FrameSpec(SHAPE, EVERY, FaceConfig("cascade"))
    assert spec.facts["faces"]["margin"] == 0.2 and spec.facts["preprocessing"]["size"] == 96
    assert FrameSpec(SHAPE, EVERY).facts["faces"] == {"detector": "none"}
