"""Cost of the adaptation job relative to adaptation alone: time per subject, memory of the driver, time to resume.

Subjects have random features in a real feature store, and no videos. `clipautt adapt` runs on a local Ray in a separate
process, for two numbers of subjects; then the same command runs again with nothing left to do. The baseline is
`adapt()` on the same features, loaded beforehand, in as many processes as there are cores, timed in the same run on
some of the subjects. Memory is the peak of the driver's process.

    make bench-adapt-job                              # ARGS: subjects=1000,10000 clips=4 frames=16 part=1000
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clipautt.adaptation.source import Source
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.evaluation.results import read_rows
from clipautt.features.clip_features import FeatureSpec, clip_key
from clipautt.features.store import FeatureStore
from clipautt.manifest import by_subject, write_manifest
from clipautt.model.checkpoint import checkpoint_folder, load_checkpoint, save_checkpoint
from clipautt.video.decoding import Sampling
from ray_jobs.platform.progress import table
from tests.benchmarks.bench_adapt import make_source
from tests.benchmarks.machine import machine
from tests.support.configs import adapt_config

CLASSES = ("neutral", "pain")
METHOD = adapt_config(objective="infomax_kl", tune="feature")
WORDS = ["adapt=infomax_kl", "adapt.method.tune=feature", "compare=[clip_au]", "cohorts=[]", "cluster.address=local"]
_CORES = len(os.sched_getaffinity(0))
_CLIPS_PER_FILE = 2000


@dataclass(frozen=True)
class Run:
    """One run of the command."""

    seconds: float
    """From the start of the process to its end."""
    peak_mb: float
    """Peak memory of the driver, MiB."""


def make_world(folder: Path, *, subjects: int, per_subject: int, frames: int) -> list[Clip]:
    """A checkpoint, and a store with random features; every other clip shows pain."""
    backbone = load_backbone(BackboneConfig())
    save_checkpoint(make_source("embedded").checkpoint, checkpoint_folder(folder / "train", "none"))
    clips = [
        Clip(f"s{s:05d}c{c}", f"s{s:05d}", f"/nowhere/s{s:05d}c{c}.mp4", "target", label=CLASSES[c % 2])
        for s in range(subjects)
        for c in range(per_subject)
    ]
    store = FeatureStore(folder / "store", FeatureSpec.of(backbone, Sampling(12.5)))
    noise, times = np.random.default_rng(0), np.arange(frames) / 12.5
    for first in range(0, len(clips), _CLIPS_PER_FILE):
        rows = []
        for clip in clips[first : first + _CLIPS_PER_FILE]:
            features = noise.normal(size=(frames, backbone.feature_dim)).astype(np.float32)
            facts = {"clip_id": clip.clip_id, "subject_id": clip.subject_id, "source": clip.source}
            rows.append(facts | {"clip_key": clip_key(clip), "status": "ok", "times": times, "features": features})
        store.append(rows)
    return clips


def run_job(folder: Path, clips: Sequence[Clip], name: str) -> Run:
    """Run the command on these clips."""
    manifest = folder / f"{name}.parquet"
    write_manifest(clips, manifest, classes=CLASSES)
    words = [f"manifest={manifest}", f"checkpoint={folder / 'train'}", f"store={folder / 'store'}"]
    command = [sys.executable, "-m", "ray_jobs.adapt", *words, *WORDS, f"runs={folder}", f"name={name}"]
    began, peak = time.perf_counter(), 0.0
    with (folder / f"{name}.log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        while process.poll() is None:
            peak = max(peak, _peak_mb(process.pid))
            time.sleep(0.2)
    assert process.returncode == 0, (folder / f"{name}.log").read_text()[-2000:]
    return Run(time.perf_counter() - began, peak)


def _peak_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def bare_seconds(folder: str, clips: Sequence[Clip]) -> float:
    """Time of `adapt()` and CLIP-AU on these clips, in one thread; loading features and model is not counted."""
    import torch

    from clipautt.adaptation.driver import adapt

    torch.set_num_threads(1)
    checkpoint = load_checkpoint(checkpoint_folder(Path(folder) / "train", "none"))
    source = Source(checkpoint, load_backbone(BackboneConfig()))
    features = list(FeatureStore(Path(folder) / "store", checkpoint.spec.features).load(clips).values())
    adapt(source, features[:64], METHOD)
    began = time.perf_counter()
    for first in range(0, len(features), 128):
        for method in (METHOD, adapt_config()):
            adapt(source, features[first : first + 128], method)
    return time.perf_counter() - began


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    options = dict(word.split("=") for word in arguments)
    counts = sorted(int(count) for count in options.get("subjects", "1000,10000").split(","))
    per_subject, frames = int(options.get("clips", 4)), int(options.get("frames", 16))
    part = min(int(options.get("part", 1000)), counts[-1])
    print(f"{machine()}; {per_subject} clips of {frames} frames per subject", flush=True)
    with TemporaryDirectory(prefix="bench-adapt-job-") as temporary:
        folder = Path(temporary)
        clips = make_world(folder, subjects=counts[-1], per_subject=per_subject, frames=frames)
        subjects = by_subject(clips)
        some = list(subjects.values())[:part]
        shares = [[clip for members in some[core::_CORES] for clip in members] for core in range(_CORES)]
        with ProcessPoolExecutor(_CORES, mp_context=get_context("spawn")) as pool:
            bare = max(pool.map(bare_seconds, [str(folder)] * _CORES, shares)) / part
        rows = [(f"bare adaptation, {_CORES} processes", part, f"{1e3 * bare:.1f}", "1", "-")]
        for count in counts:
            chosen = clips[: count * per_subject]
            for title in ("the job", "again, nothing left"):
                run = run_job(folder, chosen, f"n{count}")
                each = run.seconds / count
                rows.append((title, count, f"{1e3 * each:.1f}", f"{each / bare:.2f}", f"{run.peak_mb:.0f}"))
            written = read_rows((folder / "adapt" / f"n{count}" / "subjects").glob("*.parquet"))
            assert len(written) == 2 * len(chosen) and set(written["status"]) == {"ok"}, written[
                "status"
            ].value_counts()
        table(rows, ["feature mode and CLIP-AU", "subjects", "ms per subject", "of bare", "driver's peak MiB"])


if __name__ == "__main__":
    main(sys.argv[1:])
