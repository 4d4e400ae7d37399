"""Tables of a report: one row per method with its figures per cohort, and paired comparisons over subjects.

Everything is computed from the table of `evaluation.results.subject_scores`: one row per method, split, cohort, seed
and subject; only `prior_scores` reads result rows, to decide them again under assumed shares of the positive class.

**The unit is the person.** Where every seed has its own data, subject `s01` of seed 0 and of seed 1 are two people, and
each counts. Where the seeds share their subjects (`shared_people`), a subject's figures are first averaged over the
seeds; counting them separately would make intervals too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from clipautt.adaptation.priors import assume_share
from clipautt.evaluation.results import subject_scores
from clipautt.metrics import Interval, bootstrap

Metric = Literal["war", "uar", "f1"]
METRICS: tuple[Metric, ...] = ("war", "uar", "f1")
ASSUMED_SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
"""Shares of the positive class under which every clip is decided again."""
UNSTATED_PRIOR = 0.5
"""Assumed for rows that do not state the share in training; earlier runs mostly had balanced classes."""
SAME_SHARE = 0.005
"""Two shares of the positive class that differ by less are treated as equal."""
PRIORS = ("prior", "training_prior")
"""Columns of shares that rows of earlier versions lack."""
_KEYS = ["method", "split", "cohort"]
_MEANS = [*METRICS, "positive_share", *(f"majority_{name}" for name in METRICS)]
_TOLERANCE = 1e-9


def cohort_order(scores: pd.DataFrame) -> list[str]:
    """The cohorts of a score table: `balanced` first, the others from many positives to few."""
    shares = {str(name): float(share) for name, share in scores.groupby("cohort")["positive_share"].mean().items()}
    return sorted(shares, key=lambda name: (name != "balanced", -shares[name], name))


def one_class(scores: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which rows of a score table belong to a predictor that always gives the same class, [N].

    A constant predictor with WAR p has UAR 1/C and macro F1 = 2p / (1 + p) / C; with two classes 1/2 and
    p / (1 + p). At that UAR any other two-class predictor has a higher F1, so the test has no false alarm there.
    """
    war, uar, f1 = (scores[name].to_numpy(float) for name in METRICS)
    num_classes = np.rint(1 / np.maximum(uar, _TOLERANCE))
    at_chance = (num_classes >= 2) & (np.abs(uar * num_classes - 1) < _TOLERANCE)
    constant: npt.NDArray[np.bool_] = at_chance & (np.abs(f1 - 2 * war / (1 + war) / num_classes) < _TOLERANCE)
    return constant


def person_scores(scores: pd.DataFrame, *, split: str = "target", shared_people: bool = False) -> pd.DataFrame:
    """A score table with one row per method, split, cohort and person.

    Args:
        scores: from `subject_scores`.
        split: the split to keep.
        shared_people: whether all seeds have the same subjects, who are then averaged over seeds.

    Returns:
        Columns `method, split, cohort, person, war, uar, f1, num_clips, positive_share, majority_war, majority_uar,
        majority_f1, one_class`; `person` is the subject, with its seed where that tells two people apart.
    """
    kept = scores[scores["split"] == split]
    several = kept["seed"].nunique() > 1 and not shared_people
    person = kept["subject_id"] + ", seed " + kept["seed"].astype(str) if several else kept["subject_id"]
    marked = kept.assign(person=person, one_class=one_class(kept).astype(float))
    table = marked.groupby([*_KEYS, "person"], as_index=False, sort=True)[[*_MEANS, "num_clips", "one_class"]].mean()
    return table.assign(one_class=table["one_class"] == 1.0)


