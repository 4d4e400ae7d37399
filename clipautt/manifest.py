"""The manifest: the table that lists clips.

A manifest is a table (Parquet or CSV), one row per clip. Reading validates it and reports all problems of all rows at
once. Labels exist only here: what reaches an adaptation method has no label field.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args
from unicodedata import normalize

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipautt.clips import FACES, Clip, Split, is_face
from clipautt.commands import setting
from clipautt.files import write_table
from clipautt.tables import (
    TableError,
    column_problems,
    doubtful_labels,
    loosely,
    nfc,
    no_label,
    point,
    read_sheet,
    whole,
    without_decimals,
)

SPLITS: tuple[str, ...] = get_args(Split)
_SOURCES = ("source_train", "source_val")
_REQUIRED = ("clip_id", "subject_id", "source", "split")
_TEXT = ("clip_id", "subject_id", "source", "split", "label", "dataset", "face")
_SECONDS = ("start_seconds", "end_seconds")
_FRAMES = ("start_frame", "end_frame")
_SPAN = (*_SECONDS, *_FRAMES, "frames_per_second")
_COLUMNS = tuple(f.name for f in fields(Clip))
_WHOLE_NUMBERS = ("clip_id", "subject_id", "label")
"""Columns of text that may hold whole numbers."""
_ALSO = {
    "id": "clip_id", "clip": "clip_id", "video_id": "clip_id", "name": "clip_id",
    "subject": "subject_id", "participant": "subject_id", "participant_id": "subject_id", "person": "subject_id",
    "person_id": "subject_id", "patient": "subject_id", "patient_id": "subject_id",
    "path": "source", "file": "source", "filename": "source", "file_name": "source", "file_path": "source",
    "video": "source", "video_path": "source", "class": "label", "clip_label": "label", "set": "split",
    "start": "start_seconds", "start_time": "start_seconds", "start_sec": "start_seconds", "start_s": "start_seconds",
    "end": "end_seconds", "end_time": "end_seconds", "end_sec": "end_seconds", "end_s": "end_seconds",
    "fps": "frames_per_second", "frame_rate": "frames_per_second",
}  # fmt: skip
"""Other words for columns."""
_CLOCK = re.compile(r"(\d+ days? )?\d+:\d\d:\d\d(\.\d+)?")
_MARKS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_SHOWN_PROBLEMS = 20
_CLASSES = b"clipautt.classes"
_SYNTHETIC = "manifest.parquet"
"""Name of the manifest that `clipautt synth` writes."""
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
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What a person should know of the file that it was read from, a sentence each."""
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
        made = f"`clipautt synth {setting('out', str(path.parent))}` makes one, or " if path.name == _SYNTHETIC else ""
        raise FileNotFoundError(f"no manifest at {path}; {made}give manifest=PATH")
    table, noted = read_table(path)
    labels = table["label"].dropna() if "label" in table else pd.Series([], dtype=object)
    found = sorted(set(labels))
    names = classes or noted or tuple(sorted(found, key=lambda label: (label != NEUTRAL, label)))
    problems = [*table.attrs.get("problems", ()), *find_problems(table, classes=names)]
    if not (classes or noted) and "split" in table:
        problems += _class_problems(labels, learned=bool(table["split"].isin(_SOURCES).any()))
    if problems:
        raise _many(path, problems)
    clips = sorted((_clip(row, path.parent) for row in table.to_dict("records")), key=lambda clip: clip.clip_id)
    return Manifest(tuple(clips), names, tuple(table.attrs.get("notes", ())))


def read_clips(path: Path) -> tuple[list[Clip], dict[str, dict[str, str]], list[str]]:
    """Read a table of clips that are only looked at: a manifest, or any table with the column `source`.

    Clips without a `clip_id` are called by their sources, without suffix; subjects may be unknown, and labels, splits
    and other columns are kept as facts.

    Args:
        path: as for `read_manifest`.

    Returns:
        The clips in the order of their ids; clip id → further column → text; and notes for a person.

    Raises:
        ManifestError: as `read_manifest`.
    """
    table, _ = read_table(path)
    others, noted = table.attrs["others"], table.attrs
    if "source" not in table:
        there = ", ".join(noted["columns"]) or "none"
        lacking = f"no column source, with the paths of the videos; there are: {there}"
        raise _many(path, [lacking, *noted["problems"]])
    nobody = "subject_id" not in table
    filled = table.assign(
        clip_id=_names_of(table) if "clip_id" not in table else table["clip_id"],
        subject_id="?" if nobody else table["subject_id"].fillna("?"),
        split=table["split"].fillna("target") if "split" in table else "target",
    )
    filled.attrs = noted
    labels = tuple(sorted(set(table["label"].dropna()))) if "label" in table else ()
    problems = [*noted["problems"], *find_problems(filled.assign(split="target"), classes=labels)]
    if problems:
        raise _many(path, problems)
    clips, facts = [], {}
    for number, row in enumerate(filled.to_dict("records")):
        clip = _clip(row, path.parent)
        clips.append(replace(clip, subject_id="" if clip.subject_id == "?" else clip.subject_id))
        known = {"label": clip.label or "", "split": clip.split} if "label" in table else {}
        facts[clip.clip_id] = known | {name: others[name][number] or "" for name in others}
    return sorted(clips, key=lambda clip: clip.clip_id), facts, []


