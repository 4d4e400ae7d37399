"""What AU similarities are worth where the truth is known: those of the frozen backbone, and of the trained model.

Rendered faces have true intensities. They are written as a person would code them, 0 to 5 per frame, and compared by
`clipautt validate-aus`. The second table asks what `clipautt predict` shows: of the three AUs that truly rose most in
the chosen window, how many are among the five that are named.

    make demo && make bench-aus      # ARGS: run=runs/demo/pain-hard-seed0
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from clipautt.adaptation.source import Source
from clipautt.clips import Clip
from clipautt.datasets.synthetic.generate import read_truth
from clipautt.features.store import FeatureStore
from clipautt.manifest import read_manifest
from clipautt.metrics import bootstrap
from clipautt.predictor import Predictor
from ray_jobs import cli
from ray_jobs.platform.progress import table
from tests.benchmarks.machine import machine

PRESENT = 2
"""Intensity from which an AU counts as present, of 5."""
_TRULY, _NAMED = 3, 5
_ROSE = 0.2
"""Clips in whose window no AU truly rises by this much, of 1, are passed over."""


def write_coding(clips: Sequence[Clip], folder: Path) -> None:
    """The true intensities of clips, a table per clip: a row per frame, 0 to 5."""
    for clip in clips:
        truth = read_truth(clip.source).drop(columns=["time_seconds", "burst"])
        coded = (5 * truth).round().astype(int)
        coded.insert(0, "frame", range(1, 1 + len(coded)))
        coded.to_csv(folder / f"{clip.clip_id}.csv", index=False)


def validated(run: Path, baseline: str, clips: Sequence[Clip]) -> pd.DataFrame:
    """The table of AUs that `clipautt validate-aus` writes for these clips."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "coding").mkdir()
        write_coding(clips, folder / "coding")
        words = [f"checkpoint={run}/train/demo/checkpoints/{baseline}", f"store={run}/features", f"out={folder}/out"]
        code = cli.main(
            [
                "validate-aus",
                str(folder / "coding"),
                str(run / "data/manifest.parquet"),
                *words,
                f"facs.present_from={PRESENT}",
            ]
        )
        assert code == 0
        return pd.read_parquet(folder / "out/aus.parquet")


def named(run: Path, clips: Sequence[Clip]) -> Iterator[dict[str, Any]]:
    """Per clip, the share of the AUs that truly rose most that are named, by either similarity and by chance."""
    predictor = Predictor.load(run / "train/demo/checkpoints/median")
    source: Source = predictor.source
    features = FeatureStore(run / "features", source.checkpoint.spec.features).load(clips)
    answers = predictor.predict_many([features[c.clip_id] for c in clips], videos=[c.source for c in clips])
    for clip, answer in zip(clips, answers, strict=True):
        truth = read_truth(clip.source).set_index("time_seconds").drop(columns="burst")
        codes = [code for code in truth.columns if code not in answer.not_learned and code in answer.action_unit_codes]
        times = answer.action_units.index.to_numpy()
        half = (answer.window_end_seconds - answer.window_start_seconds) / 2
        true = pd.DataFrame(
            {code: [truth[code].loc[t - half : t + half].mean() for t in times] for code in codes}, index=times
        )
        inside = (times >= answer.window_start_seconds) & (times <= answer.window_end_seconds)

        def rises(values: pd.DataFrame, inside: Any = inside, codes: Sequence[str] = codes) -> pd.Series[float]:
            return (values[inside].mean() - values.median())[list(codes)].sort_values(ascending=False)

        truly = rises(true)
        if truly.iloc[0] < _ROSE:
            continue
        most = set(truly.index[:_TRULY])
        shares = {
            which: len(most & set(rises(values).index[:_NAMED])) / _TRULY
            for which, values in (("backbone", answer.action_units), ("model", answer.evidence))
        }
        yield {"subject": clip.subject_id, "chance": min(1.0, _NAMED / len(codes)), **shares}


def show(run: Path) -> None:
    """Print the tables."""
    manifest = read_manifest(run / "data/manifest.parquet")
    clips = manifest.of_split("target")
    rows = []
    for baseline in ("median", "none"):
        aus = validated(run, baseline, clips)
        usable = aus[aus["status"].eq("ok") & aus["learned"].fillna(False).astype(bool)]
        for which, own in usable.groupby("similarity"):
            better, worse = (int(own["verdict"].eq(verdict).sum()) for verdict in ("above_chance", "below_chance"))
            figures = (f"{own['roc_auc'].mean():.2f}", f"{own['spearman'].mean():.2f}", f"{own['icc'].mean():.2f}")
            rows.append((f"{baseline}, {which}", str(len(own)), *figures, f"{better} / {worse}"))
    shares = pd.DataFrame(list(named(run, clips)))
    people = shares.groupby("subject").mean(numeric_only=True)
    print(f"{len(clips)} clips of {len({c.subject_id for c in clips})} subjects, {run}; {machine()}")
    heads = ["checkpoint, similarity", "AUs", "ROC-AUC", "Spearman", "ICC(3,1)", "intervals above / below chance"]
    table(rows, heads)
    found = []
    for which in ("backbone", "model", "chance"):
        interval = bootstrap(people[which].to_numpy())
        found.append(
            (which, f"{100 * interval.mean:.0f} %", f"{100 * interval.low:.0f} to {100 * interval.high:.0f} %")
        )
    about = f"of the {_TRULY} that rose most, among the {_NAMED} named"
    table(found, [f"{len(shares)} clips of {len(people)} subjects", about, "95 % interval over subjects"])


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark."""
    options = dict(word.split("=") for word in arguments)
    run = Path(options.get("run", "runs/demo/pain-hard-seed0"))
    if not (run / "features").is_dir():
        raise SystemExit(f"no run of the demo at {run}; `make demo` makes one, or give ARGS=run=FOLDER")
    show(run)


if __name__ == "__main__":
    main(sys.argv[1:])
