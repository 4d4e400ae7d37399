"""The results of a sweep: the table of trials, the best settings as commands, the figures.

In: the trials, their study and the run's settings. Out: files in the run folder, and what is printed at the end.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from omegaconf import OmegaConf

from clipautt.commands import quoted
from clipautt.files import write_table, write_text
from clipautt.selection import figures
from clipautt.selection.curves import curves
from clipautt.selection.importances import importances
from clipautt.selection.trials import Dimension
from ray_jobs.platform.configuration import compose, flatten
from ray_jobs.platform.progress import table
from ray_jobs.sweep.space import SearchSpace
from ray_jobs.sweep.trial import METRICS, SweepJob, model_folder

_BEST_HEADER = """\
# The best trial of a sweep: `commands` train and adapt with its settings; run them one after the other.
# `train` and `adapt` are the words of these commands, `model` is the checkpoint that the trial itself used.
"""
_SHOWN = 5
_PLAIN_TEXT = re.compile(r"[A-Za-z_./][\w./:@+-]*")
_WORDS_OF_YAML = ("null", "true", "false", "nan", "inf")


def write_results(job: SweepJob, trials: pd.DataFrame, settings: Mapping[str, Any]) -> int:
    """Write `trials.parquet`, `best.yaml` and the figures into the run folder, and print the best trials.

    Args:
        job: what the trials shared.
        trials: from `job.read_trials`.
        settings: the run's settings, plain and resolved.

    Returns:
        The exit code: 1 if no trial succeeded, else 0.
    """
    folder = Path(job.folder)
    write_table(folder / "trials.parquet", trials)
    print_counts(trials, job.space)
    best = best_trial(trials)
    if best is None:
        print(f"no trial succeeded, so there is no best one; the reasons are in {folder / 'trials.parquet'}")
        return 1
    facts = best_settings(job, best, settings)
    text = _BEST_HEADER + yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=1000)
    write_text(folder / "best.yaml", text)
    for note in draw(job.space, trials, folder / "figures"):
        print(note)
    print_best(trials, job.space)
    print(f"\nTo use the best one (also in {folder / 'best.yaml'}):")
    for command in facts["commands"]:
        print(f"  {command}")
    print(f"\ntrials, study and figures: {folder}")
    return 0


def best_trial(trials: pd.DataFrame) -> pd.Series | None:
    """The trial with the highest UAR, the first of equal ones; None if none succeeded."""
    good = trials[trials["status"] == "ok"]
    return None if good.empty else good.iloc[int(good["uar"].argmax())]


def values_of(trial: pd.Series, space: SearchSpace) -> dict[str, Any]:
    """The values that a trial chose, as plain Python values, without dimensions that did not matter in it."""
    names = [dimension.name for dimension in space.dimensions]
    chosen = {name: trial[name] for name in names if not pd.isna(trial[name])}
    return {name: value.item() if hasattr(value, "item") else value for name, value in chosen.items()}


def best_settings(job: SweepJob, trial: pd.Series, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `best.yaml` holds.

    Args:
        job: what the trials shared.
        trial: a row of the table of trials.
        settings: the run's settings, plain and resolved.

    Returns:
        The trial's number, figures, values and model, the words for `clipautt train` and `clipautt adapt`, and the
        commands made of them. Training includes a model without subject baseline, which `adapt` compares with.
    """
    values = values_of(trial, job.space)
    training, adaptation = job.space.configs(values)
    name = f"{settings['name']}-best"
    shared = {key: settings[key] for key in ("manifest", "store", "runs")} | {"name": name}
    frames = {key: settings[key] for key in ("backbone", "faces", "sampling")}
    own = {key: value for key, value in asdict(training).items() if key != "subject_baseline"}
    baselines = list(dict.fromkeys(["none", adaptation.subject_baseline]))
    train = words_for("train", shared | frames | {"train": own, "baselines": baselines})
    chosen = asdict(adaptation)
    if not adaptation.method.adapts:
        chosen["method"] = {"objective": chosen["method"]["objective"]}
    checkpoint = str(Path(settings["runs"]) / "train" / name)
    adapt = words_for("adapt", shared | {"checkpoint": checkpoint, "adapt": chosen}, ["adapt=clip_au"])
    return {
        "trial": int(trial["number"]),
        "validation": {metric: round(float(trial[metric]), 6) for metric in METRICS},
        "values": values,
        "model": str(model_folder(job, training)),
        "train": train,
        "adapt": adapt,
        "commands": [shlex.join(["clipautt", "train", *train]), shlex.join(["clipautt", "adapt", *adapt])],
    }


