"""Text of figures: what fits into a number of pixels, in lines.

In: a text, a width in pixels, and a size in points at 100 dots per inch. Out: lines that fit.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from matplotlib.font_manager import findfont
from PIL import ImageFont

from clipautt.evaluation.reports.fonts import shorten

_POINT = 1.02 * 100 / 72
"""Pixels of a point, and a little more, as letters are set on whole pixels."""


def font_file() -> str:
    """Path of the font that texts are written in."""
    return str(findfont("DejaVu Sans"))


def printable(text: str) -> str:
    """A text in one line: line breaks and characters without a look become blanks."""
    return "".join(" " if unicodedata.category(one)[0] in "CZ" else one for one in text)


def wrapped(text: str, width: float, size: float, *, most: int | None = None) -> list[str]:
    """The text in lines of at most `width` pixels; words wider than that are broken.

    Args:
        text: what is written.
        width: pixels.
        size: points.
        most: number of lines; what does not fit is replaced by `…`.
    """
    lines: list[str] = []
    for word in printable(text).split():
        first, *others = _broken(word, width, size)
        if lines and length(f"{lines[-1]} {first}", size) <= width:
            lines[-1] = f"{lines[-1]} {first}"
        else:
            lines.append(first)
        lines += others
    if most is None or len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and length(f"{last}…", size) > width:
        last = last[:-1]
    return [*lines[: most - 1], f"{last}…"]


def _broken(word: str, width: float, size: float) -> list[str]:
    parts = [""]
    for letter in word:
        if parts[-1] and length(parts[-1] + letter, size) > width:
            parts.append("")
        parts[-1] += letter
    return parts


def fitting(text: str, width: float, size: float) -> str:
    """The text in one line, its middle omitted where it is wider than `width` pixels."""
    text = printable(text)
    if length(text, size) <= width:
        return text
    return next(
        (short for limit in range(len(text), 1, -1) if length(short := shorten(text, limit), size) <= width), "…"
    )


def length(text: str, size: float) -> float:
    """Width of a text in pixels."""
    return size * _POINT * sum(_advance(letter) for letter in text)


@lru_cache(maxsize=4096)
def _advance(letter: str) -> float:
    """Width of a letter in ems; those of East Asia are square."""
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    if unicodedata.combining(letter):
        return 0.0
    return float(_font().getlength(letter)) / 100


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_file(), 100)
