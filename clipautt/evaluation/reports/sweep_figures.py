"""Figures of a sweep, from a table with one row per trial to PNG: window lengths, history, importances."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clipautt.evaluation.reports.figures import HURT, UNCHANGED, save

_BEST, _MEDIAN, _INK, _FAINT = "#0072B2", "#E69F00", "#222222", "#D9D9D9"
_MOST_TICKS = 14
_LEAST_SPAN = 4.0  # Points of UAR on the axis, so that noise does not look like an effect.


def window_curve(path: Path, trials: pd.DataFrame) -> Path:
    """Best and median UAR of the trials at each window length, every trial as a dot.

    Args:
        path: PNG file to write.
        trials: finished trials, with `window_length` in frames and `uar` in 0..1.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    percents = 100 * trials["uar"]
    groups = percents.groupby(trials["window_length"])
    lengths = np.sort(trials["window_length"].unique())
    axes.plot(trials["window_length"], percents, "o", color=UNCHANGED, ms=4, alpha=0.5, label="one trial")
    axes.plot(
        lengths, groups.median()[lengths], "--s", color=_MEDIAN, lw=1.6, ms=9, mfc="none", mew=1.6, label="median"
    )
    axes.plot(lengths, groups.max()[lengths], "-o", color=_BEST, lw=2, ms=6, label="best")
    if len(lengths) <= _MOST_TICKS:
        counts = groups.size()[lengths]
        axes.set_xticks(lengths, [f"{length:g}\nn={count}" for length, count in zip(lengths, counts, strict=True)])
    axes.set_xlabel("window length, frames" + "; n trials each" * (len(lengths) <= _MOST_TICKS))
    _percent_axis(axes, percents)
    axes.set_title("UAR on unseen validation subjects by window length", fontsize=11, loc="left", fontweight="bold")
    _legend(axes)
    return save(figure, path)


def history(path: Path, trials: pd.DataFrame) -> Path:
    """UAR of every trial in order and the best so far; failed trials as crosses at the bottom.

    Args:
        path: PNG file to write.
        trials: all trials by `number`, with `status` and `uar`; at least one is `ok`.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    ordered = trials.sort_values("number")
    done, failed = ordered[ordered["status"] == "ok"], ordered[ordered["status"] != "ok"]
    percents = 100 * done["uar"]
    axes.plot(done["number"], percents, "o", color=UNCHANGED, ms=5, label="trial")
    so_far = percents.cummax()
    ends = [*done["number"], ordered["number"].max()]
    axes.step(ends, [*so_far, so_far.iloc[-1]], where="post", color=_BEST, lw=2, label="best so far")
    best = int(percents.argmax())
    where, offset = (done["number"].iloc[best], percents.iloc[best]), (0, 7)
    axes.annotate(
        f"{percents.iloc[best]:.1f}",
        where,
        offset,
        textcoords="offset points",
        ha="center",
        color=_BEST,
        fontweight="bold",
    )
    _percent_axis(axes, percents)
    if len(failed):
        foot = np.full(len(failed), 0.03)
        axes.plot(
            failed["number"], foot, "x", color=HURT, ms=7, mew=2, transform=axes.get_xaxis_transform(), label="failed"
        )
    axes.set_xlim(ordered["number"].min() - 0.7, ordered["number"].max() + 0.7)
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_title("UAR on unseen validation subjects, trial by trial", fontsize=11, loc="left", fontweight="bold")
    _legend(axes)
    return save(figure, path)


def importances(path: Path, shares: Mapping[str, float], *, num_trials: int) -> Path:
    """How much of the difference between trials each setting explains.

    Args:
        path: PNG file to write.
        shares: setting → its share; they sum to 1.
        num_trials: number of trials from which the shares are estimated.
    """
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    figure = Figure(figsize=(7, 1.4 + 0.36 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    values = [100 * share for _, share in ordered]
    axes.barh(range(len(ordered)), values, color=_BEST, height=0.65)
    for row, value in enumerate(values):
        axes.annotate(f"{value:.0f}", (value, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(ordered)), [name.replace("_", " ") for name, _ in ordered])
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max([*values, 1]))
    axes.set_xlabel(f"share of the importance, %, estimated from {num_trials} trials")
    axes.set_title("Which settings make a trial good (PED-ANOVA)", fontsize=11, loc="left", fontweight="bold")
    _plain(axes, grid="x")
    return save(figure, path)


def _percent_axis(axes: Axes, percents: pd.Series[float]) -> None:
    low, high = float(percents.min()), float(percents.max())
    slack = max(0.12 * (high - low), (_LEAST_SPAN - (high - low)) / 2)
    axes.set_ylim(low - slack, high + slack)
    axes.set_ylabel("mean UAR, %")
    _plain(axes, grid="y")


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9, frameon=False, borderaxespad=0.4)


def _plain(axes: Axes, *, grid: Literal["x", "y"]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=_FAINT, lw=0.6)
    axes.tick_params(colors=_INK)
    axes.set_axisbelow(True)
