"""The manifest: the table that lists clips.

A manifest is a table (Parquet or CSV), one row per clip. Reading validates it and reports all problems of all rows at
once. Labels exist only here: what reaches an adaptation method has no label field.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipautt.clips import FACES, Clip, Split, is_face
from clipautt.files import write_table

SPLITS: tuple[str, ...] = get_args(Split)
_REQUIRED = ("clip_id", "subject_id", "source", "split")
_TEXT = ("clip_id", "subject_id", "source", "split", "label", "dataset", "face")
_SECONDS = ("start_seconds", "end_seconds")
_FRAMES = ("start_frame", "end_frame")
_SPAN = (*_SECONDS, *_FRAMES, "frames_per_second")
_SHOWN_PROBLEMS = 20
_CLASSES = b"clipautt.classes"
NEUTRAL = "neutral"
"""Default name of the neutral class."""


class ManifestError(ValueError):
    """The manifest is invalid; the message lists its problems (at most 20) with row, column and value."""


@dataclass(frozen=True)
class Manifest:
    """The clips of a data set, in a fixed order."""

    clips: tuple[Clip, ...]
    """Sorted by `clip_id`."""
    classes: tuple[str, ...]
    """Class names in label order; index 0 is the neutral class."""
    fingerprint: str = field(init=False)
    """Hash of the clips and their labels, independent of where the files are."""

    def __post_init__(self) -> None:
        content = [
            [c.dataset, c.clip_id, c.subject_id, c.split, c.label, *(getattr(c, name) for name in _SPAN)]
            + ([] if c.face is None else [c.face])
            for c in self.clips
        ]
        text = json.dumps([content, self.classes])
        object.__setattr__(self, "fingerprint", hashlib.sha256(text.encode()).hexdigest()[:16])

    def __len__(self) -> int:
        return len(self.clips)

    def __repr__(self) -> str:
        subjects = {clip.subject_id for clip in self.clips}
        return f"Manifest({len(self.clips)} clips, {len(subjects)} subjects, classes={self.classes})"

    def of_split(self, *splits: Split) -> tuple[Clip, ...]:
        """The clips of these splits, in order."""
        return tuple(clip for clip in self.clips if clip.split in splits)

    def label_index(self, clip: Clip) -> int:
        """The class index of a labelled clip.

        Raises:
            ValueError: if the clip has no label.
        """
        if clip.label is None:
            raise ValueError(f"clip {clip.clip_id!r} has no label")
        return self.classes.index(clip.label)

    def counts(self, *, by: Literal["subject", "split"] = "subject") -> pd.DataFrame:
        """Number of clips per class.

        Args:
            by: `subject` gives a row per subject with `split`, `subject`, a column per class, `unlabelled` if there are
                any, and `clips`; `split` gives a row per split with the number of `subjects` instead.
        """
        rows = [(SPLITS.index(clip.split), clip.subject_id, clip.label) for clip in self.clips]
        groups = pd.DataFrame(rows, columns=["split", "subject", "label"]).groupby(
            ["split", "subject"] if by == "subject" else ["split"]
        )
        labelled = groups["label"].value_counts().unstack(fill_value=0)
        result = labelled.reindex(index=groups.size().index, columns=list(self.classes), fill_value=0)
        unlabelled = groups.size() - result.sum(axis=1)
        if unlabelled.any():
            result["unlabelled"] = unlabelled
        result["clips"] = groups.size()
        if by == "split":
            result.insert(0, "subjects", groups["subject"].nunique())
        result = result.rename_axis(columns=None).reset_index()
        return result.assign(split=[SPLITS[number] for number in result["split"]])


def by_subject(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    """Clips grouped by subject; subjects in alphabetical order."""
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.subject_id, []).append(clip)
    return dict(sorted(groups.items()))


def read_manifest(path: str | Path, *, classes: tuple[str, ...] | None = None) -> Manifest:
    """Read and check a manifest.

    Args:
        path: a `.parquet` or `.csv` file. Relative sources are relative to its folder.
        classes: class names in label order, neutral class first; by default those that `write_manifest` stored, else
            `neutral` followed by the table's other labels in alphabetical order.

    Raises:
        FileNotFoundError: if there is no such file.
        ManifestError: if the table cannot be read or rows are invalid; the message lists the problems.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no manifest at {path}; `clipautt synth out={path.parent}` makes one, or give manifest=PATH"
        )
    table, noted = _read_table(path)
    found = sorted({str(label) for label in table["label"].dropna()}) if "label" in table else []
    names = classes or noted or tuple(sorted(found, key=lambda label: (label != NEUTRAL, label)))
    problems = list(find_problems(table, classes=names))
    if len(found) > 1 and NEUTRAL not in found and not (classes or noted):
        problems.append(f"no label of {', '.join(names)} is {NEUTRAL!r}; give classes=[…], the neutral class first")
    if problems:
        raise _many(path, problems)
    clips = sorted((_clip(row, path.parent) for row in table.to_dict("records")), key=lambda clip: clip.clip_id)
    return Manifest(tuple(clips), names)


