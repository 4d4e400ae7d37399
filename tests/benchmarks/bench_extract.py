"""Speed of extraction relative to its bounds, the encoder and the decoder alone; and its memory with more clips.

Every round measures, one after the other: (a) the encoder on frames in memory, in one process with all cores and in one
process per core, of which the faster is used; (b) the decoder with its frames dropped, one process per core; (c) the
job. Where both share the cores, a and b together allow 1 / (1/a + 1/b); with a GPU, the smaller of the two. The tables
show medians over the rounds. The job's start-up, until its first frames, is shown separately.

    make bench-extract                      # ARGS: rounds=3 seconds=60 embedded vit memory encoder
    make bench-extract ARGS=encoder         # (a) and (b) alone, which need no Ray
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from clipautt.clips import Clip
from clipautt.video.decoding import Sampling
from clipautt.video.preprocessing import Preprocessing
from clipautt.video.reader import FrameSpec, decode_chunks
from ray_jobs.platform.progress import table
from tests.benchmarks.machine import machine

MOMENTS, FRAMES_PER_CLIP, VIDEOS, MEMORY_MB = 12.5, 38, 8, 64
_CORES = len(os.sched_getaffinity(0))
_VIT = "ViT-B-32-quickgelu"


@dataclass(frozen=True)
class Case:
    """A backbone, as plain values to send to another process."""

    title: str
    name: str
    weights: str | None
    precision: str
    batch: int
    size: int


@dataclass(frozen=True)
class Round:
    """Frames per second of one round, the machine's matrix rate in operations per second, the job's start-up."""

    whole_machine: float
    per_core: float
    decoder: float
    matrices: float
    job: float = 0.0
    start_seconds: float = 0.0

    @property
    def encoder(self) -> float:
        return max(self.whole_machine, self.per_core)


def write_videos(folder: Path) -> list[Path]:
    """Write videos of a few seconds in 640 × 480, each with a moving face."""
    from tests.support.fakes import write_video
    from tests.support.photograph import photograph

    paths = []
    for number in range(VIDEOS):
        frames = [
            photograph(200 + 3 * (i % 50) + 5 * number, 180 + 2 * (i % 20), 0.9, size=(480, 640)) for i in range(75)
        ]
        paths.append(write_video(folder / f"{number}.mp4", np.stack(frames)))
    return paths


def write_weights(folder: Path) -> Path:
    """Random weights of ViT-B-32 in OpenAI's format."""
    import open_clip
    import torch

    from tests.support.weights import write_openai_weights

    torch.manual_seed(0)
    return write_openai_weights(folder / "vit.pt", open_clip.create_model(_VIT, pretrained=None))  # type: ignore[arg-type]


def clips_of(videos: Sequence[Path], count: int, folder: Path) -> list[Clip]:
    """`count` clips, each with a separate file (a link), so that the store treats them as different clips."""
    folder.mkdir(exist_ok=True)
    clips = []
    for number, video in enumerate(islice(cycle(videos), count)):
        path = folder / f"{number}.mp4"
        if not path.exists():
            os.link(video, path)
        clips.append(Clip(f"c{number}", f"s{number % 10}", str(path), "target"))
    return clips


def encode_for(case: Case, threads: int, seconds: float) -> tuple[float, float]:
    """Frames per second of the encoder on frames in memory, and operations per frame; runs in a separate process."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from clipautt.backbones.loading import BackboneConfig, load_backbone

    backbone = load_backbone(BackboneConfig(case.name, case.weights, case.precision))  # type: ignore[arg-type]
    if torch.cuda.is_available():
        backbone.to("cuda")
    torch.set_num_threads(threads)
    size = backbone.preprocessing.size
    assert size == case.size, f"{case.name} takes {size} px, the decoder would be measured at {case.size}"
    frames = np.random.default_rng(0).integers(0, 255, (4 * case.batch, size, size, 3), np.uint8)
    with FlopCounterMode(display=False) as counter:
        backbone.encode_frames(frames[: case.batch], batch_size=case.batch)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        backbone.encode_frames(frames, batch_size=case.batch)
        done += len(frames)
    return done / (time.perf_counter() - began), counter.get_total_flops() / case.batch


def decode_for(videos: Sequence[str], size: int, seconds: float) -> float:
    """Frames per second of the decoder, which crops, resizes and drops every frame; runs in a separate process."""
    import cv2

    cv2.setNumThreads(1)
    spec = FrameSpec(Preprocessing(size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic"), Sampling(MOMENTS))
    done, began = 0, time.perf_counter()
    for video in cycle(videos):
        for chunk in decode_chunks(Clip("c", "s", video, "target"), spec, decoder="decord"):
            done += len(chunk.times)
        if time.perf_counter() - began >= seconds:
            break
    return done / (time.perf_counter() - began)


def together(function: Any, *arguments: Any, processes: int) -> list[Any]:
    """Results of a function that runs in this many new processes at once."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(function, *arguments) for _ in range(processes)]]


