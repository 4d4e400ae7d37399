"""What is left to do in an adaptation run, by subject: which rows remain valid, which methods adapt to which clips.

In: a subject's clips, the methods, the cohorts and the rows written so far. Out: a `SubjectPlan` for the driver, with
the `SubjectWork` that goes to an actor and holds no label.

Valid rows are kept. A new clip extends its subject: if its prediction does not depend on other clips it is predicted
alone; an `online` run of the run's own method resumes from its saved state; anything else that the clip could change is
computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from clipautt.adaptation.driver import visiting_order
from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.predictions import NO_PREDICTION
from clipautt.clips import Clip
from clipautt.evaluation.results import EVERY, Cohort, is_settled, read_rows
from clipautt.subjects import subject_file

Purpose = Literal["rows", "comparison", "explanation"]
"""What an assignment is for: `rows`, its predictions become result rows; `comparison`, they are only compared with
those of an approximation; `explanation`, all clips are adapted to once more, in the order in which they were visited,
to write what adaptation changed."""
FAILED = "failed: "
"""Prefix of the status of a row whose subject could not be adapted to."""


@dataclass(frozen=True, repr=False)
class Group:
    """Clips of one subject that are evaluated together."""

    cohort: str
    """Name of the cohort, or `EVERY`."""
    draw: int
    """Number of the draw, from 0."""
    clip_ids: frozenset[str]
    """The clips in the group."""


@dataclass(frozen=True)
class Assignment:
    """One method applied to some clips of a subject."""

    method: AdaptConfig
    """How to adapt."""
    clip_ids: tuple[str, ...]
    """The clips to predict; sorted, unless `in_order`."""
    history_ids: tuple[str, ...] = ()
    """Clips of the `online` run that is resumed, in the order in which they were visited."""
    purpose: Purpose = "rows"
    """What its predictions are for."""
    groups: frozenset[tuple[str, int]] = frozenset()
    """Cohort and draw of the groups that its rows are for; empty: all groups, as clips do not affect each other."""
    keep: bool = False
    """Whether the adapted state is saved for later predictions."""
    explain: bool = False
    """Whether to write what adaptation changed."""
    in_order: bool = False
    """Whether the clips are visited in the order of `clip_ids`, not in the method's."""

    def serves(self, group: Group) -> bool:
        """Whether its predictions become rows of this group."""
        return self.purpose == "rows" and (not self.groups or (group.cohort, group.draw) in self.groups)


@dataclass(frozen=True, repr=False)
class SubjectWork:
    """What an actor has to do for one subject; it holds no label."""

    subject_id: str
    """The subject's id."""
    clips: tuple[Clip, ...]
    """Every clip that an assignment names, without its label."""
    assignments: tuple[Assignment, ...]
    """What to compute, in the order of the methods."""
    au_files: Mapping[str, Path] = field(default_factory=dict)
    """Clip → another tool's table of its action units, for the explanation."""
    au_problems: Mapping[str, str] = field(default_factory=dict)
    """Clip → why the table that seems to belong to it is not used."""

    @property
    def num_videos(self) -> int:
        """Videos to predict, counted once for all methods; the history of an `online` run does not count."""
        return len({clip_id for one in self.assignments for clip_id in one.clip_ids})


@dataclass(frozen=True, repr=False)
class SubjectPlan:
    """A subject with something left to do."""

    clips: tuple[Clip, ...]
    """All of the subject's clips, with labels."""
    groups: tuple[Group, ...]
    """The groups of its clips with features."""
    kept: pd.DataFrame
    """The rows that remain valid, with those of clips that cannot be predicted from their features."""
    rows: pd.DataFrame
    """All rows written so far; if the work fails, those of `settled` clips stay."""
    work: SubjectWork
    """The work for an actor; it has no assignments where only rows without a prediction are missing."""


def result_file(subject_id: str) -> str:
    """File name of a subject's result rows."""
    return Path(subject_file(subject_id)).with_suffix(".parquet").name


def make_groups(clips: Sequence[Clip], cohorts: Sequence[Cohort], *, positive: str, seed: int) -> list[Group]:
    """One subject's groups: all clips, and the draws of each cohort if the subject has labels of both classes."""
    groups = [Group(EVERY, 0, frozenset(clip.clip_id for clip in clips))]
    labelled = [clip for clip in clips if clip.label is not None]
    if len({clip.label for clip in labelled}) < 2:
        return groups
    for cohort in cohorts:
        for draw in range(cohort.draws):
            members = cohort.members(labelled, positive=positive, draw=draw, seed=seed)
            groups.append(Group(cohort.name, draw, frozenset(clip.clip_id for clip in members)))
    return groups


