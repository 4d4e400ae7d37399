"""The figure of an answer: label and warnings as text, then the face, the class probabilities and the AUs over time.

In: an answer, see `shown.Answer`. Out: a matplotlib figure, made without pyplot; `rendered` gives its pixels and where
the curves lie in them, which `overlay` puts around the frames of the video.

Colours can be told apart by colour-blind readers: Okabe and Ito, *Color Universal Design* (2008),
https://jfly.uni-koeln.de/color/. Classes are told apart by dashes as well, stretches without a face by hatching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from clipautt.action_units import title_of
from clipautt.evaluation.reports.fonts import plain_text
from clipautt.prediction.lettering import fitting, length, printable, wrapped
from clipautt.prediction.shown import Answer, by_probability, describe, face_states, percent, why_no_units
from clipautt.video.preprocessing import Frames

WIDTH = 960
"""Pixels of the rendered figure."""
FOUND, INFERRED, NOWHERE = "#56B4E9", "#D55E00", "#EDEDED"
"""Colours of a frame in which the face was found, whose box is inferred from the frames around, that has no face."""
INK, GREY, FAINT = "#222222", "#5F6670", "#D9D9D9"
WINDOW, WARNING = "#F0E442", "#FFF3C4"
UNITS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_DASHES: tuple[Any, ...] = ((0, ()), (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)), (0, (3, 1, 1, 1, 1, 1)))
_DPI = 100
_MARGIN, _LEFT, _RIGHT, _LEGEND = 14, 56, 660, 674
_BESIDE = 1 + (_LEGEND - _RIGHT) / (_RIGHT - _LEFT)
"""Left edge of what stands at the right of a chart, in widths of the chart."""
_TITLE, _PLAIN, _SMALL = 15, 9, 8.5
_SPACING = 0.35
"""Space between two names of a legend, in letters."""
_LINE = 18
"""Pixels from one line of small text to the next."""
_CODE = 122
"""Width in pixels of the column of warning codes."""
_MOST_LINES = 4
"""Lines that a warning takes at most."""
_STATE, _TRACK, _PROBABILITY, _HEADING, _SIMILARITY, _BELOW = 30, 16, 92, 26, 112, 46
"""Heights in pixels from top to bottom: the line above the charts, the face, a chart, the heading between, a chart,
and the time axis."""
_BAR, _BELOW_NAME, _ROOM_FOR_BARS = 7, 2, 0.82
"""Height in pixels of an AU's bar, the gap between its name and it, and the space between two names, in letters."""
CURVE = "curve"
"""Mark (gid) of the curves among the lines of a chart."""
_OTHER = "#7A828E"
"""Colour of the classes that are not the label."""
_MOST_POINTS = 40
"""Windows up to which every value has a dot."""
_LOOK: dict[str, dict[str, Any]] = {
    "found": {"facecolor": FOUND, "lw": 0},
    "inferred": {"facecolor": INFERRED, "lw": 0},
    "not seen": {"facecolor": NOWHERE, "edgecolor": "#8A8A8A", "hatch": "//////", "lw": 0},
    "no face detector": {"facecolor": FAINT, "lw": 0},
}
"""State of the face → how it looks in the bar above the charts."""
_BEHIND: dict[str, dict[str, Any]] = {
    "inferred": {"facecolor": INFERRED, "alpha": 0.14},
    "not seen": {"facecolor": "#F6F6F6", "edgecolor": "#CFCFCF", "hatch": "////"},
}
"""State of the face → how it looks behind the curves."""


@dataclass(frozen=True, repr=False)
class Curve:
    """A curve in the pixels of the rendered figure."""

    rows: list[float]
    """Row of each window's value; nan where the window does not count."""
    colour: tuple[int, int, int]
    """RGB."""


@dataclass(frozen=True, repr=False)
class Bar:
    """Room for an AU's bar below its name, in the pixels of the rendered figure."""

    rows: tuple[int, int]
    """First row, and the one after the last."""
    values: list[float]
    """Rise over the usual level in each window; nan where the window does not count."""
    colour: tuple[int, int, int]
    """RGB."""


@dataclass(frozen=True, repr=False)
class Rendered:
    """A figure's pixels, and where things lie in them."""

    pixels: Frames
    """RGB, uint8 [H, 960, 3]; H is even."""
    header: int
    """Rows of text at the top; the charts begin below."""
    left: float
    """Column of the time 0."""
    right: float
    """Column of the end of the video."""
    end_seconds: float
    """The end of the video."""
    charts: list[tuple[int, int, bool]]
    """First and last row of each chart from top to bottom, and whether it shows anything over time."""
    moments: list[float]
    """Middle of every window in seconds."""
    curves: list[Curve]
    """All curves."""
    bars: list[Bar]
    """A bar for each AU with a curve, from top to bottom."""
    bar_columns: tuple[int, int]
    """First column of the bars, and the one after the last."""