def _names_of(table: pd.DataFrame) -> pd.Series:
    """Ids for clips without one: their sources without suffix, with it where that is not unique, else with a number."""
    sources = table["source"].map(lambda source: str(source).replace("\\", "/"))
    names = sources.map(lambda source: str(Path(source).with_suffix("")) if Path(source).name else source)
    names = names.where(~names.duplicated(keep=False), sources)
    repeated = names.duplicated(keep=False)
    return names.where(~repeated, names + "#" + names.groupby(names).cumcount().add(1).astype(str))


def _class_problems(labels: pd.Series, *, learned: bool) -> list[str]:
    """What is doubtful about labels where nobody says which classes there are."""
    counts = {str(label): int(count) for label, count in labels.value_counts().items()}
    problems = [
        f"row {labels.index[labels == label][0]}: label {label!r} occurs {_times(counts[label])}, beside {meant!r} "
        f"{_times(counts[meant])}; correct it, or say that both are classes with {setting('classes', sorted(counts))}"
        for label, meant in doubtful_labels(counts).items()
    ]
    problems += [
        f"row {labels.index[labels == label][0]}: label {label!r} is how programs write that there is none; leave such "
        f"cells empty, or say that it is a class with {setting('classes', sorted(counts))}"
        for label in filter(no_label, counts)
    ]
    if not problems and learned and len(counts) > 1 and NEUTRAL not in counts:
        names = ", ".join(sorted(counts))
        problems.append(
            f"no label of {names} is {NEUTRAL!r}; name the classes, the neutral one first, as in "
            f"{setting('classes', sorted(counts))}"
        )
    return problems


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _many(path: Path, problems: list[str]) -> ManifestError:
    shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN_PROBLEMS])
    more = f"\n  … and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
    return ManifestError(f"{path} has {len(problems)} problem{'s' if len(problems) > 1 else ''}:\n{shown}{more}")


