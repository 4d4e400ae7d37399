"""Result rows: one prediction per clip, method, cohort, draw and seed, with the settings that made it.

A cohort is a set of target clips with a given share of the positive class, drawn per subject from the seed. Labels are
used here, to design the evaluation, and never in a method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipautt.adaptation.predictions import NO_PREDICTION
from clipautt.clips import Clip, id_number
from clipautt.files import write_table
from clipautt.manifest import by_subject
from clipautt.metrics import figures_of

EVERY = "every clip"
"""Name of the group with all clips of a subject, labelled or not; its adapted prompts are kept."""


@dataclass(frozen=True)
class ResultRow:
    """One prediction, with the settings and data it was made from."""

    clip_id: str
    """Id of the clip."""
    subject_id: str
    """Id of the subject."""
    split: str
    """`target`, or `source_val` where source-validation subjects are treated as unseen."""
    label: str
    """True class name."""
    prediction: str
    """Predicted class name; empty for a clip without features or without a window that counts, whose numbers are then
    NaN."""
    probability: float
    """Probability of the positive (last) class, 0..1."""
    window_start_seconds: float
    """Start of the window that the prediction is based on."""
    window_end_seconds: float
    """End of that window."""
    entropy: float
    """Entropy of the prediction, nats."""
    status: str
    """`ok`, or why the subject fell back to the source prompts, or why the clip has no features or no prediction."""
    method: str
    """Name of the row in tables, unique per configuration."""
    method_key: str
    """Name of the method: its module in `clipautt.adaptation.methods`."""
    adapts: bool
    """Whether the method adapts to a subject's clips at all."""
    logits_from: str
    """`head`, the trained classifier, or `class_text`, class descriptions."""
    settings: str
    """All settings of the method and of the adaptation, as JSON."""
    objective: str
    """What was minimized: `none`, `entropy`, `infomax`, `infomax_kl`; the method's name where it minimizes nothing."""
    protocol: str
    """`per_video`, `online` or `per_subject`."""
    subject_baseline: str
    """`none`, `mean` or `median`."""
    readout: str
    """`best_window`, `mean_windows`, `peak_window` or `whole_clip`."""
    window_length: int
    """Frames per window, L."""
    window_stride: int
    """Stored frames per used frame."""
    context_tokens: int
    """Context vectors per prompt, M."""
    steps: int
    """Optimizer steps."""
    learning_rate: float
    """Learning rate as configured."""
    tune: str
    """What was tuned: `none`, `context` or `feature`."""
    prior: float
    """Share of the positive class that the probability assumes, 0..1."""
    training_prior: float
    """That share among the training clips, 0..1."""
    position: int
    """Place of the clip in the order in which its subject's clips were visited, from 0; -1 without a prediction."""
    cohort: str
    """`balanced`, or the share of positives such as `20%`."""
    draw: int
    """Number of the cohort's draw, from 0."""
    seed: int
    """Seed of training and adaptation."""
    backbone: str
    """Name and fingerprint of the backbone."""
    checkpoint: str
    """Fingerprint of the checkpoint."""
    manifest: str
    """Fingerprint of the manifest when the row was made; clips added later change it."""
    code_version: str
    """Version of this package."""
    seconds: float
    """Time of the subject's adaptation and prediction, divided by the number of its clips."""
    warnings: str = ""
    """Sentences on why the prediction may be worth little, such as footage that the model has never seen; empty where
    nothing speaks against it."""
    cautions: str = ""
    """The same as codes, separated by semicolons; see `clipautt.prediction.cautions`."""
    other_faces: int = 0
    """Faces beside the subject's that were followed through the clip and left out."""
    face_share: float = float("nan")
    """Share of the clip's frames in which the face was found, 0..1; NaN without a face detector or features."""


