"""`study`: means per subject and condition, intervals over subjects, and paired differences between conditions.

In: a table of clips. Out: a `Study` of data frames.

**The unit is the person.** A subject's clips are averaged first, so that a person with a hundred clips weighs as much
as one with two. Intervals and tests are over subjects; clips of one person are never taken for independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from clipautt.study.clip_table import ClipTable, clip_table
from clipautt.study.conditions import Conditions, conditions_of, name_of, natural
from clipautt.study.measures import ALWAYS, Measure, chosen_measures, measures_of, values_of
from clipautt.study.statistics import false_discovery, over_subjects, paired_differences
from clipautt.study.validity import (
    COUNTED,
    COUNTS,
    FINDING,
    MANY_COUNTS,
    NO_CONDITION,
    NO_SUBJECT,
    clip_counts,
    exclusions,
    validity_table,
)
from clipautt.tables import doubtful_labels

SUBJECT, EXCLUDED = "subject", "excluded"
FIRST, SECOND = "condition_first", "condition_second"
_MEASURE = ("measure", "measure_label", "measure_unit", "measure_group", "learned")
_FIGURES = ("subjects", "mean", "sd", "low", "high", "interval_kind")
_CHANGES = (
    "subjects",
    "mean_first",
    "mean_second",
    "difference",
    "sd",
    "low",
    "high",
    "interval_kind",
    "dz",
    "p",
    "q",
    "tests",
)
_SPLIT, _SOURCE = "split", ("source_train", "source_val")
"""Column of a manifest, and its values for people whom training has seen."""
_ONE_SIDED = ("subjects_first_only", "subjects_second_only")


@dataclass(frozen=True, eq=False, repr=False)
class Study:
    """Figures of a table of clips."""

    clips: pd.DataFrame
    """The table, sorted, with `excluded`: why a clip does not count, empty for those that do."""
    subjects: pd.DataFrame
    """A row per subject and condition: `subject`, the columns of `by`, counts of clips (`clips`, `clips_usable`,
    `clips_excluded`, `excluded_<reason>`, and of those that count `clips_warned`, `warned_<code>`,
    `clips_personalized`), then every measure, mean over the clips that count."""
    conditions: pd.DataFrame
    """A row per condition and measure: the columns of `by`, `measure`, `measure_label`, `measure_unit`,
    `measure_group`, `learned`, `subjects`, `mean`, `sd`, `low`, `high`, `interval_kind`, and the counts of clips,
    `face_share` and `other_faces` behind them."""
    differences: pd.DataFrame
    """A row per pair of conditions and measure, second minus first over the subjects that have both; columns as
    `statistics.paired_differences`, with `q`, `tests` and the counts of clips of these subjects."""
    validity: pd.DataFrame
    """Excluded clips by reason and warnings by code, in every condition; see `validity.validity_table`."""
    measures: tuple[Measure, ...]
    """What was measured, in the order of the columns."""
    classes: tuple[str, ...]
    """Names of the model's classes."""
    by: tuple[str, ...]
    """Columns that define the conditions."""
    names: tuple[str, ...]
    """The conditions, in order."""
    exclude_warnings: tuple[str, ...] = ()
    """Warnings whose clips were left out."""
    notes: tuple[str, ...] = ()
    """Sentences on what a reader should check, such as names that may be misspelt."""

    def __repr__(self) -> str:
        used = int((self.clips[EXCLUDED] == "").sum())
        people = self.subjects[SUBJECT].nunique()
        return f"Study({people} subjects, {len(self.names)} conditions, {used} of {len(self.clips)} clips)"


