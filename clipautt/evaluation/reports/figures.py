"""Figures of a report, written as PNG. They are made without pyplot, so no global state has to be closed.

Colours can be told apart by colour-blind readers: Okabe and Ito, *Color Universal Design* (2008), https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipautt.action_units import NONE_ROSE, risen, title_of
from clipautt.evaluation.reports.fonts import plain_text, shorten
from clipautt.evaluation.reports.tables import (
    ASSUMED_SHARES,
    cohort_title,
    figures_at,
    percent,
    points,
    share_name,
)
from clipautt.evaluation.stories import AuAgreement, ClipStory
from clipautt.files import atomic

HELPED, HURT, UNCHANGED = "#009E73", "#D55E00", "#767676"
_WITHOUT, _WITH, _INK, _FAINT = "#8C96A3", "#0072B2", "#222222", "#D9D9D9"
_UNITS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_BURST, _WINDOW = "#E69F00", "#56B4E9"
_DPI = 150
_UNSTABLE = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}
"""Kinds of files, and the fact in each that would differ between two writings."""
_BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
"""Background of a label that a line may cross."""
_MAX_NAMED_SUBJECTS = 40
_ROOMY = 15
"""Up to this many subjects have wide rows; more are set closer together."""
_TICK_GAP = 0.45
"""Least distance of labelled shares in log odds, so that their labels do not touch."""
_STRIP = 8


def save(figure: Figure, path: Path, *, name: str = "path") -> Path:
    """Write a figure as PNG, SVG or PDF, as the file's name says; equal figures give equal files.

    Raises:
        ValueError: as `check_figure`.
    """
    kind = check_figure(path, name=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain_text(figure)
    with atomic(path) as temporary, rc_context({"svg.hashsalt": "clipautt"}):
        figure.savefig(temporary, format=kind, dpi=_DPI, facecolor="white", metadata={_UNSTABLE[kind]: None})
    return path


def check_figure(path: Path, *, name: str = "path") -> str:
    """The kind of file a figure is written as: `png`, `svg` or `pdf`.

    Args:
        path: file to write.
        name: what the path is called in messages, such as the setting that has it.

    Raises:
        ValueError: for a name with another ending, and for a folder.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in _UNSTABLE:
        raise ValueError(f"{name}={path}: allowed for a figure: names that end in .png, .svg or .pdf")
    if path.is_dir():
        raise ValueError(f"{name}={path} is a folder; give the name of a file, such as {path / 'figure.png'}")
    return kind