def read_table(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The table of a manifest with ids, sources and labels as text, and the classes stored in it.

    `007` keeps its zeros, `NA` and `None` are valid names, and white space around a cell is removed. What programs make
    of whole numbers is undone: `7.0` is `7` where it is a number or its whole column is like that.

    Returns:
        The table, with its `columns` as written, `problems` of them, `notes` on what is not used and the `others` that
        are not used in its `attrs`; and the classes.

    Raises:
        ManifestError: if it cannot be read.
    """
    kind = path.suffix.lower()
    if kind in (".xlsx", ".xls", ".ods"):
        raise ManifestError(f"{path} is a workbook; save its sheet as CSV, and give manifest=FILE.csv")
    table, noted = (_read_csv(path), ()) if kind in (".csv", ".tsv", ".txt") else _read_parquet(path)
    columns = [str(name) for name in table.columns]
    problems, unused = column_problems(columns, _COLUMNS, also=_ALSO)
    others = pd.DataFrame({name: _texts(table[name]) for name in unused if columns.count(name) == 1}, dtype=object)
    table = table.loc[:, np.array([name in _COLUMNS for name in columns], bool) & ~table.columns.duplicated()]
    as_text = {name: _texts(table[name]) for name in _TEXT if name in table}
    table = table.assign(**as_text)
    spans = {name: _seconds(table[name]) for name in _SECONDS if name in table}
    table = table.assign(**spans).reset_index(drop=True)
    notes = [f"columns that are not used: {', '.join(unused)}"] if unused else []
    table.attrs = {"problems": problems, "notes": notes, "columns": columns, "others": others.reset_index(drop=True)}
    return table, noted


def _read_parquet(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    try:
        content = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{path} cannot be read as Parquet: {error}") from error
    noted = tuple(json.loads((content.schema.metadata or {}).get(_CLASSES, b"[]")))
    return content.to_pandas(ignore_metadata=True), noted  # an index that pandas stored is a column like any other


def is_written_manifest(path: Path) -> bool:
    """Whether `write_manifest` wrote this file."""
    try:
        return _CLASSES in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def _texts(cells: pd.Series) -> pd.Series:
    """Cells as text without surrounding white space, None where there is nothing."""
    text = cells.map(_plain, na_action="ignore").astype(object)
    given = [cell for cell in text if isinstance(cell, str)]
    if cells.name == "face":  # names and numbers in one column
        text = text.map(lambda cell: whole(cell) if without_decimals([cell]) else cell, na_action="ignore")
    elif cells.name in _WHOLE_NUMBERS and without_decimals(given):
        text = text.map(whole, na_action="ignore")
    return text.where(text.notna(), None)


def _plain(cell: object) -> str | None:
    if isinstance(cell, float) and cell.is_integer():  # pandas makes floats of whole numbers where some are missing
        cell = int(cell)
    return nfc(str(cell).strip()) or None


def _seconds(cells: pd.Series) -> pd.Series:
    """Time spans as numbers of seconds; other cells as they are."""
    return cells.map(_as_seconds, na_action="ignore")


def _as_seconds(cell: object) -> object:
    if isinstance(cell, timedelta):
        return cell.total_seconds()
    if isinstance(cell, str) and _CLOCK.fullmatch(cell):
        return pd.Timedelta(cell).total_seconds()
    return str(cell) if isinstance(cell, datetime) else cell


def _read_csv(path: Path) -> pd.DataFrame:
    """Cells as text without surrounding white space; None for empty ones.

    Raises:
        ManifestError: if the file is no text table, or lines have more or fewer cells than the header, as with an
            unquoted comma; the message lists them.
    """
    try:
        sheet = read_sheet(path)
    except TableError as error:
        raise ManifestError(str(error)) from error
    uneven = [
        f"line {line} has {len(cells)} cells, the header {len(sheet.columns)}; put cells that contain "
        f"{_MARKS[sheet.delimiter]} in quotes"
        for line, cells in sheet.rows
        if len(cells) != len(sheet.columns)
    ]
    if uneven:
        raise _many(path, uneven)
    rows = [[cell or None for cell in cells] for _, cells in sheet.rows]
    table = pd.DataFrame(rows, columns=list(sheet.columns), dtype=object)
    if sheet.delimiter != ";":
        return table
    numbers = [name in _SPAN for name in table.columns]
    table.loc[:, numbers] = table.loc[:, numbers].map(point, na_action="ignore")
    return table


def _clip(row: dict[Hashable, Any], folder: Path) -> Clip:
    values = {str(name): value for name, value in row.items() if not pd.isna(value)}
    values["source"] = _find_source(values["source"], folder)
    numbers = {
        name: int(float(values[name])) if name in _FRAMES else float(values[name]) for name in _SPAN if name in values
    }
    return Clip(**{**values, **numbers})


def _find_source(source: str, folder: Path) -> str:
    """The absolute path of a source; where nothing lies there, other spellings are tried: `\\` and split accents."""
    spellings = dict.fromkeys([source, source.replace("\\", "/"), *(normalize(f, source) for f in ("NFD", "NFC"))])
    if len(spellings) > 1:
        source = next((one for one in spellings if os.path.exists(folder / one)), source)
    return source if Path(source).is_absolute() else str((folder / source).resolve())


def absent_sources(clips: Iterable[Clip]) -> dict[str, str]:
    """Clip id → path and what is wrong with it, for clips without a video or folder of frames; nothing is decoded."""
    reasons: dict[str, str] = {}
    known: dict[str, str] = {}
    for clip in clips:
        if clip.source not in known:
            known[clip.source] = _absence(Path(clip.source))
        if known[clip.source]:
            reasons[clip.clip_id] = f"{clip.source}: {known[clip.source]}"
    return reasons


def _absence(path: Path) -> str:
    try:
        if path.is_dir():
            return "" if any(path.iterdir()) else "an empty folder"
        return "" if path.stat().st_size else "an empty file"
    except FileNotFoundError:
        alike = [other for other in _beside(path) if loosely(other) == loosely(path.name)]
        return "a broken link" if path.is_symlink() else f"no such file or folder{_named(alike)}"
    except OSError as error:
        return error.strerror or str(error)


def _beside(path: Path) -> list[str]:
    """Names in the folder where a path should be."""
    try:
        return sorted(os.listdir(path.parent))
    except OSError:
        return []


def _named(names: Sequence[str]) -> str:
    return f", but {names[0]}" if names else ""


def find_problems(table: pd.DataFrame, *, classes: tuple[str, ...]) -> Iterator[str]:
    """Yield every problem of a manifest table, one sentence each."""
    absent = [column for column in _REQUIRED if column not in table]
    if absent:
        there = ", ".join(table.attrs.get("columns", map(str, table.columns))) or "none"
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
    drive = table["source"].astype(str).str.match(r"[A-Za-z]:[\\/]") & (os.name != "nt")
    for row in table.index[drive]:
        yield f"row {row}: source {table['source'][row]!r} is on a drive of Windows; give its path on this machine"
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
    for row in table.index[labels.isna() & table["split"].isin(_SOURCES)]:
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
    noted = {_CLASSES: json.dumps(list(classes)).encode()}
    write_table(path, table.replace_schema_metadata({**(table.schema.metadata or {}), **noted}))
