"""Every file ends as frames or as a reason, within the deadline and the memory, whatever is in it."""

from __future__ import annotations

import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from clipautt.clips import Clip
from clipautt.video.decoding import DecodeError, Sampling
from clipautt.video.preprocessing import Preprocessing
from clipautt.video.reader import FrameSpec
from clipautt.video.reader_process import ReadLimits, read_frames
from tests.support.corpus import FRAMES, mutations, whole_files, write_corpus
from tests.support.fakes import read_number

SPEC = FrameSpec(Preprocessing(64, (0, 0, 0), (1, 1, 1), "area"), Sampling(None))
LIMITS = ReadLimits(stall_seconds=15, total_seconds=60, memory_mb=3072)

GOOD = {
    "whole mp4": FRAMES,
    "whole webm": FRAMES,
    "whole avi": FRAMES,
    "tenbits.mp4": FRAMES,
    "grey.mp4": FRAMES,
    "odd.mp4": 9,
    "thin.avi": 9,
    "oneframe.mp4": 1,
    "oneframe.webm": 1,
}
"""What must be readable, with its frames; the numbers of a picture four pixels wide cannot be read back."""
EITHER = (
    "webm cut at 50%",
    "webm cut at 95%",
    "avi cut at 50%",
    "avi cut at 95%",
    "mp4 cut at 95%",
    "huge.mp4",
    "large.avi",
)
"""Files that end early, or whose container is wrong about the size of their frames: the right frames, or a reason."""


def read(path: Path) -> list[int] | str:
    """The numbers on the frames, or the reason why there are none."""
    began = time.monotonic()
    try:
        chunk = read_frames(Clip("c", "s", str(path), "target"), SPEC, limits=LIMITS)
    except DecodeError as error:
        assert path.name in str(error) and len(str(error)) < 1500
        return str(error)
    finally:
        assert time.monotonic() - began < 2 * LIMITS.total_seconds + 10
    assert chunk.frames.shape[1:] == (64, 64, 3) and len(chunk.frames) == len(chunk.times) >= 1
    assert np.isfinite(chunk.times).all() and (np.diff(chunk.times) >= 0).all()
    return [read_number(frame) for frame in chunk.frames]


def test_every_kind_of_file(tmp_path: Path) -> None:
    found = {name: read(path) for name, path in write_corpus(tmp_path / "corpus").items()}
    for name, frames in GOOD.items():
        assert isinstance(found[name], list), (name, found[name])
        assert len(found[name]) == frames, name
        if name != "thin.avi":
            assert found[name] == list(range(frames)), name
    for name in EITHER:
        numbers = found[name]
        assert isinstance(numbers, str) or numbers == list(range(len(numbers))), (name, numbers)
    others = found.keys() - GOOD.keys() - set(EITHER)
    assert {name for name in others if not isinstance(found[name], str)} == set()
    assert "no pictures in the folder" in found["empty folder"]
    assert "its video is in a format that is not known" in found["unknown.mp4"]
    assert not [name for name, said in found.items() if "the decoding process" in said]  # none of these takes it down


def read_mutations(folder: Path) -> tuple[list[list[int] | str], float]:
    """What comes of three hundred damaged files; and the most memory that a decoding process had, MiB."""
    outcomes = [read(path) for path in mutations(whole_files(folder), folder, per_format=100)]
    return outcomes, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def test_hundreds_of_damaged_files(tmp_path: Path) -> None:
    """In a process that has had no other children, such as a Ray of another test."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        outcomes, peak = pool.submit(read_mutations, tmp_path).result()
    readable = [outcome for outcome in outcomes if isinstance(outcome, list)]
    # Enough of both, or the damage was too little or too much to tell anything.
    assert len(outcomes) == 300 and 30 < len(readable) < 270
    assert not [outcome for outcome in readable if len(outcome) > 4 * FRAMES]
    assert peak < LIMITS.memory_mb
