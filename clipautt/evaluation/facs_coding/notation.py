"""The written forms of FACS codes: `AU12`, `12C`, `L12`, `R14B`, `AU 4 L`, `AU1+2+4`; and of intensities.

In: text of a cell, a tier or a column's name. Out: `Code` records; what is not understood is a ValueError that says
what is.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from clipautt.tables import no_label, point

LETTERS = "ABCDE"
"""Intensities from trace to maximum, 1 to 5 (FACS manual, 2002)."""
MAX_INTENSITY = 5.0
NOT_CODABLE = 9.0
"""What BP4D writes where an AU could not be coded; no intensity is that high."""
_SIDES = {"L": "left", "R": "right", "U": "one side", "A": "asymmetric", "T": "top", "B": "bottom"}
_PART = re.compile(
    r"(?:AU|FACS)?[\s_-]*([LRUATB])?[\s_-]*(?:AU)?[\s_-]*0*(\d{1,2})(?:\.0+)?[\s_-]*([A-E])?[\s_-]*(L|R|LEFT|RIGHT)?",
    re.IGNORECASE,
)
_UNDERSTOOD = "AU12, 12, 12C, L12, R14B, 'AU 4 L' and combinations such as AU1+2 are understood"


@dataclass(frozen=True)
class Code:
    """One coded unit."""

    code: str
    """`AU` and the FACS number without zeros in front, such as `AU4`."""
    intensity: float = math.nan
    """1 (A, trace) to 5 (E, maximum); NaN where none is written."""
    side: str = ""
    """Side of the face or lip; empty for both."""

    @property
    def number(self) -> int:
        """The FACS number."""
        return int(self.code.removeprefix("AU"))


def read_codes(text: str) -> tuple[Code, ...]:
    """The units that a notation names; a combination names several.

    Raises:
        ValueError: if it is no notation of AUs.
    """
    return tuple(_read_code(part, text) for part in text.split("+"))


def is_code(text: str) -> bool:
    """Whether `read_codes` understands a text."""
    try:
        return bool(read_codes(text))
    except ValueError:
        return False


def _read_code(part: str, text: str) -> Code:
    found = _PART.fullmatch(part.strip())
    if found is None or not int(found[2]):
        raise ValueError(f"{text!r} is no action unit; {_UNDERSTOOD}")
    side = _SIDES.get((found[1] or found[4] or "").upper()[:1], "")
    intensity = float(LETTERS.index(found[3].upper()) + 1) if found[3] else math.nan
    return Code(f"AU{int(found[2])}", intensity, side)


@lru_cache(maxsize=1024)  # a data set has millions of cells, and few that differ
def read_intensity(text: str) -> float:
    """An intensity as A to E or 0 to 5; NaN for an empty cell, for `NaN` and for 9, which mean that it is not known.

    Raises:
        ValueError: for anything else.
    """
    cell = point(text.strip())
    if no_label(cell):
        return math.nan
    if len(cell) == 1 and cell.upper() in LETTERS:
        return float(LETTERS.index(cell.upper()) + 1)
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if value == NOT_CODABLE:
        return math.nan
    if not 0 <= value <= MAX_INTENSITY:
        raise ValueError(f"{text!r} is no intensity; allowed: A to E, 0 to 5, and 9 or an empty cell for not codable")
    return value
