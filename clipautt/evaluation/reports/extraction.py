"""The report of an extraction: what was encoded, how fast, and every clip without features with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from clipautt.evaluation.reports.templates import render
from clipautt.files import write_text

PAGE, TABLE, FACES = "report.html", "failures.csv", "faces.csv"
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
    """Kind of failure, such as `no_face`."""
    reason: str
    """The reason, as a sentence."""


@dataclass(frozen=True)
class Tile:
    """A key number on the page."""

    name: str
    """What is counted."""
    big: str
    """The number."""
    lines: tuple[str, ...] = ()
    """Smaller lines below it."""


def write_extraction_report(
    folder: Path,
    *,
    clips: int,
    failures: Sequence[Failure],
    tiles: Sequence[Tile],
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str] = (),
    shares: Mapping[str, float] | None = None,
) -> Path:
    """Write `report.html`, `failures.csv` with every clip that has no features, and `faces.csv` if faces were found.

    Args:
        folder: an existing folder.
        clips: number of clips requested.
        failures: the clips without features.
        tiles: key numbers to show after the number of clips.
        facts: names and values of the settings that determine the features.
        notes: sentences to show below the headline.
        shares: clip id → share of its frames with the face, 0..1.

    Returns:
        Path of the page, which is self-contained.
    """
    columns = list(Failure.__dataclass_fields__)
    table = pd.DataFrame([asdict(failure) for failure in failures], columns=columns)
    write_text(folder / TABLE, table.to_csv(index=False))
    kinds = [
        f"{count} {status.replace('_', ' ')}" for status, count in Counter(f.status for f in failures).most_common()
    ]
    if shares:
        by_share = pd.Series(dict(shares), name="face_share").rename_axis("clip_id").sort_values(kind="stable")
        write_text(folder / FACES, by_share.round(4).reset_index().to_csv(index=False))
    good = clips - len(failures)
    page = render(
        "extraction.html.j2",
        escape=True,
        title="Extraction",
        headline=f"{good} of {clips} clips have features",
        sentence=f"{len(failures)} have none: {', '.join(kinds)}." if failures else "No clip failed.",
        tiles=[Tile("clips", f"{good} of {clips}", tuple(kinds)), *tiles],
        failures=failures[:_SHOWN_FAILURES],
        more=max(0, len(failures) - _SHOWN_FAILURES),
        table=TABLE,
        notes=[*notes, *([f"Each clip's share of frames with the face is in {FACES}."] if shares else [])],
        facts=facts,
    )
    path = folder / PAGE
    write_text(path, page)
    return path
