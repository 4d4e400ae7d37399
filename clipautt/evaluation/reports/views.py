"""Method tables as cells of text, ready for a template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from clipautt.evaluation.reports.sentences import Addition, MethodFacts, effect_of
from clipautt.evaluation.reports.tables import (
    SAME_SHARE,
    at_share,
    cohort_order,
    cohort_title,
    figures_at,
    percent,
    points,
    quoted,
    share_name,
    value_range,
)
from clipautt.evaluation.stories import ClipStory
from clipautt.metrics import Interval

SETTINGS = (
    "objective",
    "protocol",
    "subject baseline",
    "readout",
    "L",
    "stride",
    "M",
    "steps",
    "learning rate",
    "videos/s",
    "fell back",
)
"""Headings of `setting_rows`, after the method."""


_SAME_PRIOR = 1e-6  # above the rounding of a float32 prior, below any difference that matters


@dataclass(frozen=True)
class Cell:
    """One figure."""

    text: str = ""
    """The figure."""
    spread: str = ""
    """Spread over seeds, shown after the figure."""
    under: tuple[str, ...] = ()
    """Smaller lines below: the change, and its interval."""
    effect: str = ""
    """`helped` or `hurt` where the second line is a clear difference."""
    tag: str = ""
    """A warning."""


@dataclass(frozen=True)
class Row:
    """One method."""

    name: str
    """Name of the method."""
    kind: str
    """`chosen`, `reference`, `majority` or empty."""
    tag: str
    """Shown after the name."""
    cells: tuple[Cell, ...]
    """UAR, WAR and F1 of every cohort."""


@dataclass(frozen=True)
class Group:
    """Methods that share a subject baseline."""

    heading: str
    """Heading above the rows."""
    rows: tuple[Row, ...]
    """From simple to elaborate."""


@dataclass(frozen=True)
class CohortHead:
    """Heading of a cohort's columns."""

    title: str
    """Its name."""
    facts: str
    """Share of positives, subjects, videos."""


@dataclass(frozen=True)
class TableView:
    """A whole table."""

    cohorts: tuple[CohortHead, ...]
    """From left to right, three columns each."""
    groups: tuple[Group, ...]
    """From top to bottom."""
    first: str = "method"
    """Heading of the rows' names."""


@dataclass(frozen=True)
class Tile:
    """A key number."""

    name: str
    """What it is."""
    big: str
    """The number."""
    lines: tuple[str, ...]
    """Smaller lines below it."""