def differences(
    scores: pd.DataFrame,
    method: str,
    against: str,
    *,
    metric: Metric = "uar",
    cohort: str = "balanced",
    split: str = "target",
    shared_people: bool = False,
) -> pd.DataFrame:
    """What each person gained or lost with one method against another, over the people that both were evaluated on.

    Returns:
        Columns `person, before, after, change`, figures in 0..1, sorted from the largest gain to the largest loss.

    Raises:
        ValueError: if a method has no row in this cohort and split, or the two have no person in common.
    """
    people = person_scores(scores, split=split, shared_people=shared_people)
    people = people[people["cohort"] == cohort]
    pair = []
    for name in (method, against):
        own = people[people["method"] == name]
        if own.empty:
            there = sorted(set(people["method"]))
            raise ValueError(f"method={name!r} has no row in cohort {cohort!r} of split {split!r}; allowed: {there}")
        pair.append(own.set_index("person")[metric])
    table = pd.DataFrame({"before": pair[1], "after": pair[0]}).dropna().rename_axis("person").reset_index()
    if table.empty:
        raise ValueError(f"{method!r} and {against!r} have no subject in common in cohort {cohort!r}")
    table["change"] = table["after"] - table["before"]
    return table.sort_values(["change", "person"], ascending=[False, True], ignore_index=True)


def comparison(
    scores: pd.DataFrame,
    method: str,
    against: str,
    metric: Metric = "uar",
    cohort: str = "balanced",
    *,
    split: str = "target",
    shared_people: bool = False,
) -> Interval:
    """The mean difference of two methods over people, with its paired 95% bootstrap interval, in 0..1.

    Raises:
        ValueError: as `differences`.
    """
    table = differences(scores, method, against, metric=metric, cohort=cohort, split=split, shared_people=shared_people)
    return bootstrap(table["change"].to_numpy(float))


def method_table(
    scores: pd.DataFrame, *, reference: str | None, split: str = "target", shared_people: bool = False
) -> pd.DataFrame:
    """One row per method with its figures in every cohort.

    Args:
        scores: from `subject_scores`.
        reference: the method whose UAR the others are compared with; with None these columns are NaN.
        split: `target` or `source_val`.
        shared_people: see the module's docstring.

    Returns:
        Index `method`; columns (cohort, figure), all figures in 0..1:
        `war`, `uar`, `f1` (mean over people), `*_spread` (standard deviation over seeds of that mean, NaN with one
        seed), `uar_low`, `uar_high` (95% interval over people), `uar_gain`, `uar_gain_low`, `uar_gain_high` (paired,
        against the reference), `majority_war`, `majority_uar`, `majority_f1` (constant predictor of the most frequent
        class, on the same videos), `positive_share`, `num_subjects`, `num_videos`, `num_one_class` (people
        for whom it predicts a single class) and `degenerate` (it does so for all). A method without rows in a
        cohort has NaN there.

    Raises:
        ValueError: if the split has rows and the reference is not among its methods.
    """
    kept = scores[scores["split"] == split]
    methods = list(dict.fromkeys(kept["method"]))
    if reference is not None and methods and reference not in methods:
        raise ValueError(f"reference={reference!r} is not a method of split {split!r}; allowed: {methods}")
    blocks = {}
    for cohort in cohort_order(kept):
        own = kept[kept["cohort"] == cohort]
        present = [name for name in methods if name in set(own["method"])]
        against = reference if reference in present else None
        records = [_figures(own, name, against, split=split, shared_people=shared_people) for name in present]
        blocks[cohort] = pd.DataFrame(records, index=pd.Index(present, name="method"))
    if not blocks:
        return pd.DataFrame(index=pd.Index([], name="method"), columns=pd.MultiIndex.from_arrays([[], []]))
    table = pd.concat(blocks, axis=1, names=["cohort", "figure"])
    return table.reindex(pd.Index(methods, name="method"))


