"""What the figures of a sweep share: axes, ticks, names and legends."""

from __future__ import annotations

import math
import textwrap
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipautt.evaluation.reports.fonts import shorten

INK, FAINT = "#222222", "#D9D9D9"
_LEAST_SPAN = 4.0
"""Points on an axis at least, so that noise does not look like an effect."""


def wrapped(name: str, wide: int, *, lines: int) -> str:
    """A name in at most so many lines of so many letters, spaces for underscores, its middle left out if needed."""
    return textwrap.fill(shorten(name.replace("_", " "), wide * lines - lines), wide)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends, at most about six."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
        if len(ticks) <= 6:
            break
    return ticks if len(ticks) > 1 else [low, high]


def jitter(numbers: pd.Series, width: float) -> npt.NDArray[np.float64]:
    """Sidesteps that follow from the trials' numbers, so that equal trials give equal figures."""
    golden = 0.6180339887
    return np.asarray(2 * width * ((numbers.to_numpy(float) * golden) % 1 - 0.5))


def value_axis(axes: Axes, percents: npt.NDArray[np.floating], name: str, *, below: float = 0.06) -> None:
    """A vertical axis that holds these values, with room below (a share of its height) and a little above."""
    low, high = float(np.min(percents)), float(np.max(percents))
    slack = max(0.0, (_LEAST_SPAN - (high - low)) / 2)
    span = high - low + 2 * slack
    axes.set_ylim(low - slack - below * span, high + slack + 0.1 * span)
    axes.set_ylabel(f"{name}, %" if name else "")
    plain(axes, grid="y")


def legend(figure: Figure) -> None:
    """One line above the first panel of a figure."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=6, fontsize=9, frameon=False)


def plain(axes: Axes, *, grid: Literal["x", "y"]) -> None:
    """Two spines and faint lines along one axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=FAINT, lw=0.6)
    axes.tick_params(colors=INK)
    axes.set_axisbelow(True)