def study(
    table: pd.DataFrame | ClipTable,
    *,
    by: Sequence[str] | str | None = None,
    measures: Sequence[str] | None = None,
    exclude_warnings: Sequence[str] = (),
    reference: str | None = None,
) -> Study:
    """Means per subject and condition with intervals, and paired differences between conditions.

    Args:
        table: predicted clips: from `read_clips`, or a data frame with a row per clip.
        by: columns that define the conditions; None: `condition` if the table has it, and otherwise none.
        measures: names of what is averaged, such as `probability_pain` or `AU4_rise`; None: everything.
        exclude_warnings: codes of warnings whose clips are left out; by default they count and are counted.
        reference: the condition with which the others are compared; None: every pair is.

    Raises:
        ValueError: if the table, a column, a measure, a code or the reference makes no sense, or no clip names its
            subject.
    """
    given = table if isinstance(table, ClipTable) else clip_table(table)
    rows = given.rows.sort_values(["clip", "source"], kind="stable", ignore_index=True)
    given = ClipTable(rows, given.classes, given.action_units, given.extra)
    if not (rows[SUBJECT] != "").any():
        raise ValueError(
            "no clip names its subject, and without subjects there is no study; fill in the column subject"
        )
    if EXCLUDED in given.extra:
        raise ValueError(f"the table has a column {EXCLUDED!r}, which a study writes itself; rename or remove it")
    shown = chosen_measures(measures_of(given), measures)
    exclude = tuple(dict.fromkeys(exclude_warnings))
    conditions = conditions_of(given, by, reference=reference, taken=_own_columns(given, shown))
    excluded = exclusions(given, by=conditions.by, exclude_warnings=exclude)
    counts = clip_counts(given, excluded, exclude)
    counted = [str(name) for name in counts.columns]
    subjects = _subjects(given, conditions, counts, values_of(given, shown), excluded)
    pairs = list(combinations(range(len(conditions.cells)), 2))
    return Study(
        clips=rows.assign(excluded=excluded),
        subjects=_named(subjects, conditions),
        conditions=_condition_rows(subjects, conditions, shown, counted),
        differences=_difference_rows(
            subjects, conditions, shown, counted, [p for p in pairs if reference is None or p[0] == 0]
        ),
        validity=validity_table(given, excluded, by=conditions.by, cells=conditions.numbers),
        measures=tuple(shown),
        classes=given.classes,
        by=conditions.by,
        names=conditions.names,
        exclude_warnings=exclude,
        notes=tuple(_notes(given, conditions, excluded)),
    )


def _own_columns(table: ClipTable, measures: Sequence[Measure]) -> set[str]:
    """Columns that a study writes itself, so that no column of conditions may have their names."""
    own = {SUBJECT, FIRST, SECOND, EXCLUDED, *_MEASURE, *_FIGURES, *_CHANGES, *_ONE_SIDED, *FINDING, *COUNTED, *COUNTS}
    return own | {one.name for one in measures} | {name for name in table.extra if name.startswith(MANY_COUNTS)}


def cell_names(table: pd.DataFrame, by: Sequence[str]) -> pd.Series[str]:
    """Name of the condition of every row of a table that has the columns of `by`; as in `Study.names`."""
    cells = [name_of(tuple(map(str, cell))) for cell in table[list(by)].itertuples(index=False, name=None)]
    return pd.Series(cells if by else [name_of(())] * len(table), index=table.index, dtype=str)


def _subjects(
    table: ClipTable, conditions: Conditions, counts: pd.DataFrame, values: pd.DataFrame, excluded: pd.Series[str]
) -> pd.DataFrame:
    """Counts and means, indexed by number of the condition and subject; subjects in natural order."""
    keys = [conditions.numbers.rename("cell"), table.rows[SUBJECT]]
    named = ~excluded.isin([NO_SUBJECT, NO_CONDITION]) & (keys[0] >= 0) & (keys[1] != "")
    summed = counts[named].groupby([key[named] for key in keys]).sum()
    good = excluded == ""
    means = values[good].groupby([key[good] for key in keys]).mean()
    joined = summed.join(means)
    order = sorted(joined.index, key=lambda key: (natural(key[1]), key[1], key[0]))
    return joined.reindex(pd.MultiIndex.from_tuples(order, names=joined.index.names))


def _named(subjects: pd.DataFrame, conditions: Conditions) -> pd.DataFrame:
    """The table of subjects with the columns of the conditions in place of their numbers."""
    cells, people = (subjects.index.get_level_values(level) for level in (0, 1))
    names = {one: [conditions.cells[cell][i] for cell in cells] for i, one in enumerate(conditions.by)}
    return pd.concat([pd.DataFrame({SUBJECT: list(people), **names}), subjects.reset_index(drop=True)], axis=1)


