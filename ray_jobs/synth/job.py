"""Render a data set of synthetic faces as mp4, with true action-unit intensities and a manifest.

Subjects are rendered in parallel on the cluster; what is already there is kept. The folder then holds
`manifest.parquet`, `videos/`, `contact_sheet.png` and what is known about every subject.

Example:
    clipautt synth dataset.task=pain dataset.difficulty=hard dataset.seed=1 out=data/hard
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clipautt.datasets.synthetic.generate import SubjectPlan, SyntheticConfig, finish, plan, prepare, write_subject
from ray_jobs.platform.cluster import connect
from ray_jobs.platform.configuration import instantiate
from ray_jobs.platform.progress import Progress


def synthesize(config: SyntheticConfig, out: str | Path) -> Path:
    """Write the data set, or what is missing of it, on the connected Ray.

    Returns:
        The path of the manifest.
    """
    import ray

    folder = prepare(config, Path(out).expanduser().absolute())
    render = ray.remote(num_cpus=1, max_retries=2)(_render)
    subjects = plan(config)
    pending = [render.remote(subject, str(folder), config) for subject in subjects]
    rows: list[dict[str, Any]] = []
    total = sum(len(subject.clips) for subject in subjects)
    with Progress("synth", total) as progress:
        while pending:
            done, pending = ray.wait(pending)
            part = ray.get(done[0])
            rows += part
            progress.advance(len(part))
    return finish(config, rows, folder)


def _render(subject: SubjectPlan, folder: str, config: SyntheticConfig) -> list[dict[str, Any]]:
    import cv2

    cv2.setNumThreads(1)
    return list(write_subject(subject, folder, config))


def main(cfg: DictConfig) -> int:
    """Run the job."""
    config = instantiate(cfg.dataset)
    with connect(instantiate(cfg.cluster)):
        manifest = synthesize(config, cfg.out)
    print(f"manifest: {manifest}\ncontact sheet: {manifest.with_name('contact_sheet.png')}")
    return 0