def _figures(
    scores: pd.DataFrame, method: str, reference: str | None, *, split: str, shared_people: bool
) -> dict[str, float | int | bool]:
    """The figures of one method in one cohort; `scores` holds that cohort and split only."""
    own = scores[scores["method"] == method]
    people = person_scores(own, split=split, shared_people=shared_people)
    figures: dict[str, float | int | bool] = {name: float(people[name].mean()) for name in _MEANS}
    seeds = own.groupby("seed")[list(METRICS)].mean()
    figures |= {f"{name}_spread": float(seeds[name].std(ddof=1)) for name in METRICS}
    interval = bootstrap(people["uar"].to_numpy(float))
    figures |= {"uar_low": interval.low, "uar_high": interval.high}
    gain = Interval(np.nan, np.nan, np.nan)
    if reference is not None and reference != method:
        cohort = str(people["cohort"].iloc[0])
        gain = comparison(scores, method, reference, "uar", cohort, split=split, shared_people=shared_people)
    figures |= {"uar_gain": gain.mean, "uar_gain_low": gain.low, "uar_gain_high": gain.high}
    figures |= {"num_subjects": len(people), "num_videos": round(float(people["num_clips"].sum()))}
    constant = int(people["one_class"].sum())
    return figures | {"num_one_class": constant, "degenerate": constant == len(people)}


def long_table(table: pd.DataFrame) -> pd.DataFrame:
    """A method table with one row per method and cohort, as written to Parquet."""
    blocks = []
    for cohort in table.columns.get_level_values(0).unique():
        block = table[cohort].dropna(how="all")
        blocks.append(block.assign(cohort=cohort).reset_index())
    if not blocks:
        return pd.DataFrame(columns=["method", "cohort"])
    joined = pd.concat(blocks, ignore_index=True)
    counts = {"num_subjects": int, "num_videos": int, "num_one_class": int, "degenerate": bool}
    first = ["method", "cohort"]
    ordered: pd.DataFrame = joined[[*first, *(name for name in joined.columns if name not in first)]].astype(counts)
    return ordered


def figures_at(table: pd.DataFrame, method: str, cohort: str) -> dict[str, float] | None:
    """The figures of one method in one cohort of a method table, or None where it has no rows there."""
    if cohort not in table.columns.get_level_values(0):
        return None
    figures = {str(name): float(value) for name, value in table[cohort].loc[method].items()}
    return None if math.isnan(figures["uar"]) else figures


def selection_table(scores: pd.DataFrame, *, reference: str | None = None, shared_people: bool = False) -> pd.DataFrame:
    """`method_table` of the source-validation subjects, treated as unseen; empty if they were not evaluated."""
    known = set(scores.loc[scores["split"] == "source_val", "method"])
    against = reference if reference in known else None
    return method_table(scores, reference=against, split="source_val", shared_people=shared_people)


def selection_means(scores: pd.DataFrame) -> dict[str, float]:
    """UAR of every method on source-validation subjects, 0..1: the mean over subjects and seeds, then over cohorts."""
    own = scores[scores["split"] == "source_val"]
    means = own.groupby(["method", "cohort"])["uar"].mean().groupby("method").mean()
    return {str(name): float(uar) for name, uar in means.items()}


def chosen_method(scores: pd.DataFrame, candidates: Sequence[str]) -> str:
    """The candidate with the best UAR on source-validation subjects, mean over its cohorts; the earlier one at a tie.

    No target figure enters. List simple methods first, so that a tie goes to them.

    Raises:
        ValueError: without candidates, or if they were not all evaluated on the same source-validation cohorts.
    """
    if not candidates:
        raise ValueError("candidates=[]; at least one method is needed")
    kept = scores[(scores["split"] == "source_val") & scores["method"].isin(list(candidates))]
    cohorts = {name: tuple(sorted(set(kept.loc[kept["method"] == name, "cohort"]))) for name in candidates}
    if len(set(cohorts.values())) > 1 or () in cohorts.values():
        raise ValueError(f"candidates must have the same source_val cohorts, at least one; they have {cohorts}")
    means = selection_means(kept)
    return max(candidates, key=lambda name: (round(means[name], 9), -list(candidates).index(name)))


def with_priors(rows: pd.DataFrame) -> pd.DataFrame:
    """Result rows with the columns `prior` and `training_prior` filled in.

    A missing training prior becomes `UNSTATED_PRIOR`, a missing prior the training prior.
    """
    stated = {name: rows[name] if name in rows else pd.Series(np.nan, rows.index) for name in PRIORS}
    trained = stated["training_prior"].astype(float).fillna(UNSTATED_PRIOR)
    return rows.assign(training_prior=trained, prior=stated["prior"].astype(float).fillna(trained))


