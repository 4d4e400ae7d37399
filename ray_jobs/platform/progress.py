"""What a job prints while it runs and at its end.

In: counts of finished units; rows of a table. Out: a progress line with rate and time left; aligned plain text.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, TextIO

_LINE_EVERY_SECONDS = 10.0
_TERMINAL_EVERY_SECONDS = 0.1
_TENTHS = 10
_NUMBER = re.compile(r"[+\-\u2212]?\d[\d.,]*(e[+-]?\d+)?( ?%)?( ?[±→] ?.*| \[.*\]| [a-z/]+)?")  # A spread may follow.


_RUNNING: list[Progress] = []
"""The blocks that are entered now."""


def running() -> list[str]:
    """What is finished of the work under way, as in `extract: 100 of 480 clips`."""
    return [
        f"{progress.label}: {progress.done}{'' if progress.total is None else f' of {progress.total}'} {progress.unit}"
        for progress in _RUNNING
    ]


class Progress:
    """Counts finished units and prints `done/total`, rate, time left and failures.

    On a terminal one line is updated in place; elsewhere a new line is printed after every tenth of the work, at most
    one a second, and at least every ten seconds of progress. The last line is always printed.

    Example:
        with Progress("extract", total=len(clips)) as progress:
            for clip in clips:
                progress.advance(failed=not extract(clip))
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        *,
        unit: str = "clips",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is printed until the block is entered.

        Args:
            label: What is being done, one or two words.
            total: Number of units, or None if unknown.
            unit: What is counted, a plural noun.
            stream: Where to print; standard output by default.
            clock: Returns seconds.
        """
        self.label, self.total, self.unit = label, total, unit
        self.done, self.failed = 0, 0
        self.note = ""
        self._stream = stream or sys.stdout
        self._clock = clock
        self._start = self._began = self._printed = clock()
        self._tenth, self._width = 0, 0

    def __enter__(self) -> Progress:
        self._start = self._began = self._printed = self._clock()
        _RUNNING.append(self)
        if self._stream.isatty():
            self._print(end="")
        return self

    def begin(self) -> None:
        """Start the clock of the rate, once preparations are over."""
        self._began = self._clock()

    def advance(self, count: int = 1, *, failed: int = 0, note: str | None = None) -> None:
        """Count units as done.

        Args:
            count: Finished units, including failed ones; 0 to change only the note.
            failed: How many of them failed.
            note: Shown at the end of the line from now on, for instance the current loss.
        """
        self.done += count
        self.failed += int(failed)
        self.note = self.note if note is None else note
        now = self._clock()
        if self._stream.isatty():
            if now - self._printed >= _TERMINAL_EVERY_SECONDS:
                self._print(end="")
            return
        tenth = self.done * _TENTHS // self.total if self.total else 0
        waited = now - self._printed
        if waited >= _LINE_EVERY_SECONDS or (tenth > self._tenth and waited >= 1.0 and self.done != self.total):
            self._tenth = tenth
            self._print(end="\n")

    def line(self) -> str:
        """The line as it would be printed now."""
        rate = self.rate
        count = f"{self.done}/{self.total}" if self.total is not None else str(self.done)
        parts = [f"{count} {self.unit}"]
        if self.done:
            parts.append(f"{rate:.3g}/s" if rate < 100 else f"{rate:.0f}/s")
        if self.total is not None and 0 < self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        else:
            parts.append(duration(self._clock() - self._start))
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.note:
            parts.append(self.note)
        return f"{self.label}: " + ", ".join(parts)

    @property
    def rate(self) -> float:
        """Units per second since `begin`, or since the block's entry."""
        return self.done / max(self._clock() - self._began, 1e-9)

    def figures(self) -> dict[str, float]:
        """Units done, failed and per second; if the total is known, also units and seconds left."""
        unit = self.unit
        figures: dict[str, float] = {f"{unit}_done": self.done, f"{unit}_failed": self.failed}
        figures[f"{unit}_per_second"] = self.rate
        if self.total is not None:
            left = self.total - self.done
            figures |= {f"{unit}_left": left, "seconds_left": left / self.rate if self.done else math.nan}
        return figures

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _RUNNING.remove(self)
        self._print(end="\n")

    def _print(self, *, end: str) -> None:
        line = self.line()
        self._printed = self._clock()
        if self._stream.isatty():
            line, self._width = "\r" + line.ljust(self._width), len(line)
        self._stream.write(line + end)
        self._stream.flush()


def duration(seconds: float) -> str:
    """Seconds in words that fit a line: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole, minutes = round(seconds), round(seconds / 60)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size_text(count: int) -> str:
    """A number of bytes in a readable unit: `512 B`, `13.1 MB`."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def format_table(rows: Iterable[Sequence[Any]], headers: Sequence[str]) -> str:
    """An aligned plain-text table: text to the left, numbers to the right.

    Args:
        rows: Rows of cells; floats are shown with three significant digits, None as `-`, anything else as its text.
        headers: Column headers.

    Returns:
        The table's lines, without a final newline.

    Raises:
        ValueError: A row does not have one cell per header.
    """
    cells = [list(row) for row in rows]
    for row in cells:
        if len(row) != len(headers):
            raise ValueError(f"row={row!r}: expected {len(headers)} cells, one per column of {list(headers)}")
    texts = [[_cell(value) for value in row] for row in cells]
    numeric = [bool(texts) and all(_is_number(row[index]) for row in texts) for index in range(len(headers))]
    widths = [max(len(row[index]) for row in [list(headers), *texts]) for index in range(len(headers))]

    def aligned(row: Sequence[str]) -> str:
        padded = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([aligned(headers), "  ".join("-" * width for width in widths), *map(aligned, texts)])


def table(rows: Iterable[Sequence[Any]], headers: Sequence[str]) -> None:
    """Print `format_table`."""
    print(format_table(rows, headers), flush=True)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    return text == "-" or _NUMBER.fullmatch(text) is not None
