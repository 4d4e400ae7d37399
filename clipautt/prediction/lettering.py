"""Text of figures: what fits into a number of pixels, in lines.

In: a text, a width in pixels, and a size in points at 100 dots per inch. Out: lines that fit.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from matplotlib.font_manager import findfont, fontManager
from PIL import ImageFont

_WIDE = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "IPAGothic", "Arial Unicode MS")
_POINT = 1.02 * 100 / 72
"""Pixels of a point, and a little more, as letters are set on whole pixels."""


def _families() -> list[str]:
    there = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _WIDE if name in there)]


FAMILIES = _families()
"""Fonts in the order in which they are asked for a letter; those of East Asia where they are installed."""


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
    lines = [""]
    for word in printable(text).split(" "):
        if lines[-1] and length(f"{lines[-1]} {word}", size) > width:
            lines.append("")
        for part in _broken(word, width, size):
            lines[-1:] = [f"{lines[-1]} {part}".strip()] if _goes(lines[-1], part, width, size) else [lines[-1], part]
    if most is not None and len(lines) > most:
        return [*lines[: most - 1], fitting(f"{lines[most - 1]} …", width, size, tail=True)]
    return lines


def _goes(line: str, part: str, width: float, size: float) -> bool:
    return not line or length(f"{line} {part}", size) <= width


def _broken(word: str, width: float, size: float) -> list[str]:
    parts = [""]
    for letter in word:
        if parts[-1] and length(parts[-1] + letter, size) > width:
            parts.append("")
        parts[-1] += letter
    return parts


def fitting(text: str, width: float, size: float, *, tail: bool = False) -> str:
    """The text, its middle (with `tail`: what is before its last two letters) omitted where it is too wide."""
    text = printable(text)
    if length(text, size) <= width:
        return text
    kept = len(text) - 1
    while kept > 1:
        head = kept - 1 if tail else kept * 2 // 3
        short = f"{text[:head].rstrip()}…{'' if tail else text[len(text) - (kept - head) :]}"
        if length(short, size) <= width:
            return short
        kept -= 1
    return "…"


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
