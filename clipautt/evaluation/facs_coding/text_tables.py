"""Human coding in text tables: intervals, one column per AU, and one file per AU.

In: a file in UTF-8 or UTF-16 with commas, semicolons or tabs. Out: a `Piece` per clip that it names. What is wrong is a
ValueError with file and line.

    clip,au,onset,offset,intensity      intervals; seconds, or onset_frame and offset_frame (inclusive)
    frame,AU1,AU2,AU4                   a value per frame: 0, 1 or 9, or intensities 0 to 5 and 9 (BP4D: F001_T1.csv)
    1,0                                 frame and intensity, without a header (DISFA: SN001_au1.txt,
                                        BP4D: F001_T1_AU06.csv)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from clipautt.commands import setting
from clipautt.evaluation.facs_coding.coding import NOT_VISIBLE, Kind, NotVisible, Piece, SpanBook, Track, Unit
from clipautt.evaluation.facs_coding.notation import is_code, read_codes, read_intensity
from clipautt.tables import is_index, iter_rows, no_label, point, read_text

_OF_ONE_AU = re.compile(r"(.+?)[_ .-]*AU[_ -]?0*(\d{1,2})", re.IGNORECASE)
"""Name of a file that holds one AU: `SN001_au1`, `F001_T1_AU06`."""
_OF_A_TOOL = re.compile(r"AU\d\d_[rc]")
_FRAME = {"", "frame", "frame_number", "frames", "frame_id"}
_TIME = {"time", "seconds", "time_seconds", "timestamp", "time_s"}
_BASES = {
    "clip": "clip clip_id video video_name file filename file_name source",
    "au": "au aus action_unit action_units code unit facs",
    "onset": "onset start begin onset_time start_time begin_time from",
    "offset": "offset end stop offset_time end_time stop_time to",
    "intensity": "intensity level grade strength",
    "coder": "coder annotator rater",
}
_ALSO = {word: name for name, words in _BASES.items() for word in words.split()}
_UNITS = {"s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 0.001, "msec": 0.001, "milliseconds": 0.001}
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")
_Read = TypeVar("_Read")
Row = tuple[int, dict[str, str]]
"""Line in the file, and cells by column."""


class UnknownTableError(ValueError):
    """A table is of no kind that is read here."""


def read_text_coding(path: Path, *, coder: str | None = None) -> list[Piece]:
    """The coding in a text table.

    Args:
        path: the file.
        coder: whose rows are read, where a column `coder` names several people.

    Raises:
        UnknownTableError: if it is of none of the kinds above.
        ValueError: naming file and line, for a value that is not allowed.
    """
    rows = [*iter_rows(read_text(path), path)]
    filled = [(line, cells) for line, cells in rows if any(cells)]
    if not filled:
        raise ValueError(f"{path} is empty")
    header = filled[0][1]
    of_one = _OF_ONE_AU.fullmatch(path.stem)
    if of_one and len(header) == 2:
        first = not _is_number(header[1])
        return [_of_one_au(path, of_one[1], f"AU{int(of_one[2])}", filled[first:])]
    names = [_plain(name) for name in header]
    if any(_OF_A_TOOL.fullmatch(name) for name in header):
        raise UnknownTableError(
            f"{path} is a table by OpenFace, not coding by people; {setting('aus', str(path.parent))} of "
            "`clipautt adapt explain=true` compares with tools"
        )
    if _heads_a_matrix(names):
        return [_matrix(path, header, filled[1:], "seconds" if names[0] in _TIME else "frames")]
    columns = _columns(path, header)
    if columns is None:
        raise UnknownTableError(_no_known_kind(path, header))
    return _intervals(path, columns, _named(path, header, filled[1:]), coder)


def _heads_a_matrix(names: Sequence[str]) -> bool:
    """Whether a first row names a column per AU. BP4D's begins with 0 and has numbers, which ascend; a row of values
    does not."""
    if names[0] == "0":
        numbers = [int(name) for name in names if name.isdigit()]
        return len(names) > 2 and len(numbers) == len(names) and numbers == sorted(set(numbers))
    return names[0] in _FRAME | _TIME and any(is_code(name) for name in names[1:])


def _no_known_kind(path: Path, header: Sequence[str]) -> str:
    shown = ", ".join(header[:8])
    if any(name.lower().startswith("begin time") for name in header):
        return f"{path}: this is ELAN's text export, whose columns differ between versions; give the .eaf file itself"
    return (
        f"{path} has the columns {shown}; needed are au, onset and offset (intervals), or frame and a column per AU, "
        "or frame and intensity in a file whose name ends with the AU, such as SN001_au1.txt"
    )


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)|nan|", point(cell), re.IGNORECASE) is not None


def _plain(name: str) -> str:
    return re.sub(r"[\s_.()\[\]-]+", "_", name.strip().lower()).strip("_")


def _named(path: Path, header: Sequence[str], rows: Iterable[tuple[int, Sequence[str]]]) -> list[Row]:
    named = []
    for line, cells in rows:
        if len(cells) > len(header):
            raise ValueError(f"{path}, line {line}: the row has {len(cells)} cells, the header {len(header)}")
        padded = [*cells, *[""] * (len(header) - len(cells))]
        named.append((line, dict(zip(header, padded, strict=True))))
    return named


# --- values per frame


def _of_one_au(path: Path, name: str, code: str, rows: Sequence[tuple[int, Sequence[str]]]) -> Piece:
    spans = []
    for line, cells in rows:
        if len(cells) != 2:
            raise ValueError(f"{path}, line {line}: the row has {len(cells)} cells; frame and intensity are needed")
        frame = _frame(path, line, cells[0])
        spans.append((frame, frame + 1.0, _at(path, line, read_intensity, cells[1])))
    _check_ascending(path, [line for line, _ in rows], [start for start, *_ in spans])
    return Piece(path, name, "intensity", "frames", {code: Track.of(spans)}, one_au=True)


def _matrix(path: Path, header: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], unit: Unit) -> Piece:
    """Occurrences, or intensities where a value exceeds 1; `matching` makes all tables of a coding the same."""
    codes = {name: read_codes(name)[0].code for name in header[1:] if is_code(name)}
    if len(set(codes.values())) < len(codes):
        raise ValueError(f"{path}: two columns are of the same action unit; combine both sides into one column")
    combined = [name for name in codes if len(read_codes(name)) > 1]
    if combined:
        raise ValueError(f"{path}: column {combined[0]!r} is a combination; a column per action unit is needed")
    named = _named(path, header, rows)
    moment = _frame if unit == "frames" else _seconds
    starts = [moment(path, line, cells[header[0]]) for line, cells in named]
    _check_ascending(path, [line for line, _ in named], starts)
    step = 1.0 if unit == "frames" or len(starts) < 2 else float(np.median(np.diff(starts)))
    values = {
        code: [_at(path, line, read_intensity, cells[name]) for line, cells in named] for name, code in codes.items()
    }
    tracks = {
        code: Track.of((t, t + step, v) for t, v in zip(starts, own, strict=True)) for code, own in values.items()
    }
    hidden = [
        NotVisible(start, start + step, number)
        for number in NOT_VISIBLE
        for start, value in zip(starts, values.get(f"AU{number}", []), strict=False)
        if value > 0
    ]
    seen = {code: track for code, track in tracks.items() if int(code.removeprefix("AU")) not in NOT_VISIBLE}
    unused = [name for name in header[1:] if name not in codes and not is_index(name)]
    notes = (f"{path.name}: columns {', '.join(unused)} are no action units and not read",) if unused else ()
    graded = any(value > 1 for code in seen for value in values[code])
    kind: Kind = "intensity" if graded else "occurrence"
    return Piece(path, path.stem, kind, unit, seen, not_visible=tuple(hidden), notes=notes)


def _check_ascending(path: Path, lines: Sequence[int], starts: Sequence[float]) -> None:
    for line, before, now in zip(lines[1:], starts, starts[1:], strict=False):
        if now <= before:
            raise ValueError(f"{path}, line {line}: {now:g} comes after {before:g}; frames must ascend, each once")


def _frame(path: Path, line: int, cell: str) -> float:
    return _at(path, line, _whole_number, cell)


def _whole_number(cell: str) -> float:
    if not re.fullmatch(r"\d+([.,]0+)?", cell):
        raise ValueError(f"{cell!r} is no number of a frame")
    return float(point(cell))


# --- intervals


def _columns(path: Path, header: Sequence[str]) -> dict[str, tuple[str, float]] | None:
    """`au`, `onset`, `offset_frame` … → column and factor that makes it seconds; None if this is no table of
    intervals."""
    found: dict[str, tuple[str, float]] = {}
    for name in header:
        plain = _plain(name)
        base, _, unit = plain.rpartition("_")
        factor, key = 1.0, _ALSO.get(plain)
        if key is None and base in _ALSO and unit in _UNITS:
            key, factor = _ALSO[base], _UNITS[unit]
        if key is None and base in _ALSO and unit in ("frame", "frames"):
            key = f"{_ALSO[base]}_frame"
        if key is None:
            continue
        if key in found:
            raise ValueError(f"{path}: columns {found[key][0]!r} and {name!r} mean the same; keep one of them")
        found[key] = name, factor
    timed = any({f"onset{unit}", f"offset{unit}"} <= set(found) for unit in ("", "_frame"))
    return found if "au" in found and timed else None


def _intervals(
    path: Path, columns: Mapping[str, tuple[str, float]], rows: Sequence[Row], coder: str | None
) -> list[Piece]:
    chosen = _of_coder(path, columns, rows, coder)
    seconds = {"onset", "offset"} <= set(columns)
    books: dict[str, SpanBook] = {} if "clip" in columns else {path.stem: SpanBook("seconds" if seconds else "frames")}
    for line, cells in chosen:
        name = cells[columns["clip"][0]] if "clip" in columns else path.stem
        if not name:
            raise ValueError(f"{path}, line {line}: no clip is named")
        book = books.setdefault(name, SpanBook("seconds" if seconds else "frames"))
        _add_row(path, line, {key: (cells[column], factor) for key, (column, factor) in columns.items()}, book)
    return [book.piece(path, name, comprehensive=True) for name, book in books.items()]


def _of_coder(
    path: Path, columns: Mapping[str, tuple[str, float]], rows: Sequence[Row], coder: str | None
) -> Sequence[Row]:
    if "coder" not in columns:
        return rows
    kept = of_coder(path, [cells[columns["coder"][0]] for _, cells in rows], coder)
    return [row for row, keep in zip(rows, kept, strict=True) if keep]


def of_coder(path: Path, names: Sequence[str], coder: str | None) -> list[bool]:
    """Which entries of a file are the chosen coder's.

    Args:
        path: the file, for messages.
        names: coder of each entry; empty where none is named.
        coder: who is chosen; None where there is one only.

    Raises:
        ValueError: if there are several and none is chosen, or the chosen one is not among them.
    """
    there = sorted(set(names) - {""})
    if coder is None and len(there) > 1:
        raise ValueError(
            f"{path} holds the coding of {len(there)} people; choose one, as in {setting('facs.coder', there[0])} "
            f"(there are: {', '.join(there)})"
        )
    if coder is not None and there and coder not in there:
        raise ValueError(f"{path} holds no coding by {coder!r}; there are: {', '.join(there)}")
    return [coder is None or not there or name == coder for name in names]


def _add_row(path: Path, line: int, cells: Mapping[str, tuple[str, float]], book: SpanBook) -> None:
    """Add an interval; a row without AU and times says that a clip was coded and nothing occurred."""
    suffix = "" if book.unit == "seconds" else "_frame"
    onset, offset, unit = cells[f"onset{suffix}"], cells[f"offset{suffix}"], cells["au"][0]
    if no_label(unit) and no_label(onset[0]) and no_label(offset[0]):
        return
    codes = _at(path, line, read_codes, unit)
    given = _at(path, line, read_intensity, cells["intensity"][0]) if "intensity" in cells else math.nan
    if book.unit == "seconds":
        start, end = (_seconds(path, line, cell, factor) for cell, factor in (onset, offset))
    else:
        start, end = _frame(path, line, onset[0]), _frame(path, line, offset[0]) + 1
    if end <= start:
        raise ValueError(f"{path}, line {line}: the interval ends at {offset[0]}, and begins at {onset[0]}")
    for one in codes:
        if not math.isnan(given) and not math.isnan(one.intensity) and given != one.intensity:
            raise ValueError(f"{path}, line {line}: {unit!r} and the column of intensities contradict each other")
        book.add(one.code, start, end, one.intensity if math.isnan(given) else given)


def _seconds(path: Path, line: int, cell: str, factor: float = 1.0) -> float:
    return _at(path, line, _read_seconds, cell) * factor


def _read_seconds(cell: str) -> float:
    clock = _CLOCK.fullmatch(cell.replace(",", "."))
    if clock:
        return 3600 * float(clock[1] or 0) + 60 * float(clock[2]) + float(clock[3])
    if not re.fullmatch(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", point(cell), re.IGNORECASE):
        raise ValueError(f"{cell!r} is no time; allowed: seconds such as 1.25, or 0:00:01.250")
    seconds = float(point(cell))
    if math.isinf(seconds):
        raise ValueError(f"{cell!r} is no time, it is infinite")
    return seconds


def _at(path: Path, line: int, read: Callable[[str], _Read], cell: str) -> _Read:
    try:
        return read(cell)
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {error}") from error
