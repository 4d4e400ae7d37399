"""Figures inside a page: a page needs no other file.

In: a PNG file. Out: a `Picture`, whose data URI a template shows.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

_SHOWN = 0.74
"""CSS pixels per pixel of a figure: sharp on dense displays, with letters as large as those of the text."""


@dataclass(frozen=True)
class Picture:
    """A figure inside the page."""

    file: str
    """Its name in the folder of figures."""
    data: str
    """PNG as a data URI."""
    width: int
    """Width on the page, CSS pixels."""
    alt: str
    """Text alternative."""
    name: str = ""
    """Title of its cohort."""
    caption: str = ""
    """Text below it."""


def inline(path: Path, alt: str, *, name: str = "", caption: str = "") -> Picture:
    """A figure as a part of a page.

    Args:
        path: the PNG file.
        alt: text alternative.
        name: title of its cohort.
        caption: text below it.
    """
    content = path.read_bytes()
    pixels = int.from_bytes(content[16:20], "big")  # the width comes first in a PNG's header
    data = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return Picture(path.name, data, round(pixels * _SHOWN), alt, name, caption)
