"""Cost of `clipautt predict FOLDER`: against `extract` of the same clips, against one `predict` per file; its memory.

Every round runs the two jobs one after the other on one Ray, in changing order, each into an empty store. Steady state
is the job's time without the start-up of its encoders, until the first frames. Files are predicted one by one with
whole commands, on a few, and extrapolated. Memory is the peak of the whole command: its own process for a folder, and
with the decoding process for a long video.

    make bench-predict       # ARGS: rounds=3 clips=200 files=10 minutes=10, and any of: folder files memory long
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ray_jobs.platform.progress import table
from tests.benchmarks.bench_extract import ObjectStorePeak, clips_of, resident_mb, write_videos
from tests.benchmarks.machine import machine

_LONG = (640, 360)


def write_checkpoint(folder: Path) -> str:
    """A checkpoint of the embedded backbone with untrained weights; its speed is that of a trained one."""
    from clipautt.action_units import phrases
    from clipautt.backbones.loading import BackboneConfig, load_backbone
    from clipautt.model.checkpoint import save_checkpoint
    from tests.support.fakes import fake_checkpoint

    save_checkpoint(
        fake_checkpoint(backbone=load_backbone(BackboneConfig()), phrases=phrases(), subject_baseline="median"), folder
    )
    return str(folder)


def run(job: str, words: Sequence[str]) -> float:
    """Seconds of a job's `main` in this process."""
    from ray_jobs.platform import configuration
    from ray_jobs.platform.jobs import entry_of, find_job, overrides

    described = find_job(job)
    cfg = configuration.complete(described.module, overrides(described, words))
    began = time.perf_counter()
    entry_of(described)(cfg)
    return time.perf_counter() - began


def both_jobs(folder: str, checkpoint: str, rounds: int) -> list[dict[str, float]]:
    """Seconds of both jobs, and of their start-up, round by round."""
    import ray

    from clipautt.model.checkpoint import load_checkpoint
    from ray_jobs.platform.cluster import ClusterConfig, connect
    from ray_jobs.platform.extraction import pipeline

    starts: list[float] = []
    created = pipeline.Pipeline.__init__

    def counted(self: Any, *arguments: Any, **options: Any) -> None:
        created(self, *arguments, **options)
        pipelines.append(self)

    pipelines: list[pipeline.Pipeline] = []
    pipeline.Pipeline.__init__ = counted  # type: ignore[method-assign]
    moments = load_checkpoint(checkpoint).spec.features.frames.sampling.frames_per_second
    results = []
    with connect(ClusterConfig(address="local")):
        address = ray.get_runtime_context().gcs_address
        for number in range(-1, rounds):
            with tempfile.TemporaryDirectory(dir=folder) as place:
                words = {
                    "extract": [f"manifest={folder}/clips.parquet", f"sampling.frames_per_second={moments}"],
                    "predict": [f"{folder}/clips", f"checkpoint={checkpoint}", f"out={place}/t.csv"],
                }
                one: dict[str, float] = {}
                for job in sorted(words, reverse=bool(number % 2)):
                    common = [f"store={place}/{job}", f"cluster.address={address}"]
                    runs = [f"runs={place}/runs"] if job == "extract" else []
                    one[job] = run(job, [*words[job], *common, *runs])
                    starts.append(pipelines[-1].usage.start_seconds)
                    one[f"{job} start"] = starts[-1]
                rows = len(pd.read_csv(f"{place}/t.csv"))
                assert rows == len(os.listdir(f"{folder}/clips")), rows
            if number >= 0:  # the first round warms Ray up
                results.append(one)
    return results


