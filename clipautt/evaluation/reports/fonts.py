"""Text of figures in any script, with names as they are given, and shortened.

In: a figure. Out: the same figure, whose text is drawn letter by letter.
"""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

_WIDE = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "IPAGothic", "Arial Unicode MS")


def _families() -> list[str]:
    there = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _WIDE if name in there)]


FAMILIES = _families()
"""Fonts in the order in which they are asked for a letter; those of East Asia where they are installed."""


def shorten(text: str, limit: int) -> str:
    """A text of at most `limit` characters, its middle omitted where it is longer."""
    if len(text) <= limit:
        return text
    head = (limit - 1) * 2 // 3
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[-(limit - 1 - head) :]}"


def plain_text(figure: Figure) -> None:
    """Draw all text of a figure as it is given: matplotlib takes text between dollar signs for a formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_fontfamily(FAMILIES)
