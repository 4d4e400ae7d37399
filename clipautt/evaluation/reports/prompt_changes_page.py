"""The page of a run's explanations: which AU prompts moved, what that changed, and how far another tool agrees.

Labels are not used, so the page never says that a change was right.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipautt.action_units import title_of
from clipautt.evaluation.prompt_changes import ENOUGH_APART, ENOUGH_CLIPS, SubjectExplanation, enough
from clipautt.evaluation.reports.extraction import Tile
from clipautt.evaluation.reports.fonts import shorten
from clipautt.evaluation.reports.templates import render
from clipautt.files import write_text

PAGE = "explain.html"
MAX_SUBJECTS = 24
"""The most subjects shown on the page; the tables of all are beside it."""

_BEFORE, _AFTER, _INK, _FAINT = "#8C96A3", "#0072B2", "#222222", "#D9D9D9"
_DPI, _SHOWN = 150, 0.64
_MEAN_UNITS, _OWN_UNITS, _MAX_CLIPS = 12, 8, 60
_AT_REST = 1e-9
_NONE = "–"


@dataclass(frozen=True)
class _Picture:
    """A figure inside the page."""

    data: str
    """PNG as a data URI."""
    width: int
    """Width on the page, CSS pixels."""
    alt: str
    """Text alternative."""


@dataclass(frozen=True)
class _Pair:
    """A figure before and after, as text."""

    before: str
    """A dash where it is not defined."""
    after: str
    """Likewise."""
    change: str
    """Difference with its sign."""

    @property
    def text(self) -> str:
        """Both with an arrow, or one dash where neither is defined."""
        return _NONE if self.before == self.after == _NONE else f"{self.before} → {self.after}"


@dataclass(frozen=True)
class _WindowRow:
    """One clip in the table of windows."""

    clip: str
    """Id of the clip."""
    before: str
    """Seconds of the window with the source prompts."""
    after: str
    """Seconds of the window chosen after adaptation."""
    other_window: bool
    """Whether they differ."""
    entropy: _Pair
    """Of the prediction, nats."""
    probability: _Pair
    """Of the positive class."""
    classes: str
    """One name, or before and after."""
    other_class: bool
    """Whether the decision changed."""
    status: str
    """Empty if it is `ok`."""


@dataclass(frozen=True)
class _UnitRow:
    """One AU in the table of agreement."""

    name: str
    """Code and name."""
    rho: _Pair
    """Rank correlation with the intensity."""
    auc: _Pair
    """ROC-AUC for the presence."""
    windows: int
    """Windows with a frame of which the other tool is confident."""
    present: int
    """Of these, windows with the AU."""


@dataclass(frozen=True)
class _Subject:
    """One subject on the page."""

    title: str
    """Id of the subject."""
    folder: str
    """Name of the folder with its tables."""
    clips: int
    """Number of clips."""
    moved: str
    """How far the prompts moved, mean."""
    most: str
    """The AU that moved most."""
    other_windows: int
    """Clips with another window than with the source prompts."""
    other_classes: int
    """Clips with another decision."""
    probability: _Pair
    """Of the positive class, mean over clips."""
    rho: _Pair
    """Rank correlation with the other tool, mean over AUs."""
    sentence: str
    """Number of clips, and where the tables are."""
    figure: _Picture | None
    """The AUs that moved most; None where none moved."""
    windows: list[_WindowRow]
    """Clips that are shown."""
    more: int
    """Clips that are not shown."""
    agreement: list[_UnitRow]
    """Per AU; empty without another tool."""


def write_explanation_page(
    folder: Path,
    explanations: Mapping[str, SubjectExplanation],
    *,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    warnings: Sequence[str] = (),
) -> Path:
    """Write `explain.html` on all explained subjects of a run, whole or not at all.

    Args:
        folder: an existing folder with the subjects' folders.
        explanations: name of a subject's folder → explanation, see `prompt_changes.read_explanations`.
        title: title of the page.
        facts: names and values of what made the explanations.
        warnings: sentences on why the explanations may be worth little; they stand at the top.

    Returns:
        Path of the page, which is self-contained.

    Raises:
        ValueError: without a subject, or if subjects have different prompts or classes.
    """
    _check(explanations)
    ordered = sorted(explanations.items(), key=lambda item: (-_move(item[1]), item[1].subject_id))
    every, shown = [one for _, one in ordered], ordered[:MAX_SUBJECTS]
    mean, tracked = mean_changes(every), [one.aus for one in every if one.aus is not None]
    agreement, solid = mean_agreement(tracked), mean_agreement([enough(table) for table in tracked])
    page = render(
        "explanation.html.j2",
        escape=True,
        title=title,
        headline=_headline(mean),
        sentences=_sentences(every, agreement, solid),
        tiles=_tiles(every, mean, solid),
        tool=_tool(every),
        num_subjects=len(every),
        num_tracked=len(tracked),
        num_hidden=len(every) - len(shown),
        positive=every[0].classes[-1],
        mean=_changes_picture(mean, limit=_MEAN_UNITS, alt="How far the AU prompts moved, mean over subjects"),
        agreement=_unit_rows(agreement),
        agreement_figure=_agreement_picture(solid, tool=_tool(every)),
        subjects=[_subject(name, one) for name, one in shown],
        facts=facts,
        warnings=warnings,
    )
    path = folder / PAGE
    write_text(path, page)
    return path


def _check(explanations: Mapping[str, SubjectExplanation]) -> None:
    if not explanations:
        raise ValueError("explanations is empty; the page needs at least one subject")
    first = next(iter(explanations.values()))
    for one in explanations.values():
        if one.classes != first.classes or list(one.prompts["phrase"]) != list(first.prompts["phrase"]):
            raise ValueError(
                f"subjects {first.subject_id!r} and {one.subject_id!r} have different classes or prompts; one page "
                "holds the subjects of one checkpoint"
            )


def _move(one: SubjectExplanation) -> float:
    """How far a subject's prompts moved, mean over AUs."""
    return float(one.prompts["moved"].mean())