def subject_bars(path: Path, *, uar: pd.DataFrame, war: pd.DataFrame, against: str, title: str) -> Path:
    """Whom it helped and whom it hurt: each subject's change of UAR and, where it differs, of WAR.

    With balanced classes the two are the same, and one panel shows both.

    Args:
        path: PNG file to write.
        uar: from `tables.differences`, sorted from gain to loss; both panels keep this order.
        war: the same for WAR.
        against: name of the reference.
        title: what was compared.
    """
    num_people = len(uar)
    named = num_people <= _MAX_NAMED_SUBJECTS
    row_height = 0.3 if num_people <= _ROOMY else 0.24
    ordered = war.set_index("person").reindex(uar["person"]).reset_index()
    same = bool(np.allclose(ordered["change"].to_numpy(float), uar["change"].to_numpy(float), rtol=0, atol=1e-9))
    shown = [(uar, "UAR and WAR")] if same else [(uar, "UAR"), (ordered, "WAR")]
    figure = Figure(figsize=(10, 1.5 + row_height * max(2, num_people) if named else 7), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (people, name) in zip(panels, shown, strict=True):
        _change_panel(axes, people, name=name, labelled=named)
    labels = [
        f"{shorten(person, 24)}  ({percent(before)} \N{RIGHTWARDS ARROW} {percent(after)})"
        for person, before, after in zip(uar["person"], uar["before"], uar["after"], strict=True)
    ]
    first = panels[0]
    first.set_yticks(range(num_people) if named else [], labels if named else [], fontsize=9)
    first.set_ylim(num_people - 0.4, -0.6)
    if not named:
        first.set_ylabel(f"{num_people} subjects, from the largest gain to the largest loss")
    figure.suptitle(f"{title}\nchange against {against}", fontsize=11, color=_INK)
    return save(figure, path)


def _change_panel(axes: Axes, people: pd.DataFrame, *, name: str, labelled: bool) -> None:
    change = people["change"].to_numpy(float)
    helped, hurt = int((change > 1e-9).sum()), int((change < -1e-9).sum())
    colours = [HELPED if value > 1e-9 else HURT if value < -1e-9 else UNCHANGED for value in change]
    axes.barh(np.arange(len(change)), 100 * change, color=colours, height=0.72)
    axes.plot(np.zeros(len(change))[change == 0], np.arange(len(change))[change == 0], "o", color=UNCHANGED, ms=4)
    low, high = min(0.0, 100 * float(np.nanmin(change))), max(0.0, 100 * float(np.nanmax(change)))
    margin = max(2.0, high - low) * (0.2 if labelled else 0.05)
    axes.set_xlim(low - margin, high + margin)
    for row, value in enumerate(change if labelled else ()):
        if not math.isnan(value):
            away, aligned = (5, "left") if value >= 0 else (-5, "right")
            where, offset = (100 * value, row), (away, 0)
            style: dict[str, Any] = {"va": "center", "ha": aligned, "fontsize": 9, "bbox": _BEHIND, "zorder": 5}
            axes.annotate(points(value), where, offset, textcoords="offset points", **style)
    axes.axvline(0, color=_INK, lw=0.8)
    axes.axvline(100 * float(np.nanmean(change)), color=_WITH, lw=1.2, ls=(0, (4, 3)), zorder=0.5)
    unchanged = int((np.abs(change) <= 1e-9).sum())
    axes.set_title(f"{name}: {helped} helped, {hurt} hurt, {unchanged} unchanged", fontsize=11, fontweight="bold")
    axes.set_xlabel(f"change of {name}, points; dashed: the mean, {points(float(np.nanmean(change)))}")
    _plain(axes)


def method_bars(
    path: Path, table: pd.DataFrame, groups: Sequence[tuple[str, Sequence[str]]], *, reference: str, personalized: str
) -> Path:
    """Mean UAR of every method in every cohort, with its 95% interval over subjects.

    Args:
        path: PNG file to write.
        table: from `tables.method_table`.
        groups: heading and methods of each group, from top to bottom; the first is the one without subject baseline.
        reference: a dashed line shows its UAR.
        personalized: shown in bold.
    """
    cohorts = list(table.columns.get_level_values(0).unique())
    rows: list[tuple[str, str | None, str]] = []
    for number, (heading, methods) in enumerate(groups):
        rows += [(heading, None, _INK), *((name, name, _WITH if number else _WITHOUT) for name in methods)]
    names = [textwrap.fill(shorten(label, 92), 50) for label, _, _ in rows]
    row_height = 0.4 if any("\n" in name for name in names) else 0.31
    figure = Figure(figsize=(4.0 + 2.2 * len(cohorts), 1.0 + row_height * len(rows)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(cohorts), sharey=True))
    low = min(
        (value for value in table.xs("uar_low", axis=1, level=1).to_numpy(float).ravel() if value == value), default=0
    )
    floor = 40 if low >= 0.45 else 0
    for axes, cohort in zip(panels, cohorts, strict=True):
        _method_panel(axes, table, rows, cohort, floor=floor, reference=reference)
    first = panels[0]
    first.set_yticks(range(len(rows)), names)
    for tick, (label, method, _) in zip(first.get_yticklabels(), rows, strict=True):
        tick.set_fontsize(9)
        tick.set_fontweight("bold" if label == personalized else "normal")
        tick.set_fontstyle("normal" if method else "italic")
    first.set_ylim(len(rows) - 0.4, -0.6)
    return save(figure, path)


def _method_panel(
    axes: Axes,
    table: pd.DataFrame,
    rows: Sequence[tuple[str, str | None, str]],
    cohort: str,
    *,
    floor: int,
    reference: str,
) -> None:
    for row, (_, method, colour) in enumerate(rows):
        figures = None if method is None else figures_at(table, method, cohort)
        if figures is None:
            continue
        value, low, high = (100 * figures[name] for name in ("uar", "uar_low", "uar_high"))
        axes.barh(row, value - floor, left=floor, color=colour, height=0.7)
        axes.plot([low, high], [row, row], color=_INK, lw=1.4, solid_capstyle="butt")
        axes.text(max(high, value) + 1.5, row, percent(value / 100), va="center", fontsize=9, bbox=_BEHIND, zorder=5)
    known = figures_at(table, reference, cohort)
    if known is not None:
        axes.axvline(100 * known["uar"], color=_INK, lw=1, ls=(0, (4, 3)))
    axes.set_xlim(floor, 109)
    axes.set_xticks([tick for tick in range(0, 101, 20) if tick >= floor])
    axes.set_title(cohort_title(cohort), fontsize=11, fontweight="bold")
    axes.set_xlabel("mean UAR, %")
    _plain(axes)


def prior_lines(path: Path, table: pd.DataFrame, *, reference: str, personalized: str) -> Path:
    """UAR and WAR against the assumed share of the positive class, cohorts side by side.

    Args:
        path: PNG file to write.
        table: from `tables.prior_table`.
        reference: in grey.
        personalized: in blue.
    """
    cohorts = list(dict.fromkeys(table["cohort"]))
    figure = Figure(figsize=(1.2 + 3.3 * len(cohorts), 5.6), layout="constrained")
    panels = figure.subplots(2, len(cohorts), sharex=True, sharey="row", squeeze=False)
    colours = {reference: _WITHOUT, personalized: _WITH}
    for row, metric in enumerate(("uar", "war")):
        for axes, cohort in zip(panels[row], cohorts, strict=True):
            here = table[(table["cohort"] == cohort) & table["method"].isin(list(colours))]
            _prior_panel(axes, here, metric, colours)
        panels[row][0].set_ylabel(f"mean {metric.upper()}, %")
    for axes, cohort in zip(panels[0], cohorts, strict=True):
        axes.set_title(cohort_title(cohort), fontsize=11, fontweight="bold")
    figure.supxlabel("assumed share of the positive class", fontsize=10)
    handles, labels = panels[1][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=2 if len(cohorts) > 2 else 1, fontsize=9, frameon=False
    )
    return save(figure, path)


def _prior_panel(axes: Axes, here: pd.DataFrame, metric: str, colours: dict[str, str]) -> None:
    """One metric in one cohort, over the log odds of the share, as these are what a share adds to the logits."""
    shares = sorted(set(here.loc[~here["own"], "assumed_share"]))
    for method, colour in colours.items():
        mine = here[here["method"] == method]
        own, line = mine[mine["own"]], mine[~mine["own"]]
        name = shorten(method, 48)
        axes.plot(_odds(line["assumed_share"]), 100 * line[metric], "o-", color=colour, lw=1.8, ms=4, label=name)
        stands, values = _odds(own["assumed_share"]), 100 * own[metric]
        label = f"{name}, as it stands"
        axes.plot(stands, values, "D", mfc="white", mec=colour, mew=1.8, ms=9, zorder=4, label=label)
    majority = 100 * float(here[f"majority_{metric}"].mean())
    axes.axhline(majority, color=_INK, lw=1, ls=":", label="always the most frequent class")
    axes.axvline(
        float(_odds(here["positive_share"]).mean()), color=_BURST, lw=5, alpha=0.45, zorder=0, label="true share"
    )
    labelled = _apart(shares, {share: float(odds) for share, odds in zip(shares, _odds(shares), strict=True)})
    axes.set_xticks(_odds(labelled), [share_name(share) for share in labelled], fontsize=9)
    axes.minorticks_off()
    _plain(axes)
    axes.grid(axis="y", color=_FAINT, lw=0.6)


def _apart(shares: Sequence[float], places: Mapping[float, float]) -> list[float]:
    """The shares that get a label: the usual ones first, then those far enough from all labelled ones."""
    kept: list[float] = []
    for share in sorted(shares, key=lambda one: (one not in ASSUMED_SHARES, one)):
        if all(abs(places[share] - places[other]) >= _TICK_GAP for other in kept):
            kept.append(share)
    return sorted(kept)


def _odds(shares: Sequence[float] | pd.Series[float]) -> npt.NDArray[np.floating]:
    values = np.clip(np.asarray(shares, float), 0.001, 0.999)  # a cohort of one class stays on the axis
    odds: npt.NDArray[np.floating] = np.log(values / (1 - values))
    return odds


def confusion_matrices(
    path: Path, counts: Sequence[tuple[str, npt.NDArray[np.int64]]], *, classes: Sequence[str], cohort: str
) -> Path:
    """Confusion matrices side by side, shaded by the share of the true class.

    Args:
        path: PNG file to write.
        counts: names with their matrices [C, C]; rows are true classes.
        classes: names, C.
        cohort: its title.
    """
    size = max(3.1, 0.9 * len(classes) + 1.6)
    figure = Figure(figsize=(size * len(counts) + 0.6, size), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(counts)))
    for axes, (name, matrix) in zip(panels, counts, strict=True):
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 0.55 else _INK
            text = f"{percent(share)}%\n{matrix[row, column]} videos"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=10)
        axes.set_xticks(range(len(classes)), [shorten(name, 14) for name in classes])
        axes.set_yticks(range(len(classes)), [shorten(name, 14) for name in classes], rotation=90, va="center")
        axes.tick_params(length=0)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title("\n".join(_wrapped(name, 34)), fontsize=10, fontweight="bold")
    figure.suptitle(f"Confusion, cohort {cohort}", fontsize=11)
    return save(figure, path)


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def clip_story(path: Path, story: ClipStory, *, num_units: int = 5) -> Path:
    """One clip: the selected window's frames, the entropy of every window, and AUs over time above the true ones.

    Args:
        path: PNG file to write.
        story: the clip.
        num_units: AUs shown at most: those whose similarity in the selected window rises most above the clip's median.
    """
    panels = 2 + (story.truth is not None)
    figure = Figure(figsize=(10, 3.4 + 1.9 * (panels - 1)), layout="constrained")
    strip, *charts = figure.subplots(panels + 1, 1, height_ratios=[1.35, 1.1, *[1.5] * (panels - 1)])
    _strip_panel(strip, story)
    for axes in charts[1:]:
        axes.sharex(charts[0])
    _entropy_panel(charts[0], story)
    units = _risen(story, num_units)
    colours = dict(zip(units, _UNITS * (1 + num_units // len(_UNITS)), strict=False))
    _similarity_panel(charts[1], story, colours)
    if story.truth is not None:
        _truth_panel(charts[2], story, story.truth, colours)
    for axes in charts[:-1]:
        axes.tick_params(labelbottom=False)
    charts[-1].set_xlabel("seconds")
    return save(figure, path)


def _risen(story: ClipStory, limit: int) -> list[str]:
    """Codes of the AUs that rose in the selected window, highest first; empty if none did."""
    similarities = np.asarray(story.similarities, float)
    rise = similarities[story.selected] - np.median(similarities, axis=0)
    return risen(dict(zip(story.codes, rise.tolist(), strict=True)), most=limit)


def _strip_panel(axes: Axes, story: ClipStory) -> None:
    frames = story.frames
    shown = frames[np.unique(np.linspace(0, len(frames) - 1, min(_STRIP, len(frames))).round().astype(int))]
    gap = max(1, shown.shape[2] // 24)
    padded = np.pad(shown, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    axes.imshow(np.concatenate(list(padded), axis=1)[:, :-gap])
    axes.set_axis_off()
    span = f"{story.window_start_seconds:.2f} to {story.window_end_seconds:.2f} s"
    axes.set_title(f"selected window, {span}", fontsize=10, loc="left")
    axes.set_title(shorten(story.clip_id, 44), fontsize=9, loc="right", color=UNCHANGED)


def _entropy_panel(axes: Axes, story: ClipStory) -> None:
    marker = "o" if len(story.window_times) < 40 else ""
    axes.plot(story.window_times, story.entropies, color=_INK, lw=1.4, marker=marker, ms=3)
    axes.set_ylabel("entropy, nats")
    axes.set_ylim(bottom=0)
    _spans(axes, story, labelled=True)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=9, frameon=False, borderaxespad=0.4)
    axes.set_title("entropy of every window's prediction", fontsize=10, loc="left")
    _plain(axes)


def _similarity_panel(axes: Axes, story: ClipStory, colours: dict[str, str]) -> None:
    for code, colour in colours.items():
        values = np.asarray(story.similarities)[:, story.codes.index(code)]
        axes.plot(story.window_times, values, color=colour, lw=1.6, label=title_of(code))
    axes.set_ylabel("similarity, −5 to 5")
    axes.set_title("AU similarities that rose most in the selected window", fontsize=10, loc="left")
    if colours:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=9, frameon=False, borderaxespad=0.4)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, NONE_ROSE, transform=axes.transAxes, ha="center", va="center", fontsize=10, color=_INK)
    _spans(axes, story, labelled=False)
    _plain(axes)


def _truth_panel(axes: Axes, story: ClipStory, truth: pd.DataFrame, colours: dict[str, str]) -> None:
    """The same AUs in the same colours; in grey, by name, other AUs with a high true intensity."""
    times = truth["time_seconds"].to_numpy(float)
    strength = {str(code): float(truth[code].max()) for code in truth.columns if code not in ("time_seconds", "burst")}
    others = sorted((code for code in strength if code not in colours), key=lambda code: -strength[code])[:3]
    for number, code in enumerate(code for code in others if strength[code] >= 0.15):
        style = ("-", "--", ":")[number]
        axes.plot(times, truth[code], color="#767676", lw=1.2, ls=style, label=title_of(code))
    for code, colour in colours.items():
        if code in strength:
            axes.plot(times, truth[code], color=colour, lw=1.6)
    axes.set_ylim(-0.03, 1.05)
    axes.set_ylabel("intensity, 0 to 1")
    unknown = [code for code in colours if code not in strength]
    missing = f"; no truth for {', '.join(map(title_of, unknown))}" if unknown else ""
    which = "same colours; grey: other strong AUs" if colours else "grey: the strongest AUs"
    axes.set_title(f"true intensities, {which}{missing}", fontsize=10, loc="left")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=9, frameon=False, borderaxespad=0.4)
    _spans(axes, story, labelled=False)
    _plain(axes)


def _spans(axes: Axes, story: ClipStory, *, labelled: bool) -> None:
    """Shade the selected window, and underline the true burst."""
    label = "selected window" if labelled else None
    axes.axvspan(story.window_start_seconds, story.window_end_seconds, color=_WINDOW, alpha=0.28, lw=0, label=label)
    for number, (start, end) in enumerate(_bursts(story.truth)):
        label = "true burst" if labelled and number == 0 else None
        axes.axvspan(start, end, ymin=0, ymax=0.05, color=_BURST, lw=0, label=label)


def _bursts(truth: pd.DataFrame | None) -> list[tuple[float, float]]:
    """Start and end, in seconds, of every run of burst frames."""
    if truth is None:
        return []
    times, inside = truth["time_seconds"].to_numpy(float), truth["burst"].to_numpy(bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(int)))
    return [(float(times[start]), float(times[end - 1])) for start, end in edges.reshape(-1, 2)]