def draw(answer: Answer) -> Figure:
    """The figure of an answer: text, the face over time, the class probabilities, and the AUs that rose most."""
    with style.context("default"):  # whatever the notebook uses
        return _drawn(answer)[0]


def rendered(answer: Answer) -> Rendered:
    """The figure of an answer as pixels, with room for bars below the names of the AUs."""
    with style.context("default"):
        figure, header, charts = _drawn(answer, bars=True)
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib does not tell its types
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba(), np.uint8)[:, :, :3].copy()
    height, boxes = len(pixels), [axes.get_window_extent() for axes in charts]
    left, right = (float(charts[0].transData.transform((x, 0))[0]) for x in (0.0, _end(answer)))
    lines = [line for axes in charts for line in axes.lines if line.get_gid() == CURVE]
    bars, columns = _bars(charts[-1], height)
    return Rendered(
        pixels=pixels,
        header=header,
        left=left,
        right=right,
        end_seconds=_end(answer),
        charts=[
            (
                round(height - box.y1),
                round(height - box.y0),
                axes is charts[0] or any(one.axes is axes for one in lines),
            )
            for axes, box in zip(charts, boxes, strict=True)
        ],
        moments=answer.windows["time_seconds"].tolist(),
        curves=[Curve(_rows(line, height), rgb(str(line.get_color()))) for line in lines],
        bars=bars,
        bar_columns=columns,
    )


def _bars(axes: Axes, height: int) -> tuple[list[Bar], tuple[int, int]]:
    """The room below each name in the legend of a drawn chart, and its columns."""
    lines = [line for line in axes.lines if line.get_gid() == CURVE]
    names = [text for legend in axes.artists if isinstance(legend, Legend) for text in legend.get_texts()]
    bars = []
    for line, name in zip(reversed(lines), names, strict=True):  # the first is drawn last
        top = round(height - name.get_window_extent().y0) + _BELOW_NAME
        values = [float(value) for value in np.asarray(line.get_ydata(), float)]
        bars.append(Bar((top, top + _BAR), values, rgb(str(line.get_color()))))
    left = min((round(name.get_window_extent().x0) for name in names), default=_LEGEND)
    return bars, (left, WIDTH - _MARGIN)