def command(*words: str) -> tuple[float, float]:
    """Wall seconds of a whole command, and the peak of the resident memory of its processes together, MiB."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    began, peak = time.perf_counter(), [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak[0] = max(peak[0], sum(map(_resident, [process.pid, *_children(process.pid)])))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    done.set()
    watcher.join()
    assert code in (0, 1), words
    return time.perf_counter() - began, peak[0]


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return found + [grandchild for child in found for grandchild in _children(child)]


def _resident(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def memory_of_folder(words: Sequence[str]) -> dict[str, float]:
    """Peak memory of this process and of the object store while it predicts a folder."""
    from ray_jobs.platform.cluster import ClusterConfig, connect

    with connect(ClusterConfig(address="local")), ObjectStorePeak() as peak:
        seconds = run("predict", [*words, "cluster.address=auto"])
    return {"seconds": seconds, "driver": resident_mb(peak=True), "store": peak.mb}


def write_long(path: Path, minutes: float) -> Path:
    """Write a video of this many minutes with a moving face."""
    from tests.support.fakes import write_video
    from tests.support.photograph import photograph

    width, height = _LONG
    few = [photograph(200 + 4 * i, 180, 0.9, size=(height, width)) for i in range(25)]
    short = write_video(path.with_name("second.mp4"), np.stack(few))
    listed = path.with_suffix(".txt")
    listed.write_text(f"file '{short}'\n" * round(60 * minutes))
    words = ["ffmpeg", "-v", "error", "-f", "concat", "-safe", "0", "-i", str(listed), "-c", "copy", str(path)]
    subprocess.run(words, check=True)
    return path


def in_new_process(*words: str) -> Any:
    """What a part of this benchmark prints in a process of its own."""
    shown = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_predict_many", *words],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(shown.stdout.splitlines()[-1])


def prepare(videos: Sequence[Path], folder: Path, count: int) -> Path:
    """A folder with so many clips, and their manifest."""
    from clipautt.manifest import write_manifest

    folder.mkdir()
    clips = clips_of(videos, count, folder / "clips")
    write_manifest(clips, folder / "clips.parquet", classes=("neutral", "pain"))
    return folder


def show_folder(results: Sequence[dict[str, float]], clips: int, files: Sequence[float]) -> None:
    """Print the table of times."""

    def middle(of: Any) -> float:
        return statistics.median(of(one) for one in results)

    steady = {job: middle(lambda r, job=job: r[job] - r[f"{job} start"]) for job in ("extract", "predict")}
    ratio = middle(lambda r: (r["predict"] - r["predict start"]) / (r["extract"] - r["extract start"]))
    whole = {job: middle(lambda r, job=job: r[job]) for job in steady}
    rows = [
        ("extract", f"{whole['extract']:.1f}", f"{steady['extract']:.1f}", "1"),
        ("predict FOLDER", f"{whole['predict']:.1f}", f"{steady['predict']:.1f}", f"{ratio:.2f}"),
    ]
    if files:
        each = statistics.median(files)
        all_of_them = clips * each
        about = f"predict FILE, {clips} times (extrapolated from {len(files)}: {each:.2f} s each)"
        rows.append((about, f"{all_of_them:.0f}", "", f"{all_of_them / steady['extract']:.1f}"))
    table(rows, [f"{clips} clips", "seconds", "without start-up", "× extract, without start-up"])
    print(
        "each round:",
        ", ".join(f"{(r['predict'] - r['predict start']) / (r['extract'] - r['extract start']):.2f}" for r in results),
    )


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    if arguments[:1] == ["both"]:
        print(json.dumps(both_jobs(arguments[1], arguments[2], int(arguments[3]))))
        return
    if arguments[:1] == ["memory-of"]:
        print(json.dumps(memory_of_folder(arguments[1:])))
        return
    options = dict(word.split("=") for word in arguments if "=" in word)
    chosen = {word for word in arguments if "=" not in word} or {"folder", "files", "memory", "long"}
    clips, rounds = int(options.get("clips", 200)), int(options.get("rounds", 3))
    print(f"{machine()}; embedded backbone, videos of 3 s in 640 × 480", flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        videos, checkpoint = write_videos(folder), write_checkpoint(folder / "checkpoint")
        files: list[float] = []
        if "files" in chosen:
            single = clips_of(videos, int(options.get("files", 10)), folder / "single")
            files = [
                command("predict", clip.source, f"checkpoint={checkpoint}", f"out={place}/one.csv")[0]
                for clip in single
            ]
        if "folder" in chosen:
            results = in_new_process("both", str(prepare(videos, folder / "many", clips)), checkpoint, str(rounds))
            show_folder(results, clips, files)
        if "memory" in chosen:
            show_memory(videos, folder, checkpoint)
        if "long" in chosen:
            show_long(folder, checkpoint, float(options.get("minutes", 10)))


def show_memory(videos: Sequence[Path], folder: Path, checkpoint: str) -> None:
    """Print the memory of folders of 100 and of 1,000 clips."""
    rows = []
    for count in (100, 1000):
        place = prepare(videos, folder / f"of{count}", count)
        words = [f"{place}/clips", f"checkpoint={checkpoint}", f"store={place}/store", f"out={place}/t.csv"]
        for more in ([], ["frames=true"]):
            figures = in_new_process("memory-of", *words, *more)
            kind = "a row per frame, from the store" if more else "a row per clip"
            sizes = (f"{figures['driver']:.0f} MiB", f"{figures['store']:.0f} MiB", f"{figures['seconds']:.0f} s")
            rows.append((f"{count:,} clips, {kind}", *sizes))
    table(rows, ["predict FOLDER", "its process, peak", "object store, peak", "time"])


def show_long(folder: Path, checkpoint: str, minutes: float) -> None:
    """Print the memory of one long video, and of one of a tenth of its length."""
    rows = []
    for length in (minutes / 10, minutes):
        video = write_long(folder / f"minutes-{length:g}.mp4", length)
        seconds, peak = command("predict", str(video), f"checkpoint={checkpoint}", f"out={folder}/long.csv")
        rows.append((f"{length:g} min", f"{peak:.0f} MiB", f"{seconds:.0f} s"))
    table(rows, ["predict VIDEO", "all its processes, peak", "time"])


if __name__ == "__main__":
    main(sys.argv[1:])