def plan_subject(
    clips: Sequence[Clip],
    groups: Sequence[Group],
    methods: Sequence[AdaptConfig],
    *,
    rows: pd.DataFrame,
    resumable: Sequence[str] | None = None,
    exact: Sequence[AdaptConfig] = (),
    explained: Iterable[str] | None = None,
) -> SubjectPlan | None:
    """What is left to do for one subject.

    Args:
        clips: all of the subject's clips.
        groups: groups of the clips that have features; empty if no clip has.
        methods: methods of the run, its own first.
        rows: rows of the subject's result file; empty if there is none.
        resumable: clips that the saved state was made from, in the order in which they were visited; None if there is
            no saved state.
        exact: exact methods to compare approximations with on this subject.
        explained: clips that the subject's explanation covers so far; None if no explanation is asked for.

    Returns:
        The plan; None if nothing is left to do.
    """
    assignments: list[Assignment] = []
    kept: list[int] = []
    standing = _standing(rows)
    for number, method in enumerate(methods):
        valid, missing = _plan_method(method, standing, groups, resumable if number == 0 else None)
        kept += valid
        missing = [replace(one, keep=number == 0 and one.keep) for one in missing]
        explainable = groups[0].clip_ids - _not_predicted(rows, method) if groups else frozenset()
        if number == 0 and groups and explained is not None and set(explained) != explainable:
            before = rows.iloc[list(standing.get((method.name, EVERY, 0), {}).values())].sort_values("position")[
                "clip_id"
            ]
            missing = _explaining(missing, method, clips, groups[0], before.tolist())
        assignments += missing
    if groups:
        every = tuple(sorted(groups[0].clip_ids))
        beside = [method for method in dict.fromkeys(exact) if method not in methods]
        assignments += [Assignment(method, every, purpose="comparison") for method in beside]
    with_features = groups[0].clip_ids if groups else frozenset()
    empty = {clip.clip_id for clip in clips} - with_features
    written = set(rows.loc[~is_settled(rows) & ~rows["status"].str.startswith(FAILED), "clip_id"])
    labels = {clip.clip_id: clip.label or "" for clip in clips}
    same_labels = all(labels.get(row) == label for row, label in zip(rows["clip_id"], rows["label"], strict=True))
    if not assignments and empty == written & labels.keys() and same_labels:
        return None
    named = {clip_id for one in assignments for clip_id in (*one.clip_ids, *one.history_ids)}
    needed = tuple(replace(clip, label=None) for clip in clips if clip.clip_id in named)
    work = SubjectWork(clips[0].subject_id, needed, tuple(assignments))
    return SubjectPlan(tuple(clips), tuple(groups), rows.iloc[sorted(kept)], rows, work)


_Standing = dict[tuple[str, str, int], dict[str, int]]
"""(method, cohort, draw) → clip → number of its row."""


def _standing(rows: pd.DataFrame) -> _Standing:
    """Numbers of the `settled` rows. In plain containers, as there may be many thousands of subjects."""
    numbers: _Standing = {}
    columns = [rows[name].tolist() for name in ("method", "cohort", "draw", "clip_id", "prediction", "status")]
    for number, (method, cohort, draw, clip_id, prediction, status) in enumerate(zip(*columns, strict=True)):
        if prediction or status.startswith(NO_PREDICTION):
            numbers.setdefault((method, cohort, int(draw)), {})[clip_id] = number
    return numbers


def _not_predicted(rows: pd.DataFrame, method: AdaptConfig) -> frozenset[str]:
    """Clips that a method was given and cannot predict; an explanation cannot show them."""
    own = rows[(rows["method"] == method.name) & rows["status"].str.startswith(NO_PREDICTION)]
    return frozenset(own["clip_id"])


def _explaining(
    missing: Sequence[Assignment], method: AdaptConfig, clips: Sequence[Clip], every: Group, visited: Sequence[str]
) -> list[Assignment]:
    """The missing assignments, one of which writes the explanation; if none can, with one more pass over all clips.

    An explanation is always made from all clips at once, so that it depends on them alone. Under `online`, clips that
    were visited before come first, in that order.
    """
    whole = [one.keep and not one.history_ids and set(one.clip_ids) == every.clip_ids for one in missing]
    if any(whole):
        return [replace(one, explain=explains) for one, explains in zip(missing, whole, strict=True)]
    before = [clip_id for clip_id in visited if clip_id in every.clip_ids] if method.protocol == "online" else []
    new = [clip for clip in clips if clip.clip_id in every.clip_ids - set(before)]
    order = (*before, *(clip.clip_id for clip in visiting_order(new, method)))
    return [Assignment(method, order, purpose="explanation", in_order=True, explain=True), *missing]