def subject_changes(one: SubjectExplanation) -> pd.DataFrame:
    """Per AU of a subject, in the order of the prompts: `code`, `moved`, and mean similarity `before` and `after`.

    AUs that the backbone never learned are left out.
    """
    mean = one.similarities.groupby("code", sort=False)[["before", "after"]].mean()
    return one.prompts.loc[one.prompts["learned"], ["code", "moved"]].join(mean, on="code")


def mean_changes(explanations: Iterable[SubjectExplanation]) -> pd.DataFrame:
    """`subject_changes`, mean over subjects: each counts once, however many clips it has."""
    every = pd.concat([subject_changes(one) for one in explanations])
    return every.groupby("code", sort=False).mean().reset_index()


def mean_agreement(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Agreement with another tool per AU, mean over the subjects where it is defined; windows are added up."""
    if not any(map(len, tables)):
        return pd.DataFrame()
    every = pd.concat(tables).groupby("code", sort=False)
    figures = every[["rho_before", "rho_after", "auc_before", "auc_after"]].mean()
    return figures.join(every[["num_windows", "num_present", "num_clips", "num_apart"]].sum()).reset_index()


def _tool(every: Iterable[SubjectExplanation]) -> str:
    """The tools that the similarities are compared with."""
    files = [file or {} for one in every for file in one.facts.get("au_files", {}).values()]
    return " and ".join(sorted({str(file["tool"]) for file in files if "tool" in file})) or "another tool"


def _headline(mean: pd.DataFrame) -> str:
    moved = mean[mean["moved"] > _AT_REST].sort_values("moved", ascending=False, kind="stable")
    if moved.empty:
        return "No prompt moved"
    *others, last = [title_of(code) for code in moved["code"].head(3)]
    return f"{', '.join(others)} and {last} moved most" if others else f"{last} moved most"


def _sentences(every: Sequence[SubjectExplanation], agreement: pd.DataFrame, solid: pd.DataFrame) -> list[str]:
    windows = pd.concat([one.windows for one in every])
    sentences = []
    if all(_move(one) <= _AT_REST for one in every):
        sentences.append("The source prompts were used as they are, so similarities are the same before and after.")
    learned = every[0].prompts["learned"]
    if not learned.all():
        sentences.append(
            f"{int((~learned).sum())} of {len(learned)} action units are left out here, because the backbone never "
            "learned them; the tables list them."
        )
    other, changed = int(windows["other_window"].sum()), _num_changed(windows)
    sentences.append(
        f"Of {len(windows)} clips, {other} are predicted from another window than with the source prompts, and "
        f"{changed} get another class."
    )
    fallen = int((windows["status"] != "ok").sum())
    if fallen:
        sentences.append(f"{fallen} fell back to the source prompts; the reason is given with each clip.")
    rho = _mean_rho(solid)
    if rho.before != _NONE:
        compared = len(_compared(solid))
        units = f"{compared} action unit{'' if compared == 1 else 's'}"
        sentences.append(
            f"The mean rank correlation with {_tool(every)} over {units} went from {rho.before} to {rho.after}."
        )
    elif len(agreement):
        sentences.append(
            f"No mean agreement with {_tool(every)} is given: it takes {ENOUGH_CLIPS} clips and {ENOUGH_APART} windows "
            f"that do not overlap of one person, and at most {int(agreement['num_clips'].max())} clips and "
            f"{int(agreement['num_apart'].max())} such windows have a table."
        )
    return sentences


def _tiles(every: Sequence[SubjectExplanation], mean: pd.DataFrame, agreement: pd.DataFrame) -> list[Tile]:
    windows = pd.concat([one.windows for one in every])
    probability = _pair(windows["probability_before"].mean(), windows["probability_after"].mean())
    entropy = _pair(windows["entropy_before"].mean(), windows["entropy_after"].mean())
    tiles = [
        Tile("prompts moved by", _small(mean["moved"].mean()), (f"mean over {len(mean)} AUs, 0 means unchanged",)),
        Tile("window changed", f"{int(windows['other_window'].sum())} of {len(windows)}", ("clips",)),
        Tile("class changed", f"{_num_changed(windows)} of {len(windows)}", ("clips",)),
        Tile(f"mean P({every[0].classes[-1]})", probability.text, ("over clips",)),
        Tile("mean entropy", entropy.text, ("nats, of the predictions",)),
    ]
    if len(agreement):
        rho, files = _mean_rho(agreement), sum(len(one.facts.get("au_files", {})) for one in every)
        line = f"rank correlation, {files} of {len(windows)} clips with a file"
        tiles.append(Tile(_tool(every), rho.text, (line,)))
    return tiles


def _compared(agreement: pd.DataFrame) -> pd.DataFrame:
    """The AUs that have a rank correlation before and after."""
    return agreement.dropna(subset=["rho_before", "rho_after"]) if len(agreement) else agreement


def _mean_rho(agreement: pd.DataFrame | None) -> _Pair:
    """Mean rank correlation over the AUs that have one before and after."""
    known = pd.DataFrame() if agreement is None else _compared(agreement)
    if known.empty:
        return _pair(math.nan, math.nan)
    return _pair(float(known["rho_before"].mean()), float(known["rho_after"].mean()))


def _num_changed(windows: pd.DataFrame) -> int:
    return int((windows["class_before"] != windows["class_after"]).sum())


def _subject(name: str, one: SubjectExplanation) -> _Subject:
    changes, windows = subject_changes(one), one.windows
    furthest = changes.nlargest(1, "moved")
    most = [(title_of(code), moved) for code, moved in zip(furthest["code"], furthest["moved"], strict=True)]
    each = "each clip has its own prompts" if one.facts.get("prompts_per") == "clip" else "one set of prompts"
    alt = f"The AU prompts of {one.subject_id} that moved most, and their similarities before and after"
    return _Subject(
        title=one.subject_id,
        folder=name,
        clips=len(windows),
        moved=_small(_move(one)),
        most=", ".join(f"{name}, {_small(moved)}" for name, moved in most if moved > _AT_REST) or "none",
        other_windows=int(windows["other_window"].sum()),
        other_classes=_num_changed(windows),
        probability=_pair(windows["probability_before"].mean(), windows["probability_after"].mean()),
        rho=_mean_rho(None if one.aus is None else enough(one.aus)),
        sentence=f"{len(windows)} clips, {each}. Tables in {name}/.",
        figure=_changes_picture(changes, limit=_OWN_UNITS, alt=alt),
        windows=_window_rows(windows),
        more=max(0, len(windows) - _MAX_CLIPS),
        agreement=_unit_rows(pd.DataFrame() if one.aus is None else one.aus),
    )


def _window_rows(windows: pd.DataFrame) -> list[_WindowRow]:
    """All clips in their order, or, where there are too many, those whose probability changed most."""
    change = (windows["probability_after"] - windows["probability_before"]).abs()
    kept = change.nlargest(_MAX_CLIPS).index
    shown = windows[windows.index.isin(kept)]
    return [
        _WindowRow(
            clip=row["clip_id"],
            before=f"{row['start_seconds_before']:.2f}–{row['end_seconds_before']:.2f}",
            after=f"{row['start_seconds']:.2f}–{row['end_seconds']:.2f}",
            other_window=bool(row["other_window"]),
            entropy=_pair(row["entropy_before"], row["entropy_after"]),
            probability=_pair(row["probability_before"], row["probability_after"]),
            classes=" → ".join(dict.fromkeys([row["class_before"], row["class_after"]])),
            other_class=row["class_before"] != row["class_after"],
            status="" if row["status"] == "ok" else row["status"],
        )
        for row in shown.to_dict("records")
    ]


def _unit_rows(agreement: pd.DataFrame) -> list[_UnitRow]:
    return [
        _UnitRow(
            name=title_of(str(row["code"])),
            rho=_pair(row["rho_before"], row["rho_after"]),
            auc=_pair(row["auc_before"], row["auc_after"]),
            windows=row["num_windows"],
            present=row["num_present"],
        )
        for row in agreement.to_dict("records")
    ]


def _pair(before: float, after: float) -> _Pair:
    return _Pair(_figure(before), _figure(after), _figure(after - before, signed=True))


def _figure(value: float, *, signed: bool = False) -> str:
    """Two decimals with a typographic minus; a dash for NaN, and no sign for what rounds to zero."""
    if math.isnan(value):
        return _NONE
    rounded = round(value, 2) + 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.2f}".replace("-", "−")


def _small(value: float) -> str:
    """How far a prompt moved: three decimals; `< 0.001` for less, and `0` for a prompt at rest."""
    if value <= _AT_REST:
        return "0"
    return f"{value:.3f}" if value >= 0.0005 else "< 0.001"


def _changes_picture(changes: pd.DataFrame, *, limit: int, alt: str) -> _Picture | None:
    """Left: the prompts that moved most, and how far; right: their similarity before and after. None if none moved."""
    if not (changes["moved"] > _AT_REST).any():
        return None
    shown = changes.sort_values("moved", ascending=False, kind="stable").head(limit)
    rows = np.arange(len(shown))
    figure = Figure(figsize=(11, 1.15 + 0.29 * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.15])
    moved = shown["moved"].to_numpy(float)
    left.barh(rows, moved, color=_AFTER, height=0.66)
    for row, value in zip(rows, moved, strict=True):
        left.annotate(_small(value), (value, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
    left.set_xlim(0, 1.18 * float(moved.max()))
    left.set_yticks(rows, [shorten(title_of(code), 34) for code in shown["code"]], fontsize=9.5)
    left.set_ylim(len(shown) - 0.4, -0.6)
    left.set_xlabel("moved by, 1 − cos")
    left.set_title("prompts that moved most", fontsize=10.5, loc="left")
    _similarity_panel(right, shown)
    for axes in (left, right):
        _plain(axes)
    return _inline(figure, alt)


def _similarity_panel(axes: Axes, shown: pd.DataFrame) -> None:
    """A line from before to after per AU, with a hollow and a filled end."""
    before, after = shown["before"].to_numpy(float), shown["after"].to_numpy(float)
    rows = np.arange(len(shown))
    axes.hlines(rows, before, after, color=_AFTER, lw=2.2, alpha=0.45, zorder=2)
    axes.scatter(before, rows, s=42, facecolor="white", edgecolor=_BEFORE, lw=1.8, zorder=3, label="before")
    axes.scatter(after, rows, s=42, color=_AFTER, zorder=4, label="after")
    axes.axvline(0, color=_INK, lw=0.8)
    axes.margins(x=0.08)
    axes.tick_params(labelleft=False, left=False)
    axes.set_xlabel("AU similarity (−5 to 5), mean over clips")
    axes.set_title("their similarity to the chosen windows", fontsize=10.5, loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=9, frameon=False, borderaxespad=0.2)


def _agreement_picture(agreement: pd.DataFrame, *, tool: str) -> _Picture | None:
    """Rank correlation with another tool per AU before and after, the best agreement at the top; None without any."""
    known = _compared(agreement)
    if known.empty:
        return None
    shown = known.sort_values("rho_after", ascending=False, kind="stable")
    rows = np.arange(len(shown))
    figure = Figure(figsize=(11, 1.3 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for shift, side, colour in ((-0.19, "before", _BEFORE), (0.19, "after", _AFTER)):
        values = shown[f"rho_{side}"].to_numpy(float)
        axes.barh(
            rows + shift,
            values,
            height=0.36,
            color=colour,
            label=f"{side}, mean {_figure(shown[f'rho_{side}'].mean())}",
        )
    axes.set_yticks(rows, [title_of(code) for code in shown["code"]], fontsize=9.5)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.axvline(0, color=_INK, lw=0.8)
    axes.set_xlabel(f"Spearman rank correlation of the AU similarity with the intensity of {tool}, within a subject")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=9, frameon=False, borderaxespad=0.2)
    _plain(axes)
    return _inline(figure, f"Rank correlation of AU similarities with {tool}, before and after")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color=_FAINT, lw=0.6)
    axes.set_axisbelow(True)


def _inline(figure: Figure, alt: str) -> _Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return _Picture(f"data:image/png;base64,{data}", round(figure.get_figwidth() * _DPI * _SHOWN), alt)
