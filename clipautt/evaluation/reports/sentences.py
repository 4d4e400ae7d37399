"""The sentences of a report: the verdict, the caveats, what adaptation adds. All are computed from scores.

Methods are grouped by the columns `objective`, `protocol`, `subject_baseline` and `readout` of the rows, never by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from clipautt.evaluation.reports.tables import (
    METRICS,
    SAME_SHARE,
    Metric,
    at_share,
    chosen_method,
    cohort_order,
    cohort_title,
    comparison,
    differences,
    figures_at,
    percent,
    points,
    prior_table,
    quoted,
    selection_means,
    share_name,
)
from clipautt.metrics import Interval, detectable_effect

Effect = Literal["helped", "hurt", "unclear"]
MIN_SUBJECTS = 6
"""With fewer, chance alone moves all subjects the same way in more than one case in twenty (2 / 2^5 = 6%)."""

_HEADLINES: dict[Effect, str] = {
    "helped": "Personalization helped",
    "hurt": "Personalization hurt",
    "unclear": "No clear effect of personalization",
}
_SETTINGS = (
    "objective",
    "protocol",
    "subject_baseline",
    "readout",
    "window_length",
    "window_stride",
    "context_tokens",
    "steps",
    "learning_rate",
)
_BASELINES = ("none", "mean", "median")
_LIKENESS = ("readout", "window_length", "window_stride", "protocol")
_UNCHANGED = 1e-9


@dataclass(frozen=True)
class Verdict:
    """Whether personalization worked, in one cohort."""

    effect: Effect
    """`helped` or `hurt` where the 95% interval of the difference lies on one side of zero, else `unclear`."""
    headline: str
    """The effect in a few words."""
    sentence: str
    """The effect as a sentence, with its figures in percent."""
    difference: Interval
    """Mean change of UAR, −1..1, with its 95% interval."""
    helped: int
    """Subjects whose UAR rose."""
    hurt: int
    """Subjects whose UAR fell."""
    unchanged: int
    """Subjects whose UAR stayed the same."""
    detectable: float | None
    """The smallest effect that a comparison of this size and spread would find, in 0..1, from
    `metrics.detectable_effect`; None below `MIN_SUBJECTS` subjects."""

    @property
    def counts(self) -> str:
        """How many were helped and hurt, as a sentence."""
        return f"{self.helped} helped, {self.hurt} hurt, {self.unchanged} unchanged."


def effect_of(difference: Interval, num_subjects: int) -> Effect:
    """On which side of zero an interval lies; `unclear` below `MIN_SUBJECTS` subjects."""
    if num_subjects < MIN_SUBJECTS or difference.low <= 0 <= difference.high:
        return "unclear"
    return "helped" if difference.low > 0 else "hurt"


def verdict(
    scores: pd.DataFrame, *, personalized: str, reference: str, cohort: str = "balanced", shared_people: bool = False
) -> Verdict:
    """Whether the personalized method beats the reference in UAR, over the target subjects.

    Raises:
        ValueError: as `tables.differences`.
    """
    people = differences(scores, personalized, reference, cohort=cohort, shared_people=shared_people)
    difference = comparison(scores, personalized, reference, "uar", cohort, shared_people=shared_people)
    effect = effect_of(difference, len(people))
    helped, hurt = int((people["change"] > _UNCHANGED).sum()), int((people["change"] < -_UNCHANGED).sum())
    visible = _detectable(people)
    sentence = _verdict_sentence(personalized, people, difference, effect, visible)
    unchanged = len(people) - helped - hurt
    return Verdict(effect, _HEADLINES[effect], sentence, difference, helped, hurt, unchanged, visible)


def _detectable(people: pd.DataFrame) -> float | None:
    return None if len(people) < MIN_SUBJECTS else detectable_effect(people["change"].to_numpy(float))


def _verdict_sentence(
    name: str, people: pd.DataFrame, difference: Interval, effect: Effect, visible: float | None
) -> str:
    verb = {"helped": "raised", "hurt": "lowered", "unclear": "changed"}[effect]
    size = points(difference.mean) if effect == "unclear" else points(abs(difference.mean)).lstrip("+")
    unseen = f"{len(people)} unseen subject{'' if len(people) == 1 else 's'}"
    before, after = percent(people["before"].mean()), percent(people["after"].mean())
    moved = f"{quoted(name)} {verb} mean UAR by {size} points, from {before} to {after}, over {unseen}"
    if visible is None:
        return f"{moved}: too few for a verdict, which needs at least {MIN_SUBJECTS}."
    interval = f"95% interval {_span(difference)}" + (", which includes zero" if effect == "unclear" else "")
    return f"{moved} ({interval}; with this many subjects, {percent(visible)} points or more can be detected)."


def _span(interval: Interval) -> str:
    return f"{points(interval.low)} to {points(interval.high)}"


def most_changed(people: pd.DataFrame, *, limit: int = 5) -> tuple[str, str]:
    """Who gained most and who lost, by name: two sentences.

    Args:
        people: from `tables.differences`.
        limit: names per sentence.
    """
    gained = people[people["change"] > _UNCHANGED].head(limit)
    lost = people[people["change"] < -_UNCHANGED].iloc[::-1]
    more = f" and {len(lost) - limit} more" if len(lost) > limit else ""
    return (
        f"Gained most: {_people(gained)}." if len(gained) else "Nobody gained.",
        f"Lost: {_people(lost.head(limit))}{more}." if len(lost) else "Nobody lost.",
    )


def _people(people: pd.DataFrame) -> str:
    return ", ".join(
        f"{person} ({percent(before)} to {percent(after)})"
        for person, before, after in zip(people["person"], people["before"], people["after"], strict=True)
    )


def caveats(
    table: pd.DataFrame,
    scores: pd.DataFrame,
    *,
    personalized: str,
    reference: str,
    cohort: str = "balanced",
    shared_people: bool = False,
) -> list[str]:
    """What speaks against the personalized method, independently of the verdict.

    Args:
        table: the target split's `method_table`.
        scores: from `subject_scores`.
        personalized: the method of the verdict.
        reference: the method it is compared with.
        cohort: the cohort of the verdict; its UAR is not repeated here.
        shared_people: see `tables`.

    Returns:
        A sentence for every cohort and metric in which it is clearly worse than the reference; for every other cohort
        in which UAR shows no clear effect; where WAR is below the majority predictor's; and where it predicts a
        single class.
    """
    sentences = []
    for name in cohort_order(scores[(scores["split"] == "target") & (scores["method"] == personalized)]):
        for metric in METRICS:
            if (metric, name) != ("uar", cohort):
                sentences += _no_gain(scores, personalized, reference, metric, name, shared_people)
        figures = figures_at(table, personalized, name)
        if figures is None:
            continue
        if figures["war"] < figures["majority_war"]:
            rival = f"the majority predictor's {percent(figures['majority_war'])}"
            sentences.append(f"{_where(name)}, WAR is {percent(figures['war'])}, below {rival}.")
        if figures["num_one_class"] > 0:
            people = f"{figures['num_one_class']:.0f} of {figures['num_subjects']:.0f} subjects"
            sentences.append(f"{_where(name)}, it predicts a single class for {people}.")
    return sentences


def _where(cohort: str) -> str:
    """How a sentence on a cohort begins."""
    return "With balanced classes" if cohort == "balanced" else f"At {cohort_title(cohort)}"


def _no_gain(
    scores: pd.DataFrame, method: str, reference: str, metric: Metric, cohort: str, shared_people: bool
) -> list[str]:
    cohort_rows = scores[(scores["cohort"] == cohort) & (scores["split"] == "target")]
    if reference not in set(cohort_rows["method"]):
        return []
    people = differences(scores, method, reference, metric=metric, cohort=cohort, shared_people=shared_people)
    change = comparison(scores, method, reference, metric, cohort, shared_people=shared_people)
    before, after = percent(people["before"].mean()), percent(people["after"].mean())
    effect = effect_of(change, len(people))
    if effect == "hurt":
        return [f"{_where(cohort)}, {metric.upper()} fell from {before} to {after} ({_span(change)})."]
    if effect == "unclear" and metric == "uar":
        visible = _detectable(people)
        power = "" if visible is None else f"; {percent(visible)} points or more can be detected"
        return [f"{_where(cohort)}, UAR shows no clear effect: {before} to {after} ({_span(change)}{power})."]
    return []


def prior_sentences(assumed: pd.DataFrame, method: str, *, shared_people: bool = False) -> list[str]:
    """What assuming a share of the positive class does to a method's decisions.

    Args:
        assumed: from `tables.prior_scores`.
        method: the method to describe.
        shared_people: see `tables`.

    Returns:
        A sentence per cohort that compares the decisions under the assumed share nearest the true one with those as
        they stand; then one on the most harmful share, if a share clearly lowers UAR.
    """
    own = assumed[assumed["method"] == method]
    table = prior_table(own, shared_people=shared_people)
    sentences, harm = [], []
    for cohort in dict.fromkeys(table["cohort"]):
        here, people = table[table["cohort"] == cohort], own[own["cohort"] == cohort]
        shares = here[~here["own"]].set_index("assumed_share")
        near = float((shares["positive_share"] - shares.index).abs().idxmin())
        sentences.append(_at_true_share(people, here[here["own"]].iloc[0], near, shared_people))
        worst = float(shares["uar"].idxmin())
        text, effect = _moved_by(people, worst, "uar", shared_people)
        if effect == "hurt" and abs(worst - near) >= SAME_SHARE:
            where = _where(cohort)
            sentence = f"A wrong share costs most {where[0].lower()}{where[1:]}: assuming {share_name(worst)} {text}."
            harm.append((shares["uar"].min() - here.loc[here["own"], "uar"].item(), sentence))
    return [*sentences, *(sentence for _, sentence in sorted(harm)[:1])]


def _at_true_share(people: pd.DataFrame, own: pd.Series[Any], near: float, shared_people: bool) -> str:
    """A sentence on one method in one cohort; `own` is its table row, `near` the assumed share nearest the truth."""
    where = _where(own["cohort"])
    made_with = people.loc[people["own"], "assumed_share"]
    several = made_with.max() - made_with.min() >= SAME_SHARE
    if not several and abs(own["assumed_share"] - near) < SAME_SHARE:
        figures = f"UAR {percent(own['uar'])} and WAR {percent(own['war'])}"
        return f"{where}, the decisions as they stand already assume {share_name(near)}: {figures}."
    before = share_name(own["assumed_share"])
    instead = f"the subjects' own shares ({before} on average)" if several else before
    moves = " and ".join(_moved_by(people, near, metric, shared_people)[0] for metric in ("war", "uar"))
    rival = f"always predicting the most frequent class gives WAR {percent(own['majority_war'])}"
    return f"{where}, assuming {share_name(near)} instead of {instead} {moves}; {rival}."


def _moved_by(people: pd.DataFrame, share: float, metric: Metric, shared_people: bool) -> tuple[str, Effect]:
    """`raises WAR from 80.2 to 93.1 (+9.0 to +16.2)` and the effect, for one method in one cohort."""
    cohort = str(people["cohort"].iloc[0])
    pair = pd.concat([people[people["own"]].assign(method="own"), at_share(people, share).assign(method="assumed")])
    both = differences(pair, "assumed", "own", metric=metric, cohort=cohort, shared_people=shared_people)
    before, after = percent(both["before"].mean()), percent(both["after"].mean())
    if (both["change"].abs() <= _UNCHANGED).all():
        return f"leaves {metric.upper()} at {before}", "unclear"
    change = comparison(pair, "assumed", "own", metric, cohort, shared_people=shared_people)
    effect = effect_of(change, len(both))
    verb = {"helped": "raises", "hurt": "lowers", "unclear": "changes"}[effect]
    return f"{verb} {metric.upper()} from {before} to {after} ({_span(change)})", effect


@dataclass(frozen=True)
class MethodFacts:
    """How a method was run, from its result rows. A setting in which its rows differ is `several`."""

    method: str
    """Name of the method."""
    adapts: bool
    """As in `ResultRow`."""
    logits_from: str
    """As in `ResultRow`."""
    objective: str
    """As in `ResultRow`."""
    protocol: str
    """As in `ResultRow`."""
    subject_baseline: str
    """As in `ResultRow`."""
    readout: str
    """As in `ResultRow`."""
    window_length: str
    """Frames per window, L."""
    window_stride: str
    """Stored frames per used frame."""
    context_tokens: str
    """Context vectors per prompt, M."""
    steps: str
    """Optimizer steps."""
    learning_rate: str
    """Learning rate as configured."""
    num_rows: int
    """Result rows."""
    num_fallbacks: int
    """Rows whose status is not `ok`."""
    fallback: str
    """The most frequent of these statuses, or empty."""
    videos_per_second: float
    """Rate of adaptation and prediction; NaN where no time was recorded."""


def method_facts(rows: pd.DataFrame) -> list[MethodFacts]:
    """How each method was run: by subject baseline (none first), then those that do not adapt, then as in `rows`."""
    facts = [_facts_of(str(name), own) for name, own in rows.groupby("method", sort=False)]
    return sorted(facts, key=lambda one: (_rank(one.subject_baseline, _BASELINES), one.adapts))


def _facts_of(name: str, own: pd.DataFrame) -> MethodFacts:
    values = {column: own[column].unique() for column in _SETTINGS}
    settings = {column: _setting(kinds[0]) if len(kinds) == 1 else "several" for column, kinds in values.items()}
    failed = own.loc[own["status"] != "ok", "status"]
    seconds = float(own["seconds"].mean())
    return MethodFacts(
        method=name,
        adapts=bool(own["adapts"].iloc[0]),
        logits_from=str(own["logits_from"].iloc[0]),
        num_rows=len(own),
        num_fallbacks=len(failed),
        fallback=str(failed.mode().iloc[0]) if len(failed) else "",
        videos_per_second=1 / seconds if seconds > 0 else float("nan"),
        **settings,
    )


def _setting(value: object) -> str:
    return str(value) if isinstance(value, str) else f"{value:g}"


def _rank(value: str, order: Sequence[str]) -> int:
    return order.index(value) if value in order else len(order)


def seeds_share_people(rows: pd.DataFrame) -> bool:
    """Whether the seeds of a run have the same people, that is, whether two seeds have the same manifest."""
    return bool((rows.groupby("manifest")["seed"].nunique() > 1).any())


@dataclass(frozen=True)
class Addition:
    """A method that adapts, compared with its counterpart that does not."""

    method: str
    """Name of the method that adapts."""
    alone: str
    """Name of the method without it: same subject baseline, and if possible same readout, window and protocol."""
    subject_baseline: str
    """Subject baseline of both."""
    before: float
    """Mean UAR of `alone`, 0..1."""
    after: float
    """Mean UAR of `method`, 0..1."""
    difference: Interval
    """Paired difference of UAR, with its 95% interval."""
    effect: Effect
    """On which side of zero the interval lies."""


def additions(
    scores: pd.DataFrame, facts: Sequence[MethodFacts], *, cohort: str = "balanced", shared_people: bool = False
) -> list[Addition]:
    """Every method that adapts, compared with the method most like it that does not, in one cohort.

    Args:
        scores: from `subject_scores`.
        facts: from `method_facts`.
        cohort: name of the cohort.
        shared_people: see `tables`.
    """
    here = set(scores.loc[(scores["cohort"] == cohort) & (scores["split"] == "target"), "method"])
    present = [one for one in facts if one.method in here]
    compared = []
    for adapting in (one for one in present if one.adapts):
        alone = _twin(adapting, [one for one in present if not one.adapts and one.logits_from == adapting.logits_from])
        if alone is None:
            continue
        people = differences(scores, adapting.method, alone, cohort=cohort, shared_people=shared_people)
        change = comparison(scores, adapting.method, alone, "uar", cohort, shared_people=shared_people)
        before, after = float(people["before"].mean()), float(people["after"].mean())
        effect = effect_of(change, len(people))
        compared.append(Addition(adapting.method, alone, adapting.subject_baseline, before, after, change, effect))
    return compared


def _twin(adapting: MethodFacts, frozen: Sequence[MethodFacts]) -> str | None:
    """The most similar method that does not adapt: same subject baseline, if possible readout, window and protocol."""
    same = [one for one in frozen if one.subject_baseline == adapting.subject_baseline]
    if not same:
        return None
    return max(same, key=lambda one: [getattr(one, name) == getattr(adapting, name) for name in _LIKENESS]).method


def addition_sentence(compared: Sequence[Addition]) -> str:
    """Whether adaptation helps on top of a subject baseline."""
    on_top = [one for one in compared if one.subject_baseline != "none"]
    if not on_top:
        return "No row combines adaptation with a subject baseline, so what it adds there is not known."
    if len(on_top) == 1:
        one = on_top[0]
        reading = {"helped": "helps", "hurt": "hurts", "unclear": "has no clear effect"}[one.effect]
        change = f"difference {points(one.difference.mean)}, 95% interval {_span(one.difference)}"
        figures = f"UAR {percent(one.before)} alone, {percent(one.after)} with {quoted(one.method)} ({change})"
        return f"On top of the {one.subject_baseline} baseline, adaptation {reading}: {figures}."
    counts = {effect: sum(one.effect == effect for one in on_top) for effect in ("helped", "unclear", "hurt")}
    best = max(on_top, key=lambda one: one.difference.mean)
    return (
        f"Adaptation on top of a subject baseline helps in {counts['helped']} of {len(on_top)} rows, has no clear "
        f"effect in {counts['unclear']} and hurts in {counts['hurt']}; the most favourable is "
        f"{quoted(best.method)} with {points(best.difference.mean)} ({_span(best.difference)})."
    )


def selection_sentence(scores: pd.DataFrame, facts: Sequence[MethodFacts], *, personalized: str) -> str:
    """Which method is best on source-validation subjects, and whether it is the one reported.

    Methods that read class descriptions instead of the trained classifier, such as zero-shot, are not candidates.
    """
    known = selection_means(scores)
    if not known:
        return "No source-validation subjects were evaluated, so the default was not chosen by this run."
    candidates = [one.method for one in facts if one.method in known and one.logits_from == "head"]
    if not candidates:
        return "Only zero-shot rows were evaluated on source-validation subjects, so the default was not chosen here."
    best = chosen_method(scores, candidates)
    chosen = (
        f"On source-validation subjects, treated as unseen, {quoted(best)} has the best UAR ({percent(known[best])})"
    )
    if best == personalized:
        return f"{chosen}; it is the default reported here."
    reported = f"the default reported here, {quoted(personalized)},"
    if personalized not in known:
        return f"{chosen}; {reported} was not among them."
    return f"{chosen}; {reported} has {percent(known[personalized])}."
