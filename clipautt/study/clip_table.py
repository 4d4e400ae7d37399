"""Reads tables of clips: checked, with text as text and numbers as numbers.

In: files that `clipautt predict … out=clips.csv` or `.parquet` has written, or such a data frame; spreadsheets may have
changed separators, decimal points and encodings. Out: a `ClipTable`. What is wrong is a `ValueError` that names file
and place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clipautt.commands import setting
from clipautt.prediction.columns import CLIPS_BEFORE, CLIPS_BETWEEN, VALIDITY
from clipautt.tables import is_index, point, read_sheet

NOT_LEARNED = "not_learned"
"""Column with the codes of the AUs that the backbone never learned, separated by semicolons; a table may lack it."""
NUMBERS = (*(one.name for one in CLIPS_BETWEEN), "other_faces")
"""Columns of numbers that every table of clips has."""
_PROBABILITY, _MEAN, _RISE, _EVIDENCE = "probability_", "_mean", "_rise", "_evidence"
_NEEDED = tuple(one.name for one in (*CLIPS_BEFORE, *CLIPS_BETWEEN, *VALIDITY) if one.name != NOT_LEARNED)
_OTHER_TABLES = {"chosen": "windows", "frame": "frames"}
"""A column by which another table of `predict` is known → that table."""
_NAMED = 3
"""How many clips a message names."""


@dataclass(frozen=True, eq=False, repr=False)
class ClipTable:
    """Predicted clips, a row each."""

    rows: pd.DataFrame
    """All columns; text is never missing but empty, numbers are float with nan where they are not known."""
    classes: tuple[str, ...]
    """Names of the model's classes, in the order of their columns."""
    action_units: tuple[str, ...]
    """Codes of its AUs, or the phrases of prompts that are no AUs."""
    extra: tuple[str, ...]
    """Columns that `predict` took over from a manifest or from the names of folders, such as `condition`; text."""

    @property
    def not_learned(self) -> frozenset[str] | None:
        """AUs that the backbone never learned; None if the table does not say."""
        named = set(";".join(self.rows.get(NOT_LEARNED, pd.Series(dtype=str))).split(";")) - {""}
        return frozenset(named) or None

    def __repr__(self) -> str:
        return f"ClipTable({len(self.rows)} clips, classes {self.classes}, {len(self.action_units)} AUs)"


def read_clips(paths: Sequence[str | Path]) -> ClipTable:
    """Read tables of clips and put them below one another.

    Args:
        paths: files in CSV (also with semicolons or tabs and decimal commas, as spreadsheets save it) or Parquet.

    Raises:
        FileNotFoundError: for a file that is missing.
        ValueError: if a file is no table of clips, the tables come from models with other classes or AUs, a clip
            occurs twice, or a value makes no sense.
    """
    if not paths:
        raise ValueError("table=[]: name at least one table of clips")
    tables = [clip_table(_read(Path(path)), name=str(path)) for path in paths]
    first = tables[0]
    for path, one in zip(paths, tables, strict=True):
        for what in ("classes", "action_units"):
            here, there = getattr(one, what), getattr(first, what)
            if here != there:
                other = sorted(set(here) ^ set(there)) or list(here)
                raise ValueError(
                    f"{path} comes from another model than {paths[0]}: their {what.replace('_', ' ')} differ "
                    f"({', '.join(other[:_NAMED])}); report on each alone"
                )
    rows = pd.concat([one.rows for one in tables], ignore_index=True)
    extra = tuple(dict.fromkeys(name for one in tables for name in one.extra))
    known = {name: rows[name].fillna("") for name in (*extra, *({NOT_LEARNED} & set(rows)))}
    _refuse_duplicates(rows.assign(**known), first)
    return ClipTable(rows.assign(**known), first.classes, first.action_units, extra)


def clip_table(frame: pd.DataFrame, *, name: str = "table") -> ClipTable:
    """A data frame as a table of clips, for instance one of `VideoPrediction.row`.

    Args:
        frame: a row per clip; missing values are empty text, None or nan.
        name: its name in messages.

    Raises:
        ValueError: as `read_clips`.
    """
    frame = frame.loc[:, [not is_index(str(column)) for column in frame.columns]]
    columns = [str(column) for column in frame.columns]
    _check_columns(columns, name)
    classes = tuple(column.removeprefix(_PROBABILITY) for column in columns if column.startswith(_PROBABILITY))
    units = tuple(
        column.removesuffix(_MEAN)
        for column in columns
        if column.endswith(_MEAN) and f"{column.removesuffix(_MEAN)}{_RISE}" in columns
    )
    numbers = [*NUMBERS, *(f"{_PROBABILITY}{one}" for one in classes)]
    numbers += [f"{unit}{end}" for unit in units for end in (_MEAN, _RISE, _EVIDENCE)]
    known = {*numbers, *_NEEDED, NOT_LEARNED}
    read = {
        column: _numbers(values, name) if column in numbers else _text(values)
        for column, (_, values) in zip(columns, frame.items(), strict=True)
    }
    rows = pd.DataFrame(read).reset_index(drop=True)
    table = ClipTable(rows, classes, units, tuple(column for column in columns if column not in known))
    _check_rows(table, name)
    _refuse_duplicates(rows, table)
    return table


