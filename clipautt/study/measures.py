"""What a study measures: the columns of a table of clips that are averaged, each with its words and its unit.

In: a `ClipTable`. Out: `Measure` records, and a data frame with a column for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from clipautt.action_units import title_of
from clipautt.prediction.columns import CLIPS_BETWEEN, VALIDITY, probability, units_of_clip
from clipautt.study.clip_table import ClipTable

Group = Literal["recording", "classes", "action_units", "evidence"]
ALWAYS = ("face_share", "other_faces")
"""Measures that stand beside all others, for they say what these are worth."""
_RECORDING = ("face_share", "brightness", "other_faces", "duration_seconds", "windows_counted")
_ABOUT = {one.name: one for one in (*CLIPS_BETWEEN, *VALIDITY)}
_NAMED = 8


@dataclass(frozen=True)
class Measure:
    """Something that is averaged over clips and subjects."""

    name: str
    """Its column."""
    label: str
    """What it is, in a few words."""
    about: str
    """What it says, as a sentence without its full stop."""
    unit: str
    """Unit or range."""
    group: Group
    """`recording` (what the clips are like), `classes`, `action_units`, or `evidence` (what AUs say for a class). Tests
    of a group are adjusted together."""
    learned: bool | None = None
    """For an AU, whether the backbone has learned it; where not, its figures mean nothing. None: not recorded."""


def measures_of(table: ClipTable) -> list[Measure]:
    """Every measure of a table, in the order of its columns in the tables of a study."""
    recording = [Measure(n, *_words(n), _ABOUT[n].unit, "recording") for n in _RECORDING]
    classes: list[Measure] = []
    for name in table.classes:
        column = probability(name)
        classes.append(Measure(column.name, f"probability of {name}", column.about, column.unit, "classes"))
    for name in table.classes:
        about = f"Share of the clips whose prediction is {name}"
        classes.append(Measure(f"predicted_{name}", f"share predicted {name}", about, "0 to 1", "classes"))
    classes.append(Measure("entropy", *_words("entropy"), _ABOUT["entropy"].unit, "classes"))
    units = [one for code in table.action_units for one in _of_unit(code, table.not_learned)]
    return [*recording, *classes, *(one for one in units if one.name in table.rows)]


def _words(name: str) -> tuple[str, str]:
    """Label and sentence of a column of `predict`."""
    labels = {
        "face_share": "share of frames with the face",
        "other_faces": "other faces left out",
        "duration_seconds": "duration",
        "windows_counted": "windows that count",
        "entropy": "entropy",
        "brightness": "brightness",
    }
    return labels[name], _ABOUT[name].about


def _of_unit(code: str, not_learned: Iterable[str] | None) -> list[Measure]:
    learned = None if not_learned is None else code not in not_learned
    groups: tuple[Group, ...] = ("action_units", "action_units", "evidence")
    return [
        Measure(one.name, f"{title_of(code)}, {kind}", one.about, one.unit, group, learned)
        for one, kind, group in zip(units_of_clip(code), ("mean", "rise", "evidence"), groups, strict=True)
    ]


def chosen_measures(every: list[Measure], names: Iterable[str] | None) -> list[Measure]:
    """The measures with these names, and those that always stand beside them; all for None.

    Raises:
        ValueError: for a name that is no measure.
    """
    if names is None:
        return every
    wanted, known = list(names), [one.name for one in every]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        shown = ", ".join(known[:_NAMED])
        raise ValueError(
            f"measures={unknown[0]!r}: no such measure; allowed: {shown} and others, see the table's header"
        )
    return [one for one in every if one.name in wanted or one.name in ALWAYS]


def values_of(table: ClipTable, measures: Iterable[Measure]) -> pd.DataFrame:
    """A row per clip and a column per measure; nan where a value is not known."""
    rows = table.rows
    shares = {f"predicted_{name}": rows["prediction"].eq(name).astype(float) for name in table.classes}
    columns: Mapping[str, pd.Series[float]] = {
        one.name: shares[one.name] if one.name in shares else rows[one.name] for one in measures
    }
    return pd.DataFrame(columns, index=rows.index)
