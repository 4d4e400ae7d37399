"""Decode ten minutes of 1080p video as extraction does: peak memory, and speed relative to decoding alone.

Memory is resident memory: the peak of the decoding process, and the growth of the reading process. The baseline of the
speed is decord itself, every frame dropped and nothing checked; beside it stand the look at the packets that proves
decord right, PyAV, which reads the files of which that is not proven, and both on a span at the end. These are seconds
of the processor, the rest seconds of the clock.

    make bench-decode                 # ARGS=faces also detects the face
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from clipautt.clips import Clip
from clipautt.video import reader_process
from clipautt.video.containers import open_container, video_stream
from clipautt.video.decoding import Sampling, stream_clip
from clipautt.video.faces import FaceConfig
from clipautt.video.packets import proven_times
from clipautt.video.preprocessing import Preprocessing
from clipautt.video.reader import FrameSpec
from ray_jobs.platform.progress import table
from tests.benchmarks.machine import machine
from tests.support.fakes import write_video
from tests.support.photograph import photograph

SECONDS, FPS, SIZE = 600, 25, (1080, 1920)
_PIECE_SECONDS = 2
_MOMENTS = 12.5


def write_long_video(path: Path, *, seconds: int = SECONDS) -> Path:
    """A face moving through 1080p video; two seconds are encoded, then repeated without encoding again."""
    turn = 2 * np.pi / (_PIECE_SECONDS * FPS)
    frames = [
        photograph(960 + 300 * np.sin(turn * i), 540 + 80 * np.cos(turn * i), 2.0, size=SIZE)
        for i in range(_PIECE_SECONDS * FPS)
    ]
    piece = write_video(path.with_name("piece.mp4"), np.stack(frames), options={"preset": "ultrafast"})
    with av.open(str(path), "w") as output:
        stream: Any = None
        for repeat in range(seconds // _PIECE_SECONDS):
            with av.open(str(piece)) as source:
                stream = stream or output.add_stream_from_template(source.streams.video[0])
                shift = int(repeat * _PIECE_SECONDS / Fraction(source.streams.video[0].time_base))
                for packet in source.demux(video=0):
                    if packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                        output.mux(packet)
    return path


def resident_mb(pid: int | str) -> float:
    """Resident memory of a process now, MiB; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)


def measure(clip: Clip, spec: FrameSpec) -> tuple[int, float, float, float]:
    """Number of frames, seconds, and in MiB the peak of the decoding process and the growth of this one."""
    child = reader_process._pool.take()
    reader_process._pool.put(child)
    before, peaks, done = resident_mb("self"), [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peaks[0] = max(peaks[0], resident_mb(child.process.pid))
            peaks[1] = max(peaks[1], resident_mb("self") - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    frames = sum(len(chunk.times) for chunk in reader_process.read_clip(clip, spec))
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    child.end()  # the next measurement begins with a new one
    return frames, seconds, peaks[0], peaks[1]


def look(clip: Clip) -> npt.NDArray[np.float64]:
    """The times of all frames, from the packets."""
    with open_container(clip.source) as container:
        return proven_times(container, video_stream(container))


def by_decord(clip: Clip) -> None:
    """The sampled frames, by decord itself."""
    import decord

    reader = decord.VideoReader(clip.source, num_threads=1)
    for index in range(0, len(reader), round(FPS / _MOMENTS)):
        reader[index].asnumpy()


def by_pyav(clip: Clip) -> None:
    """The sampled frames, as PyAV reads them for clipautt."""
    for _ in stream_clip(clip, Sampling(_MOMENTS), decoder="pyav"):
        pass


def end_by_decord(clip: Clip) -> None:
    """Those of two seconds at the end, as clipautt reads a file that decord may read, the look included."""
    for _ in stream_clip(_end_of(clip), Sampling(_MOMENTS), decoder="decord"):
        pass


def end_by_pyav(clip: Clip) -> None:
    """The same, of a file that decord may not read."""
    by_pyav(_end_of(clip))


def _end_of(clip: Clip) -> Clip:
    return replace(clip, start_seconds=SECONDS - 3.0, end_seconds=SECONDS - 1.0)


def processor_seconds(work: Callable[[Clip], object], clip: Clip) -> float:
    """What a piece of work in this process takes."""
    began = time.process_time()
    work(clip)
    return time.process_time() - began


def main(arguments: Sequence[str]) -> None:
    """Print the table; with the argument `faces`, faces are detected as well, which takes many times as long."""
    shape = Preprocessing(224, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic")
    cases = {"as it is": FaceConfig()} | ({"faces=cascade": FaceConfig("cascade")} if "faces" in arguments else {})
    with tempfile.TemporaryDirectory() as folder:
        clip = Clip("long", "s", str(write_long_video(Path(folder) / "long.mp4")), "target")
        print(f"{SECONDS} s of {SIZE[1]} × {SIZE[0]} at {FPS} frames/s; {machine()}", flush=True)
        look(clip)  # what is imported on first use does not count
        alone = processor_seconds(by_decord, clip)
        rows: list[tuple[str, ...]] = [("decord alone, same frames", "", f"{alone:.1f} s", "1.00", "", "")]
        parts: dict[str, Callable[[Clip], object]] = {
            "the look at the packets": look,
            "PyAV, same frames": by_pyav,
            "2 s at the end, decord": end_by_decord,
            "2 s at the end, PyAV": end_by_pyav,
        }
        for name, work in parts.items():
            taken = processor_seconds(work, clip)
            rows.append((name, "", f"{taken:.1f} s", f"{taken / alone:.3f}", "", ""))
        for name, faces in cases.items():
            frames, seconds, peak, growth = measure(clip, FrameSpec(shape, Sampling(_MOMENTS), faces))
            ratio = f"{seconds / alone:.2f}"
            rows.append((name, str(frames), f"{seconds:.0f} s", ratio, f"{peak:.0f} MiB", f"{growth:.0f} MiB"))
    table(rows, ["read", "frames", "time", "of decord alone", "peak of the decoder", "growth of the reader"])


if __name__ == "__main__":
    main(sys.argv[1:])
