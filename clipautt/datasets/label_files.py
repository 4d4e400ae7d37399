"""The rows of label files: tables with a header, lists of frames without one, and what counts as a label."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from clipautt.datasets.files import DatasetError, Problem, is_picture, path_parts
from clipautt.tables import Sheet, TableError, no_label, read_sheet, read_text

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Table:
    """The rows of a table with a header."""

    rows: tuple[tuple[str, dict[str, str]], ...]
    """File and line, and text by column name in lower case."""
    misfits: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """File and line, and the cells, of rows with more cells than columns: which cell belongs where is unknown."""
    problems: tuple[Problem, ...] = ()
    """One for each misfit."""
    columns: tuple[str, ...] = ()
    """Names of its columns, in lower case."""


def read_table(path: Path, *, required: Sequence[str], shown_as: str) -> Table:
    """A table with a header; columns are separated by tabs, semicolons or commas, whichever the header has.

    Args:
        path: the file.
        required: names of columns, in lower case; the header may use any case.
        shown_as: its name in messages.

    Raises:
        DatasetError: for columns that are missing or repeated, quotes that are not closed, or a file that is not text.
    """
    sheet = _read(path, read_sheet)
    columns = _columns(sheet, path, required)
    rows, misfits, problems = [], [], []
    for line, cells in sheet.rows:
        where = f"{shown_as} line {line}"
        if len(cells) > len(columns):
            misfits.append((where, cells))
            text = f"{where}: the row has {len(cells)} cells, the header {len(columns)}"
            problems.append(Problem("unreadable", text))
        else:
            rows.append((where, dict(zip(columns, (*cells, *[""] * len(columns)), strict=False))))
    return Table(tuple(rows), tuple(misfits), tuple(problems), tuple(columns))


def _read(path: Path, reader: Callable[[Path], _Read]) -> _Read:
    """What a reader of text or tables gives; what it refuses is a problem of the data set."""
    try:
        return reader(path)
    except TableError as error:
        raise DatasetError(str(error)) from error


def _columns(sheet: Sheet, path: Path, required: Sequence[str]) -> list[str]:
    """The names of columns, checked."""
    columns = [name.lower() for name in sheet.columns]
    absent = [name for name in required if name not in columns]
    if absent:
        first = sheet.delimiter.join(sheet.columns)
        raise DatasetError(
            f"{path}: the first line has no column {', '.join(absent)}; required are {', '.join(required)}; "
            f"it reads {first.strip()[:120]!r}"
        )
    repeated = sorted({name for name in columns if name and columns.count(name) > 1})
    if repeated:
        raise DatasetError(f"{path}: the first line has several columns {', '.join(repeated)}; one of each is allowed")
    return columns


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file without a header that are not empty, with their numbers in the file, from 1."""
    for number, line in enumerate(io.StringIO(_read(path, read_text), newline=None), 1):
        if line.strip():
            yield number, line.strip()


def plain_label(text: str) -> str:
    """A label without decoration: `1.0` and ` 1` are `1`, and what stands for no label is empty."""
    text = text.strip()
    if no_label(text):
        return ""
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


def unlabelled(where: str, what: str) -> Problem:
    """The problem of a row without a label."""
    return Problem("unlabelled", f"{where}: {what} has no label")


def unknown_label(where: str, what: str, label: str, words: Iterable[str]) -> Problem:
    """The problem of a row with an unknown label."""
    return Problem("unreadable", f"{where}: label {label!r} of {what} is not one of {', '.join(words)}")


@dataclass(frozen=True)
class LabelledFolder:
    """The rows of a list of frames that belong to one folder."""

    folder: str
    """Path as the list gives it, with forward slashes."""
    label: str
    """The one label of all its rows, as `plain_label` gives it."""
    where: str
    """File and first line."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.folder.rpartition("/")[2]

    @property
    def parent(self) -> str:
        """The part of the path before the last one; empty where there is none."""
        return self.folder.rpartition("/")[0].rpartition("/")[2]


def read_frame_list(path: Path, *, shown_as: str) -> tuple[list[LabelledFolder], list[Problem]]:
    """Folders of frames and their labels, from a file without a header that has a line `path label` for every frame.

    Paths may hold spaces. Rows are grouped by folder; a folder with several labels is a problem.

    Args:
        path: the file.
        shown_as: its name in messages.

    Returns:
        The folders in the order in which they appear, and the problems.
    """
    lines: dict[str, dict[str, list[int]]] = {}
    problems: list[Problem] = []
    for number, line in read_lines(path):
        picture, label = (line, "") if is_picture(line) else (*line.rsplit(None, 1), "")[:2]
        parts = path_parts(picture)
        if len(parts) < 2 or not is_picture(parts[-1]):
            problems.append(Problem("unreadable", f"{shown_as} line {number}: {line!r} is not `FOLDER/PICTURE LABEL`"))
            continue
        seen = lines.setdefault("/".join(parts[:-1]), {}).setdefault(plain_label(label), [number, 0])
        seen[1] += 1
    folders = []
    for folder, labels in lines.items():
        name = folder.rpartition("/")[2]
        if "" in labels:
            first, count = labels.pop("")
            problems.append(unlabelled(f"{shown_as} line {first}", f"clip {name!r}, in {count} rows,"))
        if len(labels) > 1:
            told = " and ".join(f"{label} (from line {first})" for label, (first, _) in labels.items())
            problems.append(Problem("conflict", f"{shown_as}: clip {name!r} has the labels {told}"))
        elif labels:
            [(label, (first, _))] = labels.items()
            folders.append(LabelledFolder(folder, label, f"{shown_as} line {first}"))
    return folders, problems