def words_for(job: str, wanted: Mapping[str, Any], base: Sequence[str] = ()) -> list[str]:
    """The `key=value` words that turn a job's defaults into the wanted settings.

    Args:
        job: name of the job.
        wanted: settings; those that are not named stay at the job's defaults.
        base: words to begin with.
    """
    defaults = flatten(OmegaConf.to_container(compose(job, base), resolve=True, throw_on_missing=False))
    given = flatten(dict(wanted))
    return [*base, *(f"{key}={_written(value)}" for key, value in given.items() if defaults.get(key, ...) != value)]


def _written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, str):
        plain = _PLAIN_TEXT.fullmatch(value) and value.lower() not in _WORDS_OF_YAML
        return value if plain else quoted(value)
    return repr(value)


def draw(space: SearchSpace, trials: pd.DataFrame, folder: Path) -> list[str]:
    """Write the figures; returns a note for each that could not be drawn."""
    notes = []
    dimensions = [
        Dimension(one.name, one.name.replace("_", " "), "category" if one.choices else "real", one.log)
        for one in space.dimensions
    ]
    figures.history(folder / "history.png", trials)
    found = curves(trials, dimensions).get("window_length", "No curve of window length: all trials have the same.")
    if isinstance(found, str):
        notes.append(found)
    else:
        figures.value_curve(folder / "window_length.png", found, trials, clip_points=math.nan)
    shares = importances(trials, dimensions)
    if isinstance(shares, str):
        notes.append(shares)
    else:
        figures.importance_bars(folder / "importances.png", shares)
    return notes


def print_counts(trials: pd.DataFrame, space: SearchSpace) -> None:
    """Print how many trials have each status, and the first reasons of failed ones."""
    counts = trials["status"].value_counts()
    parts = [f"{counts[status]} {status}" for status in ("ok", "failed", "interrupted") if status in counts]
    values = trials.loc[trials["status"] == "ok", [dimension.name for dimension in space.dimensions]]
    print(f"trials: {', '.join(parts)}; the ok ones have {len(values.drop_duplicates())} distinct settings")
    failed = trials[trials["status"] == "failed"].drop_duplicates("reason")
    if len(failed):
        table(failed[["number", "reason"]].head(_SHOWN).to_numpy().tolist(), ["failed trial", "reason"])


def print_best(trials: pd.DataFrame, space: SearchSpace) -> None:
    """Print the best trials with their values."""
    good = trials[trials["status"] == "ok"].sort_values(["uar", "number"], ascending=[False, True])
    rows = []
    for _, trial in good.head(_SHOWN).iterrows():
        values = values_of(trial, space)
        figures = [f"{100 * trial[metric]:.1f} %" for metric in METRICS]
        rows.append([int(trial["number"]), *figures, *(values.get(dimension.name) for dimension in space.dimensions)])
    table(rows, ["trial", *map(str.upper, METRICS), *(dimension.name for dimension in space.dimensions)])
    compared = good.head(1).dropna(subset="agreement")
    for _, best in compared.iterrows():
        print(
            f"trial {best['number']} agrees with the exact method in {100 * best['agreement']:.1f} % of the decisions "
            "compared"
        )
