"""Seconds per stage of the demo in a new folder, compared with rendering and encoding alone on this machine.

    make bench-demo                        # ARGS="seed=1" is passed on to the demo

The baseline is one process without Ray that renders, writes, decodes and encodes eight clips before the demo and eight
after it (their mean is used, since machines are shared), scaled to the demo's number of clips, divided by the cores.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.datasets.synthetic.generate import SyntheticConfig, plan, write_subject
from clipautt.features.clip_features import encode_clip
from clipautt.video.reader import FrameSpec
from ray_jobs import cli
from ray_jobs.platform.progress import table
from tests.benchmarks.machine import machine

_CLIPS = 8


def bare_seconds_per_clip() -> tuple[float, float]:
    """Seconds to render and write one clip, and to decode and encode one, in one process on one core."""
    config = SyntheticConfig(
        seed=99, source_subjects=0, source_val_subjects=0, target_subjects=1, clips_per_target_subject=_CLIPS
    )
    torch.set_num_threads(1)
    backbone = load_backbone(BackboneConfig())
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        rows = write_subject(plan(config)[0], folder, config)
        rendered = time.perf_counter()
        for row in rows:
            encode_clip(
                Clip(str(row["clip_id"]), "s", f"{folder}/{row['source']}", "target"),
                backbone,
                FrameSpec(backbone.preprocessing),
            )
        return (rendered - began) / _CLIPS, (time.perf_counter() - rendered) / _CLIPS


def main(overrides: list[str]) -> int:
    """Run the demo between two baselines and print the table."""
    print(machine(), flush=True)
    before = bare_seconds_per_clip()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "demo"
        code = cli.main(["demo", *overrides, f"out={run}"])
        if code:
            return code
        seconds = json.loads((run / "seconds.json").read_text())
        num_clips = len(pd.read_parquet(run / "data" / "manifest.parquet"))
    bare = np.mean([before, bare_seconds_per_clip()], axis=0) * num_clips / (os.cpu_count() or 1)
    baseline = {"synth": float(bare[0]), "extract": float(bare[1])}
    rows = []
    for stage, value in [*seconds.items(), ("all", sum(seconds.values()))]:
        bare_seconds = baseline.get(stage)
        share = f"{bare_seconds / value:.2f}" if bare_seconds else "-"
        rows.append((stage, f"{value:.0f} s", f"{bare_seconds:.0f} s" if bare_seconds else "-", share))
    print(f"\n{machine()}; {num_clips} clips")
    table(rows, ["stage", "demo", "bare work / cores", "efficiency"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
