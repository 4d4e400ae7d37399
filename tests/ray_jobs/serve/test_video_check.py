"""What is refused of a video before it is decoded, and in which words."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import pytest

from ray_jobs.serve import video_check
from ray_jobs.serve.model.decoders import _said as said_of
from ray_jobs.serve.refusals import Refusal, RefusedError
from ray_jobs.serve.video_check import Limits, check_video, without_paths
from tests.support.fakes import numbered_frames, write_video
from tests.support.footage import write_cover
from tests.support.recordings import audio_file, face_frames, recorded_webm

LIMITS = Limits(max_bytes=300_000, max_seconds=4.0, max_pixels=128 * 128)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "face.mp4", face_frames())


def test_the_length_is_measured_where_the_file_does_not_state_it(tmp_path: Path, video: Path) -> None:
    assert check_video(video, LIMITS) == pytest.approx(2.0)
    path = tmp_path / "recorded"
    path.write_bytes(recorded_webm(face_frames()))
    with av.open(str(path)) as container:
        assert container.duration is None, "the test's file states its duration, so it tests nothing"
    assert check_video(path, LIMITS) == pytest.approx(2.0, abs=0.05)


def refused(path: Path, limits: Limits = LIMITS) -> Refusal:
    with pytest.raises(RefusedError) as caught:
        check_video(path, limits)
    assert str(path.parent) not in caught.value.refusal.detail
    return caught.value.refusal


def test_what_is_over_a_limit_is_refused_undecoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = write_video(tmp_path / "wide.mp4", face_frames(5, size=160))
    long = write_video(tmp_path / "long.mp4", face_frames(126))
    endless = tmp_path / "endless"
    endless.write_bytes(recorded_webm(face_frames(126)))
    dense = write_video(tmp_path / "dense.mp4", numbered_frames(60), milliseconds=range(60))
    assert refused(wide) == Refusal("over_limit", "the frames are 160 × 160 pixels; at most 16,384 pixels are allowed")
    assert refused(long) == Refusal("over_limit", "the video is 5.0 s long; at most 4 s are allowed")
    assert refused(endless).code == "over_limit"
    assert refused(endless).detail.endswith("at most 4 s are allowed")
    monkeypatch.setattr(video_check, "_MAX_FRAMES_PER_SECOND", 10)
    assert refused(dense).detail == "the video has more than 10 frames per second"


def test_what_is_no_video_is_refused(tmp_path: Path, video: Path) -> None:
    files = {
        "noise": b"hello " * 500,
        "header": b"\0\0\0\x18ftypmp42" + bytes(4000),
        "half": video.read_bytes()[: video.stat().st_size // 2],
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert refused(path).code == "not_a_video"
        assert "(pyav: Invalid data found" in refused(path).detail
    said = "the file cannot be read as a video: no video stream"
    assert refused(audio_file(tmp_path / "audio.mp4")) == Refusal("not_a_video", said)
    assert refused(write_cover(tmp_path / "song")).detail == f"{said}, only the cover picture of a sound file"
    (tmp_path / "video").write_bytes(b"\xff\xd8\xff\xe0" + bytes(500))
    assert refused(tmp_path / "video").detail == "the file cannot be read as a video: it is a picture (JPEG)"


def test_the_length_is_that_of_the_picture(tmp_path: Path) -> None:
    """Two seconds of picture with ten of sound; the sound is not looked at."""
    path = write_video(tmp_path / "sound.mp4", face_frames(50), sound_seconds=10)
    assert check_video(path, LIMITS) == pytest.approx(2.0)


def test_a_file_that_names_other_files_is_not_opened(tmp_path: Path, video: Path) -> None:
    """Playlists could make the decoder read this machine's files, or ask other machines."""
    shutil.copy(video, tmp_path / "secret.mp4")
    playlists = {
        "list": b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "script": b"ffconcat version 1.0\nfile secret.mp4\n",
    }
    for name, content in playlists.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert refused(path).code == "not_a_video"
    with av.open(str(tmp_path / "script")) as container:
        assert container.streams.video, "FFmpeg itself no longer follows the script, so this test proves nothing"


def test_paths_of_this_machine_are_not_told() -> None:
    path = Path("/tmp/clipautt-upload-x1/video")
    said = "clip: /tmp/clipautt-upload-x1/video failed ([1] /opt/lib-2/decoder.cc:151: no stream, 1/2 read)"
    assert without_paths(said, path) == "clip: video failed ([1] decoder.cc:151: no stream, 1/2 read)"
    upload = Path("/tmp/clipautt-upload-x1/d8964715deaa4fcd")
    assert said_of(ValueError(f"clip 'video': {upload} cannot be decoded"), upload) == "the video cannot be decoded"