def _many(path: Path, problems: list[str]) -> ManifestError:
    shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN_PROBLEMS])
    more = f"\n  … and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
    return ManifestError(f"{path} has {len(problems)} problem{'s' if len(problems) > 1 else ''}:\n{shown}{more}")


def _read_table(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The table with ids, sources and labels as text, and the classes stored in it.

    `007` keeps its zeros, `NA` and `None` are valid names, and white space around a cell is removed.
    """
    if path.suffix.lower() == ".csv":
        table, noted = _read_csv(path), ()
    else:
        try:
            content = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(f"{path} cannot be read as Parquet: {error}") from error
        table, noted = content.to_pandas(), tuple(json.loads((content.schema.metadata or {}).get(_CLASSES, b"[]")))
    as_text = {
        name: table[name].map(_whole if name == "face" else _plain, na_action="ignore")
        for name in _TEXT
        if name in table
    }
    return table.assign(**as_text), noted


def is_written_manifest(path: Path) -> bool:
    """Whether `write_manifest` wrote this file with its classes."""
    try:
        return _CLASSES in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def _plain(cell: object) -> str | None:
    return str(cell).strip() or None


def _whole(cell: object) -> str | None:
    """A number of a face as spreadsheets write it, 2.0, without its point."""
    text = _plain(cell)
    return text.removesuffix(".0") if text else text


def _read_csv(path: Path) -> pd.DataFrame:
    """Cells as text without surrounding white space; None for empty ones.

    Raises:
        ManifestError: if the file is not CSV in UTF-8, or lines have more or fewer cells than the header, as with an
            unquoted comma; the message lists them.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row] or [(1, [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    columns = [name.strip() for name in header[1]]
    uneven = [
        f"line {number} has {len(row)} cells, the header {len(columns)}; put cells that contain commas in quotes"
        for number, row in rows
        if len(row) != len(columns)
    ]
    if uneven:
        raise _many(path, uneven)
    return pd.DataFrame([[cell.strip() or None for cell in row] for _, row in rows], columns=columns, dtype=object)


def _clip(row: dict[Hashable, Any], folder: Path) -> Clip:
    known = {f.name for f in fields(Clip)}
    values = {name: value for name, value in row.items() if name in known and not pd.isna(value)}
    source = values["source"]
    values["source"] = source if Path(source).is_absolute() else str((folder / source).resolve())
    numbers = {
        name: int(float(values[name])) if name in _FRAMES else float(values[name]) for name in _SPAN if name in values
    }
    return Clip(**{**values, **numbers})


def find_problems(table: pd.DataFrame, *, classes: tuple[str, ...]) -> Iterator[str]:
    """Yield every problem of a manifest table, one sentence each."""
    absent = [column for column in _REQUIRED if column not in table]
    if absent:
        there = ", ".join(map(str, table.columns)) or "none"
        plural = "s" if len(absent) > 1 else ""
        yield f"missing column{plural} {', '.join(absent)}; required are {', '.join(_REQUIRED)}; there are: {there}"
        return
    if table.empty:
        yield "no rows"
    for column in _REQUIRED:
        for row in table.index[table[column].isna() | (table[column].astype(str).str.strip() == "")]:
            yield f"row {row}: {column} is empty"
    for row in table.index[table["source"].astype(str).str.contains("://", regex=False)]:
        yield f"row {row}: source {table['source'][row]!r} is a URI; give a path that every node can open"
    for row in table.index[table["clip_id"].duplicated() & table["clip_id"].notna()]:
        yield f"row {row}: clip_id {table['clip_id'][row]!r} is listed twice"
    for row in table.index[table["split"].notna() & ~table["split"].isin(SPLITS)]:
        yield f"row {row}: split {table['split'][row]!r} is not one of {', '.join(SPLITS)}"
    yield from _label_problems(table, classes)
    faces = table["face"].dropna() if "face" in table else pd.Series(dtype=object)
    for row in faces.index[~faces.astype(str).map(is_face).astype(bool)]:
        yield f"row {row}: face {faces[row]!r} is not one of {', '.join(FACES)}, or a number from 1"
    yield from _span_problems(table)
    for subject, splits in table.groupby("subject_id")["split"].agg(lambda s: sorted(set(s.dropna()))).items():
        if len(splits) > 1:
            yield f"subject {subject!r} is in {' and '.join(splits)}; a subject belongs to one split"


def _label_problems(table: pd.DataFrame, classes: tuple[str, ...]) -> Iterator[str]:
    labels = table["label"] if "label" in table else pd.Series(None, table.index, dtype=object)
    for row in table.index[labels.notna() & ~labels.isin(classes)]:
        yield f"row {row}: label {labels[row]!r} is not one of {', '.join(classes)}"
    for row in table.index[labels.isna() & table["split"].isin(("source_train", "source_val"))]:
        yield f"row {row}: label is empty; only target clips may be unlabelled"


def _span_problems(table: pd.DataFrame) -> Iterator[str]:
    values: dict[str, pd.Series] = {}
    for column in _SPAN:
        given = table[column] if column in table else pd.Series(None, table.index, dtype=object)
        values[column] = pd.to_numeric(given, errors="coerce").astype(float)
        wrong = ~np.isfinite(values[column])
        if column in _FRAMES:
            wrong |= values[column] % 1 != 0
        unit = "whole number" if column in _FRAMES else "number"
        for row in table.index[given.notna() & wrong]:
            yield f"row {row}: {column} {str(given[row])!r} is not a {unit}"
    for names, unit in ((_SECONDS, "seconds"), (_FRAMES, "frames")):
        start, end = (values[name] for name in names)
        for row in table.index[(start < 0) | (end <= start.fillna(0))]:
            shown = [
                edge if np.isnan(at) else f"{at:g}" for edge, at in (("the start", start[row]), ("the end", end[row]))
            ]
            yield f"row {row}: the span from {shown[0]} to {shown[1]} in {unit} is empty or negative"
    for second, frame in zip(_SECONDS, _FRAMES, strict=True):
        for row in table.index[values[second].notna() & values[frame].notna()]:
            yield f"row {row}: both {second} and {frame} are given; give one of them"
    for row in table.index[values["frames_per_second"] <= 0]:
        yield f"row {row}: frames_per_second {values['frames_per_second'][row]:g} is not positive"


def write_manifest(clips: Iterable[Clip], path: Path, *, classes: Sequence[str] = ()) -> None:
    """Write a manifest as Parquet, atomically; sources below its folder are written relative to it.

    Args:
        clips: its rows.
        path: the file to write.
        classes: class names in label order, stored in the file; if empty, readers derive them from the labels.
    """
    rows, folder = [], path.parent.resolve()
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        source = Path(clip.source)
        inside = source.is_absolute() and source.is_relative_to(folder)
        rows.append(vars(clip) | {"source": str(source.relative_to(folder)) if inside else clip.source})
    table = pa.Table.from_pandas(pd.DataFrame(rows, columns=[f.name for f in fields(Clip)]), preserve_index=False)
    noted = {_CLASSES: json.dumps(list(classes)).encode()} if classes else {}
    write_table(path, table.replace_schema_metadata({**(table.schema.metadata or {}), **noted}))
