"""The page of a sweep: what was chosen, what that is worth on new people, and what the trials say of the settings.

In: a `SweepReport`. Out: `report.html`, which needs nothing else, and its figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from clipautt.evaluation.reports.extraction import Tile
from clipautt.evaluation.reports.pictures import Picture, inline
from clipautt.evaluation.reports.tables import percent, points
from clipautt.evaluation.reports.templates import render
from clipautt.files import write_text
from clipautt.selection import figures
from clipautt.selection.curves import FEWEST_TRIALS as FEWEST_FOR_CURVES
from clipautt.selection.importances import FEWEST_TRIALS
from clipautt.selection.report import SECONDS, Conclusions, SweepReport, name_of
from clipautt.selection.sentences import (
    chosen_words,
    clip_words,
    counts,
    curve_cells,
    curve_words,
    headline,
    importance_words,
    level_words,
    pruned_words,
)
from clipautt.selection.trials import text

PAGE, FIGURES = "report.html", "figures"
_ROWS = 10
"""Trials in the table of the best ones."""
_REASONS = 10
_DASH = "\N{EN DASH}"
_COUNTED = ("fallbacks", "unpredicted")
_Draw = Callable[[Path], Path]


def write_page(folder: Path, report: SweepReport) -> Path:
    """Write `report.html` and `figures/*.png`; figures of an earlier page that there is no reason for go.

    Args:
        folder: where to; created if missing.
        report: the sweep.

    Returns:
        The path of report.html.
    """
    made = _figures(folder / FIGURES, report)
    found = report.conclusions
    best = report.best is not None
    page = render(
        "sweep.html.j2",
        escape=True,
        title=f"Sweep {report.name}",
        synthetic=report.synthetic,
        headline=headline(report),
        words=chosen_words(report) if best else [],
        counts=counts(report),
        pruned=pruned_words(report) if best else "",
        tiles=_tiles(report) if best else [],
        level=level_words(report) if best else "",
        clip=clip_words(report) if best else "",
        top=_top(report),
        main=found.main,
        main_words=curve_words(report, found.main) if found.main else "",
        importances=importance_words(found.importances) if best else [],
        fewest=FEWEST_TRIALS,
        explained="" if isinstance(found.importances, str) else f"{100 * max(0.0, found.importances.explained):.0f}",
        curves=_curves(report),
        without_curve=_without_curve(report),
        objectives=[name_of(one) + (" (smaller is better)" if one == SECONDS else "") for one in report.objectives],
        figures=made,
        failed=_failed(report.trials),
        facts=report.facts,
        commands=report.commands,
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def _without_curve(report: SweepReport) -> str:
    """Why settings have no curve, all in one sentence; empty if all have one."""
    missing = [one.label for one in report.conclusions.dimensions if one.key in report.conclusions.reasons]
    if not missing:
        return ""
    return (
        f"No curve of {', '.join(missing)}: other settings vary, too, and fewer than {FEWEST_FOR_CURVES} finished "
        "trials are too few to tell their effects apart."
    )


def _figures(folder: Path, report: SweepReport) -> dict[str, Picture | None]:
    """Draw what there is something to draw for; name → picture or None."""
    found, trials, value = report.conclusions, report.trials, report.value
    draw: dict[str, tuple[_Draw, str, str]] = {}
    if report.best is not None:
        draw |= _of_trials(report, found)
    if found.main is not None and found.main.key in found.curves:
        one = found.curves[found.main.key]
        draw["curve"] = (
            lambda path: figures.value_curve(path, one, trials, clip_points=report.clip_points[0], value=value),
            f"{name_of(value)} by {found.main.label}",
            f"{one.words} The bar at the side is what one clip is worth.",
        )
    if not isinstance(found.importances, str):
        shares = found.importances
        draw["importances"] = (
            lambda path: figures.importance_bars(path, shares),
            "What each setting explains of the differences between trials",
            "Filled: the 95% interval (bootstrap over trials) excludes 0. Hollow: nothing but chance may be there.",
        )
    pictures: dict[str, Picture | None] = dict.fromkeys(
        ("best_trials", "curve", "importances", "slices", "parallel_coordinates", "history", "pareto_front")
    )
    for name in pictures:
        path = folder / f"{name}.png"
        if name in draw:
            make, alt, caption = draw[name]
            pictures[name] = inline(make(path), alt, caption=caption)
        else:
            path.unlink(missing_ok=True)  # left by an earlier page
    return pictures


def _of_trials(report: SweepReport, found: Conclusions) -> dict[str, tuple[_Draw, str, str]]:
    """The figures that need a finished trial: name → how it is drawn, its alternative text, its caption."""
    trials, value, shown = report.trials, report.value, found.dimensions
    draw: dict[str, tuple[_Draw, str, str]] = {
        "history": (
            lambda path: figures.history(path, trials, value=value),
            f"{name_of(value)} of every trial in order",
            "A pruned trial was stopped on some of the folds, and has their mean. An interrupted one was cut off with "
            "the sweep or with its process, and run again; nothing speaks against its settings.",
        ),
        "best_trials": (
            lambda path: figures.best_trials(path, found.ranked, value=value),
            "The best trials with their intervals",
            "Filled: not told apart from the first one. Hollow: clearly different; the intervals on the right "
            "allow for having picked the best. Subjects differ more than trials do, so those on "
            "the left overlap all the same.",
        ),
    }
    if len(shown) > 1:
        draw["slices"] = (
            lambda path: figures.slices(path, trials, shown, found.curves, value=value),
            f"{name_of(value)} by each setting",
            "Grey: finished trials. Blue: the setting alone, others averaged by a model, with 95% intervals. Filled: "
            "not told from the best value of the setting; hollow: clearly worse, in a paired comparison.",
        )
        draw["parallel_coordinates"] = (
            lambda path: figures.parallel_coordinates(path, trials, shown, value=value),
            "Every trial as a line across its settings",
            "A line is a trial, from its first setting to its last; the thick one has the highest value. Grey: pruned "
            "early. Left of an axis: the setting did not matter in the trial.",
        )
    if len(report.objectives) > 1 and len(report.front):
        draw["pareto_front"] = (
            lambda path: figures.pareto_front(path, trials, report.objectives, report.front),
            " against ".join(name_of(one) for one in report.objectives[:2]),
            "No trial is better than one on the front in all objectives. Neighbours on it may differ by chance only.",
        )
    return draw


def _tiles(report: SweepReport) -> list[Tile]:
    held, ranked = report.held_out, report.conclusions.ranked.iloc[0]
    finished = len(report.done)
    tiles = [
        Tile(f"{name_of(report.value)} in the trials", f"{percent(ranked['value'])}%", (_best_line(report.compared),))
    ]
    if held is None:
        tiles.insert(0, Tile("UAR on subjects that no trial saw", _DASH, ("none were held out",)))
    else:
        spans = [
            f"{percent(one.low)} to {percent(one.high)}%" if math.isfinite(one.low) else "no interval"
            for one in (held.uar,)
        ]
        gain = f"CLIP-AU {points(held.gain.mean)} points" if math.isfinite(held.gain.mean) else ""
        lines = tuple(line for line in (*spans, gain.replace("CLIP-AU ", "against CLIP-AU ")) if line)
        big = f"{percent(held.uar.mean)}%" if math.isfinite(held.uar.mean) else _DASH
        tiles.insert(0, Tile("UAR on subjects that no trial saw", big, lines))
    reference = np.asarray(report.reference_values, float)
    known = reference[np.isfinite(reference)]
    if len(known):
        tiles.append(Tile("UAR of CLIP-AU", f"{percent(float(known.mean()))}%", ("on the folds of the trials",)))
    median, largest = report.clip_points
    if math.isfinite(median):
        tiles.append(Tile("one clip is worth", f"{median:.2g} points", (f"at most {largest:.2g}",)))
    number = report.trials["status"].value_counts()
    others = tuple(f"{number[one]} {one}" for one in ("pruned", "failed", "interrupted") if number.get(one, 0))
    return [*tiles, Tile("trials finished", f"{finished} of {len(report.trials)}", others)]


def _best_line(compared: int) -> str:
    return f"the best of {compared}, so too good" if compared > 1 else "the only one"


def _top(report: SweepReport) -> dict[str, list[list[str]] | list[str]]:
    """Head and rows of the table of the best trials."""
    ranked, dimensions = report.conclusions.ranked.head(_ROWS), report.conclusions.dimensions
    done = report.done.set_index("number")
    extra = [
        name for name in ("gain", "war", "f1", SECONDS, "folds", *_COUNTED) if name in done and name != report.value
    ]
    head = ["trial", f"{name_of(report.value)} (95% interval)", "lacks to the first, points (95% interval)"]
    rows = []
    for place, row in enumerate(ranked.to_dict("records")):
        own = done.loc[row["number"]]
        value = percent(row["value"]) + _span(row["low"], row["high"], percent)
        lacks = points(row["behind"]) + _span(row["behind_low"], row["behind_high"], points)
        behind = _DASH if not place or not math.isfinite(row["behind"]) else lacks
        cells = [_cell(name, own[name]) for name in extra]
        rows.append([str(int(row["number"])), value, behind, *cells, *(text(own[one.key]) for one in dimensions)])
    return {"head": [*head, *(name_of(one) for one in extra), *(one.label for one in dimensions)], "rows": rows}


def _span(low: float, high: float, shown: Callable[[float], str]) -> str:
    return f" ({shown(low)} to {shown(high)})" if math.isfinite(low) and math.isfinite(high) else ""


def _cell(name: str, value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return _DASH
    number = float(str(value))
    if name in ("folds", *_COUNTED):
        return f"{number:.0f}"
    return points(number) if name == "gain" else f"{number:.3g}" if name == SECONDS else percent(number)


def _curves(report: SweepReport) -> list[tuple[str, ...]]:
    """A row per dimension that has a curve: label, best value, values not told from it, clearly worse ones."""
    found = report.conclusions
    return [
        (one.label, *(cell or _DASH for cell in curve_cells(found.curves[one.key])))
        for one in found.dimensions
        if one.key in found.curves
    ]


def _failed(trials: pd.DataFrame) -> list[tuple[str, str]]:
    """Reasons of failed trials with the numbers of the trials, the most frequent first."""
    failed = trials[trials["status"] == "failed"]
    reasons = (
        failed["reason"].fillna("unknown").astype(str) if "reason" in failed else pd.Series("unknown", failed.index)
    )
    groups: dict[str, list[str]] = {}
    for number, reason in zip(failed["number"], reasons, strict=True):
        groups.setdefault(reason, []).append(str(number))
    ordered: Sequence[tuple[str, list[str]]] = sorted(groups.items(), key=lambda item: -len(item[1]))
    shown = [(_numbers(numbers), reason) for reason, numbers in ordered[:_REASONS]]
    return [
        *shown,
        *([(f"{len(ordered) - _REASONS} more reasons", "see trials.parquet")] if len(ordered) > _REASONS else []),
    ]


def _numbers(numbers: Sequence[str]) -> str:
    return ", ".join(numbers[:_REASONS]) + (f" and {len(numbers) - _REASONS} more" if len(numbers) > _REASONS else "")