def grouped(facts: Sequence[MethodFacts], present: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Headings with their methods: those without subject baseline first, in the order of `facts`."""
    groups: dict[str, list[str]] = {}
    for one in facts:
        if one.method in present:
            groups.setdefault(one.subject_baseline, []).append(one.method)
    return [
        ("Without subject baseline" if name == "none" else f"With {name} subject baseline", methods)
        for name, methods in groups.items()
    ]


def table_view(
    table: pd.DataFrame, groups: Sequence[tuple[str, Sequence[str]]], *, reference: str, personalized: str
) -> TableView:
    """A method table in percent, with the majority predictor of the same videos in its first row.

    Args:
        table: from `tables.method_table`.
        groups: from `grouped`.
        reference: marked as such.
        personalized: marked as the default.
    """
    cohorts = list(table.columns.get_level_values(0).unique())
    marks = {reference: ("reference", "reference"), personalized: ("chosen", "default")}
    views = []
    for heading, methods in groups:
        rows = []
        for method in methods:
            kind, tag = marks.get(method, ("", ""))
            cells = (cell for cohort in cohorts for cell in _cells(figures_at(table, method, cohort)))
            rows.append(Row(method, kind, tag, tuple(cells)))
        views.append(Group(heading, tuple(rows)))
    if views:
        majority = tuple(cell for cohort in cohorts for cell in _majority(table[cohort]))
        constant = Row("always the most frequent class", "majority", "", majority)
        views.insert(0, Group("Majority predictor, on the same videos", (constant,)))
    return TableView(tuple(_cohort_head(name, table[name]) for name in cohorts), tuple(views))


def _cohort_head(name: str, figures: pd.DataFrame) -> CohortHead:
    subjects, videos = (_count_range(figures[column]) for column in ("num_subjects", "num_videos"))
    return CohortHead(
        cohort_title(name), f"{value_range(figures['positive_share'])}% positive, {subjects} subjects, {videos} videos"
    )


def _count_range(values: pd.Series[float]) -> str:
    low, high = values.min(), values.max()
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def _majority(figures: pd.DataFrame) -> tuple[Cell, ...]:
    return tuple(Cell(value_range(figures[f"majority_{name}"])) for name in ("uar", "war", "f1"))


def _cells(figures: dict[str, float] | None) -> tuple[Cell, ...]:
    if figures is None:
        return Cell("\N{EN DASH}"), Cell("\N{EN DASH}"), Cell("\N{EN DASH}")
    under: tuple[str, ...] = ()
    effect, num_people = "", int(figures["num_subjects"])
    if not math.isnan(figures["uar_gain"]):
        gain = Interval(figures["uar_gain"], figures["uar_gain_low"], figures["uar_gain_high"])
        under, effect = (points(gain.mean), f"{points(gain.low)} to {points(gain.high)}"), effect_of(gain, num_people)
    constant = int(figures["num_one_class"])
    one_class = f"one class for {constant} of {num_people}" if constant else ""
    (uar, around), war, f1 = (_figure(figures, name) for name in ("uar", "war", "f1"))
    tag = "one class" if figures["degenerate"] else one_class
    return Cell(uar, around, under, effect, tag), Cell(*war), Cell(*f1)


def _figure(figures: dict[str, float], name: str) -> tuple[str, str]:
    """A figure and its spread over seeds, where there are several."""
    spread = figures[f"{name}_spread"]
    return percent(figures[name]), "" if math.isnan(spread) else f"±{percent(spread)}"


def _with_interval(change: Interval) -> str:
    return f"{points(change.mean)} ({points(change.low)} to {points(change.high)})"


def tiles(table: pd.DataFrame, *, reference: str, personalized: str) -> list[Tile]:
    """A tile per cohort: UAR before and after, the difference with its interval, WAR and F1."""
    shown = []
    for cohort in table.columns.get_level_values(0).unique():
        before, after = figures_at(table, reference, cohort), figures_at(table, personalized, cohort)
        if before is None or after is None:
            continue
        uar, war, f1 = (_before_after(before[name], after[name]) for name in ("uar", "war", "f1"))
        change = Interval(after["uar_gain"], after["uar_gain_low"], after["uar_gain_high"])
        lines = (f"{_with_interval(change)} points", f"WAR {war}", f"F1 {f1}")
        shown.append(Tile(f"mean UAR, {cohort_title(cohort)}", uar, lines))
    return shown


def prior_view(table: pd.DataFrame, methods: Sequence[str]) -> TableView:
    """UAR, WAR and F1 of some methods as they stand and under every assumed share.

    Args:
        table: from `tables.prior_table`.
        methods: names; each gets a group of rows.
    """
    shown = table[table["method"].isin(list(methods))]
    cohorts = cohort_order(shown)
    heads = []
    for cohort in cohorts:
        true = shown.loc[shown["cohort"] == cohort, "positive_share"]
        heads.append(CohortHead(cohort_title(cohort), f"{value_range(true)}% positive"))
    groups = [Group(name, _prior_rows(shown[shown["method"] == name], cohorts)) for name in methods]
    return TableView(tuple(heads), tuple(groups), first="assumed share")


def _prior_rows(mine: pd.DataFrame, cohorts: Sequence[str]) -> tuple[Row, ...]:
    """One method's rows, one per assumed share; the row of its decisions as they stand is marked, or added first."""
    own, assumed = mine[mine["own"]], mine[~mine["own"]]
    low, high = own["assumed_share"].min(), own["assumed_share"].max()
    rows, marked = [], False
    for share in sorted(set(assumed["assumed_share"])):
        stands = max(abs(low - share), abs(high - share)) < _SAME_PRIOR
        marked |= stands
        kind, tag = ("reference", "as it stands") if stands else ("", "")
        rows.append(Row(share_name(share), kind, tag, _prior_cells(at_share(assumed, share), cohorts)))
    if not marked:
        name = share_name(low) if high - low < SAME_SHARE else f"{share_name(low)} to {share_name(high)}"
        rows.insert(0, Row(name, "reference", "as it stands", _prior_cells(own, cohorts)))
    return tuple(rows)


def _prior_cells(part: pd.DataFrame, cohorts: Sequence[str]) -> tuple[Cell, ...]:
    names = ["uar", "war", "f1"]
    figures = part.set_index("cohort")[names].reindex(list(cohorts)).to_numpy(float).ravel()
    return tuple(Cell("\N{EN DASH}" if math.isnan(value) else percent(value)) for value in figures)


def prior_markdown(view: TableView) -> str:
    """`prior_view` as Markdown, a table per group."""
    head = [view.first, *(f"{cohort.title} {name}" for cohort in view.cohorts for name in ("UAR", "WAR", "F1"))]
    rule = ["---", *["---:"] * (len(head) - 1)]
    tables = []
    for group in view.groups:
        rows = [
            [f"{row.name} ({row.tag})" if row.tag else row.name, *(c.text for c in row.cells)] for row in group.rows
        ]
        lines = "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))
        tables.append(f"{group.heading}:\n\n{lines}\n")
    return "\n".join(tables)


def _before_after(before: float, after: float) -> str:
    return f"{percent(before)} \N{RIGHTWARDS ARROW} {percent(after)}"


def addition_rows(compared: Sequence[Addition]) -> list[dict[str, str]]:
    """The comparisons with and without adaptation, a row per method."""
    readings = {"helped": "helps", "hurt": "hurts", "unclear": "no clear effect"}
    return [
        {
            "method": one.method,
            "alone": one.alone,
            "baseline": one.subject_baseline,
            "before": percent(one.before),
            "after": percent(one.after),
            "difference": _with_interval(one.difference),
            "effect": one.effect,
            "reading": readings[one.effect],
        }
        for one in compared
    ]


def setting_rows(facts: Sequence[MethodFacts]) -> list[list[str]]:
    """How every method was run: its name, then a cell per heading of `SETTINGS`."""
    rows = []
    for one in facts:
        fell_back = f"{one.num_fallbacks} of {one.num_rows} videos: {one.fallback}" if one.num_fallbacks else "none"
        speed = "\N{EN DASH}" if math.isnan(one.videos_per_second) else f"{one.videos_per_second:.1f}"
        settings = [one.objective, one.protocol, one.subject_baseline, one.readout, one.window_length]
        settings += [one.window_stride, one.context_tokens, one.steps, one.learning_rate]
        rows.append([one.method, *settings, speed, fell_back])
    return rows


def story_words(story: ClipStory, *, reference: str, positive: str) -> dict[str, str]:
    """Heading, tag and sentence of a clip."""
    before, after = story.prediction_before == story.label, story.prediction_after == story.label
    tags = {
        (False, True): ("helped", "wrong, now right"),
        (True, False): ("hurt", "right, now wrong"),
        (True, True): ("", "right both times"),
        (False, False): ("", "wrong both times"),
    }
    kind, tag = tags[before, after]
    sentence = (
        f"True class: {story.label}. {quoted(reference)} predicts {story.prediction_before} "
        f"({percent(story.probability_before)}% {positive}); the personalized model predicts {story.prediction_after} "
        f"({percent(story.probability_after)}% {positive})."
    )
    return {"title": f"{story.clip_id}, subject {story.subject_id}", "kind": kind, "tag": tag, "sentence": sentence}
