"""The page of a sweep and its summary: nothing is claimed that the trials do not hold, and odd cases have a page."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clipautt.metrics import Interval, bootstraps
from clipautt.selection.page import write_page
from clipautt.selection.ranking import ranking
from clipautt.selection.report import HeldOut, SweepReport
from clipautt.selection.sentences import summary_lines
from clipautt.selection.trials import Dimension

LENGTH = Dimension("train.window.length", "window length", "whole")
READOUT = Dimension("adapt.readout", "readout", "category")
NAN = math.nan


def small(**changes: object) -> SweepReport:
    """Twelve trials of 8 subjects: three lengths, two readouts, twice; and one trial each that did not finish."""
    rng = np.random.default_rng(0)
    level, people, rows = rng.normal(0, 0.08, 8), {}, []
    for number in range(12):
        length, readout = (4, 8, 16)[number % 3], ("best_window", "peak <b>window</b>")[number // 3 % 2]
        own = 0.7 + level + 0.1 * (length > 4) - 0.05 * (number // 3 % 2) + rng.normal(0, 0.01, 8)
        people[number] = own
        rows.append({"number": number, "status": "ok", "uar": own.mean(), LENGTH.key: length, READOUT.key: readout})
        rows[-1] |= {"uar_low": own.mean() - 0.05, "uar_high": own.mean() + 0.05, "seconds_per_video": 0.1 * length}
    for number, status in enumerate(("pruned", "failed", "interrupted"), 12):
        rows.append({"number": number, "status": status, "uar": 0.6 if status == "pruned" else NAN, LENGTH.key: 4})
    trials = pd.DataFrame(rows).assign(reason="", seconds_per_video=0.2)
    trials.loc[13, "reason"] = "ValueError: <script>alert(1)</script> $x$"
    best = int(trials.loc[trials["uar"].idxmax(), "number"])
    held = HeldOut(6, best, Interval(0.71, 0.62, 0.79), Interval(0.05, 0.01, 0.09), 0.8123, 1)
    given: dict[str, object] = {
        "name": "small",
        "trials": trials,
        "subject_values": people,
        "reference_values": people[0] - 0.03,
        "dimensions": (LENGTH, READOUT),
        "objectives": ("uar",),
        "cohorts": ("balanced", "20%"),
        "folds": 5,
        "num_subjects": 8,
        "num_clips": 64,
        "clip_points": (0.78, 1.56),
        "held_out": held,
        "commands": ("clipautt train name=small-best",),
        "facts": (("held out", "6 of 14 source subjects"),),
    }
    return SweepReport(**(given | changes))  # type: ignore[arg-type]


def unfinished(status: str) -> SweepReport:
    """No trial finished."""
    return small(trials=small().trials.assign(status=status, uar=NAN), held_out=None)


def written(folder: Path, report: SweepReport) -> str:
    """The text of the page, without tags, each cell followed by a bar."""
    page = write_page(folder, report).read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)|@import|url\(", page), "it needs no other file"
    assert "<script" not in page and "<b>window" not in page
    body = re.sub(r"<(style|head)\b.*?</\1>", "", page, flags=re.DOTALL)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", re.sub(r"</t[dh]>", " | ", body))))


def test_the_page_says_what_the_choice_is_worth_and_what_cannot_be_told_apart(tmp_path: Path) -> None:
    report = small()
    text = written(tmp_path, report)
    best = report.best
    assert f"Trial {best}: UAR 71.0% on 6 source subjects that no trial saw" in text
    assert f"On 6 source subjects that no trial saw, trial {best} has UAR 71.0% (95% interval 62.0 to 79.0)." in text
    assert "It is better than CLIP-AU on the same subjects (+5.0 points, 95% interval +1.0 to +9.0, paired)." in text
    assert "In the trials it had UAR 81.2%: the value in the trials is too good, because it is the best of 13." in text
    assert "15 trials: 12 finished, 1 pruned early, 1 failed, 1 interrupted." in text
    assert (
        "One clip decided otherwise moves the value by 0.78 points (median over clips; at most 1.6). The value is a "
        "mean over 8 subjects with 64 clips in 5 folds and over the cohorts balanced, 20%." in text
    )
    assert (
        f"3 of 11 other trials cannot be told apart from trial {best} (95% confidence, paired over subjects, " in text
    )
    assert "Window length: best at 8; not told from it: 16; clearly worse: 4." in text
    assert "Means of 4 trials at each value, with the same settings of readout. Intervals: over 8 subjects." in text
    assert "No importances: 12 trials finished, and with fewer than" in text
    assert "readout | best_window | – | peak <b>window</b> |" in text
    assert "13 | ValueError: <script>alert(1)</script> $x$ |" in text and "held out6 of 14 source subjects" in text
    order = [
        "Use the chosen settings",
        "Trials that cannot be told apart",
        "Window length Window length: best",
        "Which settings make",
    ]
    order += ["Each setting alone", "Settings together", "Trial by trial", "What was held out, and how to repeat it"]
    places = [re.search(heading, text) for heading in order]
    assert all(places) and [one.start() for one in places if one] == sorted(one.start() for one in places if one)
    names = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert names == {"best_trials", "curve", "slices", "parallel_coordinates", "history"}
    for name in names:
        with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
            assert picture.width > 1000 and picture.height > 250
    assert summary_lines(report)[0] == "15 trials: 12 finished, 1 pruned early, 1 failed, 1 interrupted."
    assert summary_lines(report)[-1].startswith(
        "Curves and importances rest on the finished trials alone: what made 1 "
    )
    assert all(line in text for line in summary_lines(report))

    text = written(tmp_path, unfinished("failed"))
    assert "No trial finished, so nothing can be concluded" in text and "15 failed" in text
    assert not list((tmp_path / "figures").glob("*.png")), "figures of the earlier page are gone"


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (
            HeldOut(8, 8, Interval(0.7, 0.6, 0.8), Interval(0.01, -0.05, 0.07), 0.8, 3),
            [
                "On 8 source subjects that no trial saw, trial 8 has UAR 70.0% (95% interval 60.0 to 80.0).",
                "No difference to CLIP-AU on the same subjects could be shown (+1.0 points, 95% interval −5.0 to +7.0, "
                "paired).",
                "In the trials it had UAR 80.0%: the value in the trials is too good, because it is the best of 13.",
                "These subjects have now judged 3 choices. Who keeps the best of them chooses on these subjects, too; "
                "hold out others for a final figure.",
            ],
        ),
        (
            HeldOut(1, 8, Interval(0.7, NAN, NAN), Interval(0.1, NAN, NAN), 0.8, 1),
            [
                "On 1 source subject that no trial saw, trial 8 has UAR 70.0% (no interval).",
                "Against CLIP-AU on the same subjects: +10.0 points; too few subjects for a verdict, which needs at "
                "least 6.",
                "In the trials it had UAR 80.0%: the value in the trials is too good, because it is the best of 13.",
            ],
        ),
        (
            None,
            [
                "Trial 8 has UAR 83.2% in the trials. No subjects were held out, and the value in the trials is too "
                "good, because it is the best of 13: what it is worth on new people is not known."
            ],
        ),
    ],
)
def test_what_is_said_of_the_chosen_trial(held: HeldOut | None, said: list[str]) -> None:
    assert small().best == 8
    assert summary_lines(small(held_out=held))[1 : 1 + len(said)] == said


def test_without_values_of_subjects_nothing_is_called_better(tmp_path: Path) -> None:
    report = small(subject_values={}, reference_values=np.array([]), clip_points=(NAN, NAN), held_out=None)
    text = written(tmp_path, report)
    assert (
        "Whether other trials differ from trial 8 is not known: that takes the values of at least 6 subjects." in text
    )
    assert "Window length: highest at 8, without intervals, so that no value can be called better." in text
    assert "window length | 8 | – | – |" in text and "One clip" not in text and "UAR of CLIP-AU" not in text
    trials = report.trials.assign(uar_low=NAN, uar_high=NAN)
    assert "Trial by trial" in written(tmp_path, replace(report, trials=trials))


def test_sweeps_that_hold_little_have_a_page(tmp_path: Path) -> None:
    for status in ("pruned", "interrupted"):
        assert "No trial finished" in written(tmp_path, unfinished(status))
    assert summary_lines(small(trials=small().trials.head(0), held_out=None)) == [
        "0 trials.",
        "No trial finished, so nothing can be concluded",
    ]
    one = small(trials=small().trials.head(1), held_out=None, folds=1, cohorts=("balanced",))
    assert summary_lines(one) == [
        "1 trial: 1 finished.",
        "Trial 0 has UAR 71.9% in the trials. No subjects were held out: what it is worth on new people is not known.",
        "No other trial finished.",
        "One clip decided otherwise moves the value by 0.78 points (median over clips; at most 1.6). The value is a "
        "mean over 8 subjects with 64 clips in 1 fold.",
        "No importances: they compare settings, and the finished trials vary fewer than two.",
    ]
    assert "Trials that cannot be told apart" in written(tmp_path, one)


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    trials = small().trials
    trials["seconds_per_video"] = np.geomspace(0.01, 5, len(trials))
    report = small(trials=trials, objectives=("uar", "seconds_per_video"), front=(0, 1, 2), chosen=1, held_out=None)
    text = written(tmp_path, report)
    assert "UAR, seconds per video (smaller is better)." in text and (tmp_path / "figures/pareto_front.png").is_file()
    assert "too good, because it is among the best of 13" in text
    with pytest.raises(ValueError, match="trial 13 was chosen, but it is not among the finished trials"):
        small(chosen=13, held_out=None)
    with pytest.raises(ValueError, match="trial 8 was judged on held-out subjects, but 1 was chosen"):
        small(chosen=1)
    with pytest.raises(ValueError, match="the table of trials lacks the objective gain"):
        small(objectives=("uar", "gain"))


def test_equal_trials_are_rarely_called_worse_although_the_best_of_them_was_picked() -> None:
    """Of 40 equal trials; intervals of single pairs would call a third of them worse."""
    wrong, naive = 0, 0
    for seed in range(5):
        values = np.random.default_rng(seed).normal(0.7, 0.1, (40, 24))
        trials = pd.DataFrame({"number": range(40), "status": "ok", "uar": values.mean(axis=1)})
        ranked = ranking(trials, dict(enumerate(values)))
        assert ranked["behind"].iloc[0] == 0 and ranked["behind"].is_monotonic_increasing
        wrong += int(ranked["apart"].astype(bool).sum())
        best = values[ranked["number"].iloc[0]]
        naive += sum(one.low > 0 for one in bootstraps((best - values).T, draws=1000))
    assert wrong <= 15 and naive >= 50, f"{wrong} and {naive} of 200"
    better = {number: 0.6 + 0.1 * number + np.linspace(0, 0.1, 8) for number in range(3)}
    table = pd.DataFrame({"number": range(3), "status": "ok", "uar": [better[n].mean() for n in range(3)]})
    assert ranking(table, better)[["number", "apart"]].to_numpy().tolist() == [[2, False], [1, True], [0, True]]
    chosen = ranking(table, better, best=1)
    assert chosen["number"].tolist() == [1, 2, 0] and chosen["behind"].tolist() == pytest.approx([0, -0.1, 0.1])
    assert chosen["apart"].tolist() == [False, True, True]
