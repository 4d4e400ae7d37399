"""`clipautt faces`: a video to look at, a contact sheet and the numbers; and what it says where there is nothing."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clipautt.clips import Clip
from clipautt.video import reader_process
from clipautt.video.preprocessing import Frames
from ray_jobs import cli
from ray_jobs.faces.job import OUTPUTS
from tests.support.corpus import write_pipe
from tests.support.fakes import numbered_frames, write_video
from tests.support.photograph import photograph


def face_video(path: Path, *, frames: int = 30) -> Path:
    pictures = [photograph(150 + 4 * (i % 30), 180, 0.9) for i in range(frames)]
    for hidden in pictures[10:15]:
        hidden[:] = 90
    return write_video(path, np.stack(pictures))


def test_video_sheet_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, out = face_video(tmp_path / "v.mp4"), tmp_path / "look"
    assert cli.main(["faces", str(video), f"out={out}", "sampling.frames_per_second=null"]) == 0
    assert "face found in 25 of 30 frames" in capsys.readouterr().out
    table = pd.read_csv(out / "track.csv")
    assert table["found"].tolist() == [True] * 10 + [False] * 5 + [True] * 15
    np.testing.assert_allclose(table["seconds"], np.arange(30) / 25, atol=1e-3)
    np.testing.assert_allclose(np.diff(table["centre_x"]), 4, atol=1.5)  # it follows the face, hidden or not
    with av.open(str(out / "annotated.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 30
    assert Image.open(out / "contact_sheet.png").size[0] > 400


def test_folders_of_frames_are_looked_at_too(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(1, 7):
        Image.fromarray(photograph(200 + number, 180, 0.9)).save(folder / f"f{number}.png")
    assert cli.main(["faces", str(folder), f"out={tmp_path / 'look'}"]) == 0
    assert pd.read_csv(tmp_path / "look" / "track.csv")["found"].all()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the mistakes are made with."""
    folder = tmp_path_factory.mktemp("videos")
    face_video(folder / "v.mp4")
    write_video(folder / "nobody.mp4", numbered_frames(10, height=184, width=240))
    (folder / "text.mp4").write_text("no video")
    (folder / "out").mkdir()
    shutil.copy(folder / "v.mp4", folder / "out" / "annotated.mp4")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nobody.mp4"], "nobody.mp4: no face was found in 5 frames"),
        (["text.mp4"], "text.mp4 cannot be decoded (decord and pyav: "),
        (["gone.mp4"], "video=gone.mp4: no such file or folder"),
        (["v.mp4", "faces=none"], "faces=none detects nothing; allowed here are cascade and yunet"),
        (["v.mp4", "faces=yunet"], "faces.model"),
        (["out/annotated.mp4"], "annotated.mp4 would be overwritten; give another folder"),
        (["v.mp4", "limits.max_pixels=1000"], "480 × 360 pixels; at most 1,000 pixels are decoded"),
    ],
)
def test_mistakes_are_told_in_one_line(
    videos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(videos)
    assert cli.main(["faces", *words, "out=out"]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


def test_only_work_that_another_process_can_import_is_taken(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", numbered_frames(2))

    def work() -> None:
        pass

    with pytest.raises(ValueError, match=r"work=.*<locals>\.work; allowed: functions at the top of a module"):
        reader_process.work_on_clip(work, Clip("c", "s", str(video), "target"), {})


MANY = 40
"""Frames, enough to be caught in the middle of writing them."""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_decoder_that_hangs_is_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing ever comes out of the pipe; what an earlier run left in the folder stays as it is."""
    pipe, out = write_pipe(tmp_path / "pipe.mp4"), tmp_path / "look"
    out.mkdir()
    (out / "track.csv").write_text("earlier")
    began = time.monotonic()
    assert cli.main(["faces", str(pipe), f"out={out}", "limits.stall_seconds=1"]) == 2
    assert time.monotonic() - began < 60  # two deadlines and three starts; without a deadline it would wait for ever
    why = "stopped because it gave no frame for 1 s"
    assert capsys.readouterr().err == (
        f"clipautt faces: clip 'pipe': {pipe} cannot be decoded (decord and pyav: {why})\n"
    )
    assert names_in(out) == ["track.csv"] and (out / "track.csv").read_text() == "earlier"


def test_a_video_that_takes_too_long_is_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, out = many_pictures(tmp_path / "pictures"), tmp_path / "look"
    assert cli.main(["faces", str(pictures), f"out={out}", "limits.total_seconds=0.2"]) == 2
    assert "(images: stopped because it had not finished after 0.2 s)" in capsys.readouterr().err
    assert names_in(out) == []


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_dies_while_it_writes_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: signal.Signals
) -> None:
    pictures, out = many_pictures(tmp_path / "pictures"), tmp_path / "look"
    with killed_while_it_writes(out, how):
        assert cli.main(["faces", str(pictures), f"out={out}"]) == 2
    assert f"(images: the decoding process crashed ({how.name}))" in capsys.readouterr().err
    assert names_in(out) == []


def test_the_second_decoder_begins_anew_where_the_first_one_dies(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", np.stack([small_photograph()] * MANY))
    out = tmp_path / "look"
    with killed_while_it_writes(out, signal.SIGSEGV):
        assert cli.main(["faces", str(video), f"out={out}", "sampling.frames_per_second=null"]) == 0
    assert names_in(out) == sorted(OUTPUTS)
    assert len(pd.read_csv(out / "track.csv")) == MANY
    with av.open(str(out / "annotated.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == MANY


def small_photograph() -> Frames:
    return photograph(120, 90, 0.5, size=(180, 240))


def many_pictures(folder: Path) -> Path:
    """A folder of frames that takes a second to look at, most of it to find the face."""
    folder.mkdir()
    Image.fromarray(small_photograph()).save(folder / "0.png")
    for number in range(1, MANY):
        os.link(folder / "0.png", folder / f"{number}.png")
    return folder


@contextmanager
def killed_while_it_writes(out: Path, how: signal.Signals) -> Iterator[None]:
    """Kills the decoding process of the job inside as soon as it has begun to write a file."""
    child = reader_process._pool.take()
    reader_process._pool.put(child)
    killed, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            if any(out.rglob(".annotated.mp4.*")):
                os.kill(child.process.pid, how)
                killed.set()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert killed.is_set()
