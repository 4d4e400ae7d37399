"""What a sweep costs: 100 trials against one extraction pass of a real backbone and against trials that share nothing.

The data are the synthetic people of `size=demo`. Three things are measured on the same Ray: one pass of ViT-B-32
(random weights, which cost what trained ones cost) over the source clips; a sweep of 100 trials with the embedded
backbone, extraction not included; and trials that each encode the clips and train their models anew, as separate
scripts would, measured on a few and extrapolated. The time of the sweep outside adaptation and training is what its
cores did not spend in them, its start and its page included.

    make bench-sweep                                        # ten to twenty minutes on two cores
    make bench-sweep ARGS="trials=20 alone=1 folder=/tmp/sweep"   # smaller; what the folder has is used again
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from statistics import median
from time import perf_counter

import pandas as pd

from ray_jobs import cli
from ray_jobs.platform.cluster import ClusterConfig, connect, num_cpus
from ray_jobs.platform.progress import duration, table
from tests.benchmarks.bench_extract import write_weights
from tests.benchmarks.machine import machine

SIZES = (
    "dataset.source_subjects=30",
    "dataset.source_val_subjects=6",
    "dataset.target_subjects=30",
    "dataset.clips_per_source_subject=8",
    "dataset.clips_per_target_subject=8",
)
"""Of `conf/size/demo.yaml`."""
_SEARCH = ("stop=asha",)


def timed(words: list[str]) -> float:
    """Run a command line in this process; returns its seconds."""
    began = perf_counter()
    code = cli.main(words)
    if code:
        raise SystemExit(f"clipautt {' '.join(words)} ended with {code}")
    return perf_counter() - began


def make_data(folder: Path) -> Path:
    """The manifest of source clips alone, so that every pass covers the same clips; made unless it exists."""
    manifest = folder / "data" / "manifest.parquet"
    if not manifest.is_file():
        timed(["synth", *SIZES, f"out={manifest.parent}"])
    clips, sources = pd.read_parquet(manifest), folder / "data" / "sources.parquet"
    clips[clips["split"] != "target"].to_parquet(sources)
    return sources


def vit_pass(folder: Path, manifest: Path) -> float:
    """Seconds of one extraction pass of ViT-B-32."""
    weights = folder / "vit.pt" if (folder / "vit.pt").is_file() else write_weights(folder)
    with tempfile.TemporaryDirectory() as store:
        named = ["backbone=ViT-B-32-quickgelu", f"backbone.weights={weights}"]
        return timed(["extract", f"manifest={manifest}", f"store={store}", f"runs={store}/runs", *named])


def sweep(folder: Path, manifest: Path, *, trials: int) -> tuple[float, pd.DataFrame]:
    """Seconds of a sweep whose features exist, and its trials."""
    store = folder / "features"
    timed(["extract", f"manifest={manifest}", f"store={store}", f"runs={folder}", "name=embedded"])
    with tempfile.TemporaryDirectory() as runs:
        words = ["sweep", f"manifest={manifest}", f"store={store}", f"runs={runs}", f"trials={trials}", *_SEARCH]
        seconds = timed(words)
        return seconds, pd.read_parquet(Path(runs) / "sweep" / "default" / "trials.parquet")


def alone(manifest: Path, *, seed: int) -> float:
    """Seconds of one trial that encodes the clips and trains its models itself."""
    with tempfile.TemporaryDirectory() as place:
        words = ["sweep", f"manifest={manifest}", f"store={place}/store", f"runs={place}", "trials=1", f"seed={seed}"]
        return timed([*words, "held_out=0"])


def main(arguments: list[str]) -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    options = dict(word.split("=") for word in arguments)
    trials, few = int(options.get("trials", 100)), int(options.get("alone", 3))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.get("folder", temporary))
        folder.mkdir(parents=True, exist_ok=True)
        manifest = make_data(folder)
        num_clips = len(pd.read_parquet(manifest))
        with connect(ClusterConfig(address="local")):
            cores = num_cpus()
            one_pass = vit_pass(folder, manifest)
            seconds, found = sweep(folder, manifest, trials=trials)
            naive = median(alone(manifest, seed=seed) for seed in range(few))
    work = float(found["training_seconds"].sum() + found["adaptation_seconds"].sum())
    counts = found["status"].value_counts().to_dict()
    print(f"\n{machine()}; {num_clips} source clips; trials: {counts}")
    rows = [
        (f"{trials} trials of the sweep", duration(seconds), "1"),
        ("one ViT-B-32 pass over the same clips", duration(one_pass), f"{one_pass / seconds:.2f}"),
        (
            f"{trials} trials that share nothing ({few} measured)",
            duration(naive * trials),
            f"{naive * trials / seconds:.1f}",
        ),
    ]
    table(rows, ["", "time", "sweeps"])
    print(
        f"outside adaptation and training: {100 * (1 - work / (seconds * cores)):.0f} % of the sweep's time on "
        f"{cores} cores"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
