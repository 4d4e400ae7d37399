"""The whole path on synthetic faces: render, extract, train, personalize, report.

Makes mp4 clips of people who differ in their expressions and in how they look at rest, trains CLIP-AU on some of them,
personalizes to the others without labels and writes a report that shows whom it helped. It chains the same jobs that
work on real data. A second run continues where the first one stopped.

Example:
    clipautt demo
    clipautt demo seed=1 size=full out=runs/full-1
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clipautt.commands import word
from clipautt.evaluation.reports.page import first_words
from clipautt.files import write_json
from ray_jobs.platform.cluster import connect
from ray_jobs.platform.configuration import compose, instantiate, resolved
from ray_jobs.platform.jobs import entry_of, find_job
from ray_jobs.platform.progress import table
from ray_jobs.platform.runs import open_run

_SHARED = ("train", "adapt", "cluster", "baselines", "compare", "cohorts", "splits", "seed")


def main(cfg: DictConfig) -> int:
    """Run the job."""
    name = f"{cfg.task}-{cfg.difficulty}-seed{cfg.seed}"
    run = open_run("demo", name, cfg, root=cfg.runs, folder=cfg.out, ignore=("cluster", "runs", "out"))
    data, store = run.folder / "data", str(run.folder / "features")
    manifest = str(data / "manifest.parquet")
    checkpoint = str(run.folder / "train" / "demo")
    common = {"runs": str(run.folder), "name": "demo", "manifest": manifest, "store": store}
    made = common | {"backbone": resolved(cfg)["backbone"]}  # the later jobs take the checkpoint's
    stages: dict[str, dict[str, Any]] = {
        "synth": {"out": str(data), "dataset": resolved(cfg)["dataset"]},
        "extract": made,
        "train": made,
        "adapt": common | {"checkpoint": checkpoint},
        "report": {"run": str(run.folder / "adapt" / "demo"), "out": str(run.folder / "report")},
    }
    seconds = {}
    with connect(instantiate(cfg.cluster)):
        for number, (job, given) in enumerate(stages.items(), 1):
            print(f"\n[{number}/{len(stages)}] {job}", flush=True)
            began = time.perf_counter()
            if code := entry_of(find_job(job))(stage_settings(job, cfg, given)):
                return code
            seconds[job] = time.perf_counter() - began
    write_json(run.path("seconds.json"), seconds)
    table(
        [(job, f"{value:.0f} s") for job, value in [*seconds.items(), ("all", sum(seconds.values()))]],
        ["stage", "time"],
    )
    page = run.folder / "report" / "report.html"
    example = word(shorter(example_video(data)))
    print(f"\n{first_words(page.parent)}\n\nOpen {shorter(page)}\nTry  clipautt predict {example}")
    return 0


def stage_settings(job: str, cfg: DictConfig, given: dict[str, Any]) -> DictConfig:
    """The job's default settings, overridden by the demo's shared settings and then by `given`."""
    settings, shared = compose(job), resolved(cfg)
    for key in _SHARED:
        if key in settings.keys() and key in shared:  # noqa: SIM118 - `in` alone overlooks what has no value yet
            settings[key] = shared[key]
    for key, value in given.items():
        if key in settings.keys():  # noqa: SIM118
            settings[key] = value
    return settings


def example_video(data: Path) -> Path:
    """A target subject's video with an expression."""
    return sorted((data / "videos").glob("target-*/*_c001.mp4"))[0]


def shorter(path: Path) -> str:
    """The path, relative to the working directory if it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