def _plan_method(
    method: AdaptConfig, standing: _Standing, groups: Sequence[Group], resumable: Sequence[str] | None
) -> tuple[list[int], list[Assignment]]:
    """Numbers of a method's valid rows, and the missing assignments."""
    if not groups:
        return [], []
    if not method.transductive:
        wanted = frozenset().union(*(group.clip_ids for group in groups))
        written = [
            (clip_id, row) for key, rows in standing.items() if key[0] == method.name for clip_id, row in rows.items()
        ]
        missing = sorted(wanted - {clip_id for clip_id, _ in written})
        valid = [row for clip_id, row in written if clip_id in wanted]
        return valid, [Assignment(method, tuple(missing), keep=True)] if missing else []
    kept: list[int] = []
    assignments = []
    for group in groups:
        rows = standing.get((method.name, group.cohort, group.draw), {})
        done, key = frozenset(rows), frozenset({(group.cohort, group.draw)})
        if done == group.clip_ids:
            kept += rows.values()
        elif resumes(method, group, done, resumable):
            kept += rows.values()
            assert resumable is not None
            new = tuple(sorted(group.clip_ids - done))
            assignments.append(Assignment(method, new, tuple(resumable), groups=key, keep=True))
        else:
            all_clips = tuple(sorted(group.clip_ids))
            assignments.append(Assignment(method, all_clips, groups=key, keep=group.cohort == EVERY))
    return kept, _once(assignments)


def resumes(method: AdaptConfig, group: Group, there: frozenset[str], resumable: Sequence[str] | None) -> bool:
    """Whether an `online` run can be resumed: its state was made from exactly the clips with rows, and none is gone."""
    return (
        method.protocol == "online"
        and group.cohort == EVERY
        and bool(there)
        and there < group.clip_ids
        and resumable is not None
        and frozenset(resumable) == there
    )


def _once(assignments: Iterable[Assignment]) -> list[Assignment]:
    """Merge assignments to the same clips into one, which saves the adapted state if one of them does."""
    merged: dict[tuple[tuple[str, ...], tuple[str, ...]], Assignment] = {}
    for assignment in assignments:
        key = (assignment.clip_ids, assignment.history_ids)
        before = merged.get(key, assignment)
        merged[key] = replace(assignment, groups=assignment.groups | before.groups, keep=assignment.keep or before.keep)
    return list(merged.values())


def standing_rows(file: Path) -> pd.DataFrame:
    """The rows of a subject's result file; none if there is no file.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        return read_rows([file] if file.is_file() else [])
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise ValueError(f"{file} is damaged ({error}); remove it to adapt to its subject again") from error


def make_tasks(work: Sequence[SubjectWork], *, clips_per_task: int, actors: int) -> list[list[SubjectWork]]:
    """Tasks of about `clips_per_task` clips: small subjects together, large ones alone, in alphabetical order.

    If there are few clips, tasks are smaller, so that every actor gets two of them.
    """
    tasks: list[list[SubjectWork]] = []
    most = min(clips_per_task, -(-sum(len(one.clips) for one in work) // (2 * actors)))
    room = 0
    for one in sorted(work, key=lambda one: one.subject_id):
        if len(one.clips) > room:
            tasks.append([])
            room = most
        tasks[-1].append(one)
        room -= len(one.clips)
    return tasks


def changed_clips(before: Sequence[Clip], after: Mapping[str, Clip]) -> list[str]:
    """Which of the earlier clips are gone or have changed; new clips do not matter.

    Args:
        before: clips that results were made from.
        after: clip id → clip as it is now.

    Returns:
        One line per difference.
    """
    lines = []
    for clip in before:
        now = after.get(clip.clip_id)
        if now is None:
            lines.append(f"clip {clip.clip_id!r} of subject {clip.subject_id!r} is gone")
            continue
        free = {"source", *(["label"] if clip.label is None else [])}  # a label may come later
        differing = [name for name, value in vars(clip).items() if name not in free and getattr(now, name) != value]
        lines += [
            f"clip {clip.clip_id!r}: {name} {getattr(clip, name)!r} → {getattr(now, name)!r}" for name in differing
        ]
    return lines
