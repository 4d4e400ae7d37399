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
    said = capsys.readouterr().out
    assert "face found in 25 of 30 frames" in said and "other" not in said and "YuNet" not in said
    table = pd.read_csv(out / "track.csv")
    assert table["found"].tolist() == [True] * 10 + [False] * 5 + [True] * 15
    np.testing.assert_allclose(table["seconds"], np.arange(30) / 25, atol=1e-3)
    np.testing.assert_allclose(np.diff(table["centre_x"]), 4, atol=1.5)  # it follows the face, hidden or not
    assert table["eyes"].tolist() == table["found"].tolist() and table["faces"].tolist() == table["found"].tolist()
    assert (table["score"].notna() == table["found"]).all()
    people = pd.read_csv(out / "people.csv")
    assert people["face"].tolist() == [1] * 25
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


def test_a_video_without_a_face_is_shown_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, out = write_video(tmp_path / "v.mp4", numbered_frames(10, height=184, width=240)), tmp_path / "look"
    assert cli.main(["faces", str(video), f"out={out}"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("no face was found in 5 frames; YuNet finds more faces")
    assert [line.strip() for line in said[1:]] == [str(out / name) for name in OUTPUTS]
    table = pd.read_csv(out / "track.csv")
    assert not table["found"].any() and table[["centre_x", "side", "score"]].isna().all(axis=None)
    assert table["faces"].tolist() == [0] * 5 and pd.read_csv(out / "people.csv").empty
    with av.open(str(out / "annotated.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    sheet = np.asarray(Image.open(out / "contact_sheet.png").convert("RGB")).astype(int)
    tile = sheet[64 + 4 : 64 + 4 + 128, 14 : 14 + 128]  # the whole frame, grey above and below
    assert np.abs(tile[3] - 127).max() < 3 and tile.std() > 5


def test_a_face_in_a_few_frames_names_another_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [photograph(240, 180, 0.9) if i < 8 else np.full((360, 480, 3), 90, np.uint8) for i in range(40)]
    video, out = write_video(tmp_path / "v.mp4", np.stack(pictures)), tmp_path / "look"
    words = ["sampling.frames_per_second=null", "faces.max_gap_seconds=0.2"]
    assert cli.main(["faces", str(video), f"out={out}", *words]) == 0
    assert "the face is found in only 20 % of the frames; YuNet finds more faces" in capsys.readouterr().out
    table = pd.read_csv(out / "track.csv")
    assert table["side"].notna().tolist() == [True] * 13 + [False] * 27  # five frames are filled


def test_people_are_counted_and_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [np.concatenate([photograph(240, 180, 1.1), photograph(200 + 2 * i, 180, 0.8)], 1) for i in range(10)]
    video, out = write_video(tmp_path / "v.mp4", np.stack(pictures)), tmp_path / "look"
    places = {}
    for which in ("largest", "right", "3"):
        words = [f"out={out}", "sampling.frames_per_second=null", f"faces.which={which}"]
        assert cli.main(["faces", str(video), *words]) == int(which == "3")
        said = capsys.readouterr().out
        places[which] = pd.read_csv(out / "track.csv")["centre_x"].median()
        assert pd.read_csv(out / "people.csv")["face"].tolist() == [1] * 10 + [2] * 10
        if which == "3":
            assert said.startswith("face 3 was asked for, and 2 faces were found\n")
        else:
            assert "1 other face was left out; faces.which=left, right, center or a number" in said
        assert "10 of 10" in said
    assert places["largest"] == pytest.approx(240, abs=20) and places["right"] > 600 and np.isnan(places["3"])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the mistakes are made with."""
    folder = tmp_path_factory.mktemp("videos")
    face_video(folder / "v.mp4")
    (folder / "text.mp4").write_text("no video")
    (folder / "out").mkdir()
    shutil.copy(folder / "v.mp4", folder / "out" / "annotated.mp4")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
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
