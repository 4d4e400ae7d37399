"""Renders the clip with which the server checks itself: `python -m tests.support.check_clip` writes it again."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from clipautt.datasets.synthetic.generate import SyntheticConfig, plan, write_subject
from ray_jobs.serve.model.check import CLIP


def write_clip(path: Path) -> None:
    """Write the first expressive clip of the first rendered person."""
    config = SyntheticConfig(source_subjects=0, source_val_subjects=0, target_subjects=1, clips_per_target_subject=2)
    with tempfile.TemporaryDirectory() as folder:
        rows = write_subject(plan(config)[0], folder, config)
        source = next(row["source"] for row in rows if row["label"] == config.task)
        shutil.copyfile(Path(folder) / str(source), path)


if __name__ == "__main__":
    write_clip(CLIP)
