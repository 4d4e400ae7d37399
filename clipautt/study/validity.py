"""Which clips of a study count, and what speaks against those that do: codes, counts and their meaning.

In: a `ClipTable`. Out: for every clip a reason why it is excluded, and tables that count reasons and warnings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from clipautt.prediction.cautions import CODES
from clipautt.study.clip_table import ClipTable

STATUSES = {
    "no_prediction": "In no window do enough frames show the face, or the clip is shorter than a window",
    "no_face": "The face detector found no face",
    "missing": "The video was not there",
    "unreadable": "The video could not be decoded",
    "not_finite": "The backbone gave numbers that are not finite",
    "lost": "The clip was lost while it was processed",
}
"""Status of a clip without a prediction → what it means."""
FINDING = ("finding", "finding_code", "finding_about")
"""Columns of `validity_table` that say what was found."""
COUNTED = ("clips", "of_clips")
"""Its columns of counts."""
COUNTS = ("clips", "clips_usable", "clips_excluded", "clips_warned", "clips_personalized")
"""Columns of `clip_counts` that it always has; the names of the others begin with those of `MANY_COUNTS`."""
MANY_COUNTS = ("excluded_", "warned_")
NO_SUBJECT, NO_CONDITION, WARNING = "no_subject", "no_condition", "warning_"
_OTHER_REASONS = {
    NO_SUBJECT: "Nothing says who the person in the clip is",
    NO_CONDITION: "Nothing says to which condition the clip belongs",
}


def about_reason(code: str) -> str:
    """What a reason of exclusion means."""
    if code.startswith(WARNING):
        return f"Excluded on request: {about_warning(code.removeprefix(WARNING))}"
    return {**STATUSES, **_OTHER_REASONS}.get(code, f"The status of the clip is {code}")


def about_warning(code: str) -> str:
    """What the code of a warning means."""
    return {str(known): about for known, about in CODES.items()}.get(code, "A code that this version does not know")


def warning_flags(table: ClipTable) -> pd.DataFrame:
    """Which clip carries which warning: a row per clip, a column per code, the known ones first."""
    given = table.rows["warnings"].str.split(";").map(lambda codes: {code.strip() for code in codes} - {""})
    others = sorted({code for codes in given for code in codes} - set(CODES))
    return pd.DataFrame({code: given.map(lambda codes, c=code: c in codes) for code in [*CODES, *others]}).astype(bool)


def exclusions(table: ClipTable, *, by: Sequence[str], exclude_warnings: Iterable[str]) -> pd.Series[str]:
    """For every clip the first reason why it does not count; empty for those that do.

    Args:
        table: the clips.
        by: columns of the conditions.
        exclude_warnings: codes whose clips are left out.

    Raises:
        ValueError: for a code that does not exist.
    """
    rows, flags = table.rows, warning_flags(table)
    unknown = [code for code in exclude_warnings if code not in flags]
    if unknown:
        raise ValueError(
            f"exclude_warnings={unknown[0]!r}: no such warning; allowed: {', '.join(map(str, flags.columns))}"
        )
    empty = (rows[list(by)] == "").any(axis=1) if by else pd.Series(False, index=rows.index)
    reasons = rows["status"].where(rows["status"] != "ok", "")
    checks = {NO_SUBJECT: rows["subject"] == "", NO_CONDITION: empty}
    checks |= {f"{WARNING}{code}": flags[code] for code in exclude_warnings}
    for reason, here in checks.items():
        reasons = reasons.mask((reasons == "") & here, reason)
    return reasons


def reasons_of(excluded: pd.Series[str], exclude_warnings: Iterable[str]) -> list[str]:
    """Every reason that has a column in the table of subjects: known ones also where they do not occur."""
    known = [*STATUSES, *(f"{WARNING}{code}" for code in exclude_warnings)]
    others = sorted(set(excluded) - {"", NO_SUBJECT, NO_CONDITION, *known})
    return [*known, *others]


def clip_counts(table: ClipTable, excluded: pd.Series[str], exclude_warnings: Iterable[str]) -> pd.DataFrame:
    """What is counted of every clip, a column per count and a row per clip, each 0 or 1.

    `clips`, `clips_usable`, `clips_excluded`, `excluded_<reason>`; of those that count `clips_warned`,
    `warned_<code>` and `clips_personalized`.
    """
    good = excluded == ""
    flags = warning_flags(table)[good].reindex(table.rows.index, fill_value=False)
    counts = {"clips": pd.Series(True, index=excluded.index), "clips_usable": good, "clips_excluded": ~good}
    counts |= {f"excluded_{reason}": excluded == reason for reason in reasons_of(excluded, exclude_warnings)}
    counts |= {"clips_warned": flags.any(axis=1), **{f"warned_{code}": flags[code] for code in flags}}
    counts |= {"clips_personalized": good & (table.rows["personalized_for"] != "")}
    return pd.DataFrame(counts).astype(int)


def _finding(kind: str, code: str, about: str) -> dict[str, object]:
    return dict(zip(FINDING, (kind, code, about), strict=True))


def validity_table(
    table: ClipTable, excluded: pd.Series[str], *, by: Sequence[str], cells: pd.Series[int]
) -> pd.DataFrame:
    """How many clips of every condition are excluded for which reason, and how many that count carry which warning.

    Args:
        table: the clips.
        excluded: from `exclusions`.
        by: columns of the conditions.
        cells: number of the condition of every clip, -1 for none.

    Returns:
        Columns of `by`, `finding` (`excluded` or `warned`), `finding_code`, `finding_about`, `clips` and `of_clips`
        (all clips of the condition, or those that count); only what occurs.
    """
    rows, good = table.rows, excluded == ""
    flags = warning_flags(table)
    found = []
    for cell in sorted(set(cells)):
        here = cells == cell
        names = dict(zip(by, rows.loc[here, list(by)].iloc[0], strict=True)) if cell >= 0 else dict.fromkeys(by, "")
        for code in sorted(set(excluded[here]) - {""}):
            count = int((excluded[here] == code).sum())
            found.append({**names, **_finding("excluded", code, about_reason(code)), "clips": count})
            found[-1]["of_clips"] = int(here.sum())
        for code in map(str, flags.columns):
            count = int(np.sum(flags[code] & here & good))
            if count:
                found.append({**names, **_finding("warned", code, about_warning(code)), "clips": count})
                found[-1]["of_clips"] = int((here & good).sum())
    return pd.DataFrame(found, columns=[*by, *FINDING, *COUNTED]).astype(dict.fromkeys(COUNTED, int))
