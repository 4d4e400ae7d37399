"""Accuracy of the cheap mode of prompt tuning compared with the exact one, on source-validation subjects.

For every seed and difficulty, new synthetic people: CLIP-AU is trained on 30 of them, and 12 others are treated as
unseen. Every mode adapts to the same cohorts, at balanced classes and at 20% positives (the mean of four draws). The
table shows means over the seeds, the difference from the exact mode in points, and the share of equal decisions. Data
and models are kept in the folder, so a second run only adapts.

    make bench-modes                               # half an hour on two cores
    make bench-modes ARGS="seeds=2 first=7 folder=/tmp/modes"

By default the seeds are 5 to 9: the step size of `feature` was chosen on 0 to 4.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter

import pandas as pd
import torch

from clipautt.adaptation.driver import Centring, Unit, adapt_units
from clipautt.adaptation.method import AdaptConfig, Session
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import Backbone, BackboneConfig, load_backbone
from clipautt.evaluation.results import Cohort, cohorts_of
from clipautt.features.store import FeatureStore
from clipautt.manifest import read_manifest
from clipautt.metrics import score
from clipautt.model.checkpoint import load_checkpoint
from ray_jobs import cli
from ray_jobs.platform.progress import table
from tests.benchmarks.machine import machine
from tests.support.configs import adapt_config, changed

DIFFICULTIES = ("hard", "standard")
COHORTS = (Cohort(0.5), Cohort(0.2, draws=4))
OBJECTIVES = {
    "infomax+KL": adapt_config(objective="infomax_kl"),
    "balanced infomax": adapt_config(objective="infomax", balance_weight=2.0, readout="peak_window"),
}


def modes(exact: AdaptConfig) -> dict[str, AdaptConfig]:
    """The modes that are compared; the exact one is `context`."""
    return {
        "none": changed(exact, objective="none"),
        "context": exact,
        "feature": changed(exact, tune="feature"),
    }


def make_data(folder: Path, *, seed: int, difficulty: str) -> Path:
    """Make a data set with its features and a checkpoint, unless they exist; return their folder."""
    world = folder / f"{difficulty}-{seed}"
    people = {"source_subjects": 42, "source_val_subjects": 12, "target_subjects": 1}
    sizes = people | {"clips_per_source_subject": 20, "clips_per_target_subject": 4}
    words = [f"dataset.{name}={value}" for name, value in sizes.items()]
    manifest = world / "data" / "manifest.parquet"
    if not manifest.is_file():
        made = ["synth", f"dataset.seed={seed}", f"dataset.difficulty={difficulty}", *words, f"out={world / 'data'}"]
        assert cli.main(made) == 0
    if (world / "train" / "t" / "checkpoints" / "none").is_dir():
        return world
    trained = ["train", f"manifest={manifest}", f"store={world / 'features'}", f"runs={world}", "name=t"]
    assert cli.main([*trained, f"train.seed={seed}", "baselines=[none]"]) == 0
    return world


def decisions(world: Path, backbone: Backbone, configs: Mapping[str, AdaptConfig]) -> Iterator[pd.DataFrame]:
    """A table per mode: `mode, cohort, draw, subject_id, clip_id, predicted, true, seconds`."""
    checkpoint = load_checkpoint(world / "train" / "t" / "checkpoints" / "none")
    source = Source(checkpoint, backbone)
    manifest = read_manifest(world / "data" / "manifest.parquet")
    clips = manifest.of_split("source_val")
    features = FeatureStore(world / "features", checkpoint.spec.features).load(clips)
    true = {clip.clip_id: manifest.label_index(clip) for clip in clips}
    groups = [
        (cohort.name, draw, Unit(subject, tuple(features[clip.clip_id] for clip in members)))
        for cohort in COHORTS
        for draw in range(cohort.draws)
        for subject, members in cohorts_of(clips, cohort, positive=manifest.classes[-1], draw=draw, seed=0).items()
    ]
    centring = Centring()
    for mode, config in configs.items():
        began = perf_counter()
        results = adapt_units(Session.open(source, config), [unit for *_, unit in groups], centring=centring)
        seconds = perf_counter() - began
        rows = [
            (mode, cohort, draw, unit.subject_id, p.clip_id, p.label_index, true[p.clip_id], seconds)
            for (cohort, draw, unit), result in zip(groups, results, strict=True)
            for p in result.predictions
        ]
        yield pd.DataFrame(
            rows, columns=["mode", "cohort", "draw", "subject_id", "clip_id", "predicted", "true", "seconds"]
        )


def figures(rows: pd.DataFrame, exact: pd.DataFrame) -> dict[str, float]:
    """WAR and UAR in percent, mean over draws and subjects; agreement with the exact mode; seconds."""
    scores = [
        score(part["predicted"].to_numpy(), part["true"].to_numpy(), num_classes=2)
        for _, part in rows.groupby(["draw", "subject_id"])
    ]
    means = {name: 100 * sum(getattr(one, name) for one in scores) / len(scores) for name in ("war", "uar")}
    same = (rows["predicted"].to_numpy() == exact["predicted"].to_numpy()).mean()
    return means | {"agreement": 100 * float(same), "seconds": float(rows["seconds"].iloc[0])}


def compare(folder: Path, seeds: range) -> pd.DataFrame:
    """A row per objective, difficulty, seed, cohort and mode."""
    torch.set_num_threads(1)
    backbone, found = load_backbone(BackboneConfig()), []
    for difficulty in DIFFICULTIES:
        for seed in seeds:
            world = make_data(folder, seed=seed, difficulty=difficulty)
            for objective, exact in OBJECTIVES.items():
                of_mode = {str(rows["mode"].iloc[0]): rows for rows in decisions(world, backbone, modes(exact))}
                for mode, rows in of_mode.items():
                    for cohort, part in rows.groupby("cohort"):
                        reference = of_mode["context"][of_mode["context"]["cohort"] == cohort]
                        facts = {"objective": objective, "difficulty": difficulty, "seed": seed, "cohort": cohort}
                        found.append(facts | {"mode": mode} | figures(part, reference))
    return pd.DataFrame(found)


def report(found: pd.DataFrame) -> list[list[str]]:
    """Means over the seeds, with the difference from the exact mode and its spread over the seeds."""
    lines, keys = [], ["objective", "difficulty", "cohort"]
    for (objective, difficulty, cohort), part in found.groupby(keys, sort=False):
        exact = part[part["mode"] == "context"].set_index("seed")
        for mode, rows in part.groupby("mode", sort=False):
            line = [str(objective), str(difficulty), str(cohort), str(mode)]
            for name in ("uar", "war"):
                change = rows.set_index("seed")[name] - exact[name]
                line.append(f"{rows[name].mean():.1f}")
                line.append("" if mode == "context" else f"{change.mean():+.2f} ± {change.std(ddof=0):.2f}")
            lines.append([*line, f"{rows['agreement'].mean():.1f} %", f"{rows['seconds'].median():.1f}"])
    return lines


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    options = dict(word.split("=", 1) for word in arguments)
    first = int(options.get("first", 5))
    seeds = range(first, first + int(options.get("seeds", 5)))
    found = compare(Path(options.get("folder", "runs/bench-modes")), seeds)
    print(
        f"{machine()}; seeds {seeds[0]} to {seeds[-1]}, 12 source-validation subjects each, 240 balanced and about 480 "
        "drawn decisions"
    )
    head = ["objective", "difficulty", "positives", "tuned", "UAR", "− exact", "WAR", "− exact", "same", "s"]
    table(report(found), head)


if __name__ == "__main__":
    main(sys.argv[1:])
