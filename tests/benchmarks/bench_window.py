"""The window-length curve on synthetic people, and what the choice is worth on target subjects.

A sweep over the window length (`sweep=window`: every length in five folds, three trainings each) chooses on source
subjects. Only then are target subjects looked at: for every length, CLIP-AU is trained on all source subjects and
personalized to the targets, to see what would have been chosen had one cheated.

    make bench-window                                    # half an hour on two cores
    make bench-window ARGS="folder=runs/window repeats=1"

The picture of the README is copied to `.github/window_length.png` with `picture=true`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from clipautt.evaluation.results import read_rows, subject_scores
from clipautt.metrics import bootstrap
from ray_jobs import cli
from ray_jobs.platform.cluster import ClusterConfig, connect
from ray_jobs.platform.progress import table
from tests.benchmarks.bench_sweep import SIZES
from tests.benchmarks.machine import machine

LENGTH = "train.window.length"
_PICTURE = Path(__file__).resolve().parents[2] / ".github" / "window_length.png"


def run(*words: str) -> None:
    """Run a command line in this process."""
    code = cli.main(list(words))
    if code:
        raise SystemExit(f"clipautt {' '.join(words)} ended with {code}")


def on_targets(best: Path, manifest: Path, runs: Path, length: int) -> pd.Series:
    """UAR of every target subject with windows of this length, mean over the cohorts."""
    name = f"name=length-{length}"
    run("train", f"@{best}", f"manifest={manifest}", f"runs={runs}", name, f"train.window.length={length}")
    folder = runs / "train" / f"length-{length}"
    run("adapt", f"@{best}", f"manifest={manifest}", f"runs={runs}", name, f"checkpoint={folder}", "compare=[]")
    rows = read_rows((runs / "adapt" / f"length-{length}" / "subjects").glob("*.parquet"))
    scores = subject_scores(rows[rows["cohort"] != "every clip"], classes=("neutral", "pain"))
    return scores.groupby("subject_id")["uar"].mean()


def rows_of(trials: pd.DataFrame, targets: dict[int, pd.Series], chosen: int) -> list[Sequence[str]]:
    """A line per window length: in the folds, on targets, and on targets compared with the choice."""
    lines = []
    for _, trial in trials.sort_values(LENGTH).iterrows():
        length = int(trial[LENGTH])
        found = bootstrap(targets[length])
        difference = bootstrap(targets[length] - targets[chosen])
        lines.append(
            (
                f"{length}{' (chosen)' if length == chosen else ''}",
                f"{100 * trial['uar']:.1f} ({100 * trial['uar_low']:.1f} to {100 * trial['uar_high']:.1f})",
                f"{100 * found.mean:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})",
                "" if length == chosen else f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}",
            )
        )
    return lines


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    options = dict(word.split("=", 1) for word in arguments)
    with tempfile.TemporaryDirectory() as temporary, connect(ClusterConfig(address="local")):
        folder = Path(options.get("folder", temporary)).absolute()
        manifest, store = folder / "data" / "manifest.parquet", f"store={folder / 'features'}"
        if not manifest.is_file():
            run("synth", *SIZES, "dataset.difficulty=hard", f"out={manifest.parent}")
        more = [f"repeats={options['repeats']}"] if "repeats" in options else []
        run("sweep", "sweep=window", f"manifest={manifest}", store, f"runs={folder}", "name=window", *more)
        sweep = folder / "sweep" / "window"
        trials = pd.read_parquet(sweep / "trials.parquet")
        best = yaml.safe_load((sweep / "best.yaml").read_text())
        chosen = int(best["values"][LENGTH])
        targets = {
            int(length): on_targets(sweep / "best.yaml", manifest, folder, int(length)) for length in trials[LENGTH]
        }
        print(f"\n{machine()}; UAR, %, 95 % intervals over {len(targets[chosen])} target subjects")
        headers = ["window length, frames", "in the folds", "on targets", "targets, minus the choice"]
        table(rows_of(trials, targets, chosen), headers)
        would = max(targets, key=lambda length: float(np.mean(targets[length])))
        print(f"chosen on source subjects: {chosen} frames; on targets one would have chosen {would}")
        if options.get("picture") == "true":
            shutil.copy(sweep / "report" / "figures" / "curve.png", _PICTURE)


if __name__ == "__main__":
    main(sys.argv[1:])
