"""The page of a study: what was measured on whom, differences between conditions, and how to read the files elsewhere.

In: a `Study`. Out: `report.html`, which needs nothing else, its figures, and the files of `study.export`.

Every table of the page has the validity of its numbers in its columns: clips that count, excluded and warned ones, the
share of frames with the face, other faces.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from clipautt.action_units import NONE_ROSE, risen
from clipautt.evaluation.reports.extraction import Tile
from clipautt.evaluation.reports.pictures import Picture, inline
from clipautt.evaluation.reports.templates import render
from clipautt.files import write_text
from clipautt.prediction.columns import units_of_clip
from clipautt.study.export import DIFFERENCES, FILES, write_study
from clipautt.study.figures import condition_panels
from clipautt.study.measures import Measure
from clipautt.study.statistics import FEW, FEWEST, INTERVALS
from clipautt.study.summary import EXCLUDED, FIRST, SECOND, SUBJECT, Study, cell_names
from clipautt.study.validity import FINDING

PAGE, FIGURES = "report.html", "figures"
UNSEEN = "unseen_footage"
_Row = Mapping[Hashable, Any]
"""A row of a data frame."""
_PANELS = 6
"""Panels of the figure of action units."""
_ROWS = 12
"""Rows of a pair of conditions in the table of action units."""
_PAIRS = 12
"""Pairs of conditions on the page; all are in the file."""
_VALIDITY = ("clips_usable", "clips_excluded", "clips_warned", "face_share", "other_faces")
HEADS = ("clips that count", "excluded", "warned", "frames with face", "other faces")
"""Headings of the columns of `_VALIDITY`."""
_SMALL_UNITS = {one.unit for one in units_of_clip("AU4")[:2]}
"""Units of measures that differ little, which are shown with three decimals."""
_DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Block:
    """Rows below a heading."""

    heading: str
    """What they have in common, such as a pair of conditions."""
    rows: tuple[tuple[str, ...], ...]
    """Cells of text."""


def write_study_page(
    folder: Path,
    given: Study,
    *,
    title: str = "Study",
    facts: Mapping[str, str] | None = None,
    synthetic: bool = False,
) -> Path:
    """Write report.html, figures/*.png and the files of `study.export`.

    Args:
        folder: where to; created if missing.
        given: the study.
        title: title of the page.
        facts: where the clips come from, versions: name and value.
        synthetic: whether all faces are rendered; the page says so at its top.

    Returns:
        The path of report.html.
    """
    names = write_study(folder, given)
    page = render(
        "study.html.j2",
        escape=True,
        title=title,
        synthetic=synthetic,
        warnings=top_warnings(given),
        headline=headline(given),
        words=first_words(given),
        tiles=_tiles(given),
        whom=_whom(given),
        validity=_validity(given),
        conditions=given.names,
        notes=given.notes,
        heads=HEADS,
        recording=_differences(given, "recording"),
        classes=_classes(folder, given),
        mirrored=given.classes if len(given.classes) == 2 else (),
        means=_means(given, [m for m in given.measures if m.group == "classes" and m.name not in _mirrored(given)]),
        units=_units(folder, given),
        hidden_pairs=max(0, len(_pairs(given)) - _PAIRS),
        files=FILES,
        example=_example(given, names),
        few=FEW,
        fewest=FEWEST,
        facts=dict(facts or {}) | _settings(given),
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def headline(given: Study) -> str:
    """How many subjects, conditions and clips."""
    used, clips = _used(given), len(given.clips)
    people, conditions = _counted(_people(given), "subject"), _counted(len(given.names), "condition")
    return f"{people}, {conditions}, {used} of {clips} clips count"


def first_words(given: Study) -> list[str]:
    """The figures of the last class in every pair of conditions, or in the only condition."""
    name = f"probability_{given.classes[-1]}"
    own = given.differences[given.differences["measure"] == name].head(_PAIRS)
    if not own["subjects"].any():
        none = ["No subject has clips that count in two conditions, so nothing is compared within subjects."]
        return [*(none if len(own) else []), *_mean_sentences(given, name)]
    told = [_difference_sentence(row, given.classes[-1]) for row in own.to_dict("records")]
    return [*told, *_more_pairs(given), *_few(own)]


def _more_pairs(given: Study) -> list[str]:
    """Where the pairs are that the page does not show, if there are any."""
    more = max(0, len(_pairs(given)) - _PAIRS)
    where = f"{_counted(more, 'more pair')} of conditions: {DIFFERENCES}; reference=CONDITION compares with one only."
    return [where] if more else []


def _mean_sentences(given: Study, name: str) -> list[str]:
    means = given.conditions[given.conditions["measure"] == name].assign(cell=cell_names(given.conditions, given.by))
    means = means[means["subjects"] > 0]
    told = [
        f"Probability of {given.classes[-1]} in {row['cell']}: {_with_interval(row, 'mean')}, mean over "
        f"{_counted(row['subjects'], 'subject')}."
        for row in means.to_dict("records")
    ]
    return [*told, *_few(means)]


def _few(rows: pd.DataFrame) -> list[str]:
    """What the mark of an interval means, if one is marked."""
    few = (rows["interval_kind"] == "few_subjects").any()
    return [f"*Fewer than {FEW} subjects: the interval is narrower than it should be."] if few else []


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _difference_sentence(row: _Row, name: str) -> str:
    first, second = row[FIRST], row[SECOND]
    if not row["subjects"]:
        return f"{first} and {second}: no subject has clips that count in both, so nothing is compared within subjects."
    return (
        f"Probability of {name}: {_number(row['mean_second'])} in {second}, {_number(row['mean_first'])} in {first}; "
        f"difference within subjects {_with_interval(row, 'difference', signed=True)}, "
        f"{_counted(row['subjects'], 'subject')}."
    )


def top_warnings(given: Study) -> list[str]:
    """What stands above everything else: clips of footage that the model has never seen."""
    here = given.validity[(given.validity["finding"] == "warned") & (given.validity["finding_code"] == UNSEEN)]
    count = int(here["clips"].sum())
    if not count:
        return []
    return [
        f"{count} of {_used(given)} clips carry the warning {UNSEEN}: the model was trained on another kind of faces, "
        "rendered or real, only, so that their figures mean nothing. exclude_warnings=unseen_footage leaves them out."
    ]


def _used(given: Study) -> int:
    return int((given.clips[EXCLUDED] == "").sum())


def _people(given: Study) -> int:
    return int(given.subjects.loc[given.subjects["clips_usable"] > 0, SUBJECT].nunique())


def _tiles(given: Study) -> list[Tile]:
    used = given.clips[given.clips[EXCLUDED] == ""]
    per = given.subjects.groupby(SUBJECT)["clips_usable"].sum()
    warned = int((used["warnings"] != "").sum())
    both = given.subjects[given.subjects["clips_usable"] > 0].groupby(SUBJECT).size()
    least, most = (int(per.min()), int(per.max())) if len(per) else (0, 0)
    spread = f"{_counted(least, 'clip')} each" if least == most else f"{least} to {most} clips each"
    complete = (
        (f"{int((both == len(given.names)).sum())} with clips in every condition",) if len(given.names) > 1 else ()
    )
    face = used["face_share"].mean()
    detected = "mean over clips that count" if not math.isnan(face) else "no face detector, or not recorded"
    return [
        Tile("subjects", str(_people(given)), (*complete, spread)),
        Tile("clips that count", f"{len(used)} of {len(given.clips)}", (f"{len(given.clips) - len(used)} excluded",)),
        Tile("clips with a warning", f"{warned} of {len(used)}", ("they count, unless excluded on request",)),
        Tile("frames with the face", _percent(face), (detected,)),
    ]


def _whom(given: Study) -> list[tuple[str, ...]]:
    """A row per condition: subjects, and the validity of its clips."""
    rows = []
    people, cells = given.subjects, cell_names(given.subjects, given.by)
    for name in given.names:
        own = people[cells == name]
        counts = (str(int(own[column].sum())) for column in ("clips", *_VALIDITY[:3]))
        means = (_percent(own["face_share"].mean()), _number(own["other_faces"].mean()))
        rows.append((name, str(int((own["clips_usable"] > 0).sum())), *counts, *means))
    return rows


def _validity(given: Study) -> list[tuple[str, ...]]:
    """A row per reason and warning: code, what it means, clips in every condition, and in those without one."""
    cells = cell_names(given.validity, given.by)
    rows = []
    for (kind, code, about), part in given.validity.groupby(list(FINDING), sort=True):
        here = dict(zip(cells[part.index], zip(part["clips"], part["of_clips"], strict=True), strict=True))
        counts = [f"{here[name][0]} of {here[name][1]}" if name in here else "0" for name in given.names]
        rest = sum(count for name, (count, _) in here.items() if name not in given.names)
        rows.append((str(kind), str(code), str(about), *counts, str(rest or _DASH)))
    return rows


def _pairs(given: Study) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(given.differences[FIRST], given.differences[SECOND], strict=True)))


def _differences(given: Study, group: str, *, limit: int | None = None) -> list[Block]:
    """A block per pair of conditions; with a limit, the measures with the smallest p."""
    blocks = []
    for first, second in _pairs(given)[:_PAIRS]:
        table = given.differences
        own = table[(table[FIRST] == first) & (table[SECOND] == second) & (table["measure_group"] == group)]
        own = own[~own["learned"].eq(False).fillna(False).astype(bool) & ~own["measure"].isin(_mirrored(given))]
        if limit is not None:
            own = own.sort_values("p", kind="stable").head(limit)
        alone = [
            f"{int(own[f'subjects_{side}_only'].max())} only in {name}"
            for side, name in (("first", first), ("second", second))
            if len(own) and own[f"subjects_{side}_only"].max()
        ]
        left = f" ({', '.join(alone)}: left out)" if alone else ""
        cells = tuple(map(_change_cells, own.to_dict("records"))) if own["subjects"].any() else ()
        blocks.append(
            Block(f"{second} minus {first}{left}" if cells else f"{second}, {first}: no subject in both", cells)
        )
    return blocks


def _mirrored(given: Study) -> list[str]:
    """Measures that say the same as others: with two classes, those of the first."""
    return [f"{kind}_{given.classes[0]}" for kind in ("probability", "predicted")] if len(given.classes) == 2 else []


def _change_cells(row: _Row) -> tuple[str, ...]:
    means = (_number(row[name], unit=row["measure_unit"]) for name in ("mean_first", "mean_second"))
    cells = (row["measure_label"], str(row["subjects"]), *means)
    tested = (_number(row["dz"], signed=True), _small(row["p"]), _small(row["q"]))
    return (*cells, _with_interval(row, "difference", signed=True), *tested, *_validity_cells(row))


def _validity_cells(row: _Row) -> tuple[str, ...]:
    counts = (str(int(row[name])) for name in _VALIDITY[:3])
    return (*counts, _percent(row["face_share"]), _number(row["other_faces"]))


def _means(given: Study, measures: Sequence[Measure]) -> list[Block]:
    """A block per condition: mean, interval and validity of the measures."""
    wanted = [one.name for one in measures]
    table = given.conditions.assign(cell=cell_names(given.conditions, given.by))
    blocks = []
    for name in given.names:
        own = table[(table["cell"] == name) & table["measure"].isin(wanted)]
        rows = [
            (
                row["measure_label"],
                str(row["subjects"]),
                _with_interval(row, "mean"),
                _number(row["sd"], unit=row["measure_unit"]),
                *_validity_cells(row),
            )
            for row in own.to_dict("records")
        ]
        blocks.append(Block(name, tuple(rows)))
    return blocks


def _classes(folder: Path, given: Study) -> dict[str, object]:
    shown = [one for one in given.measures if one.name in {f"probability_{name}" for name in given.classes}]
    shares = [one for one in given.measures if one.name in {f"predicted_{name}" for name in given.classes}]
    panels = [one for one in (*shown, *shares) if one.name not in _mirrored(given)]
    figure = _figure(folder / FIGURES / "classes.png", given, panels)
    return {"figure": figure, "table": _differences(given, "classes")}


def _units(folder: Path, given: Study) -> dict[str, object]:
    """Figure and tables of the AUs that differ most, or without differences of those that rise most."""
    units = {one.name: one for one in given.measures if one.group == "action_units" and one.learned is not False}
    left_out = sum(one.group == "action_units" and one.learned is False for one in given.measures) // 2
    table = given.differences[given.differences["measure"].isin(list(units))]
    ranked = table.sort_values("p", kind="stable").drop_duplicates("measure").dropna(subset="p")
    chosen = [units[name] for name in ranked["measure"].head(_PANELS)]
    if not chosen:
        rises = given.conditions[given.conditions["measure"].isin([name for name in units if name.endswith("_rise")])]
        highest = rises.groupby("measure", sort=False)["mean"].max()
        chosen = [units[name] for name in risen({str(name): rise for name, rise in highest.items()}, most=_PANELS)]
    q = table["q"].dropna()
    return {
        "figure": _figure(folder / FIGURES / "action_units.png", given, chosen),
        "table": _differences(given, "action_units", limit=_ROWS) if len(ranked) else [],
        "means": _means(given, chosen) if chosen else [],
        "none_rose": NONE_ROSE,
        "tests": int(table["tests"].max()) if len(table) else 0,
        "below": int((q < 0.05).sum()),
        "unadjusted": int((table["p"].dropna() < 0.05).sum()),
        "left_out": left_out,
        "known": any(one.learned is not None for one in given.measures),
        "all": len(units) // 2,
    }


def _figure(path: Path, given: Study, measures: Sequence[Measure]) -> Picture | None:
    if not measures:
        path.unlink(missing_ok=True)  # left by an earlier report
        return None
    condition_panels(path, given, measures)
    alt = f"{', '.join(one.label for one in measures)}: means per condition, and every subject"
    lines = "Grey: the subjects" if len(given.names) == 1 else "Grey: the subjects, a line each"
    caption = (
        f"{lines}. Blue: mean over subjects with its 95% interval; without bars where there are fewer than {FEWEST}."
    )
    return inline(path, alt, caption=caption)


def _example(given: Study, names: Mapping[str, str]) -> dict[str, str]:
    """Words for the commands that read the files."""
    text = [names[name] for name in (SUBJECT, *given.by)]
    return {
        "measure": names.get(f"probability_{given.classes[-1]}", names[SUBJECT]),
        "condition": names[given.by[0]] if given.by else "",
        "types": ", ".join(f'"{name}": str' for name in text),
        "r_types": ", ".join(f'{name} = "character"' for name in text),
    }


def _settings(given: Study) -> dict[str, str]:
    return {
        "Conditions": f"by {', '.join(given.by)}: {', '.join(given.names)}" if given.by else "none",
        "Excluded warnings": ", ".join(given.exclude_warnings) or "none",
        "Intervals": f"{INTERVALS['ok']}: percentiles of 10,000 resamples; none for fewer than {FEWEST} subjects",
        "Tests": "paired t tests over subjects, two-sided; q by Benjamini and Hochberg over all tests of a kind",
    }


def _with_interval(row: _Row, name: str, *, signed: bool = False) -> str:
    shown, low, high = (_number(row[one], unit=row["measure_unit"], signed=signed) for one in (name, "low", "high"))
    if row["interval_kind"] == "none" or math.isnan(row["low"]):
        return f"{shown} (no interval)" if shown != _DASH else shown
    mark = "*" if row["interval_kind"] == "few_subjects" else ""
    return f"{shown} ({low} to {high}){mark}"


def _number(value: float, *, unit: str = "", signed: bool = False) -> str:
    if math.isnan(value):
        return _DASH
    digits = 3 if unit in _SMALL_UNITS else 2
    shown = f"{value:{'+' if signed else ''}.{digits}f}"
    return (shown if float(shown) else f"{0:.{digits}f}").replace("-", "\N{MINUS SIGN}")


def _small(value: float) -> str:
    return _DASH if pd.isna(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def _percent(share: float) -> str:
    return _DASH if pd.isna(share) else f"{100 * share:.0f}%"
