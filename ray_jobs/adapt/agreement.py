"""How far approximations agree with the exact method: one file per compared subject in the run folder.

In: a subject's rows and the outcomes of its comparisons. Out: a JSON file per subject, and figures over all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from clipautt.adaptation.agreement import Agreement, Decision, compare_decisions, pooled
from clipautt.adaptation.method import AdaptConfig
from clipautt.evaluation.results import EVERY
from clipautt.files import write_json
from clipautt.subjects import subject_file
from ray_jobs.adapt.actor import Outcome

FOLDER = "agreement"
"""Name of the folder of these files, in the run folder."""


def agreement_of(
    rows: pd.DataFrame, outcomes: Sequence[Outcome], exact: Mapping[str, AdaptConfig], *, classes: Sequence[str]
) -> dict[str, Agreement]:
    """Name of each approximation that was compared → its agreement with the exact method, for one subject.

    Args:
        rows: the subject's result rows.
        outcomes: outcomes of the subject's assignments, including comparisons.
        exact: name of an approximation → the exact settings.
        classes: class names in label order.
    """
    every = rows[(rows["cohort"] == EVERY) & (rows["prediction"] != "")]
    agreements = {}
    for name, config in exact.items():
        exactly = _decisions(every, config.name)
        for outcome in outcomes:
            if outcome.assignment.purpose == "comparison" and outcome.assignment.method == config:
                exactly |= {
                    one.clip_id: Decision(classes[one.label_index], float(one.probabilities[-1]))
                    for one in outcome.predictions
                    if one.made
                }
        agreement = compare_decisions(_decisions(every, name), exactly)
        if agreement is not None:
            agreements[name] = agreement
    return agreements


def _decisions(rows: pd.DataFrame, method: str) -> dict[str, Decision]:
    chosen = rows[rows["method"] == method]
    columns = (chosen["clip_id"], chosen["prediction"], chosen["probability"])
    return {str(clip): Decision(str(label), float(p)) for clip, label, p in zip(*columns, strict=True)}


def write_agreement(run: Path, subject: str, agreements: Mapping[str, Agreement]) -> None:
    """Write a subject's figures, if there are any."""
    if agreements:
        write_json(agreement_file(run, subject), {name: asdict(one) for name, one in agreements.items()})


def agreement_file(run: Path, subject: str) -> Path:
    """Path of a subject's figures."""
    return run / FOLDER / Path(subject_file(subject)).with_suffix(".json").name


def read_agreement(files: Iterable[Path]) -> dict[str, Agreement]:
    """Name of each approximation → its agreement, pooled over the subjects of these files."""
    parts: dict[str, list[Agreement]] = {}
    for file in sorted(files):
        for name, facts in json.loads(file.read_text(encoding="utf-8")).items():
            parts.setdefault(name, []).append(Agreement(**facts))
    return {name: pooled(subjects) for name, subjects in parts.items()}