def redecided(rows: pd.DataFrame, share: float, *, classes: Sequence[str]) -> pd.DataFrame:
    """Result rows decided again from their probabilities, as if the positive class had this share.

    Only the decision changes; window and prompts stay. A row made with exactly this share keeps its decision; a
    probability of 0.5 goes to the first class, as everywhere.

    Args:
        rows: from `with_priors`.
        share: share of the positive class, 0 < share < 1.
        classes: the negative and the positive class.
    """
    known = {name: torch.tensor(rows[name].tolist(), dtype=torch.float64) for name in ("probability", "prior")}
    positive = assume_share(known["probability"], share, made_with=known["prior"]) > 0.5
    decided = np.where(positive.numpy(), classes[1], classes[0])
    return rows.assign(prediction=np.where(rows["prior"] == share, rows["prediction"], decided))


def assumed_shares(scores: pd.DataFrame) -> tuple[float, ...]:
    """`ASSUMED_SHARES`, and the true share of every target cohort that is not among them, in whole percent; sorted."""
    target = scores[scores["split"] == "target"]
    true = {min(max(round(float(share), 2), 0.01), 0.99) for share in target.groupby("cohort")["positive_share"].mean()}
    others = {share for share in true if all(abs(share - known) >= SAME_SHARE for known in ASSUMED_SHARES)}
    return tuple(sorted(others.union(ASSUMED_SHARES)))


def prior_scores(
    rows: pd.DataFrame, *, classes: Sequence[str], shares: Sequence[float] = ASSUMED_SHARES
) -> pd.DataFrame:
    """Scores of the target subjects as the rows stand, and as they are under every assumed share.

    Args:
        rows: result rows with a prediction; without the columns of priors, see `with_priors`.
        classes: the negative and the positive class.
        shares: shares of the positive class, each above 0 and below 1.

    Returns:
        The columns of `subject_scores`, and `own` (whether these are the rows' own decisions), `assumed_share` (for
        `own` the mean share that the subject's rows were made with), `prior` and `training_prior` (mean of the rows').

    Raises:
        ValueError: unless there are two classes, or if a share, prior or probability is out of bounds.
    """
    if len(classes) != 2:
        raise ValueError(f"classes={list(classes)}; a share can be assumed for the positive one of two classes only")
    target = with_priors(rows[rows["split"] == "target"])
    keys = [*_KEYS, "seed", "subject_id"]
    priors = target.groupby(keys, as_index=False)[list(PRIORS)].mean()
    own = subject_scores(target, classes=classes).merge(priors, on=keys)
    tables = [own.assign(own=True, assumed_share=own["prior"])]
    for share in shares:
        scores = subject_scores(redecided(target, share, classes=classes), classes=classes)
        tables.append(scores.merge(priors, on=keys).assign(own=False, assumed_share=float(share)))
    return pd.concat(tables, ignore_index=True)


def prior_table(assumed: pd.DataFrame, *, shared_people: bool = False) -> pd.DataFrame:
    """One row per method, cohort and assumed share, and one (`own`) for the decisions as they stand.

    Args:
        assumed: from `prior_scores`.
        shared_people: see the module's docstring.

    Returns:
        Columns `method, cohort, assumed_share, own`, then means over people: `war, uar, f1, positive_share,
        majority_war, majority_uar, majority_f1, prior, training_prior`; and `num_subjects`. Cohorts, then shares, in
        the order of the report; `own` first. Its `assumed_share` is the mean of what the rows were made with.
    """
    by, blocks = ["method", "cohort"], []
    shares = sorted(set(assumed.loc[~assumed["own"], "assumed_share"]))
    for share in (None, *shares):
        scores = assumed[assumed["own"]] if share is None else at_share(assumed, share)
        people = person_scores(scores, shared_people=shared_people).groupby(by)
        block = people[_MEANS].mean().join(scores.groupby(by)[list(PRIORS)].mean())
        block["num_subjects"] = people.size()
        blocks.append(block.assign(assumed_share=block["prior"] if share is None else share, own=share is None))
    table = pd.concat(blocks).reset_index()
    order = {"method": list(dict.fromkeys(assumed["method"])), "cohort": cohort_order(assumed), "own": [True, False]}
    ranks = {name: {value: number for number, value in enumerate(values)} for name, values in order.items()}
    table = table.sort_values(
        [*order, "assumed_share"], key=lambda one: one.map(ranks[one.name]) if one.name in ranks else one
    )
    return table[[*by, "assumed_share", "own", *_MEANS, *PRIORS, "num_subjects"]].reset_index(drop=True)


