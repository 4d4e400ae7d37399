"""Decoding where it can be ended: hangs, crashes and greed cost the clip and nothing else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from clipautt.clips import Clip
from clipautt.settings import one_line
from clipautt.video import reader_process
from clipautt.video.decoding import DecodeError, Sampling
from clipautt.video.preprocessing import Preprocessing
from clipautt.video.reader import FrameSpec, decode_chunks
from clipautt.video.reader_process import ReadLimits, read_clip, read_frames
from tests.support.corpus import write_pipe
from tests.support.fakes import numbered_frames, read_number, write_video

CODE = """
import os, sys
from clipautt.clips import Clip
from clipautt.video import reader_process
from clipautt.video.decoding import Sampling
from clipautt.video.preprocessing import Preprocessing
from clipautt.video.reader import FrameSpec
def child_pid():
    child = reader_process._pool.take()
    reader_process._pool.put(child)
    return child.process.pid
def read():
    clip = Clip("c", "s", sys.argv[1], "target")
    spec = FrameSpec(Preprocessing(64, (0, 0, 0), (1, 1, 1)), Sampling(None))
    return sum(len(c.times) for c in reader_process.read_clip(clip, spec, reader_process.ReadLimits(stall_seconds=1)))
"""
"""What another process runs first; it does without torch."""
SPEC = FrameSpec(Preprocessing(64, (0, 0, 0), (1, 1, 1), "area"), Sampling(None))


def clip_of(path: Path, **span: float) -> Clip:
    return Clip("c1", "s1", str(path), "target", **span)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "v.mp4", numbered_frames(200), options={"bf": "2"})


@pytest.fixture(scope="module")
def many_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that takes seconds to read."""
    folder = tmp_path_factory.mktemp("pictures")
    cv2.imwrite(str(folder / "0.png"), np.random.default_rng(0).integers(0, 255, (600, 800, 3), np.uint8))
    for number in range(1, 600):
        os.link(folder / "0.png", folder / f"{number}.png")
    return folder


def child_pid() -> int:
    """The process that the next clip will be read in."""
    child = reader_process._pool.take()
    reader_process._pool.put(child)
    return child.process.pid


def test_frames_are_those_of_this_process(video: Path) -> None:
    chunks = list(read_clip(clip_of(video), SPEC))
    assert [len(chunk.times) for chunk in chunks] == [64, 64, 64, 8]
    assert {chunk.decoder for chunk in chunks} == {"decord"}
    expected = list(decode_chunks(clip_of(video), SPEC, decoder="decord"))
    for one, other in zip(chunks, expected, strict=True):
        assert np.array_equal(one.frames, other.frames) and np.array_equal(one.times, other.times)
        assert one.found.all() and one.found.dtype == bool
    assert [read_number(frame) for chunk in chunks for frame in chunk.frames] == list(range(200))
    assert repr(chunks[0]) == "FrameChunk((64, 64, 64, 3) by decord)"


def test_a_part_of_a_clip(video: Path) -> None:
    part = read_frames(clip_of(video, start_seconds=1.0), SPEC, start_seconds=2.0, end_seconds=4.0)
    assert [read_number(frame) for frame in part.frames] == list(range(75, 125))
    moment = read_frames(clip_of(video), SPEC, start_seconds=2.0, end_seconds=2.0)  # a clip of one frame has no length
    assert [read_number(frame) for frame in moment.frames] == [50]
    with pytest.raises(DecodeError, match=r"clip 'c1': no frames from 90 to inf s"):
        read_frames(clip_of(video), SPEC, start_seconds=90)


def test_one_process_serves_many_clips(video: Path) -> None:
    before = child_pid()
    for _ in range(3):
        list(read_clip(clip_of(video), SPEC))
    assert child_pid() == before


def test_the_second_decoder_takes_over(tmp_path: Path) -> None:
    path = write_video(tmp_path / "live.webm", numbered_frames(30), codec="libvpx", container_options={"live": "1"})
    before = child_pid()
    chunks = list(read_clip(clip_of(path), SPEC))
    assert {chunk.decoder for chunk in chunks} == {"pyav"} and sum(len(chunk.times) for chunk in chunks) == 30
    assert child_pid() == before  # decord said no, and did not die


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"clip 'c1': no video file or folder of frames at .*/gone\.mp4"):
        list(read_clip(clip_of(tmp_path / "gone.mp4"), SPEC))


def test_every_decoder_says_why_it_failed(tmp_path: Path, video: Path) -> None:
    path = write_video(tmp_path / "broken.flv", numbered_frames(100), options={"bf": "2", "g": "60"})
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(bytes(content))
    each = r"clip 'c1': .*broken\.flv cannot be decoded \(decord: in flv it does not .+; pyav: damaged at frame \d+.*\)"
    with pytest.raises(DecodeError, match=each):
        list(read_clip(clip_of(path), SPEC))
    with pytest.raises(DecodeError, match=r"\(decord and pyav: no frames in the span\)"):
        list(read_clip(clip_of(video, start_seconds=60.0), SPEC))


