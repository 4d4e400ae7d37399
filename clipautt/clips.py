"""What a clip is, and the manifest that lists them.

A manifest is a table (Parquet or CSV), one row per clip. It is checked at the door: every problem of every row is
listed at once. Labels live here and nowhere else; what reaches an adaptation method has no label field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

Split = Literal["source_train", "source_val", "target"]
SPLITS: tuple[str, ...] = get_args(Split)
_REQUIRED = ("clip_id", "subject_id", "source", "split")
_TEXT = ("clip_id", "subject_id", "source", "split", "label", "dataset")
_SECONDS = ("start_seconds", "end_seconds")
_SHOWN_PROBLEMS = 20


class ManifestError(ValueError):
    """The manifest breaks its contract; the message lists every problem with row, column and value."""


@dataclass(frozen=True)
class Clip:
    """One piece of video of one subject."""

    clip_id: str
    """Unique in its manifest."""
    subject_id: str
    """Whose face it shows."""
    source: str
    """Path of the video file, absolute once read."""
    split: Split
    """`source_train` and `source_val` to learn from and select on, `target` to be personalised."""
    label: str | None = None
    """Class name, or None where it is not known."""
    start_seconds: float | None = None
    """Where the clip begins in the file; None is its beginning."""
    end_seconds: float | None = None
    """Where the clip ends, exclusive; None is the end of the file."""
    dataset: str = ""
    """Name of the data set."""


@dataclass(frozen=True)
class Manifest:
    """The clips of a data set, in a fixed order."""

    clips: tuple[Clip, ...]
    """Sorted by `clip_id`."""
    classes: tuple[str, ...]
    """Class names in label order; index 0 is the neutral class."""
    fingerprint: str = field(init=False)
    """A hash of what the clips are and how they are labelled; where the files lie does not enter."""

    def __post_init__(self) -> None:
        content = [
            [c.dataset, c.clip_id, c.subject_id, c.split, c.label, c.start_seconds, c.end_seconds] for c in self.clips
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


def id_number(text: str) -> int:
    """A stable 63-bit number of an identifier, to seed generators with."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


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
        classes: class names in label order; by default `neutral` first and the other labels found in alphabetical
            order.

    Raises:
        FileNotFoundError: if there is no such file.
        ManifestError: listing every row that breaks the contract.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no manifest at {path}; `clipautt synth out={path.parent}` makes one, or give manifest=PATH"
        )
    table = _read_table(path)
    found = sorted({str(label) for label in table["label"].dropna()}) if "label" in table else []
    names = classes or tuple(sorted(found, key=lambda label: (label != "neutral", label)))
    problems = list(find_problems(table, classes=names))
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN_PROBLEMS])
        more = f"\n  … and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise ManifestError(f"{path} has {len(problems)} problem{'s' if len(problems) > 1 else ''}:\n{shown}{more}")
    clips = sorted((_clip(row, path.parent) for row in table.to_dict("records")), key=lambda clip: clip.clip_id)
    return Manifest(tuple(clips), names)


def _read_table(path: Path) -> pd.DataFrame:
    """The table with ids, sources and labels as text: `007` keeps its zeros, and `NA` or `None` can be a name."""
    if path.suffix == ".csv":
        return pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=[""])
    table = pd.read_parquet(path)
    as_text = {name: table[name].map(str, na_action="ignore") for name in _TEXT if name in table}
    return table.assign(**as_text)


def _clip(row: dict[Hashable, Any], folder: Path) -> Clip:
    known = {f.name for f in fields(Clip)}
    values = {name: value for name, value in row.items() if name in known and not pd.isna(value)}
    source = values["source"]
    values["source"] = source if Path(source).is_absolute() else str((folder / source).resolve())
    seconds = {name: float(values[name]) for name in _SECONDS if name in values}
    return Clip(**{**values, **seconds})


def find_problems(table: pd.DataFrame, *, classes: tuple[str, ...]) -> Iterator[str]:
    """Everything in which a table breaks the manifest contract, one sentence each."""
    absent = [column for column in _REQUIRED if column not in table]
    if absent:
        yield f"missing column{'s' if len(absent) > 1 else ''} {', '.join(absent)}; required are {', '.join(_REQUIRED)}"
        return
    for column in ("start_frame", "end_frame"):
        if column in table:
            yield f"column {column} is not supported; give start_seconds and end_seconds"
    if table.empty:
        yield "no rows"
    for column in _REQUIRED:
        for row in table.index[table[column].isna() | (table[column].astype(str).str.strip() == "")]:
            yield f"row {row}: {column} is empty"
    for row in table.index[table["source"].astype(str).str.contains("://", regex=False)]:
        yield f"row {row}: source {table['source'][row]!r} is a URI; only files that every node sees as a path are read"
    for row in table.index[table["clip_id"].duplicated() & table["clip_id"].notna()]:
        yield f"row {row}: clip_id {table['clip_id'][row]!r} stands twice"
    for row in table.index[table["split"].notna() & ~table["split"].isin(SPLITS)]:
        yield f"row {row}: split {table['split'][row]!r} is not one of {', '.join(SPLITS)}"
    yield from _label_problems(table, classes)
    yield from _span_problems(table)
    for subject, splits in table.groupby("subject_id")["split"].agg(lambda s: sorted(set(s.dropna()))).items():
        if len(splits) > 1:
            yield f"subject {subject!r} is in {' and '.join(splits)}; a subject belongs to one split"


def _label_problems(table: pd.DataFrame, classes: tuple[str, ...]) -> Iterator[str]:
    labels = table["label"] if "label" in table else pd.Series(None, table.index, dtype=object)
    for row in table.index[labels.notna() & ~labels.isin(classes)]:
        yield f"row {row}: label {labels[row]!r} is not one of {', '.join(classes)}"
    for row in table.index[labels.isna() & table["split"].isin(("source_train", "source_val"))]:
        yield f"row {row}: label is empty; only target clips may go without"


def _span_problems(table: pd.DataFrame) -> Iterator[str]:
    spans = {}
    for column in _SECONDS:
        given = table[column] if column in table else pd.Series(None, table.index, dtype=object)
        spans[column] = pd.to_numeric(given, errors="coerce")
        for row in table.index[given.notna() & ~np.isfinite(spans[column].astype(float))]:
            yield f"row {row}: {column} {given[row]!r} is not a number of seconds"
    start, end = spans["start_seconds"].astype(float), spans["end_seconds"].astype(float)
    for row in table.index[(start < 0) | (end <= start.fillna(0))]:
        yield f"row {row}: the span {start[row]} to {end[row]} seconds is empty or negative"


def write_manifest(clips: Iterable[Clip], path: Path) -> None:
    """Write a manifest as Parquet; sources below its folder are written relative to it."""
    rows = []
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        source = Path(clip.source)
        inside = source.is_absolute() and source.is_relative_to(path.parent.resolve())
        rows.append(
            asdict(clip) | {"source": str(source.relative_to(path.parent.resolve())) if inside else clip.source}
        )
    pd.DataFrame(rows, columns=[f.name for f in fields(Clip)]).to_parquet(path, index=False)
