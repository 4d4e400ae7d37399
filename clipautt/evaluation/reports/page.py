"""The report of a run: one HTML page that needs nothing else, with its figures and tables beside it.

It reads the columns of the result rows, never a method's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from clipautt.evaluation.reports import figures, views
from clipautt.evaluation.reports.next_steps import next_steps
from clipautt.evaluation.reports.pictures import Picture, inline
from clipautt.evaluation.reports.sentences import (
    MethodFacts,
    Verdict,
    addition_sentence,
    additions,
    caveats,
    method_facts,
    most_changed,
    prior_sentences,
    seeds_share_people,
    selection_sentence,
    verdict,
)
from clipautt.evaluation.reports.tables import (
    PRIORS,
    UNSTATED_PRIOR,
    assumed_shares,
    cohort_order,
    cohort_title,
    differences,
    long_table,
    markdown,
    method_table,
    prior_scores,
    prior_table,
    selection_table,
    share_name,
)
from clipautt.evaluation.reports.templates import render
from clipautt.evaluation.results import ResultRow, subject_scores
from clipautt.evaluation.stories import AuAgreement, ClipStory
from clipautt.files import write_json, write_table, write_text
from clipautt.metrics import confusion

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("WAR", "Weighted average recall, the same as accuracy: the share of videos that are classified correctly."),
    (
        "UAR",
        "Unweighted average recall: the share of each class that is recognized, averaged over the classes. With two "
        "classes, always predicting the same class gives 50%, however rare the other is; so this page shows UAR first.",
    ),
    (
        "F1",
        "Macro F1: the harmonic mean of precision and recall of each class, averaged over the classes. With two "
        "classes, always predicting the same class gives p / (1 + p) at WAR p; such rows are marked 'one class'.",
    ),
    ("target subject", "A person whom the model has not seen in training and whose labels no method uses."),
    (
        "cohort",
        "A selection of each subject's videos, drawn with a given share of the positive class. Balanced classes suit "
        "methods that assume them, so every method is also judged where positives are rare.",
    ),
    (
        "assumed share",
        "How common the positive class is assumed to be, also called its prior. Bayes' rule converts a probability "
        "from one share to another: what was 80% at even shares is 50% where one video in five is positive.",
    ),
    (
        "subject baseline",
        "The centre (median or mean) of all frame features of a subject, subtracted from each: an estimate of the "
        "resting face. It needs no labels.",
    ),
    (
        "adaptation",
        "Changing what a method keeps for a subject (prompts, class prototypes or a cache of features) from the "
        "subject's own videos, without labels.",
    ),
    ("prompt tuning", "Adaptation that adjusts the learnable context vectors before each action unit's words."),
    ("per video", "Every video starts anew from the source prompts."),
    ("online", "What was learned from a subject's earlier videos carries over to the next one of the same subject."),
    ("per subject", "All unlabelled videos of a subject are used together, then all are predicted."),
    ("action unit (AU)", "A visible movement of the face, numbered by the Facial Action Coding System."),
    ("window", "A few consecutive frames. The window with the lowest entropy is taken as the most expressive."),
    ("entropy", "How undecided a prediction is, in nats: 0 is certain, 0.69 is a coin toss between two classes."),
    (
        "95% interval",
        "The range in which the mean difference lies in 95 of 100 resamplings of the subjects. If it includes zero, "
        "the difference may be due to chance.",
    ),
    (
        "can be detected",
        "The smallest true effect that such a comparison detects four times out of five (power 80%, 5% two-sided): the "
        "standard deviation of the changes over subjects, divided by the square root of their number, times about 2.9 "
        "(the sum of two quantiles of Student's t; Bloom, Minimum Detectable Effects, Evaluation Review 19(5), 1995). "
        "It does not depend on the effect found. Where no clear effect was found, one of this size is unlikely.",
    ),
)

VERDICT = "verdict.json"
"""File with the verdict for other programs: the fields of `sentences.Verdict`, and `warnings`."""
OPTIONAL = (*PRIORS, "tune", "position", "warnings", "face_share", "cautions", "other_faces")
"""Columns that rows of earlier versions lack; the page can do without them."""


@dataclass(frozen=True)
class _Content:
    """What the parts of a report share."""

    scores: pd.DataFrame
    facts: list[MethodFacts]
    table: pd.DataFrame
    cohorts: list[str]
    reference: str
    personalized: str
    classes: tuple[str, ...]
    shared_people: bool
    assumed: pd.DataFrame | None


def write_report(
    folder: Path,
    *,
    rows: pd.DataFrame,
    classes: Sequence[str],
    title: str,
    personalized: str,
    reference: str = "CLIP-AU, best window",
    stories: Sequence[ClipStory] = (),
    agreement: Sequence[AuAgreement] = (),
    facts: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
    synthetic: bool = False,
) -> Path:
    """Write report.html, report.md, verdict.json, figures/*.png, results.parquet, methods.parquet and subjects.parquet.

    With two classes also priors.parquet: every method's figures under other shares of the positive class.

    Args:
        folder: where to write; created if missing, and an earlier report in it is replaced.
        rows: result rows, a column per field of `ResultRow`; those in `OPTIONAL` may be absent.
        classes: class names in label order; the last is the positive one.
        title: title of the page.
        personalized: the method whose effect the page is about: the default, chosen on source-validation subjects.
        reference: the method it is compared with.
        stories: clips to show in detail.
        agreement: rank correlations of AU similarities with true intensities.
        facts: backbone, manifest, versions: name and value.
        notes: sentences a reader must know, such as how a method deviates from its paper.
        warnings: sentences on why the figures may be worth little; they stand above everything else.
        synthetic: whether the faces are rendered; the page says so at its top.

    Returns:
        The path of report.html.

    Raises:
        ValueError: if columns are missing, a label is not among the classes, or a method has no target rows.
    """
    _check(rows, classes=classes, reference=reference, personalized=personalized)
    scores = subject_scores(rows, classes=classes)
    shared = seeds_share_people(rows)
    known = method_facts(rows)
    table = _ordered(method_table(scores, reference=reference, shared_people=shared), known)
    content = _Content(
        scores=scores,
        facts=known,
        table=table,
        cohorts=_common_cohorts(scores, reference, personalized),
        reference=reference,
        personalized=personalized,
        classes=tuple(classes),
        shared_people=shared,
        assumed=prior_scores(rows, classes=classes, shares=assumed_shares(scores)) if len(classes) == 2 else None,
    )
    selection = _ordered(selection_table(scores, reference=reference, shared_people=shared), known)
    _write_tables(folder, rows, content, selection)
    decided = _verdict(content)
    write_json(folder / VERDICT, asdict(decided) | {"warnings": list(warnings)})
    words = _words(content, selection, rows) | {"verdict": decided, "prior": _prior(folder, rows, content)}
    pictures = _pictures(folder / "figures", rows, content, stories, agreement)
    given: dict[str, object] = {
        "title": title,
        "notes": list(notes),
        "warnings": list(warnings),
        "facts": dict(facts or {}),
        "synthetic": synthetic,
    }
    given["steps"] = next_steps(synthetic=synthetic)
    tables = {"markdown_table": markdown(table), "markdown_selection": markdown(selection) if len(selection) else ""}
    text = render("report.md.j2", escape=False, **given, **words, **pictures, **tables)
    write_text(folder / "report.md", text)
    page = render("report.html.j2", escape=True, glossary=GLOSSARY, **given, **words, **pictures)
    path = folder / "report.html"
    write_text(path, page)
    return path


def first_words(folder: Path) -> str:
    """What the report in a folder begins with: its warnings, and whether personalization helped, with the figures."""
    decided = json.loads((folder / VERDICT).read_text(encoding="utf-8"))
    warned = [f"warning: {sentence}\n" for sentence in decided.get("warnings", [])]
    return f"{''.join(warned)}{decided['headline']}. {decided['sentence']}"


def _check(rows: pd.DataFrame, *, classes: Sequence[str], reference: str, personalized: str) -> None:
    absent = [field.name for field in fields(ResultRow) if field.name not in {*rows.columns, *OPTIONAL}]
    if absent:
        raise ValueError(f"rows lack the columns {absent}; a column per field of ResultRow is needed")
    for column in ("label", "prediction"):
        unknown = sorted({str(value) for value in rows[column].unique() if value not in classes})
        if unknown:
            raise ValueError(f"rows have {column} {unknown}; allowed: the classes {list(classes)}")
    methods = list(dict.fromkeys(rows.loc[rows["split"] == "target", "method"]))
    for name, method in {"reference": reference, "personalized": personalized}.items():
        if method not in methods:
            raise ValueError(f"{name}={method!r} has no target rows; allowed: {methods}")


def _common_cohorts(scores: pd.DataFrame, reference: str, personalized: str) -> list[str]:
    """Cohorts in which both methods were evaluated; the first is the one of the verdict."""
    target = scores[scores["split"] == "target"]
    cohorts = [
        name
        for name in cohort_order(target)
        if {reference, personalized} <= set(target.loc[target["cohort"] == name, "method"])
    ]
    if not cohorts:
        raise ValueError(f"{personalized!r} and {reference!r} have no cohort in common")
    return cohorts


def _ordered(table: pd.DataFrame, facts: Sequence[MethodFacts]) -> pd.DataFrame:
    return table.loc[[one.method for one in facts if one.method in table.index]]


def _write_tables(folder: Path, rows: pd.DataFrame, content: _Content, selection: pd.DataFrame) -> None:
    write_table(folder / "results.parquet", rows)
    write_table(folder / "subjects.parquet", content.scores)
    splits = {"target": content.table, "source_val": selection}
    long = [long_table(table).assign(split=split) for split, table in splits.items() if len(table)]
    write_table(folder / "methods.parquet", pd.concat(long, ignore_index=True))


def _verdict(content: _Content) -> Verdict:
    return verdict(
        content.scores,
        personalized=content.personalized,
        reference=content.reference,
        cohort=content.cohorts[0],
        shared_people=content.shared_people,
    )


def _words(content: _Content, selection: pd.DataFrame, rows: pd.DataFrame) -> dict[str, object]:
    """Sentences and tables of the page, by their names in the templates."""
    scores, shared = content.scores, content.shared_people
    cohort, pair = content.cohorts[0], {"personalized": content.personalized, "reference": content.reference}
    people = differences(scores, content.personalized, content.reference, cohort=cohort, shared_people=shared)
    gained, lost = most_changed(people)
    added = additions(scores, content.facts, cohort=cohort, shared_people=shared)
    seeds = int(rows.loc[rows["split"] == "target", "seed"].nunique())
    selected = views.grouped(content.facts, list(selection.index))
    return {
        "gained": gained,
        "lost": lost,
        "caveats": [*caveats(content.table, scores, cohort=cohort, shared_people=shared, **pair), *_fallbacks(content)],
        "headline_cohort": cohort_title(cohort),
        "reference": content.reference,
        "tiles": views.tiles(content.table, **pair),
        "several_seeds": seeds if seeds > 1 else 0,
        "seed_note": " with the same subjects" if shared else ", each with its own subjects",
        "table": views.table_view(content.table, views.grouped(content.facts, list(content.table.index)), **pair),
        "addition": addition_sentence(added),
        "additions": views.addition_rows(added),
        "selection": selection_sentence(scores, content.facts, personalized=content.personalized),
        "selection_table": views.table_view(selection, selected, **pair),
        "settings_head": views.SETTINGS,
        "settings": views.setting_rows(content.facts),
    }


def _prior(folder: Path, rows: pd.DataFrame, content: _Content) -> dict[str, object] | None:
    """Write table and figure for other shares of the positive class, return their section; None beyond two classes."""
    picture, parquet = folder / "figures" / "priors.png", folder / "priors.parquet"
    if content.assumed is None:
        for earlier in (picture, parquet):
            earlier.unlink(missing_ok=True)
        return None
    table = prior_table(content.assumed, shared_people=content.shared_people)
    write_table(parquet, table)
    shown = table[table["cohort"].isin(content.cohorts)]
    pair = {"reference": content.reference, "personalized": content.personalized}
    figures.prior_lines(picture, shown, **pair)
    view = views.prior_view(shown, list(dict.fromkeys([content.personalized, content.reference])))
    alt = "UAR and WAR of the default and the reference against the assumed share of the positive class"
    unstated = int(rows.reindex(columns=list(PRIORS))["training_prior"].isna().sum())
    return {
        "positive": content.classes[-1],
        "sentences": prior_sentences(content.assumed, content.personalized, shared_people=content.shared_people),
        "picture": inline(picture, alt, caption="Diamonds: the decisions as they stand. Orange: the true share."),
        "table": view,
        "markdown": views.prior_markdown(view),
        "unstated": f"{unstated} of {len(rows)} rows do not state the share of positives in training; "
        f"{share_name(UNSTATED_PRIOR)} is assumed for them."
        if unstated
        else "",
    }


def _fallbacks(content: _Content) -> list[str]:
    own = next(one for one in content.facts if one.method == content.personalized)
    if not own.num_fallbacks:
        return []
    return [f"{own.num_fallbacks} of its {own.num_rows} predictions fell back to the source prompts ({own.fallback})."]


def _pictures(
    folder: Path,
    rows: pd.DataFrame,
    content: _Content,
    stories: Sequence[ClipStory],
    agreement: Sequence[AuAgreement],
) -> dict[str, object]:
    """Draw everything, and return it inlined."""
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in (*folder.glob("clip_*.png"), *folder.glob("who_*.png")):
        earlier.unlink()  # left by an earlier report
    positive = content.classes[-1]
    told = []
    for number, story in enumerate(stories, 1):
        words = views.story_words(story, reference=content.reference, positive=positive)
        path = figures.clip_story(folder / f"clip_{number:02d}.png", story)
        told.append(words | {"figure": inline(path, f"Frames, entropy and action units of clip {story.clip_id}")})
    groups = views.grouped(content.facts, list(content.table.index))
    bars = figures.method_bars(
        folder / "methods.png", content.table, groups, reference=content.reference, personalized=content.personalized
    )
    caption = f"Lines are 95% intervals over subjects. Dashed: {content.reference}. Bold: the default."
    agreed = figures.agreement_bars(folder / "agreement.png", agreement) if agreement else None
    return {
        "who": [_who(folder, content, cohort) for cohort in content.cohorts],
        "bars": inline(bars, "Mean UAR of every method in every cohort", caption=caption),
        "confusion": _confusion(folder, rows, content),
        "stories": told,
        "agreement": inline(agreed, "Rank correlation of every action unit with its truth") if agreed else None,
    }


def _who(folder: Path, content: _Content, cohort: str) -> Picture:
    uar, war = (
        differences(
            content.scores,
            content.personalized,
            content.reference,
            metric=metric,
            cohort=cohort,
            shared_people=content.shared_people,
        )
        for metric in ("uar", "war")
    )
    slug = re.sub(r"[^A-Za-z0-9]+", "_", cohort).strip("_")
    title = f"{content.personalized}, {cohort_title(cohort)}"
    path = folder / f"who_{slug}.png"
    figures.subject_bars(path, uar=uar, war=war, against=content.reference, title=title)
    alt = f"Change of UAR and WAR of every subject, {cohort_title(cohort)}"
    caption = "Green bars to the right: helped. Orange bars to the left: hurt. In brackets: UAR before and after."
    return inline(path, alt, name=cohort_title(cohort), caption=caption)


def _confusion(folder: Path, rows: pd.DataFrame, content: _Content) -> Picture:
    cohort, index = content.cohorts[0], {name: number for number, name in enumerate(content.classes)}
    own = rows[(rows["split"] == "target") & (rows["cohort"] == cohort)]
    counts = []
    for method in (content.reference, content.personalized):
        part = own[own["method"] == method]
        predicted, true = (part[column].map(index).to_numpy(int) for column in ("prediction", "label"))
        counts.append((method, confusion(predicted, true, num_classes=len(index))))
    title = cohort_title(cohort)
    path = figures.confusion_matrices(folder / "confusion.png", counts, classes=content.classes, cohort=title)
    return inline(path, "Confusion matrices", caption="Counts over all subjects, draws and seeds; percent of each row.")