def multiply_for(precision: str, seconds: float) -> float:
    """Operations per second of large matrix products on a GPU, else on one core; runs in a separate process."""
    import torch

    gpu = torch.cuda.is_available()
    torch.set_num_threads(1)
    n, times, kind = (8192, 20, torch.bfloat16) if gpu else (1536, 1, torch.float32)
    a, b = (
        torch.randn(n, n, device="cuda" if gpu else "cpu", dtype=kind if precision == "bf16" else None) for _ in "ab"
    )
    float((a @ b)[0, 0])
    rates, began = [], time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        for _ in range(times):
            product = a @ b
        float(product[0, 0])  # waits for the device
        rates.append(times * 2 * n**3 / (time.perf_counter() - start))
    return statistics.median(rates)


def run_job(case: Case, clips: Sequence[Clip], store: Path) -> tuple[float, float]:
    """Run the job in a separate process: frames per second in steady state, and seconds to start up."""
    words = json.dumps([vars(case), [vars(clip) for clip in clips], str(store)])
    command = [sys.executable, "-m", "tests.benchmarks.bench_extract", "job"]
    printed = subprocess.run(command, input=words, capture_output=True, text=True, check=True).stdout
    figures = json.loads(printed.splitlines()[-1])
    return figures["frames_per_second"], figures["start_seconds"]


def job_in_this_process(case: Case, clips: Sequence[Clip], store: str) -> dict[str, float]:
    """Extract, and return its speed and the memory of this process and of the object store."""
    from clipautt.backbones.loading import BackboneConfig
    from ray_jobs.platform.cluster import ClusterConfig, connect
    from ray_jobs.platform.extraction.extract import ExtractionConfig, extract
    from ray_jobs.platform.extraction.pipeline import PipelineConfig

    backbone = BackboneConfig(case.name, case.weights, case.precision)  # type: ignore[arg-type]
    began = time.perf_counter()
    with connect(ClusterConfig(address="local")), ObjectStorePeak() as peak:
        base = resident_mb()
        # A small buffer between the two, so that decoding runs beside encoding and does not finish before it begins.
        config = PipelineConfig(memory_mb=MEMORY_MB)
        _, summary = extract(clips, ExtractionConfig(backbone, store, Sampling(MOMENTS), pipeline=config))
    usage = summary.usage
    assert usage is not None and not summary.failures
    return {
        "frames_per_second": usage.frames_per_second,
        "start_seconds": usage.start_seconds,
        "total": time.perf_counter() - began,
        "busy_share": usage.busy_share,
        "object_store_mb": peak.mb,
        "driver_mb": resident_mb(peak=True),
        "driver_growth_mb": resident_mb(peak=True) - base,
    }


def resident_mb(*, peak: bool = False) -> float:
    """Resident memory of this process, MiB, now or at its peak."""
    name = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


class ObjectStorePeak:
    """Watches Ray's object store while the block runs; `mb` is its peak in MiB, spilled objects included."""

    def __enter__(self) -> ObjectStorePeak:
        self.mb, self._done = 0.0, threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        import ray
        from ray._private.internal_api import node_stats

        (node,) = ray.nodes()  # type: ignore[no-untyped-call]
        while not self._done.wait(0.25):
            stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats
            self.mb = max(self.mb, (stats.object_store_bytes_used + stats.spilled_bytes_total) / 2**20)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()


def measure(case: Case, videos: Sequence[Path], folder: Path, seconds: float, *, job: bool) -> Round:
    """Measure one round."""
    import torch

    gpu = torch.cuda.is_available()
    whole = together(encode_for, case, _CORES, seconds / 3, processes=1)[0][0]
    apart = 0.0 if gpu else sum(rate for rate, _ in together(encode_for, case, 1, seconds / 3, processes=_CORES))
    decoder = sum(together(decode_for, [str(v) for v in videos], case.size, seconds / 6, processes=_CORES))
    matrices = sum(together(multiply_for, case.precision, seconds / 12, processes=1 if gpu else _CORES))
    if not job:
        return Round(whole, apart, decoder, matrices)
    count = max(8, round(max(whole, apart) * seconds / FRAMES_PER_CLIP))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        rate, start = run_job(case, clips_of(videos, count, Path(place) / "clips"), Path(place) / "store")
    return Round(whole, apart, decoder, matrices, rate, start)


