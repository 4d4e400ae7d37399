"""Figures of a study, written as PNG: means per condition with their intervals, and every subject as a thin line."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipautt.evaluation.reports.figures import save
from clipautt.evaluation.reports.fonts import shorten
from clipautt.study.measures import Measure
from clipautt.study.summary import Study, cell_names

_MEAN, _PERSON, _INK, _FAINT = "#0072B2", "#8C96A3", "#222222", "#D9D9D9"
_IN_A_ROW = 3
_CROWD = 40
"""Above this number of subjects their lines are fainter."""
_TITLE = 26
"""Letters of a line of a title."""
_LONGEST_NAMES = 30
"""Letters of all conditions' names together that fit below a panel side by side."""


def condition_panels(path: Path, given: Study, measures: Sequence[Measure]) -> Path:
    """A panel per measure: the mean of every condition with its interval, and the subjects behind it.

    Args:
        path: PNG file to write.
        given: the study.
        measures: what is shown, at least one.
    """
    across = min(_IN_A_ROW, len(measures))
    down = math.ceil(len(measures) / across)
    wide = max(3.5, 1.2 + 0.5 * len(given.names))
    figure = Figure(figsize=(wide * across + 0.3, 3.5 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    people, cells = given.subjects, cell_names(given.subjects, given.by)
    means = given.conditions.assign(cell=cell_names(given.conditions, given.by))
    for axes, measure in zip(panels, measures, strict=False):
        values = people.assign(cell=cells).pivot(index="subject", columns="cell", values=measure.name)
        own = means[means["measure"] == measure.name].set_index("cell").reindex(list(given.names))
        _panel(axes, values.reindex(columns=list(given.names)), own, measure)
    for axes in panels[len(measures) :]:
        axes.set_axis_off()
    return save(figure, path)


def _panel(axes: Axes, values: pd.DataFrame, means: pd.DataFrame, measure: Measure) -> None:
    places = np.arange(values.shape[1])
    alpha = 0.55 if len(values) <= _CROWD else 0.25
    numbers = values.to_numpy(float)
    if len(places) == 1:  # side by side, as no line tells the subjects apart
        aside = np.linspace(-0.3, 0.3, len(values)) if len(values) > 1 else np.zeros(1)
        axes.plot(aside, np.sort(numbers[:, 0]), "o", color=_PERSON, ms=3.5, alpha=alpha, zorder=1)
    else:
        for row in numbers:
            known = np.isfinite(row)
            axes.plot(places[known], row[known], "o-", color=_PERSON, lw=0.9, ms=2.6, alpha=alpha, zorder=1)
    middle, low, high = (means[name].to_numpy(float) for name in ("mean", "low", "high"))
    axes.plot(places, middle, "o", color=_MEAN, ms=8, zorder=3)
    sure = np.isfinite(low)
    ends = np.vstack([middle - low, high - middle])[:, sure].clip(min=0)
    axes.errorbar(places[sure], middle[sure], ends, fmt="none", color=_MEAN, lw=2.4, capsize=6, capthick=2, zorder=3)
    axes.set_xlim(-0.5, len(places) - 0.5)
    if measure.unit == "0 to 1":
        axes.set_ylim(-0.03, 1.03)
    _ticks(axes, list(values.columns), means["subjects"].astype(int).tolist())
    axes.set_title(textwrap.fill(shorten(measure.label, 60), _TITLE), fontsize=10, fontweight="bold", loc="left")
    axes.set_ylabel(measure.unit.replace("-", "\N{MINUS SIGN}"), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_FAINT, lw=0.6)
    axes.set_axisbelow(True)


def _ticks(axes: Axes, names: Sequence[str], counts: Sequence[int]) -> None:
    """Names of the conditions with the number of subjects, turned where they need more room."""
    limit = 26 if len(names) > 1 else 40
    labels = [f"{shorten(name, limit)}\nn = {count}" for name, count in zip(names, counts, strict=True)]
    turned = sum(len(shorten(name, limit)) for name in names) + 4 * len(names) > _LONGEST_NAMES + 4 * 2
    if turned:
        labels = [label.replace("\n", ", ") for label in labels]
        axes.set_xticks(range(len(names)), labels, fontsize=9, rotation=35, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(range(len(names)), labels, fontsize=9)