def _read(path: Path) -> pd.DataFrame:
    if path.is_dir():
        raise ValueError(f"table={path} is a folder; name the table of clips in it, such as {path / 'clips.csv'}")
    if not path.is_file():
        raise FileNotFoundError(
            f"table={path}: no such file; `clipautt predict FOLDER {setting('out', path.name)}` writes one"
        )
    if path.suffix.lower() == ".parquet":
        try:
            return pd.read_parquet(path, dtype_backend="numpy_nullable")
        except (ValueError, OSError) as error:
            raise ValueError(f"table={path} is no Parquet file ({str(error).splitlines()[0]})") from error
    sheet = read_sheet(path)
    width = len(sheet.columns)
    for line, cells in sheet.rows:
        if len(cells) != width:
            raise ValueError(f"{path} line {line} has {len(cells)} cells, and the header has {width}")
    return pd.DataFrame([cells for _, cells in sheet.rows], columns=list(sheet.columns), dtype=str)


def _check_columns(columns: Sequence[str], name: str) -> None:
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise ValueError(f"{name}: column {twice[0]!r} occurs {columns.count(twice[0])} times; keep one of them")
    other = next((table for column, table in _OTHER_TABLES.items() if column in columns), None)
    if other:
        raise ValueError(
            f"{name} is a table of {other}: a study counts clips, so give the table of clips, which `clipautt predict` "
            "writes with out="
        )
    absent = [column for column in _NEEDED if column not in columns]
    if not any(column.startswith(_PROBABILITY) for column in columns):
        absent.append(f"{_PROBABILITY}…")
    if absent:
        raise ValueError(
            f"{name} is no table of clips: it lacks the columns {', '.join(absent[:5])}"
            f"{' and others' if len(absent) > 5 else ''}; `clipautt predict FOLDER out=clips.csv` writes one"
        )


def _text(values: pd.Series[Any]) -> pd.Series[str]:
    """A column as text: nothing where a value is missing, and whole numbers without decimals, for where one number is
    missing, pandas writes 1.0 and 2.0."""
    texts = values.map(_shown).astype(str).str.strip()
    known = texts[texts != ""]
    return texts.str.removesuffix(".0") if known.str.fullmatch(r"-?[0-9]+\.0").all() else texts


def _shown(value: Any) -> str:
    return "" if value is None or (pd.api.types.is_scalar(value) and pd.isna(value)) else str(value)


def _numbers(values: pd.Series[Any], name: str) -> pd.Series[float]:
    if values.dtype.kind in "iufb" and not isinstance(values.dtype, pd.StringDtype):
        made = values.astype("Float64").to_numpy(float, na_value=np.nan)
    else:
        cells = _text(values).map(point)
        made = pd.to_numeric(cells.where(cells != ""), errors="coerce").to_numpy(float, na_value=np.nan)
        wrong = np.flatnonzero(np.isnan(made) & (cells != "") & (cells.str.lower() != "nan"))
        if len(wrong):
            place, cell = wrong[0], cells.iloc[wrong[0]]
            raise ValueError(f"{name} row {place + 1}: {values.name}={cell!r} is no number")
    if np.isinf(made).any():
        raise ValueError(f"{name} row {int(np.flatnonzero(np.isinf(made))[0]) + 1}: {values.name} is infinite")
    return pd.Series(made, index=values.index)


def _check_rows(table: ClipTable, name: str) -> None:
    rows, good = table.rows, table.rows["status"] == "ok"
    if rows.empty:
        raise ValueError(f"{name} has no rows, so that there is nothing to report on")
    chances = [f"{_PROBABILITY}{one}" for one in table.classes]
    values = rows[chances].to_numpy(float)
    outside = ~((values >= 0) & (values <= 1)) & ~np.isnan(values)
    checks = {
        "the clip has no name": rows["clip"] == "",
        "status is empty; it is ok where there is a prediction": rows["status"] == "",
        "status is ok, but a probability is missing": good & np.isnan(values).any(axis=1),
        "a probability lies outside 0 to 1; were decimal points lost in a spreadsheet?": pd.Series(outside.any(axis=1)),
        f"prediction is none of the classes {', '.join(table.classes)}": good & ~rows["prediction"].isin(table.classes),
    }
    for what, wrong in checks.items():
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"{name} row {place + 1} (clip {rows['clip'].iloc[place]!r}): {what}")


def _refuse_duplicates(rows: pd.DataFrame, table: ClipTable) -> None:
    """Refuse a clip that would count twice: the same clip of a video, or all numbers of a person's clip again."""
    numbers = [f"{_PROBABILITY}{one}" for one in table.classes] + [f"{unit}{_MEAN}" for unit in table.action_units]
    again = rows.duplicated(["clip", "source"]) | (
        (rows["status"] == "ok") & rows.duplicated(["clip", "subject", "duration_seconds", *numbers])
    )
    if again.any():
        names = list(dict.fromkeys(rows.loc[again, "clip"]))
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise ValueError(
            f"clips occur more than once: {', '.join(names[:_NAMED])}{more}; keep one row of each (one model, with or "
            "without personalization)"
        )
