"""How far a cheap mode's decisions are those of the exact one, on a sample of subjects; measured in every run.

What this module does not know: how either was computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from clipautt.adaptation.config import AdaptConfig
from clipautt.adaptation.personalization import subject_file
from clipautt.evaluation.results import EVERY
from ray_jobs.adapt.actor import Outcome
from ray_jobs.adapt.plan import COMPARED
from ray_jobs.platform.runs import write_json

FOLDER = "agreement"
"""In the run folder; a file per compared subject."""


@dataclass(frozen=True)
class Agreement:
    """A cheap mode beside the exact one."""

    videos: int
    """Compared."""
    same: int
    """Of them, with the same decision."""
    difference: float
    """Mean absolute difference of the probability of the positive class, 0..1."""

    def __str__(self) -> str:
        share = 100 * self.same / self.videos
        return f"{share:.1f} % of {self.videos} decisions, probabilities {self.difference:.3f} apart on average"


def agreement_of(
    rows: pd.DataFrame, outcomes: Sequence[Outcome], exact: Mapping[str, AdaptConfig], *, classes: Sequence[str]
) -> dict[str, Agreement]:
    """One subject's agreement under every cheap mode that was compared.

    Args:
        rows: of the subject.
        outcomes: those of the exact counterparts among them.
        exact: name of a cheap method → its exact counterpart.
        classes: names in label order.
    """
    found = {}
    there = set(rows["method"].tolist())
    for name, method in exact.items():
        compared = [o for o in outcomes if o.assignment.groups == COMPARED and o.assignment.method == method]
        if not compared and method.name not in there:
            continue
        every = rows[(rows["cohort"] == EVERY) & (rows["prediction"] != "")]
        own, beside = (every[every["method"] == one].set_index("clip_id") for one in (name, method.name))
        exactly = {clip_id: (row["prediction"], row["probability"]) for clip_id, row in beside.iterrows()}
        for outcome in compared:
            exactly |= {p.clip_id: (classes[p.label_index], float(p.probabilities[-1])) for p in outcome.predictions}
        both = [(row, exactly[str(clip_id)]) for clip_id, row in own.iterrows() if clip_id in exactly]
        if both:
            same = sum(row["prediction"] == decision for row, (decision, _) in both)
            apart = [abs(row["probability"] - probability) for row, (_, probability) in both]
            found[name] = Agreement(len(both), same, float(np.mean(apart)))
    return found


def write_agreement(run: Path, subject: str, found: Mapping[str, Agreement]) -> None:
    """Keep a subject's figures, if there are any."""
    if found:
        write_json(agreement_file(run, subject), {name: asdict(one) for name, one in found.items()})


def agreement_file(run: Path, subject: str) -> Path:
    """Where a subject's figures are kept."""
    return run / FOLDER / Path(subject_file(subject)).with_suffix(".json").name


def read_agreement(files: Iterable[Path]) -> dict[str, Agreement]:
    """Name of each cheap method → its agreement over all subjects of these files."""
    parts: dict[str, list[Agreement]] = {}
    for file in sorted(files):
        for name, facts in json.loads(file.read_text(encoding="utf-8")).items():
            parts.setdefault(name, []).append(Agreement(**facts))
    return {
        name: Agreement(
            sum(one.videos for one in own),
            sum(one.same for one in own),
            float(np.average([one.difference for one in own], weights=[one.videos for one in own])),
        )
        for name, own in parts.items()
    }
