"""Time of `clipautt predict` on one video, stage by stage, relative to a bare `import torch`.

Processor seconds include those of the decoding process. Every round runs each case once, so that a busy machine slows
all of them alike; the table shows medians, and ratios to the median of `import torch`.

    make bench-predict                # ARGS=9 for nine rounds
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from clipautt.action_units import phrases
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.model.checkpoint import save_checkpoint
from ray_jobs.platform.progress import table
from tests.benchmarks.machine import machine
from tests.support.fakes import fake_checkpoint, write_video
from tests.support.photograph import photograph

ROUNDS, SECONDS, FPS = 5, 6, 25

STAGES = """
import json, resource, sys, time

def spent():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used), time.perf_counter()

marks = [("", spent())]
import ray_jobs.predict  # sets variables that PyTorch reads on import
import torch
marks.append(("  import of torch", spent()))
from clipautt.commands import quoted
from ray_jobs.platform import configuration
from ray_jobs.predict import job
marks.append(("  import of the rest", spent()))
words = ["videos=[" + quoted(sys.argv[1]) + "]", "checkpoint=" + quoted(sys.argv[2])]
cfg = configuration.complete("predict", words)
predictor = job.load_predictor(
    job.chosen_checkpoint(cfg.checkpoint),
    job.chosen_personalizations(cfg.prompts),
    backbone=configuration.instantiate(cfg.backbone),
    limits=configuration.instantiate(cfg.limits),
)
marks.append(("  loading", spent()))
from clipautt.clips import Clip
from clipautt.features.clip_features import ClipFeatures
from clipautt.video import reader_process
frames = predictor.source.checkpoint.spec.features.frames
chunks = list(reader_process.read_clip(Clip("clip", "unknown", sys.argv[1], "target"), frames))
reader_process._pool.close()  # a child's processor time is counted once it has ended
marks.append(("  decoding", spent()))
features = torch.cat([predictor.source.backbone.encode_frames(chunk.frames) for chunk in chunks])
times = [time for chunk in chunks for time in chunk.times]
found = [is_there for chunk in chunks for is_there in chunk.found]
import numpy as np
clip = ClipFeatures("clip", "unknown", features, np.array(times), np.array(found))
assert len(predictor.predict_features(clip).top_action_units)
marks.append(("  computing", spent()))
print(json.dumps([[n, a[0] - b[0], a[1] - b[1]] for (_, b), (n, a) in zip(marks, marks[1:])]))
"""


def run(*words: str) -> tuple[float, float, str]:
    """Run this Python with arguments; return its processor and wall seconds, and what it printed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *words], check=True, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return processor, time.perf_counter() - began, done.stdout


def write_subject(folder: Path) -> tuple[str, str]:
    """Write a video and a checkpoint of the embedded backbone; return their paths."""
    turn = 2 * np.pi / (2 * FPS)
    faces = [photograph(120 + 10 * np.sin(turn * i), 120, 1.0, size=(240, 240)) for i in range(SECONDS * FPS)]
    backbone = load_backbone(BackboneConfig())
    save_checkpoint(fake_checkpoint(backbone=backbone, phrases=phrases()), folder / "checkpoint")
    return str(write_video(folder / "face.mp4", np.stack(faces))), str(folder / "checkpoint")


def main(rounds: int = ROUNDS) -> None:
    """Run the rounds and print the table."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        video, checkpoint = write_subject(Path(folder))
        cases = {
            "import torch": ("-c", "import torch"),
            "clipautt --help": ("-m", "ray_jobs.cli", "--help"),
            "clipautt predict": ("-m", "ray_jobs.cli", "predict", video, f"checkpoint={checkpoint}"),
        }
        for _ in range(rounds):
            for name, words in cases.items():
                found[name].append(run(*words)[:2])
            for name, processor, wall in json.loads(run("-c", STAGES, video, checkpoint)[2].splitlines()[-1]):
                found[name].append((processor, wall))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    torch_processor, torch_wall = medians["import torch"]
    print(f"{SECONDS} s of video, {rounds} rounds; {machine()}")
    table(
        [
            (name, f"{processor:.2f}", f"{processor / torch_processor:.2f}", f"{wall:.2f}", f"{wall / torch_wall:.2f}")
            for name, (processor, wall) in medians.items()
        ],
        ["case", "processor s", "× import torch", "wall s", "× import torch"],
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
