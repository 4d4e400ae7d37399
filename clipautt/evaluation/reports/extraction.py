"""The report of an extraction: what was encoded, how fast, and every clip without features with its reason.

What this module does not know: how clips are read, and where features are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from clipautt.evaluation.reports.templates import render
from clipautt.files import write_text

PAGE, TABLE = "report.html", "failures.csv"
_SHOWN_FAILURES = 1000


@dataclass(frozen=True)
class Failure:
    """A clip without features."""

    clip_id: str
    """As in the manifest."""
    subject_id: str
    """As in the manifest."""
    source: str
    """File or folder."""
    status: str
    """In a word."""
    reason: str
    """In a sentence."""


@dataclass(frozen=True)
class Tile:
    """A figure of the page."""

    name: str
    """What is counted."""
    big: str
    """The figure."""
    lines: tuple[str, ...] = ()
    """What there is to say of it."""


def write_extraction_report(
    folder: Path, *, clips: int, failures: Sequence[Failure], tiles: Sequence[Tile], facts: Sequence[tuple[str, str]]
) -> Path:
    """Write `report.html`, and `failures.csv` with every clip that has no features.

    Args:
        folder: it exists.
        clips: how many were asked for.
        failures: those without features.
        tiles: further figures, after the one of the clips.
        facts: names and values of what makes the features.

    Returns:
        The page; it needs nothing else.
    """
    columns = list(Failure.__dataclass_fields__)
    pd.DataFrame([asdict(failure) for failure in failures], columns=columns).to_csv(folder / TABLE, index=False)
    kinds = [
        f"{count} {status.replace('_', ' ')}" for status, count in Counter(f.status for f in failures).most_common()
    ]
    good = clips - len(failures)
    page = render(
        "extraction.html.j2",
        escape=True,
        title="Extraction",
        headline=f"{good} of {clips} clips have features",
        sentence=f"{len(failures)} have none: {', '.join(kinds)}." if failures else "None is left out.",
        tiles=[Tile("clips", f"{good} of {clips}", tuple(kinds)), *tiles],
        failures=failures[:_SHOWN_FAILURES],
        more=max(0, len(failures) - _SHOWN_FAILURES),
        table=TABLE,
        facts=facts,
    )
    path = folder / PAGE
    write_text(path, page)
    return path