@dataclass(frozen=True)
class Cohort:
    """A share of positives, drawn a number of times."""

    share: float = 0.5
    """Share of the positive class among each subject's clips, 0 < share < 1."""
    draws: int = 1
    """Number of independent draws."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or self.draws < 1:
            raise ValueError(f"cohort share={self.share}, draws={self.draws}; allowed: 0 < share < 1 and draws from 1")

    @property
    def name(self) -> str:
        """`balanced` or the share in percent."""
        return "balanced" if self.share == 0.5 else f"{self.share:.0%}"

    def members(self, clips: Sequence[Clip], *, positive: str, draw: int, seed: int) -> list[Clip]:
        """Draw from one subject's clips at this share: as many as possible, at least one of each class, sorted by id.

        The choice depends on seed, draw and clip ids, not on the order of `clips`.
        """
        ordered = sorted(clips, key=lambda clip: clip.clip_id)
        subject = id_number(ordered[0].subject_id)
        rng = np.random.default_rng([seed, subject, draw, round(self.share * 1000)])
        positives = [clip for clip in ordered if clip.label == positive]
        negatives = [clip for clip in ordered if clip.label != positive]
        scale = min(len(positives) / self.share, len(negatives) / (1 - self.share))
        take = max(1, round(scale * self.share)), max(1, round(scale * (1 - self.share)))
        chosen = [
            group[i]
            for group, n in zip((positives, negatives), take, strict=True)
            for i in rng.permutation(len(group))[:n]
        ]
        return sorted(chosen, key=lambda clip: clip.clip_id)


def make_cohorts(settings: Sequence[Any]) -> list[Cohort]:
    """The cohorts that the settings describe.

    Raises:
        ValueError: for a key that a cohort does not have, or two cohorts with the same name.
    """
    allowed = [field.name for field in fields(Cohort)]
    for one in settings:
        if not isinstance(one, Mapping) or not set(one) <= set(allowed):
            raise ValueError(
                f"cohorts={one!r}: expected the keys {' and '.join(allowed)}, as in {{share: 0.2, draws: 1}}"
            )
    cohorts = [Cohort(**one) for one in settings]
    names = [cohort.name for cohort in cohorts]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"cohorts lists {', '.join(duplicates)} twice; omit one, or ask for more draws of it")
    return cohorts


def cohorts_of(clips: Sequence[Clip], cohort: Cohort, *, positive: str, draw: int, seed: int) -> dict[str, list[Clip]]:
    """Subject id → `Cohort.members` of the labelled clips, for every subject that has both classes."""
    groups = by_subject(clip for clip in clips if clip.label is not None)
    return {
        subject: cohort.members(labelled, positive=positive, draw=draw, seed=seed)
        for subject, labelled in groups.items()
        if len({clip.label for clip in labelled}) > 1
    }


COLUMNS = tuple(field.name for field in fields(ResultRow))
"""Columns of a table of result rows."""


def as_table(rows: Iterable[ResultRow]) -> pd.DataFrame:
    """Rows as a table with the columns of `ResultRow`."""
    return pd.DataFrame([vars(row) for row in rows], columns=list(COLUMNS))


def write_rows(table: pd.DataFrame, path: Path) -> None:
    """Write a table of rows as Parquet, whole or not at all."""
    write_table(path, table)


def predicted(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a prediction; clips without features, or without a window that counts, have none."""
    return rows[rows["prediction"] != ""]


def settled(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a prediction, and those of clips that the method was given and cannot predict."""
    return rows[is_settled(rows)]


def is_settled(rows: pd.DataFrame) -> pd.Series:
    """Whether a row is one of the `settled` ones."""
    settled: pd.Series = (rows["prediction"] != "") | rows["status"].str.startswith(NO_PREDICTION)
    return settled


def read_rows(paths: Iterable[Path]) -> pd.DataFrame:
    """All rows of these files, with a column per field of `ResultRow`."""
    tables = [pq.read_table(path, partitioning=None, use_threads=False) for path in sorted(paths)]
    if not tables:
        return pd.DataFrame(columns=list(COLUMNS))
    table: pd.DataFrame = pa.concat_tables(tables, promote_options="permissive").to_pandas(ignore_metadata=True)
    return table if "face_share" in table else table.assign(face_share=float("nan"))  # written by an earlier version


def subject_scores(rows: pd.DataFrame, *, classes: Sequence[str]) -> pd.DataFrame:
    """WAR, UAR and F1 per method, split, cohort, seed and subject, beside the majority predictor's.

    Draws of a cohort are averaged within the subject.

    Returns:
        Columns `method, split, cohort, seed, subject_id, war, uar, f1, num_clips, positive_share, majority_war,
        majority_uar, majority_f1`.

    Raises:
        ValueError: if a clip has two rows under the same method, split, cohort, seed and draw.
    """
    index = {name: i for i, name in enumerate(classes)}
    keys = ["method", "split", "cohort", "seed", "subject_id", "draw"]
    duplicates = rows[rows.duplicated([*keys, "clip_id"])]
    if len(duplicates):
        shown = ", ".join(f"{name}={duplicates[name].iloc[0]!r}" for name in [*keys, "clip_id"])
        raise ValueError(
            f"{len(duplicates)} rows are duplicates, the first is {shown}; do two configurations have the same name?"
        )
    if rows.empty:
        return pd.DataFrame()
    groups = rows.groupby(keys, sort=True)
    number, count = groups.ngroup().to_numpy(), len(classes)
    true, predictions = (rows[name].map(index).to_numpy(int) for name in ("label", "prediction"))
    counts = np.zeros((number.max() + 1, count, count), np.int64)
    np.add.at(counts, (number, true, predictions), 1)
    actual = counts.sum(-1)
    constant = np.zeros_like(counts)  # always the most frequent class; ties go to the first
    constant[np.arange(len(counts)), :, actual.argmax(-1)] = actual
    table = groups.size().reset_index(name="num_clips")
    table = table.assign(**figures_of(counts), positive_share=actual[:, -1] / actual.sum(-1))
    table = table.assign(**{f"majority_{name}": values for name, values in figures_of(constant).items()})
    return table.groupby(keys[:-1], as_index=False, sort=True).mean(numeric_only=True).drop(columns="draw")