def _behind(part: pd.DataFrame, counts: Sequence[str]) -> dict[str, float]:
    """What figures rest on: counts of clips, and the means over subjects that always stand beside them."""
    totals = {name: int(part[name].sum()) for name in counts}
    return totals | {name: float(part[name].mean()) for name in ALWAYS}


def _described(measures: Sequence[Measure]) -> pd.DataFrame:
    words = [(one.name, one.label, one.unit, one.group, one.learned) for one in measures]
    return pd.DataFrame(words, columns=list(_MEASURE)).astype({"learned": "boolean"})


def _condition_rows(
    subjects: pd.DataFrame, conditions: Conditions, measures: Sequence[Measure], counts: Sequence[str]
) -> pd.DataFrame:
    names = [one.name for one in measures]
    blocks = []
    for number, cell in enumerate(conditions.cells):
        own = subjects[subjects.index.get_level_values(0) == number]
        block = pd.concat([_described(measures), over_subjects(own[names]).reset_index(drop=True)], axis=1)
        blocks.append(block.assign(**dict(zip(conditions.by, cell, strict=True)), **_behind(own, counts)))
    columns = [*conditions.by, *_MEASURE, *_FIGURES, *counts, *ALWAYS]
    return pd.concat(blocks, ignore_index=True)[columns]


def _difference_rows(
    subjects: pd.DataFrame,
    conditions: Conditions,
    measures: Sequence[Measure],
    counts: Sequence[str],
    pairs: Sequence[tuple[int, int]],
) -> pd.DataFrame:
    columns = [FIRST, SECOND, *_MEASURE, *_CHANGES, *_ONE_SIDED, *counts, *ALWAYS]
    if not pairs:
        return pd.DataFrame(columns=columns)
    names, blocks = [one.name for one in measures], []
    for pair in pairs:
        first, second = (_of_cell(subjects, number) for number in pair)
        figures = paired_differences(first[names], second[names]).reset_index(drop=True)
        has = [set(side.index[side["clips_usable"] > 0]) for side in (first, second)]
        both = sorted(has[0] & has[1])
        sides = {FIRST: conditions.names[pair[0]], SECOND: conditions.names[pair[1]]}
        alone = dict(zip(_ONE_SIDED, (len(has[0] - has[1]), len(has[1] - has[0])), strict=True))
        behind = alone | _behind(pd.concat([first.loc[both], second.loc[both]]), counts)
        blocks.append(pd.concat([_described(measures), figures], axis=1).assign(**sides, **behind))
    table = pd.concat(blocks, ignore_index=True)
    meaningless = table["learned"].eq(False).fillna(False).astype(bool)
    table["p"] = table["p"].mask(meaningless)
    return table.join(false_discovery(table["p"], table["measure_group"]))[columns]


def _of_cell(subjects: pd.DataFrame, number: int) -> pd.DataFrame:
    own: pd.DataFrame = subjects[subjects.index.get_level_values(0) == number].droplevel(0)
    return own


def _notes(table: ClipTable, conditions: Conditions, excluded: pd.Series[str]) -> list[str]:
    rows, good = table.rows, excluded == ""
    notes = []
    for column in (SUBJECT, *conditions.by):
        counts = {str(name): int(count) for name, count in rows[column][rows[column] != ""].value_counts().items()}
        for name, meant in sorted(doubtful_labels(counts).items()):
            notes.append(f"{column} has {name!r} beside {meant!r}: two names, or one that is misspelt?")
    trained = int((rows[_SPLIT][good].isin(_SOURCE)).sum()) if _SPLIT in table.extra else 0
    if trained:
        notes.append(
            f"{trained} of {int(good.sum())} clips belong to the splits {' or '.join(_SOURCE)}: a model trained with "
            "this manifest has seen them, and agrees better with their labels than with those of other people."
        )
    whose = rows["personalized_for"][good]
    if (whose != "").any() and (whose == "").any():
        notes.append(
            f"{int((whose != '').sum())} of {len(whose)} clips are personalized and the others are not, so that their "
            "figures are not comparable; predict all of them in one way."
        )
    strangers = int(((whose != "") & (whose != rows[SUBJECT][good])).sum())
    if strangers:
        notes.append(f"{strangers} of {len(whose)} clips were predicted with the personalization of another subject.")
    return notes
