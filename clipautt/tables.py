"""Text tables as spreadsheets, pandas and other tools write them: encodings, separators, quotes, and columns.

In: a file in UTF-8 or UTF-16, with or without a byte-order mark, its cells separated by commas, semicolons or tabs.
Out: a `Sheet` of text cells, each row with its line in the file. What cannot be read is a `TableError` with file and
line.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_INDEX = re.compile(r"(unnamed: \d+(_level_\d+)?|__index_level_\d+__|level_\d+|index|)", re.IGNORECASE)
"""Names that pandas gives to the numbers of rows when it writes them as a column."""
_WHOLE = re.compile(r"[+-]?\d+[.,]0+")
_NO_LABEL = frozenset({"", "nan", "na", "n/a", "null"})
_CLOSE = 0.75
"""Similarity from which a column's name may be another's misspelt."""
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*")


class TableError(ValueError):
    """A table cannot be read; the message names file and line."""


@dataclass(frozen=True)
class Sheet:
    """The cells of a text table."""

    columns: tuple[str, ...]
    """Names in the first line, without blanks around them, in Unicode's composed form."""
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    """Line in the file, and the cells without blanks around them; empty ones beyond the header are dropped. Lines
    without any content are omitted."""
    delimiter: str
    """What separates cells: a comma, a semicolon or a tab."""


def nfc(text: str) -> str:
    """Text in the Unicode form in which names are compared; some file systems and programs use another one."""
    return unicodedata.normalize("NFC", text)


def read_text(path: Path) -> str:
    """A text file in UTF-8 or UTF-16, in Unicode's composed form.

    Raises:
        TableError: if it is in another encoding, or no text.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), _unmarked(data))
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding.startswith("utf-16"):
            raise TableError(f"{path}: this is UTF-16, or no text at all; save it as UTF-8") from error
        before = error.object[: error.start]
        raise TableError(
            f"{path} line {before.count(10) + 1}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file "
            "as UTF-8"
        ) from error
    if "\0" in text:
        raise TableError(f"{path}: this is no text; save it as UTF-8")
    return nfc(text)


def _unmarked(data: bytes) -> str:
    """The encoding of a file without a byte-order mark: in UTF-16 every other byte of plain text is zero."""
    start = data[:1000]
    if b"\0" not in start:
        return "utf-8"
    return "utf-16-le" if start[1::2].count(0) >= start[::2].count(0) else "utf-16-be"


def read_sheet(path: Path) -> Sheet:
    """The cells of a table with a header.

    Raises:
        TableError: if it is no text, or a quote is not closed.
    """
    text = read_text(path)
    (_, columns), *rows = [*iter_rows(text, path)] or [(1, ())]
    return Sheet(columns, tuple(row for row in rows if any(row[1])), separator(text))


def iter_rows(text: str, path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line in the file and cells of every row, the header first; empty cells beyond the header's are dropped.

    Raises:
        TableError: for a quote that is not closed. A line break inside a cell is refused too, for two stray quotes
            would swallow the rows between them.
    """
    line, width = 0, 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator(text), strict=True)
    try:
        for cells in reader:
            if reader.line_num != line + 1:
                raise csv.Error("a cell may not hold a line break")
            line += 1
            kept = _trimmed(cells, width)
            if line == 1 and kept == ("sep=",):  # tells spreadsheets what separates cells
                continue
            width = width or len(kept)
            yield line, kept
    except csv.Error as error:
        raise TableError(f"{path} line {line + 1}: a quote is not closed, or something follows it ({error})") from error


def _trimmed(cells: Sequence[str], width: int) -> tuple[str, ...]:
    """The cells without blanks around them, and without empty ones at the end beyond this width."""
    kept = [cell.strip() for cell in cells]
    while len(kept) > width and not kept[-1]:
        kept.pop()
    return tuple(kept)


def separator(text: str) -> str:
    """What separates cells: a tab, a semicolon or a comma, the first of these that the first line has."""
    outside = re.sub(r'"[^"]*"', "", re.split(r"[\r\n]", text, maxsplit=1)[0])
    return next((mark for mark in "\t;" if mark in outside), ",")