def at_share(assumed: pd.DataFrame, share: float) -> pd.DataFrame:
    """The rows of `prior_scores` or `prior_table` under one assumed share."""
    return assumed[~assumed["own"] & (assumed["assumed_share"] == share)]


def markdown(table: pd.DataFrame) -> str:
    """A method table as a Markdown table: figures in percent, the majority predictor in the last row.

    UAR is followed by its change against the reference and that change's 95% interval, in points.
    """
    cohorts = list(table.columns.get_level_values(0).unique())
    head = ["method", *(f"{cohort} {name}" for cohort in cohorts for name in ("UAR", "WAR", "F1"))]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for method in table.index:
        cells = [cell for cohort in cohorts for cell in _markdown_cells(figures_at(table, method, cohort))]
        lines.append([str(method).replace("|", "\\|"), *cells])
    lines.append(["majority predictor", *(cell for cohort in cohorts for cell in _majority_cells(table[cohort]))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _markdown_cells(figures: dict[str, float] | None) -> list[str]:
    if figures is None:
        return ["", "", ""]
    uar, war, f1 = (with_spread(figures, name) for name in ("uar", "war", "f1"))
    if not math.isnan(figures["uar_gain"]):
        low, high = points(figures["uar_gain_low"]), points(figures["uar_gain_high"])
        uar += f" ({points(figures['uar_gain'])}, {low} to {high})"
    return [uar + (" *one class*" if figures["degenerate"] else ""), war, f1]


def _majority_cells(figures: pd.DataFrame) -> list[str]:
    """The constant predictor's cells; a range where the methods were not evaluated on the same videos."""
    return [value_range(figures[f"majority_{name}"]) for name in ("uar", "war", "f1")]


def value_range(values: pd.Series[float]) -> str:
    """In percent: one figure, or `lowest to highest` where they differ."""
    shown = sorted({percent(value) for value in values.dropna()}, key=float)
    return shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"


def with_spread(figures: Mapping[str, float], name: str) -> str:
    """A figure in percent, with ± its spread over seeds where there are several."""
    spread = figures[f"{name}_spread"]
    return percent(figures[name]) + ("" if math.isnan(spread) else f" ± {percent(spread)}")


def percent(value: float) -> str:
    """0.8604 → `86.0`."""
    return f"{_tenths(value):.1f}"


def points(value: float) -> str:
    """A difference in points with its sign, 0.091 → `+9.1`; the minus is the typographic one."""
    tenths = _tenths(value)
    return f"{tenths:+.1f}".replace("-", "\N{MINUS SIGN}") if tenths else "0.0"


def _tenths(value: float) -> float:
    """In percent, halves away from zero; the small offset rounds equal means of differently ordered sums alike."""
    return round(100 * value + math.copysign(1e-7, value), 1) + 0.0


def cohort_title(name: str) -> str:
    """`balanced`, or `20% positives`."""
    return f"{name} positives" if name.endswith("%") else name


def share_name(share: float) -> str:
    """A share of a class, 0.2 → `20%`, 0.4837 → `48.4%`."""
    return f"{_tenths(share):g}%"


def quoted(name: str) -> str:
    """A method's name in quotation marks, as names contain commas and colons."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}"
