"""What may be said of a sweep, as sentences: nothing that the trials do not hold.

In: a `SweepReport`. Out: sentences for the page, and lines for the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from clipautt.evaluation.reports.sentences import MIN_SUBJECTS, effect_of
from clipautt.evaluation.reports.tables import percent, points
from clipautt.metrics import Interval
from clipautt.selection.curves import Curve
from clipautt.selection.importances import Importances
from clipautt.selection.report import SECONDS, HeldOut, SweepReport, name_of
from clipautt.selection.trials import STATUSES, Dimension, text

_NAMED = 10
"""Trials that a sentence names."""
_WORDS = {"ok": "finished", "pruned": "pruned early", "failed": "failed", "interrupted": "interrupted"}


def summary_lines(report: SweepReport) -> list[str]:
    """The conclusions for the terminal, one sentence or two a line."""
    if report.best is None:
        return [counts(report), headline(report)]
    lines = [counts(report), *chosen_words(report), level_words(report), clip_words(report)]
    main = report.conclusions.main
    if main is not None:
        lines.append(curve_words(report, main))
    lines += importance_words(report.conclusions.importances)
    return [line for line in [*lines, pruned_words(report)] if line]


def headline(report: SweepReport) -> str:
    """The chosen trial and what it is worth."""
    held, best = report.held_out, report.best
    if best is None:
        return "No trial finished, so nothing can be concluded"
    if held is not None and math.isfinite(held.uar.mean):
        return f"Trial {best}: UAR {percent(held.uar.mean)}% on {_people(held.subjects)} that no trial saw"
    return f"Trial {best}: {_shown(report)} in the trials, which is more than it is worth"


def _shown(report: SweepReport) -> str:
    """Name and value of the chosen trial."""
    return f"{name_of(report.value)} {percent(float(report.conclusions.ranked['value'].iloc[0]))}%"


def counts(report: SweepReport) -> str:
    """How many trials there are, and what became of them."""
    number = report.trials["status"].value_counts()
    parts = [f"{number[status]} {_WORDS[status]}" for status in STATUSES if number.get(status, 0)]
    return f"{_counted(len(report.trials), 'trial')}{': ' if parts else ''}{', '.join(parts)}."


def pruned_words(report: SweepReport) -> str:
    """What curves and importances lack where trials were pruned."""
    pruned = int((report.trials["status"] == "pruned").sum())
    if not pruned:
        return ""
    return (
        f"Curves and importances rest on the finished trials alone: what made {_counted(pruned, 'trial')} bad enough "
        "to be pruned is missing there, so that bad settings look better than they are."
    )


def chosen_words(report: SweepReport) -> list[str]:
    """What the chosen trial is worth on subjects that no trial saw, and why its value in the trials is more."""
    held, alone = report.held_out, report.compared == 1
    if held is None:
        best_of = "" if alone else f", and {_best_of(report)}"
        return [
            f"Trial {report.best} has {_shown(report)} in the trials. No subjects were held out{best_of}: what it is "
            "worth on new people is not known."
        ]
    told = [
        f"On {_people(held.subjects)} that no trial saw, trial {held.trial} has UAR {_interval(held.uar)}.",
        _gain_words(held),
    ]
    if not alone:
        told.append(f"In the trials it had UAR {percent(held.value)}%: {_best_of(report)}.")
    if held.looks > 1:
        told.append(
            f"These subjects have now judged {held.looks} choices. Who keeps the best of them chooses on these "
            "subjects, too; hold out others for a final figure."
        )
    return told


def _best_of(report: SweepReport) -> str:
    if tuple(report.objectives) == (SECONDS,):
        return "it was chosen for its speed alone"
    chosen = "among the best" if len(report.objectives) > 1 else "the best"
    return f"the value in the trials is too good, because it is {chosen} of {report.compared}"


def _gain_words(held: HeldOut) -> str:
    gain = held.gain
    if not math.isfinite(gain.mean):
        return "It is not compared with CLIP-AU."
    if held.subjects < MIN_SUBJECTS or not (math.isfinite(gain.low) and math.isfinite(gain.high)):
        return (
            f"Against CLIP-AU on the same subjects: {points(gain.mean)} points; too few subjects for a verdict, which "
            f"needs at least {MIN_SUBJECTS}."
        )
    size = f"{points(gain.mean)} points, 95% interval {points(gain.low)} to {points(gain.high)}, paired"
    effect = effect_of(gain, held.subjects)
    if effect == "unclear":
        return f"No difference to CLIP-AU on the same subjects could be shown ({size})."
    return f"It is {'better' if effect == 'helped' else 'worse'} than CLIP-AU on the same subjects ({size})."


def level_words(report: SweepReport) -> str:
    """Which other trials cannot be told apart from the chosen one."""
    others = report.conclusions.ranked.iloc[1:]
    if others.empty:
        return "No other trial finished."
    judged = others[others["apart"].notna()]
    if judged.empty:
        return (
            f"Whether other trials differ from trial {report.best} is not known: that takes the values of at least "
            f"{MIN_SUBJECTS} subjects."
        )
    level = judged.loc[~judged["apart"].astype(bool), "number"].tolist()
    how = "(95% confidence, paired over subjects, allowing for having picked the best)"
    if not level:
        which = f"All {len(judged)} other trials differ" if len(judged) > 1 else "The other trial differs"
        return f"{which} from trial {report.best} by more than chance {how}."
    if len(judged) == 1:
        return f"The other trial cannot be told apart from trial {report.best} {how}."
    more = f" and {len(level) - _NAMED} more" if len(level) > _NAMED else ""
    named = ", ".join(map(str, level[:_NAMED])) + more
    return f"{len(level)} of {len(judged)} other trials cannot be told apart from trial {report.best} {how}: {named}."


def clip_words(report: SweepReport) -> str:
    """What one clip is worth."""
    median, largest = report.clip_points
    if not math.isfinite(median):
        return ""
    return (
        f"One clip decided otherwise moves the value by {_size(median)} points (median over clips; at most "
        f"{_size(largest)}). The value is a mean over {_counted(report.num_subjects, 'subject')} with "
        f"{_counted(report.num_clips, 'clip')} in {_counted(report.folds, 'fold')}"
        + (f" and over the cohorts {', '.join(report.cohorts)}." if len(report.cohorts) > 1 else ".")
    )


def curve_words(report: SweepReport, dimension: Dimension) -> str:
    """At which values of a dimension the trials are best, and which cannot be told from it."""
    found = report.conclusions.curves.get(dimension.key)
    if found is None:
        return report.conclusions.reasons.get(dimension.key, "")
    best, level, worse = curve_cells(found)
    name = f"{dimension.label[:1].upper()}{dimension.label[1:]}"
    if not found.known:
        return f"{name}: highest at {best}, without intervals, so that no value can be called better."
    if not found.worse.any():
        return f"{name}: no difference between its values could be shown; highest at {best}."
    return f"{name}: best at {best}; not told from it: {level or 'no other'}; clearly worse: {worse}."


def curve_cells(found: Curve) -> tuple[str, str, str]:
    """The best value of a dimension, those that cannot be told from it, and the clearly worse ones; as text."""
    if not found.known:
        return text(found.at[found.best]), "\N{EN DASH}", "\N{EN DASH}"
    level = ~found.worse
    level[found.best] = False
    if found.dimension.kind != "category" and len(found.at) > _NAMED:
        level = ~found.worse  # as ranges, which hold the best value, too
    return text(found.at[found.best]), _values(found, level), _values(found, found.worse)


def _values(found: Curve, which: Sequence[bool] | np.ndarray) -> str:
    """Values of a dimension: `4, 8`; of a number with many values the ranges, `0.03 to 0.5`."""
    places = np.flatnonzero(which)
    if found.dimension.kind == "category" or len(found.at) <= _NAMED:
        return ", ".join(text(found.at[place]) for place in places)
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(places) else []
    ends = [(text(found.at[run[0]]), text(found.at[run[-1]])) for run in runs]
    return ", ".join(low if low == high else f"{low} to {high}" for low, high in ends)


def importance_words(found: Importances | str) -> list[str]:
    """Which settings make the difference between trials, and what cannot be told."""
    if isinstance(found, str):
        return [found]
    told = [row for row in found.rows if row.told]
    untold = [row.dimension.label for row in found.rows if not row.told]
    if not told:
        return [
            f"No setting could be shown to explain the differences between the {found.trials} trials: all intervals "
            "include 0."
        ]
    first = told[0]
    span = f"{_share(first.low)} to {_share(first.high)}"
    said = [
        f"The largest share of the variance over {found.trials} trials is that of {first.dimension.label}: "
        f"{_share(first.share)}% (95% interval {span})."
    ]
    rivals = [one.label for one in found.level if one.key != first.dimension.key]
    if rivals:
        said.append(f"Not told from it: {', '.join(rivals)}.")
    if untold:
        said.append(f"That they explain anything could not be shown: {', '.join(untold)}.")
    return said


def _share(value: float) -> str:
    return f"{100 * value:.0f}".replace("-", "\N{MINUS SIGN}")


def _interval(given: Interval) -> str:
    if not (math.isfinite(given.low) and math.isfinite(given.high)):
        return f"{percent(given.mean)}% (no interval)" if math.isfinite(given.mean) else "that is not known"
    return f"{percent(given.mean)}% (95% interval {percent(given.low)} to {percent(given.high)})"


def _size(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}"


def _people(number: int) -> str:
    return _counted(number, "source subject")


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"