def report(case: Case, rounds: Sequence[Round]) -> list[tuple[str, ...]]:
    """Table rows of a backbone: medians of figures, and of the ratios within each round."""
    import torch

    def middle(of: Any) -> float:
        return statistics.median(of(one) for one in rounds)

    gpu = torch.cuda.is_available()

    def allowed(one: Round) -> float:
        return min(one.encoder, one.decoder) if gpu else 1 / (1 / one.encoder + 1 / one.decoder)

    flops = together(encode_for, case, 1, 0.1, processes=1)[0][1]
    share = middle(lambda r: r.encoder * flops / r.matrices)
    lines = [
        ("(a) bare encoder", f"{middle(lambda r: r.encoder):.1f}", f"{100 * share:.0f} % of the matrix rate"),
        ("    one process, all cores", f"{middle(lambda r: r.whole_machine):.1f}", ""),
        ("    one process per core", f"{middle(lambda r: r.per_core):.1f}", ""),
        ("(b) bare decoder", f"{middle(lambda r: r.decoder):.1f}", ""),
        ("    a and b allow", f"{middle(allowed):.1f}", ""),
    ]
    if rounds[0].job:
        of_a, of_both = middle(lambda r: r.job / r.encoder), middle(lambda r: r.job / allowed(r))
        ratios = f"{of_a:.2f} of (a), {of_both:.2f} of what both allow"
        lines += [
            ("(c) the job, steady", f"{middle(lambda r: r.job):.1f}", ratios),
            ("    start-up", f"{middle(lambda r: r.start_seconds):.0f} s", "until the first frames"),
        ]
        if len(rounds) > 1:
            each = ", ".join(f"{r.job / r.encoder:.2f}" for r in rounds)
            lines.append(("    (c) of (a), each round", "", each))
    return [(case.title if i == 0 else "", *line) for i, line in enumerate(lines)]


def memory(videos: Sequence[Path], folder: Path) -> None:
    """Print the memory of the job on 100 and on 1,000 clips."""
    case, rows = Case("embedded", "embedded", None, "fp32", 16, 96), []
    for count in (100, 1000):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            words = json.dumps(
                [vars(case), [vars(c) for c in clips_of(videos, count, Path(place) / "c")], f"{place}/s"]
            )
            command = [sys.executable, "-m", "tests.benchmarks.bench_extract", "job"]
            printed = subprocess.run(command, input=words, capture_output=True, text=True, check=True).stdout
        figures = json.loads(printed.splitlines()[-1])
        sizes = [f"{figures[name]:.0f} MiB" for name in ("object_store_mb", "driver_mb", "driver_growth_mb")]
        rows.append((f"{count:,} clips, {count * FRAMES_PER_CLIP:,} frames", *sizes, f"{figures['total']:.0f} s"))
    table(rows, ["embedded backbone", "object store, peak", "driver, peak", "growth by the job", "time"])


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    warnings.filterwarnings("ignore")
    if arguments == ["job"]:
        case, clips, store = json.loads(sys.stdin.read())
        print(json.dumps(job_in_this_process(Case(**case), [Clip(**clip) for clip in clips], store)))
        return
    import torch

    options = dict(word.split("=") for word in arguments if "=" in word)
    chosen = {word for word in arguments if "=" not in word} or {"embedded", "vit", "memory"}
    encoder_only = "encoder" in chosen
    gpu = torch.cuda.is_available()
    precision, batch = ("bf16", 256) if gpu else ("fp32", 16)
    name = torch.cuda.get_device_name() if gpu else "no GPU"
    print(f"{machine()}, {name}; {precision}, frames of 640 × 480 videos at {MOMENTS} per second", flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        videos = write_videos(folder)
        cases = []
        if chosen & {"embedded", "encoder"}:
            cases.append(Case("embedded, 96 px", "embedded", None, precision, batch, 96))
        if chosen & {"vit", "encoder"}:
            cases.append(Case("ViT-B-32, 224 px", _VIT, str(write_weights(folder)), precision, batch, 224))
        measured: dict[str, list[Round]] = {case.title: [] for case in cases}
        for _ in range(int(options.get("rounds", 3))):
            for case in cases:
                seconds = float(options.get("seconds", 60))
                measured[case.title].append(measure(case, videos, folder, seconds, job=not encoder_only))
        if cases:
            rows = [line for case in cases for line in report(case, measured[case.title])]
            table(rows, ["backbone", "", "frames/s", ""])
        if "memory" in chosen:
            memory(videos, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
