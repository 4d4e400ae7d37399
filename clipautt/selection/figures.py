"""Figures of a sweep, from trials and what was computed of them to PNG.

Every value is drawn in percent. Filled marks are what cannot be told from the best, hollow ones are clearly worse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clipautt.evaluation.reports.figures import HURT, UNCHANGED, save
from clipautt.evaluation.reports.fonts import shorten
from clipautt.evaluation.reports.tables import percent
from clipautt.selection.curves import Curve
from clipautt.selection.drawing import FAINT, INK, jitter, legend, log_ticks, plain, value_axis, wrapped
from clipautt.selection.importances import Importances
from clipautt.selection.report import SECONDS, name_of
from clipautt.selection.trials import Dimension, categories, coordinates, finished, text, varied

_BEST, _CUT, _QUIET = "#0072B2", "#CC79A7", "#8C96A3"
_WIDE = 9.5
_CROWD = 60
"""Above this number of trials their marks are fainter."""
_ROWS = 15
"""Trials in the plot of the best ones."""
_ACROSS = 3
_GRID = 12
"""Values of a number that are drawn one by one; more become a line in a band."""
_TICK_GAP = 0.06
"""Least distance of labels along an axis, as a share of it."""
_UNUSED = -0.07
"""Where a line crosses the axis of a dimension that did not matter in its trial."""


def history(path: Path, trials: pd.DataFrame, *, value: str = "uar") -> Path:
    """Every trial in order, and the best so far with its interval.

    Args:
        path: PNG file to write.
        trials: all trials; at least one is finished.
        value: column that is shown; the interval is the table's, for `uar`.
    """
    figure = Figure(figsize=(_WIDE, 4), layout="constrained")
    axes = figure.subplots()
    done, cut = finished(trials, value=value), trials[(trials["status"] == "pruned") & trials[value].notna()]
    alpha = 0.8 if len(done) <= _CROWD else 0.5
    axes.plot(done["number"], 100 * done[value], "o", color=UNCHANGED, ms=5, alpha=alpha, mew=0, label="finished")
    if len(cut):
        axes.plot(cut["number"], 100 * cut[value].astype(float), "v", mfc="none", mec=_CUT, ms=5, label="pruned early")
    top = _best_so_far(axes, done, last=int(trials["number"].max()), value=value)
    shown = np.concatenate([done[value].to_numpy(float), cut[value].to_numpy(float), [top]])
    value_axis(axes, 100 * shown, name_of(value), below=0.12)
    for status, mark, colour in (("failed", "x", HURT), ("interrupted", "|", INK)):
        own = trials[trials["status"] == status]
        if len(own):
            style: dict[str, Any] = {"color": colour, "ms": 8, "mew": 1.8, "ls": "", "label": status}
            axes.plot(own["number"], np.full(len(own), 0.04), mark, transform=axes.get_xaxis_transform(), **style)
    axes.set_xlim(trials["number"].min() - 0.7, trials["number"].max() + 0.7)
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend(figure)
    return save(figure, path)


def _best_so_far(axes: Axes, done: pd.DataFrame, *, last: int, value: str) -> float:
    """Draw the best value so far; returns the top of its last interval, or the value where there is none."""
    values = done[value].to_numpy(float)
    best = [int(values[: place + 1].argmax()) for place in range(len(values))]
    ends = np.append(done["number"].to_numpy(float), last)
    places = np.append(best, best[-1])
    top = float(values[places[-1]])
    axes.step(ends, 100 * values[places], where="post", color=_BEST, lw=2, label="best so far")
    if value == "uar" and {"uar_low", "uar_high"} <= set(done):
        low, high = (100 * done[name].to_numpy(float)[places] for name in ("uar_low", "uar_high"))
        top = high[-1] / 100 if np.isfinite(high[-1]) else top
        if np.isfinite(low).any():
            label = "its 95% interval"
            axes.fill_between(ends, low, high, step="post", color=_BEST, alpha=0.13, lw=0, label=label)
    row = best[-1]
    where = (float(done["number"].iloc[row]), 100 * values[row])
    style: dict[str, Any] = {"ha": "center", "color": _BEST, "fontweight": "bold"}
    axes.annotate(percent(values[row]), where, (0, 6), textcoords="offset points", **style)
    return top


def importance_bars(path: Path, found: Importances) -> Path:
    """The share of every dimension with its interval; those whose interval includes 0 are hollow.

    Args:
        path: PNG file to write.
        found: from `importances`.
    """
    rows = found.rows
    figure = Figure(figsize=(_WIDE, 1.2 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        colour = _BEST if row.told else _QUIET
        axes.plot([100 * row.low, 100 * row.high], [place, place], color=colour, lw=2.2, solid_capstyle="butt")
        axes.plot(100 * row.share, place, "o", color=colour, mfc=colour if row.told else "white", mew=1.6, ms=7)
    names = [
        f"{shorten(row.dimension.label, 40)}{'' if row.trials == found.trials else _some(row.trials)}" for row in rows
    ]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_xlabel(f"share of the variance over {found.trials} trials that it explains, %")
    plain(axes, grid="x")
    return save(figure, path)


def _some(trials: int) -> str:
    return f" (in {trials} trials)"


def best_trials(path: Path, ranked: pd.DataFrame, *, value: str = "uar") -> Path:
    """The best trials with their intervals, and what each lacks to the best one, paired over subjects.

    Args:
        path: PNG file to write.
        ranked: from `ranking`, at least one trial.
        value: column that is shown.
    """
    shown = ranked.head(_ROWS)
    paired = len(shown) > 1 and bool(np.isfinite(shown["behind_low"].to_numpy(float)).any())
    figure = Figure(figsize=(_WIDE, 1.3 + 0.3 * len(shown)), layout="constrained")
    panels = figure.subplots(1, 2 if paired else 1, sharey=True, squeeze=False)[0]
    for place, row in enumerate(shown.to_dict("records")):
        worse = row["apart"] is True and place > 0
        _whisker(panels[0], place, row["value"], row["low"], row["high"], hollow=worse)
        if paired and place:
            _whisker(panels[1], place, -row["behind"], -row["behind_high"], -row["behind_low"], hollow=worse)
    panels[0].set_yticks(range(len(shown)), [f"trial {number}" for number in shown["number"]])
    panels[0].set_ylim(len(shown) - 0.4, -0.6)
    panels[0].set_xlabel(f"{name_of(value)}, %" + ("; 95% interval over subjects" if value == "uar" else ""))
    if paired:
        panels[1].axvline(0, color=INK, lw=0.8)
        panels[1].set_xlabel(f"UAR minus that of trial {shown['number'].iloc[0]}, points; paired over subjects")
    for axes in panels:
        plain(axes, grid="x")
    return save(figure, path)


def _whisker(axes: Axes, place: int, middle: float, low: float, high: float, *, hollow: bool) -> None:
    colour = _QUIET if hollow else _BEST
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([100 * low, 100 * high], [place, place], color=colour, lw=2, solid_capstyle="butt")
    if math.isfinite(middle):
        axes.plot(100 * middle, place, "o", color=colour, mfc="white" if hollow else colour, mew=1.6, ms=7)


def value_curve(path: Path, found: Curve, trials: pd.DataFrame, *, clip_points: float, value: str = "uar") -> Path:
    """One curve at full size, with a bar as long as one clip is worth.

    Args:
        path: PNG file to write.
        found: from `curve`.
        trials: the table; finished trials are faint dots.
        clip_points: what one clip is worth, points; NaN draws no bar.
        value: column that is shown.
    """
    figure = Figure(figsize=(_WIDE, 4.3), layout="constrained")
    axes = figure.subplots()
    done = finished(trials, value=value)
    _draw_trials(axes, found.dimension, found.at, done, value, small=False)
    _draw_curve(axes, found, small=False)
    _dimension_axis(axes, found.dimension, found.at, small=False)
    value_axis(axes, _extent([found], done, value), name_of(value))
    if math.isfinite(clip_points) and clip_points > 0:
        low, high = axes.get_ylim()
        foot = high - 0.08 * (high - low) - clip_points
        style: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "color": INK, "clip_on": False}
        axes.plot([1.02, 1.02], [foot, foot + clip_points], lw=4, solid_capstyle="butt", **style)
        axes.text(
            1.03, foot + clip_points / 2, f"one clip:\n{clip_points:.2g} points", va="center", fontsize=9, **style
        )
    if found.kind == "means" and found.trials.min() == found.trials.max() > 1:
        axes.set_xlabel(f"{found.dimension.label}; {found.trials.max()} trials each")
    legend(figure)
    return save(figure, path)


def _extent(curves: Sequence[Curve], done: pd.DataFrame, value: str) -> npt.NDArray[np.float64]:
    """What an axis of values has to show, percent: the trials, the curves and their intervals."""
    ends = np.concatenate(
        [done[value].to_numpy(float), *(part for one in curves for part in (one.mean, one.low, one.high))]
    )
    return np.asarray(100 * ends[np.isfinite(ends)])


def _draw_trials(
    axes: Axes, dimension: Dimension, at: Sequence[Any], done: pd.DataFrame, value: str, *, small: bool
) -> None:
    """The finished trials as faint dots, a little beside their value where many would lie on top of each other."""
    own = done[done[dimension.key].notna()]
    places = _places(dimension, at)
    lookup = dict(zip(map(text, at), places, strict=True))
    grid = dimension.kind == "category" or (not dimension.log and len(at) <= _GRID)
    dots = np.array([lookup[text(one)] if dimension.kind == "category" else float(one) for one in own[dimension.key]])
    if grid and len(places) > 1:
        dots = dots + jitter(own["number"], 0.14 * float(np.diff(places).min()))
    alpha, size = 0.55 if len(own) <= _CROWD else 0.3, 3 if small else 4
    axes.plot(dots, 100 * own[value], "o", color=UNCHANGED, ms=size, alpha=alpha, mew=0, label="one trial", zorder=1)


def _draw_curve(axes: Axes, found: Curve, *, small: bool) -> None:
    """The curve: marks with bars on a grid, else a line in a band."""
    places = _places(found.dimension, found.at)
    mean, low, high = (100 * part for part in (found.mean, found.low, found.high))
    known = np.isfinite(low)
    if found.dimension.kind != "category":
        axes.plot(places, mean, color=_BEST, lw=1.8, zorder=2)
    if len(places) > _GRID and found.dimension.kind != "category":
        axes.fill_between(places, low, high, color=_BEST, alpha=0.16, lw=0, label="model, 95% interval")
        return
    ends = np.vstack([mean - low, high - mean])[:, known].clip(min=0)
    axes.errorbar(places[known], mean[known], ends, fmt="none", color=_BEST, lw=1.8, capsize=3, zorder=3)
    worse = found.worse
    style: dict[str, Any] = {"ls": "", "marker": "o", "mec": _BEST, "mew": 1.6, "ms": 5 if small else 8, "zorder": 4}
    label = "95% interval; not told from the best" if known.any() else "mean"
    axes.plot(places[~worse], mean[~worse], mfc=_BEST, label=label, **style)
    if worse.any():
        axes.plot(places[worse], mean[worse], mfc="white", label="clearly worse", **style)


def _places(dimension: Dimension, at: Sequence[Any]) -> npt.NDArray[np.float64]:
    """Where the values of a dimension lie on its axis."""
    return np.arange(len(at), dtype=float) if dimension.kind == "category" else np.asarray([float(one) for one in at])


def _dimension_axis(axes: Axes, dimension: Dimension, at: Sequence[Any], *, small: bool) -> None:
    places, fontsize = _places(dimension, at), 8 if small else 9
    if dimension.kind == "category":
        wide = max(7, (30 if small else 100) // len(at))
        names = [wrapped(text(one), wide, lines=4) for one in at]
        axes.set_xticks(places, names, fontsize=fontsize if len(at) < 5 else fontsize - 1)
        axes.set_xlim(-0.5, len(places) - 0.5)
    else:
        if dimension.log:
            axes.set_xscale("log")
            ticks = log_ticks(float(places.min()), float(places.max()))
            axes.set_xticks(ticks, [text(one) for one in ticks], fontsize=fontsize)
            axes.minorticks_off()
        elif len(places) <= (9 if small else 16) and np.diff(places).min() >= _TICK_GAP * np.ptp(places):
            axes.set_xticks(places, [text(one) for one in places], fontsize=fontsize)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5 if small else 10, integer=dimension.kind == "whole"))
            axes.tick_params(labelsize=fontsize)
    axes.set_xlabel(shorten(dimension.label, 44), fontsize=fontsize + 1)


def slices(
    path: Path,
    trials: pd.DataFrame,
    dimensions: Sequence[Dimension],
    curves: Mapping[str, Curve],
    *,
    value: str = "uar",
) -> Path:
    """A small panel per dimension: the finished trials as dots, and the dimension's curve where there is one.

    Args:
        path: PNG file to write.
        trials: the table, with at least one finished trial.
        dimensions: those shown; each varies in the finished trials.
        curves: dimension's key → its curve.
        value: column that is shown.
    """
    done = finished(trials, value=value)
    across = min(_ACROSS, len(dimensions))
    down = math.ceil(len(dimensions) / across)
    figure = Figure(figsize=(_WIDE if across == _ACROSS else 4.2 * across, 2.7 * down), layout="constrained")
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for place, (axes, dimension) in enumerate(zip(panels, dimensions, strict=False)):
        found = curves.get(dimension.key)
        at = categories(done, dimension) if found is None else found.at
        _draw_trials(axes, dimension, at, done, value, small=True)
        if found is not None:
            _draw_curve(axes, found, small=True)
        _dimension_axis(axes, dimension, at, small=True)
        value_axis(axes, _extent([*curves.values()], done, value), name_of(value) if place % across == 0 else "")
    for axes in panels[len(dimensions) :]:
        axes.set_axis_off()
    return save(figure, path)


def parallel_coordinates(
    path: Path, trials: pd.DataFrame, dimensions: Sequence[Dimension], *, value: str = "uar"
) -> Path:
    """Every trial as a line from the top to the bottom that crosses one axis per dimension, coloured by its value.

    The axes lie on top of each other, so that long names have room. Where a dimension did not matter in a trial, its
    line passes left of the axis; pruned trials are faint and lie behind the others.

    Args:
        path: PNG file to write.
        trials: the table, with at least one finished trial.
        dimensions: the search space; those that do not vary are left out.
        value: column that gives the colour.
    """
    used = trials[trials["status"].isin(["ok", "pruned"])].reset_index(drop=True)
    shown = varied(used, dimensions)
    figure = Figure(figsize=(_WIDE, 1.1 + 0.72 * len(shown)), layout="constrained")
    axes = figure.subplots()
    xs = np.stack([_along(axes, used, one, row) for row, one in enumerate(shown)], axis=1)
    values = 100 * used[value].to_numpy(float, na_value=math.nan)
    ok = (used["status"] == "ok").to_numpy() & np.isfinite(values)
    ends = (float(values[ok].min()), float(values[ok].max()))
    colours, norm = colormaps["cividis_r"], Normalize(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1)
    rows, alpha = np.arange(len(shown)), 0.75 if ok.sum() <= _CROWD else 0.45
    for one in np.flatnonzero(~ok):
        axes.plot(xs[one], rows, color=FAINT, lw=0.7, zorder=1)
    for one in np.flatnonzero(ok)[np.argsort(values[ok], kind="stable")]:
        top = values[one] == ends[1]
        colour = colours(norm(values[one]))
        axes.plot(
            xs[one], rows, color=colour, lw=2.6 if top else 1.1, alpha=1 if top else alpha, zorder=3 if top else 2
        )
    axes.set_yticks(rows, [wrapped(one.label, 20, lines=2) for one in shown], fontsize=9)
    axes.set_ylim(len(shown) - 0.45, -0.45)
    axes.set_xlim(-0.12, 1.04)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, location="top", fraction=0.03, aspect=60, pad=0.01)
    bar.set_label(f"{name_of(value)}, %", fontsize=9)
    return save(figure, path)


def _along(axes: Axes, used: pd.DataFrame, dimension: Dimension, row: int) -> npt.NDArray[np.float64]:
    """Draw one axis; returns where every trial crosses it, 0..1."""
    places = coordinates(used, dimension)
    low, high = float(np.nanmin(places)), float(np.nanmax(places))
    different = categories(used, dimension)
    if dimension.kind == "category":
        ticks, low, high = [float(one) for one in range(len(different))], -0.4, len(different) - 0.6
    elif len(different) <= 9:
        ticks = sorted({float(one) for one in places if math.isfinite(one)})
    elif dimension.log:
        different = log_ticks(math.exp(low), math.exp(high))
        ticks = [math.log(one) for one in different]
    else:
        nice = MaxNLocator(6, integer=dimension.kind == "whole").tick_values(low, high)
        different = [one for one in nice if low <= one <= high]
        ticks = different
    axes.plot([0, 1], [row, row], color=INK, lw=1, zorder=4)
    limit, last = max(6, 92 // len(ticks)), -math.inf
    for tick, name in zip(ticks, different, strict=True):
        x = (tick - low) / (high - low)
        if x - last < _TICK_GAP:
            continue
        last = x
        style: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 8, "color": INK, "zorder": 6}
        axes.plot(x, row, "|", color=INK, ms=7, zorder=4)
        label = shorten(text(name).replace("_", " "), limit)
        axes.annotate(label, (x, row), (0, -4), textcoords="offset points", bbox=_behind(), **style)
    if np.isnan(places).any():
        axes.plot([_UNUSED - 0.02, _UNUSED + 0.02], [row, row], color=_QUIET, lw=1, zorder=4)
        where, style = (_UNUSED, row), {"ha": "center", "va": "top", "fontsize": 7.5, "color": UNCHANGED, "zorder": 6}
        axes.annotate("unused", where, (0, -4), textcoords="offset points", bbox=_behind(), **style)
    wiggle = jitter(used["number"], 0.012)
    return np.where(np.isnan(places), _UNUSED, (places - low) / (high - low)) + wiggle


def _behind() -> dict[str, Any]:
    return {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}


def pareto_front(path: Path, trials: pd.DataFrame, objectives: Sequence[str], front: Sequence[int]) -> Path:
    """The first two objectives against each other; trials of the front are joined and carry their number.

    Args:
        path: PNG file to write.
        trials: the table.
        objectives: its columns, at least two.
        front: numbers of the trials that no other trial beats in all objectives.
    """
    across, up = objectives[:2] if objectives[1] != SECONDS else (objectives[1], objectives[0])
    done = trials[(trials["status"] == "ok") & trials[across].notna() & trials[up].notna()]
    on = done["number"].isin(list(front))
    figure = Figure(figsize=(_WIDE, 4.6), layout="constrained")
    axes = figure.subplots()
    xs, ys = (done[name].to_numpy(float) * (1 if name == SECONDS else 100) for name in (across, up))
    axes.plot(xs[~on], ys[~on], "o", color=_QUIET, alpha=0.4, ms=5, mew=0, label="beaten by another trial")
    order = np.flatnonzero(on)[np.argsort(xs[on], kind="stable")]
    style: dict[str, Any] = {"color": _BEST, "ms": 8, "lw": 1.2}
    joined = "--o" if len(objectives) == 2 else "o"
    axes.plot(xs[order], ys[order], joined, label="Pareto front, with trial numbers", **style)
    if across == SECONDS and len(xs) and xs.min() > 0 and xs.max() / xs.min() > 20:
        axes.set_xscale("log")
        ticks = log_ticks(float(xs.min()), float(xs.max()))
        axes.set_xticks(ticks, [text(one) for one in ticks])
        axes.minorticks_off()
    for axis, name in ((axes.xaxis, across), (axes.yaxis, up)):
        axis.set_label_text(name_of(name) + ("" if name == SECONDS else ", %"))
    plain(axes, grid="y")
    axes.margins(0.08)
    figure.draw_without_rendering()
    _number(axes, xs[order], ys[order], done["number"].to_numpy(int)[order], left=across == SECONDS)
    legend(figure)
    return save(figure, path)


def _number(
    axes: Axes,
    xs: npt.NDArray[np.float64],
    ys: npt.NDArray[np.float64],
    numbers: npt.NDArray[np.int64],
    *,
    left: bool,
) -> None:
    """Write a trial's number beside its mark, on the side where no trial can be, unless another number is near."""
    written: list[tuple[float, float]] = []
    for x, y, number in zip(xs, ys, numbers, strict=True):
        place = axes.transData.transform((x, y))
        if all(abs(place[0] - a) > 34 or abs(place[1] - b) > 14 for a, b in written):
            written.append((float(place[0]), float(place[1])))
            style: dict[str, Any] = {
                "fontsize": 9,
                "color": _BEST,
                "fontweight": "bold",
                "ha": "right" if left else "left",
            }
            axes.annotate(str(number), (x, y), (-5 if left else 5, 5), textcoords="offset points", **style)