def test_a_decoder_that_hangs_is_ended(tmp_path: Path, video: Path) -> None:
    pipe = write_pipe(tmp_path / "pipe.mp4")
    began = time.monotonic()
    expected = r"decord and pyav: stopped because it gave no frame for 1 s"
    with pytest.raises(DecodeError, match=expected):
        list(read_clip(clip_of(pipe), SPEC, ReadLimits(stall_seconds=1)))
    assert time.monotonic() - began < 60  # two deadlines and two starts; without a deadline it would wait for ever
    assert len(list(read_clip(clip_of(video), SPEC))) == 4


def test_a_clip_that_takes_too_long_is_ended(many_pictures: Path) -> None:
    with pytest.raises(DecodeError, match=r"images: stopped because it had not finished after 0\.5 s"):
        list(read_clip(clip_of(many_pictures), SPEC, ReadLimits(total_seconds=0.5)))


def test_waiting_for_the_consumer_does_not_count(many_pictures: Path) -> None:
    """Whoever takes a chunk every half second, as a busy encoder does, gets all of them."""
    limits, seen = ReadLimits(stall_seconds=60, total_seconds=60), 0
    for chunk in read_clip(clip_of(many_pictures, end_frame=200), SPEC, limits):
        seen += len(chunk.times)
        time.sleep(0.5)
    assert seen == 200


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_crashes_costs_its_clip_only(many_pictures: Path, video: Path, how: signal.Signals) -> None:
    pid = child_pid()
    chunks = read_clip(clip_of(many_pictures), SPEC)
    next(chunks)
    os.kill(pid, how)
    with pytest.raises(DecodeError, match=rf"images: the decoding process crashed \({how.name}\)"):
        list(chunks)
    assert len(list(read_clip(clip_of(video), SPEC))) == 4
    assert child_pid() != pid


def test_a_consumer_may_stop_early(many_pictures: Path, video: Path) -> None:
    chunks = read_clip(clip_of(many_pictures), SPEC)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert len(list(read_clip(clip_of(video), SPEC))) == 4


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A picture whose pixels fit the budget but not the address space is refused; this process does not notice."""
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((12000, 12000, 3), np.uint8))
    limits = ReadLimits(max_pixels=10**9, memory_mb=900)
    with pytest.raises(DecodeError, match=r"images: .*([Mm]emory|allocate)"):
        list(read_clip(clip_of(tmp_path), SPEC, limits))
    with pytest.raises(DecodeError, match=r"12000 × 12000 pixels; at most 33,177,600 pixels are decoded"):
        list(read_clip(clip_of(tmp_path), SPEC))


def test_a_default_timeout_of_sockets_ends_no_decoder(video: Path) -> None:
    reader_process._pool.close()  # so that the next clip needs a new process
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.01)
    try:
        assert [len(chunk.times) for chunk in read_clip(clip_of(video), SPEC)] == [64, 64, 64, 8]
    finally:
        socket.setdefaulttimeout(before)


def test_what_lies_in_the_current_folder_is_not_imported(tmp_path: Path, video: Path) -> None:
    """A user's own `random.py` is not the child's; and a relative path means what it means here, after `chdir` too."""
    (tmp_path / "random.py").write_text("raise SystemExit('imported by mistake')")
    (tmp_path / "12:30.mp4").write_bytes(video.read_bytes())
    code = CODE + "os.chdir(sys.argv[2]); assert read() == 200; sys.argv[1] = '12:30.mp4'; assert read() == 200"
    environment = os.environ | {"PYTHONPATH": str(Path(reader_process.__file__).parents[2])}
    command = [sys.executable, "-c", code, str(video), str(tmp_path)]
    assert subprocess.run(command, timeout=120, env=environment).returncode == 0


def test_a_child_that_does_not_start_is_explained(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader_process._pool.close()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="the decoding process did not start; set CLIPAUTT_DEBUG=1"):
        list(read_clip(clip_of(video), SPEC))


def test_a_fork_gets_a_process_of_its_own(video: Path) -> None:
    code = CODE + (
        "first, mine = read(), child_pid(); fork = os.fork();"
        "own = child_pid();"
        "ok = read() == first == 200 and (own == mine) == (fork != 0);"
        "status = os.waitpid(fork, 0)[1] if fork else 0;"
        "os._exit(0 if ok and status == 0 else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(video)], timeout=120).returncode == 0


def test_nothing_is_left_behind_when_the_parent_dies(tmp_path: Path) -> None:
    """The parent is killed while its child hangs in native code, where no closed socket is noticed."""
    pipe = write_pipe(tmp_path / "pipe.mp4")
    code = CODE + "print(child_pid(), flush=True); read()"
    parent = subprocess.Popen([sys.executable, "-c", code, str(pipe)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(1)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("name", ["stall_seconds", "total_seconds", "max_pixels", "memory_mb"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ReadLimits(**{name: 0})
    assert one_line(caught.value, "limits") == f"limits.{name}=0: should be greater than 0"