def no_label(text: str) -> bool:
    """Whether a cell stands for no label."""
    return text.strip().lower() in _NO_LABEL


def is_index(name: str) -> bool:
    """Whether a column holds nothing but the numbers of rows, as pandas writes them unless it is told not to."""
    return _INDEX.fullmatch(name) is not None


def without_decimals(cells: Collection[str]) -> bool:
    """Whether all these cells are whole numbers with a `.0`, as pandas writes whole numbers where some are missing."""
    return bool(cells) and all(_WHOLE.fullmatch(cell) for cell in cells)


def whole(cell: str) -> str:
    """`7.0` as `7`."""
    return re.split(r"[.,]", cell)[0]


def loosely(name: str) -> str:
    """A name without what spreadsheets change: zeros before and after a number, capitals, blanks."""
    text = name.strip().casefold()
    return str(int(float(text))) if re.fullmatch(r"\d+(\.0+)?", text) else text


def point(cell: str) -> str:
    """A number with a decimal comma, as many countries' spreadsheets write it, with a point; other text as it is."""
    return cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell


def column_problems(
    columns: Sequence[str], known: Sequence[str], *, also: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """What is wrong with the names of columns.

    Args:
        columns: the names in the table; those of row numbers are passed over.
        known: the names that are read.
        also: other words for them, in lower case → the name that is read.

    Returns:
        A sentence for each name that occurs twice or seems to mean a known one that the table lacks; and the names
        that are none of these and not read.
    """
    problems, unused = [], []
    for name in dict.fromkeys(columns):
        count = columns.count(name)
        if count > 1 and name in known:
            problems.append(f"column {name!r} occurs {count} times; keep one of them")
        if name in known or is_index(name):
            continue
        meant = _meant(name, known, also or {})
        if meant is None or (meant in columns and _plain(name) != _plain(meant)):
            unused.append(name)
        elif meant in columns:
            problems.append(f"columns {meant!r} and {name!r} mean the same; keep one of them")
        else:
            problems.append(f"{name!r} is no column that is read; did you mean {meant!r}?")
    return problems, unused


def _meant(name: str, known: Sequence[str], also: Mapping[str, str]) -> str | None:
    """The known column that a name seems to stand for."""
    same = [column for column in known if _plain(column) == _plain(name)]
    close = difflib.get_close_matches(_plain(name), known, n=1, cutoff=_CLOSE)
    return same[0] if same else also.get(_plain(name)) or (close[0] if close else None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]+", "_", name.strip().lower()).strip("_")


def doubtful_labels(counts: Mapping[str, int]) -> dict[str, str]:
    """Labels that are probably slips of the pen → the label that is probably meant.

    Two labels that differ in capitals only, and one that occurs once beside a similar one that occurs more often.

    Args:
        counts: label → in how many rows it stands.
    """
    found: dict[str, str] = {}
    ordered = sorted(counts, key=lambda label: (-counts[label], label))
    for place, label in enumerate(ordered):
        for other in ordered[:place]:
            if other in found:
                continue
            capitals = label.casefold() == other.casefold()
            if capitals or (counts[label] == 1 < counts[other] and _one_slip(label.casefold(), other.casefold())):
                found[label] = other
                break
    return found


def _one_slip(a: str, b: str) -> bool:
    """Whether two words of at least three letters differ by one letter more, less, other, or by two that are swapped.

    Words with digits are names of their own: `PA3` is no slip for `PA4`.
    """
    if min(len(a), len(b)) < 3 or abs(len(a) - len(b)) > 1 or any(map(str.isdigit, a + b)):
        return False
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[start:], b[start:]
    swapped = rest_a[:2] == rest_b[:2][::-1] and rest_a[2:] == rest_b[2:]
    return rest_a[1:] == rest_b[1:] or rest_a[1:] == rest_b or rest_a == rest_b[1:] or swapped