def _drawn(answer: Answer, *, bars: bool = False) -> tuple[Figure, int, list[Axes]]:
    """The figure, the height of its header in pixels, and its charts from top to bottom; `bars`: with room for them."""
    header = _Header(answer)
    height = header.height + _STATE + _TRACK + _HEADING + _PROBABILITY + _HEADING + _SIMILARITY + _BELOW
    height += height % 2
    figure = _ShownFigure(figsize=(WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    header.draw(figure)
    top, charts = header.height + _STATE, list[Axes]()
    for size in (_TRACK, _PROBABILITY, _SIMILARITY):
        place = (_LEFT / WIDTH, 1 - (top + size) / height, (_RIGHT - _LEFT) / WIDTH, size / height)
        charts.append(figure.add_axes(place, sharex=charts[0] if charts else None))
        top += size + _HEADING
    frames, windows = answer.frames, answer.windows
    _draw_track(charts[0], answer, frames)
    _draw_probabilities(charts[1], answer, windows)
    _draw_similarities(charts[2], answer, windows, bars=bars)
    for axes in charts:
        axes.tick_params(labelsize=_SMALL, colors=INK, length=3, labelbottom=axes is charts[-1])
    for axes in charts[1:]:
        _shade(axes, answer, frames)
    charts[0].set_xlim(0, _end(answer))
    charts[-1].set_xlabel("seconds", fontsize=_PLAIN, color=INK, labelpad=2)
    plain_text(figure)
    return figure, header.height, charts


class _Header:
    """The text above the charts."""

    def __init__(self, answer: Answer) -> None:
        self.video = printable(Path(answer.video).name)
        known = answer.label is not None
        self.label = (
            "no label" if answer.label is None else f"{answer.label} {percent(answer.probabilities[answer.label])}"
        )
        room = WIDTH - 2 * _MARGIN
        facts = wrapped("  ·  ".join(describe(answer)), room, _PLAIN)
        self.lines = facts if known else [*wrapped(answer.reason, room, _PLAIN), *facts]
        self.warnings = [
            (str(code), wrapped(sentence, room - _CODE - 12, _SMALL, most=_MOST_LINES))
            for code, sentence in answer.cautions.items()
        ]
        self.text_height = 40 + _LINE * len(self.lines) + 6
        rows = sum(len(lines) for _, lines in self.warnings)
        self.height = self.text_height + (_LINE * rows + 14 if rows else 0)
        self.height += self.height % 2

    def draw(self, figure: Figure) -> None:
        """Put it at the top of a figure."""
        high = figure.get_figheight() * _DPI

        def write(x: float, y: float, text: str, size: float, **style: Any) -> None:
            figure.text(x / WIDTH, 1 - y / high, text, fontsize=size, va="center", **({"color": INK} | style))

        write(_MARGIN, 22, fitting(self.label, 520, _TITLE * 1.06), _TITLE, weight="bold")
        write(WIDTH - _MARGIN, 22, fitting(self.video, 380, _PLAIN), _PLAIN, ha="right", color=GREY)
        for number, line in enumerate(self.lines):
            write(_MARGIN, 48 + _LINE * number, line, _PLAIN)
        if not self.warnings:
            return
        below, size = 1 - (self.height - 4) / high, (self.height - self.text_height - 4) / high
        figure.add_artist(Rectangle((0, below), 1, size, color=WARNING, lw=0, transform=figure.transFigure))
        y = self.text_height + 14
        for code, lines in self.warnings:
            write(_MARGIN, y, f"! {code}", _SMALL, weight="bold")
            for line in lines:
                write(_MARGIN + _CODE + 12, y, line, _SMALL)
                y += _LINE


def _draw_track(axes: Axes, answer: Answer, frames: pd.DataFrame) -> None:
    """Whether the face was found, frame by frame."""
    states = face_states(frames)
    for state, start, end in _runs(states, frames["time_seconds"].to_numpy(float), _end(answer)):
        axes.add_patch(Rectangle((start, 0), end - start, 1, **_LOOK[state]))
    axes.set_ylim(0, 1)
    axes.set_yticks([0.5], ["face"], fontsize=_SMALL)
    axes.tick_params(left=False, bottom=False)
    axes.spines[:].set_visible(False)
    shown = [state for state in _LOOK if state in set(states)]
    _legend(axes, [Patch(**_LOOK[state]) for state in shown], shown, above=1.9, columns=len(shown))
    if answer.label is not None:
        for edge in (answer.window_start_seconds, answer.window_end_seconds):
            axes.axvline(edge, color=INK, lw=1.1)
        handle = Patch(facecolor=WINDOW, edgecolor=INK, lw=0.8)
        _legend(axes, [handle], ["most expressive window"], above=0.72, columns=2)


def _draw_probabilities(axes: Axes, answer: Answer, windows: pd.DataFrame) -> None:
    ordered = by_probability(answer)
    curves = [
        _Line(
            name,
            windows[f"probability_{name}"],
            INK if name == answer.label else _OTHER,
            dashes,
            percent(answer.probabilities[name]),
        )
        for name, dashes in zip(ordered, _DASHES, strict=False)
    ]
    heading = "class probability in the window around each moment"
    if len(ordered) > len(curves):
        heading += f": the {len(curves)} most probable of {len(ordered)} classes"
    axes.set_title(heading, fontsize=_PLAIN, loc="left", color=INK, pad=5)
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    _draw_curves(axes, windows, curves)
    if not curves:
        _say(axes, f"no curves: {answer.reason}")


def _draw_similarities(axes: Axes, answer: Answer, windows: pd.DataFrame, *, bars: bool) -> None:
    heading = "AUs that rose most in that window: cosine with their phrase, less its median"
    axes.set_title(heading, fontsize=_PLAIN, loc="left", color=INK, pad=5)
    why = why_no_units(answer)
    if why:
        axes.set_yticks([])
        _draw_curves(axes, windows, [])
        _say(axes, why if answer.label is not None else "no curves: there is no label")
        return
    curves = [
        _Line(title_of(str(code)), windows[str(code)] - windows[str(code)].median(), colour, "-", f"{row['rise']:+.3f}")
        for (code, row), colour in zip(answer.top_action_units.iterrows(), UNITS, strict=False)
    ]
    _draw_curves(axes, windows, curves, spacing=_ROOM_FOR_BARS if bars else _SPACING)
    if bars:
        _beside(axes, "bars: the values at this moment", 1 + 9 / _SIMILARITY)
    known = pd.concat([curve.values for curve in curves]).dropna()
    room = max(0.005, 0.08 * (known.max() - known.min()))
    axes.set_ylim(known.min() - room, known.max() + room)
    axes.locator_params(axis="y", nbins=4)
    if answer.not_learned:
        note = f"left out: {len(answer.not_learned)} AUs that the\nbackbone never learned"
        _beside(axes, note, -(_BELOW - 6) / _SIMILARITY)


def _beside(axes: Axes, text: str, above: float) -> None:
    """A small text at the right of the axes, its lower edge at a share of their height."""
    place = (_BESIDE, above)
    axes.text(*place, text, transform=axes.transAxes, fontsize=_SMALL, color=GREY, va="bottom")


class _ShownFigure(Figure):
    """A figure that a notebook shows by itself, without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


@dataclass(frozen=True, eq=False)
class _Line:
    """A curve of a chart."""

    name: str
    values: pd.Series[float]
    """A value per window; nan where it does not count."""
    colour: str
    dashes: Any
    said: str
    """Its number in the most expressive window."""


def _draw_curves(axes: Axes, windows: pd.DataFrame, curves: Sequence[_Line], *, spacing: float = _SPACING) -> None:
    """Curves, the first of them uppermost, with their legend at the right."""
    times = windows["time_seconds"].to_numpy(float)
    for curve in reversed(curves):
        values = curve.values.to_numpy(float)
        width = 2.0 if curve.colour == INK else 1.5
        axes.plot(times, values, color=curve.colour, lw=width, ls=curve.dashes, label=curve.name, gid=CURVE)
        dotted = _lonely(values) if len(times) > _MOST_POINTS else np.isfinite(values)
        axes.plot(times[dotted], values[dotted], "o", color=curve.colour, ms=3, label="_dots")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="both", color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    room = WIDTH - _MARGIN - _LEGEND - 36  # beside the sample of the line
    names = [fitting(curve.name, room - length(f"  {curve.said}", _PLAIN), _PLAIN) for curve in curves]
    handles = [Line2D([], [], color=curve.colour, ls=curve.dashes, lw=2) for curve in curves]
    labels = [f"{name}  {curve.said}" for name, curve in zip(names, curves, strict=True)]
    _legend(axes, handles, labels, above=1.06, spacing=spacing)


def _legend(
    axes: Axes,
    handles: Sequence[Any],
    labels: Sequence[str],
    *,
    above: float,
    columns: int = 0,
    spacing: float = _SPACING,
) -> None:
    """A legend at the right of the axes, in columns, or in one with long samples of lines."""
    if not handles:
        return
    legend = Legend(
        axes,
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(_BESIDE, above),
        bbox_transform=axes.transAxes,
        ncols=columns or 1,
        fontsize=_PLAIN,
        frameon=False,
        borderaxespad=0,
        borderpad=0,
        handlelength=1.1 if columns else 2.0,
        handletextpad=0.6,
        labelspacing=spacing,
        columnspacing=1.2,
    )
    legend.set_clip_on(False)
    axes.add_artist(legend)


def _lonely(values: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Which values have no known neighbour, so that a line would not show them."""
    known = np.concatenate([[False], np.isfinite(values), [False]])
    return np.asarray(known[1:-1] & ~known[:-2] & ~known[2:])


def _shade(axes: Axes, answer: Answer, frames: pd.DataFrame) -> None:
    """Mark the most expressive window, and the stretches in which the face was not found."""
    times = frames["time_seconds"].to_numpy(float)
    for state, start, stop in _runs(face_states(frames), times, _end(answer)):
        if state in _BEHIND:
            axes.axvspan(start, stop, zorder=0.4, lw=0, **_BEHIND[state])
    if answer.label is None:
        return
    axes.axvspan(answer.window_start_seconds, answer.window_end_seconds, facecolor=WINDOW, alpha=0.4, lw=0, zorder=0.5)
    for edge in (answer.window_start_seconds, answer.window_end_seconds):
        axes.axvline(edge, color=INK, lw=1.1, zorder=2.5, ls=(0, (2, 1.5)))


def _say(axes: Axes, text: str) -> None:
    """A sentence in the middle of empty axes."""
    lines = "\n".join(wrapped(text, _RIGHT - _LEFT - 60, _PLAIN, most=_MOST_LINES))
    look = {"facecolor": "white", "edgecolor": "none", "pad": 3}
    axes.text(
        0.5, 0.5, lines, transform=axes.transAxes, ha="center", va="center", fontsize=_PLAIN, color=INK, bbox=look
    )


def _runs(states: Sequence[str], times: npt.NDArray[np.float64], end: float) -> list[tuple[str, float, float]]:
    """Stretches of equal states with their start and end in seconds."""
    edges = [i for i in range(len(states)) if i == 0 or states[i] != states[i - 1]]
    stops = [*(float(times[i]) for i in edges[1:]), end]
    return [(states[i], float(times[i]), stop) for i, stop in zip(edges, stops, strict=True)]


def _end(answer: Answer) -> float:
    """End of the time axis; one frame has no length of its own."""
    return answer.duration_seconds if answer.duration_seconds > 0 else 0.04


def _rows(line: Line2D, height: int) -> list[float]:
    points = np.column_stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)])
    assert line.axes is not None
    return [float(y) for y in height - line.axes.transData.transform(points)[:, 1]]


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour, 0 to 255 each."""
    red, green, blue = (round(255 * part) for part in to_rgb(colour))
    return red, green, blue
