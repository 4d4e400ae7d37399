"""Reads a table of action units: which rows count, which face is the subject's, and what is damaged.

In: the file of one video, by any tool that `formats` knows. Out: an `AuTrack` in seconds of the clip.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from clipautt.evaluation.au_tables.faces import Which, choose_face
from clipautt.evaluation.au_tables.formats import PY_FEAT, Format, find_format
from clipautt.tables import iter_rows, point, read_text, separator

_NOT_FINITE = r"[+-]?(?:nan|inf)(?:\(\w*\))?"
_NUMBER = re.compile(rf"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|{_NOT_FINITE}", re.IGNORECASE)
_BEYOND = 0.01
"""How far estimates may exceed their range, as a share of it: regressions overshoot."""


@dataclass(frozen=True, eq=False, repr=False)
class AuTrack:
    """One face over the usable frames of a video, as another tool saw it."""

    path: Path
    """File it was read from."""
    tool: str
    """Name of the tool, see `formats.TOOLS`."""
    intensities: pd.DataFrame
    """`time_seconds` of the clip, ascending, and a column per code such as `AU4`, in the tool's own unit; a row per
    usable frame."""
    presences: pd.DataFrame
    """The same rows: `time_seconds` and a column per AU code, 0 or 1."""
    face: str
    """The tool's name of the face; empty where the table holds one."""
    num_rows: int
    """Rows of this face in the file."""
    num_dropped: int
    """Of these, rows that were dropped: no face, low confidence, or a value that is not finite."""
    num_other_faces: int
    """Rows of other faces, which are omitted."""
    notes: tuple[str, ...] = ()
    """What else was left out or decided, a sentence each."""

    def __repr__(self) -> str:
        return f"AuTrack({self.path.name!r}, {self.tool}, {len(self.intensities)} of {self.num_rows} rows)"

    def in_windows(self, start_seconds: npt.ArrayLike, end_seconds: npt.ArrayLike) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Mean intensity and mean presence of every window.

        Args:
            start_seconds: of each window, inclusive, [V].
            end_seconds: of each window, exclusive, [V].

        Returns:
            Intensities (in the tool's unit) and presences (0..1), V rows each and a column per AU code; NaN in a window
            without a usable row.
        """
        return window_means(self.intensities, start_seconds, end_seconds), window_means(
            self.presences, start_seconds, end_seconds
        )


def window_means(frames: pd.DataFrame, start_seconds: npt.ArrayLike, end_seconds: npt.ArrayLike) -> pd.DataFrame:
    """Mean of each column over the rows of each window.

    Args:
        frames: `time_seconds`, ascending, and columns of finite numbers.
        start_seconds: of each window, inclusive, [V].
        end_seconds: of each window, exclusive, [V].

    Returns:
        V rows, the columns of `frames` without `time_seconds`; NaN in a window without rows.
    """
    values = frames.drop(columns="time_seconds")
    times = frames["time_seconds"].to_numpy(float)
    first, last = np.searchsorted(times, start_seconds), np.searchsorted(times, end_seconds)
    sums = np.concatenate([np.zeros((1, values.shape[1])), values.to_numpy(float).cumsum(axis=0)])
    counts = np.where(last > first, last - first, np.nan)
    return pd.DataFrame((sums[last] - sums[first]) / counts[:, None], columns=values.columns)


@dataclass(frozen=True, eq=False)
class AuTable:
    """The rows of a file, of all faces, before any is chosen or dropped."""

    path: Path
    """The file."""
    format: Format
    """What its columns mean."""
    rows: pd.DataFrame
    """The columns that are needed, as numbers; `line` in the file, `time_seconds` of the video, and `face` where the
    table tells faces apart."""
    notes: tuple[str, ...]
    """What was left out, a sentence each."""

    @property
    def frames(self) -> pd.DataFrame:
        """One row per frame, in order: faces of one frame share it."""
        return self.rows.drop_duplicates("time_seconds").sort_values("time_seconds")

    def track(self, *, offset_seconds: float = 0.0, offset_frames: int = 0, which: Which = "largest") -> AuTrack:
        """The rows of one face that count.

        Args:
            offset_seconds: where the clip begins in the video that was read; subtracted from the times.
            offset_frames: the same as a number of frames, for clips that are cut by frames.
            which: whose face, as `faces.which` says.

        Raises:
            ValueError: naming file, column and line, for values out of range, or if the clip's first frame is missing.
        """
        layout, path = self.format, self.path
        face, others, notes = choose_face(self.rows, layout, which)
        values = face[[*layout.intensities, *layout.presences]]
        usable = values.notna().all(axis=1)
        for name, least in layout.least.items():
            usable &= face[name] >= least
        kept = face[usable]
        _check_ranges(path, kept, layout)
        times = kept["time_seconds"] - self._time_of_frame(offset_frames) - offset_seconds
        intensities = kept[list(layout.intensities)].rename(columns=dict(layout.intensities))
        presences = kept[list(layout.presences)].rename(columns=dict(layout.presences))
        if layout.present_from is not None:
            presences = (intensities >= layout.present_from).astype(float)
        return AuTrack(
            path=path,
            tool=layout.tool,
            intensities=_timed(intensities, times),
            presences=_timed(presences, times),
            face=str(face["face"].iloc[0]) if others else "",
            num_rows=len(face),
            num_dropped=int((~usable).sum()),
            num_other_faces=others,
            notes=(*self.notes, *notes),
        )

    def _time_of_frame(self, frame: int) -> float:
        """Time of a frame counted from 0."""
        if frame == 0:
            return 0.0
        name, number = self.format.frame, frame + self.format.first_frame
        times = self.rows.loc[self.rows[name] == number, "time_seconds"] if name else pd.Series(dtype=float)
        if times.empty:
            raise ValueError(
                f"{self.path}: no row has frame {number}, where the clip begins (offset_frames={frame}); run "
                f"{self.format.tool} on the whole video, or name the file after clip_id if it covers the clip alone"
            )
        return float(times.iloc[0])


def _timed(values: pd.DataFrame, times: pd.Series) -> pd.DataFrame:
    timed = values.astype(float).reset_index(drop=True)
    timed.insert(0, "time_seconds", times.to_numpy(float))
    return timed


def read_au_table(path: str | Path, *, frames_per_second: float | None = None) -> AuTable:
    """Read the file that a tool wrote for one video.

    A last line that was cut off costs that line, and a note says so.

    Args:
        path: the file; its tool is found by its columns.
        frames_per_second: of the video, for tools that write frame numbers only (py-feat).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file, column and line, if it is of no known tool, is empty, holds something that is not a
            number, or if times decrease.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no table of action units at {path}")
    text = read_text(path)
    skipped = _lines_before_header(text)
    body = "".join(islice(text.splitlines(keepends=True), skipped, None)) if skipped else text
    rows = iter_rows(body, path)
    _, columns = next(rows, (1, ()))
    if not any(columns):
        raise ValueError(f"{path} is empty; write it anew")
    layout = find_format(path, columns)
    cells, lines, notes = _cells(path, rows, columns, layout, decimal_comma=separator(body) == ";")
    if len(lines) and not body.endswith(("\n", "\r")) and not _is_whole(cells, layout):
        cells, notes = {name: column[:-1] for name, column in cells.items()}, [_cut_off(path, int(lines[-1] + skipped))]
        lines = lines[:-1]
    lines = lines + skipped
    if not len(lines):
        raise ValueError(f"{path} has a header and no rows; run {layout.tool} again")
    numbers = {name: _numbers(path, cells[name], lines, layout) for name in layout.numbers}
    table = pd.DataFrame(numbers).assign(line=lines)
    for name in (layout.face, layout.clock):
        if name:
            table[name] = cells[name]
    if layout.sides is not None:
        for name in layout.sides:
            table[name] = pd.to_numeric(cells[name], errors="coerce")
    table["time_seconds"] = _times(path, table, layout, frames_per_second)
    if layout.tool == PY_FEAT:  # faces of one frame need not follow each other
        table = table.sort_values("time_seconds", kind="stable").reset_index(drop=True)
    _check_times(path, table, layout)
    return AuTable(path, layout, table, tuple(notes))


def _lines_before_header(text: str) -> int:
    """iMotions writes what it knows of a recording before the header, in lines that begin with #."""
    count = 0
    for line in text.splitlines():
        if not line.lstrip('"').startswith("#"):
            break
        count += 1
    return count


def _cells(
    path: Path,
    rows: Iterable[tuple[int, tuple[str, ...]]],
    columns: Sequence[str],
    layout: Format,
    *,
    decimal_comma: bool,
) -> tuple[dict[str, pd.Series], npt.NDArray[np.int64], list[str]]:
    """The needed columns as text, the line of every row, and a note if the last line was cut off."""
    texts = {layout.face, layout.clock} - {""}
    wanted = [*layout.numbers, *texts, *(layout.sides or ())]
    places = {name: len(columns) - 1 - columns[::-1].index(name) for name in dict.fromkeys(wanted)}
    sources = [place for place, name in enumerate(columns) if layout.source and name == layout.source]
    kept: list[tuple[str, ...]] = []
    lines: list[int] = []
    damaged: tuple[int, str] | None = None
    for line, cells in rows:
        if not any(cells):
            continue
        if damaged:
            raise ValueError(f"{path}, line {damaged[0]}: {damaged[1]}")
        if len(cells) < len(columns):
            damaged = line, f"the row has {len(cells)} cells, the header {len(columns)}"
            continue
        if len(cells) > len(columns):
            raise ValueError(f"{path}, line {line}: the row has {len(cells)} cells, the header {len(columns)}")
        if sources and not any("aff" in cells[place].lower() for place in sources):
            continue  # another sensor's row
        kept.append(tuple(cells[place] for place in places.values()))
        lines.append(line)
    notes = [_cut_off(path, damaged[0])] if damaged else []
    table = pd.DataFrame(kept, columns=list(places), dtype=object)
    if decimal_comma:
        table = table.map(point)
    return {str(name): table[name] for name in table}, np.array(lines, np.int64), notes


def _cut_off(path: Path, line: int) -> str:
    return f"{path.name}: line {line}, the last, was cut off and is left out"


def _is_whole(cells: Mapping[str, pd.Series], layout: Format) -> bool:
    """Whether the last row holds numbers, so that a file that does not end with a line's end is complete."""
    last = [cells[name].iloc[-1] for name in layout.numbers]
    return all(_NUMBER.fullmatch(cell) or (layout.blanks and cell == "") for cell in last)


def _numbers(path: Path, column: pd.Series, lines: npt.NDArray[np.int64], layout: Format) -> pd.Series:
    """Cells as numbers; spellings of NaN and infinity become NaN, but are errors in times and frame numbers."""
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    numbers[np.isinf(numbers)] = np.nan
    wrong = numbers.isna()
    if column.name != (layout.time or layout.frame):
        wrong &= ~column.str.fullmatch(_NOT_FINITE, case=False)
        if layout.blanks:
            wrong &= column != ""
    if wrong.any():
        row = _first(wrong)
        cell = column.iloc[row]
        raise ValueError(f"{path}, line {lines[row]}: {column.name} is {cell!r}; a number is needed")
    return numbers


def _times(path: Path, table: pd.DataFrame, layout: Format, frames_per_second: float | None) -> pd.Series:
    if layout.time:
        times = table[layout.time] / layout.units_per_second
        first = bool(layout.frame) and table[layout.frame].iloc[0] == layout.first_frame
        return times - times.iloc[0] if first else times  # a file's clock need not begin at 0
    if frames_per_second is None:
        raise ValueError(
            f"{path}: {layout.tool} writes frame numbers and no exact times, and the video is not there to tell its "
            "frame rate"
        )
    return (table[layout.frame] - layout.first_frame) / frames_per_second


def _check_times(path: Path, table: pd.DataFrame, layout: Format) -> None:
    """Refuse times that decrease or are all equal; neighbours may be equal, as tools round to milliseconds.

    A table of several faces may list one after the other.
    """
    faces = [part for _, part in table.groupby(layout.face)] if layout.face else [table]
    for face in faces:
        times = face["time_seconds"].to_numpy(float)
        back = np.diff(times, prepend=times[0]) < 0
        if back.any():
            row = _first(back)
            raise ValueError(
                f"{path}, line {face['line'].iloc[row]}: time {times[row]:g} s comes after {times[row - 1]:g} s; times "
                "must ascend: a file may hold a single video only"
            )
    times = table["time_seconds"].to_numpy(float)
    if len(times) > 1 and times.min() == times.max() and len(table) > len(faces):
        raise ValueError(
            f"{path}: the time is {times[0]:g} s in all {len(times)} rows, so frames cannot be placed in time; convert "
            f"the video to a constant frame rate and run {layout.tool} again"
        )


def _check_ranges(path: Path, table: pd.DataFrame, layout: Format) -> None:
    slack = _BEYOND * layout.largest if layout.blanks else 0.0
    for name in (*layout.intensities, *layout.presences):
        values = table[name]
        is_intensity = name in layout.intensities
        wrong = ~(values.between(-slack, layout.largest + slack) if is_intensity else values.isin([0, 1]))
        if wrong.any():
            row = _first(wrong)
            allowed = f"0 to {layout.largest:g}" if is_intensity else "0 or 1"
            line = table["line"].iloc[row]
            raise ValueError(f"{path}, line {line}: {name} is {values.iloc[row]:g}; allowed is {allowed}")


def _first(wrong: npt.ArrayLike) -> int:
    """Position of the first true value."""
    return int(np.flatnonzero(wrong)[0])