def agreement_bars(path: Path, agreement: Sequence[AuAgreement]) -> Path:
    """Rank correlation of each AU's similarity with its true intensity, before and after personalization."""
    ordered = sorted(agreement, key=lambda one: -_or_least(one.rho if one.rho_adapted is None else one.rho_adapted))
    adapted = any(one.rho_adapted is not None for one in ordered)
    figure = Figure(figsize=(9, 1.3 + (0.28 if adapted else 0.24) * len(ordered)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(ordered))
    before = np.array([one.rho for one in ordered], float)
    after = np.array([math.nan if one.rho_adapted is None else one.rho_adapted for one in ordered], float)
    height, shift = (0.38, 0.19) if adapted else (0.7, 0.0)
    axes.barh(rows - shift, before, height=height, color=_WITHOUT, label=f"before, {_mean(before)}")
    if adapted:
        axes.barh(rows + shift, after, height=height, color=_WITH, label=f"personalized, {_mean(after)}")
    for row in rows[np.isnan(before) & (np.isnan(after) | (not adapted))]:
        axes.text(0.01, row, "constant", va="center", fontsize=9, color=UNCHANGED)
    axes.set_yticks(rows, [title_of(one.code) for one in ordered], fontsize=9)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.axvline(0, color=_INK, lw=0.8)
    axes.set_xlim(min(-0.1, float(np.nanmin([*before, *after, 0])) - 0.05), 1)
    windows = max((one.num_windows for one in ordered), default=0)
    axes.set_xlabel(f"Spearman rank correlation with the true intensity, {windows} windows")
    figure.legend(loc="outside upper right", ncols=2, fontsize=9, frameon=False)
    _plain(axes)
    return save(figure, path)


def _or_least(value: float) -> float:
    return -2.0 if math.isnan(value) else value


def _mean(values: npt.NDArray[np.floating]) -> str:
    known = values[~np.isnan(values)]
    return f"mean {known.mean():.2f}" if len(known) else "no AU varies"


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color=_FAINT, lw=0.6)
    axes.set_axisbelow(True)
