"""What is left to do of an adaptation run, subject by subject: which rows stand, which methods adapt on which clips.

Rows that stand are kept. A clip that came later extends its subject: where a clip's prediction does not depend on the
others it is predicted alone, an `online` run of the run's own method is resumed from its saved state, and everything
else that the clip could have changed is done anew.

In: a subject's clips, methods, cohorts and the rows that are there. Out: a `SubjectPlan` for the driver, with the
`SubjectWork` that goes to an actor and holds no label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from clipautt.adaptation.driver import visiting_order
from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.personalization import subject_file
from clipautt.clips import Clip
from clipautt.evaluation.results import EVERY, Cohort, read_rows

Purpose = Literal["rows", "comparison", "explanation"]
"""What an assignment is for: its predictions become result rows; they are compared with those of an approximation; or
all clips are adapted to once more, in the order of their visits, to write what that changed."""
FAILED = "failed: "
"""How the status of a row begins whose subject could not be adapted to."""


@dataclass(frozen=True, repr=False)
class Group:
    """Clips of one subject that are evaluated together."""

    cohort: str
    """Name of the cohort, or `EVERY`."""
    draw: int
    """Number of the draw."""
    clip_ids: frozenset[str]
    """Members."""


@dataclass(frozen=True)
class Assignment:
    """One method on some clips of a subject."""

    method: AdaptConfig
    """How to adapt."""
    clip_ids: tuple[str, ...]
    """On which clips, sorted."""
    history_ids: tuple[str, ...] = ()
    """Clips of the `online` run that is resumed, in the order of its visits."""
    purpose: Purpose = "rows"
    """What its predictions are for."""
    groups: frozenset[tuple[str, int]] = frozenset()
    """Cohort and draw of the groups that its rows are for; empty: all, since clips do not matter to each other."""
    keep: bool = False
    """Whether the prompts are kept, for predictions to come."""
    explain: bool = False
    """Whether what it changed is written."""
    in_order: bool = False
    """Whether the clips are visited in the order of their ids here."""

    def serves(self, group: Group) -> bool:
        """Whether its predictions become rows of a group."""
        return self.purpose == "rows" and (not self.groups or (group.cohort, group.draw) in self.groups)


@dataclass(frozen=True, repr=False)
class SubjectWork:
    """What is to be done for one subject; it holds no label."""

    subject_id: str
    """Subject."""
    clips: tuple[Clip, ...]
    """Every clip that an assignment names, without its label."""
    assignments: tuple[Assignment, ...]
    """In the order of the methods."""
    openface: Mapping[str, Path] = field(default_factory=dict)
    """OpenFace's file of each clip that has one, to explain with."""
    openface_problems: Mapping[str, str] = field(default_factory=dict)
    """Clip → why a file that may be its own is not taken."""

    @property
    def num_videos(self) -> int:
        """Videos that are predicted, under however many methods; those that an `online` run has seen do not count."""
        return len({clip_id for one in self.assignments for clip_id in one.clip_ids})


@dataclass(frozen=True, repr=False)
class SubjectPlan:
    """A subject with work left."""

    clips: tuple[Clip, ...]
    """All of the subject's clips, with labels."""
    groups: tuple[Group, ...]
    """Of the clips with features."""
    kept: pd.DataFrame
    """Rows that stand, without those of clips that have no features."""
    rows: pd.DataFrame
    """All rows that there were; those with a prediction stay where the work fails."""
    work: SubjectWork
    """For an actor; without assignments where only rows without a prediction are missing."""


def result_file(subject_id: str) -> str:
    """File name of a subject's result rows."""
    return Path(subject_file(subject_id)).with_suffix(".parquet").name


def make_groups(clips: Sequence[Clip], cohorts: Sequence[Cohort], *, positive: str, seed: int) -> list[Group]:
    """One subject's groups: every clip, and the draws of each cohort where the subject has labels of both classes."""
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
        groups: of those that have features; none where no clip has.
        methods: of the run, its own first.
        rows: of the subject's result file, empty where there is none.
        resumable: clips that the saved prompts were made from, in the order of the visits; None without prompts.
        exact: exact counterparts of cheap methods that this subject is to be compared under.
        explained: clips that what the run's own method changed has been written of; None where nobody asks for it.

    Returns:
        None where nothing is left.
    """
    assignments: list[Assignment] = []
    kept: list[int] = []
    standing = _standing(rows)
    for number, method in enumerate(methods):
        stands, missing = _plan_method(method, standing, groups, resumable if number == 0 else None)
        kept += stands
        missing = [replace(one, keep=number == 0 and one.keep) for one in missing]
        if number == 0 and groups and explained is not None and set(explained) != groups[0].clip_ids:
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
    written = set(rows.loc[(rows["prediction"] == "") & ~rows["status"].str.startswith(FAILED), "clip_id"])
    labels = {clip.clip_id: clip.label or "" for clip in clips}
    same_labels = all(labels.get(row) == label for row, label in zip(rows["clip_id"], rows["label"], strict=True))
    if not assignments and empty == written & labels.keys() and same_labels:
        return None
    named = {clip_id for one in assignments for clip_id in (*one.clip_ids, *one.history_ids)}
    needed = tuple(replace(clip, label=None) for clip in clips if clip.clip_id in named)
    work = SubjectWork(clips[0].subject_id, needed, tuple(assignments))
    return SubjectPlan(tuple(clips), tuple(groups), rows.iloc[sorted(kept)], rows, work)


_Standing = dict[tuple[str, str, int], dict[str, int]]
"""Method, cohort and draw → clip → number of its row."""


def _standing(rows: pd.DataFrame) -> _Standing:
    """Where the rows with a prediction are; by plain containers, since there may be many thousands of subjects."""
    found: _Standing = {}
    columns = [rows[name].tolist() for name in ("method", "cohort", "draw", "clip_id", "prediction")]
    for number, (method, cohort, draw, clip_id, prediction) in enumerate(zip(*columns, strict=True)):
        if prediction:
            found.setdefault((method, cohort, int(draw)), {})[clip_id] = number
    return found


def _explaining(
    missing: Sequence[Assignment], method: AdaptConfig, clips: Sequence[Clip], every: Group, visited: Sequence[str]
) -> list[Assignment]:
    """What is missing, and what was changed is written by the way; or else by one more pass over all clips.

    An explanation is always made of all clips at once, so that it depends on nothing but them. `online`, clips that
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
    """Numbers of a method's rows that stand, and what is missing."""
    if not groups:
        return [], []
    if not method.transductive:
        wanted = frozenset().union(*(group.clip_ids for group in groups))
        own = [
            (clip_id, row) for key, rows in standing.items() if key[0] == method.name for clip_id, row in rows.items()
        ]
        missing = sorted(wanted - {clip_id for clip_id, _ in own})
        stands = [row for clip_id, row in own if clip_id in wanted]
        return stands, [Assignment(method, tuple(missing), keep=True)] if missing else []
    kept: list[int] = []
    assignments = []
    for group in groups:
        rows = standing.get((method.name, group.cohort, group.draw), {})
        there, key = frozenset(rows), frozenset({(group.cohort, group.draw)})
        if there == group.clip_ids:
            kept += rows.values()
        elif resumes(method, group, there, resumable):
            kept += rows.values()
            assert resumable is not None
            new = tuple(sorted(group.clip_ids - there))
            assignments.append(Assignment(method, new, tuple(resumable), groups=key, keep=True))
        else:
            every = tuple(sorted(group.clip_ids))
            assignments.append(Assignment(method, every, groups=key, keep=group.cohort == EVERY))
    return kept, _once(assignments)


def resumes(method: AdaptConfig, group: Group, there: frozenset[str], resumable: Sequence[str] | None) -> bool:
    """Whether an `online` run can be resumed: its state was made from just the clips that have rows, and all remain."""
    return (
        method.protocol == "online"
        and group.cohort == EVERY
        and bool(there)
        and there < group.clip_ids
        and resumable is not None
        and frozenset(resumable) == there
    )


def _once(assignments: Iterable[Assignment]) -> list[Assignment]:
    """Groups of the same clips need one assignment, which keeps prompts where one of them does."""
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], Assignment] = {}
    for one in assignments:
        key = (one.clip_ids, one.history_ids)
        before = found.get(key, one)
        found[key] = replace(one, groups=one.groups | before.groups, keep=one.keep or before.keep)
    return list(found.values())


def standing_rows(file: Path) -> pd.DataFrame:
    """A subject's rows; none where there is no file."""
    try:
        return read_rows([file] if file.is_file() else [])
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise ValueError(f"{file} is damaged ({error}); remove it, and its subject is done anew") from error


def make_tasks(work: Sequence[SubjectWork], *, clips_per_task: int, actors: int) -> list[list[SubjectWork]]:
    """Small subjects together, large ones alone: in alphabetical order, tasks of about so many clips.

    Where there are few clips, tasks are smaller, so that every actor has two of them.
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
    """What of earlier clips is gone or not what it was; further clips are none of these.

    Args:
        before: clips that results were made from.
        after: clip id → clip as it is now.

    Returns:
        A line per clip.
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
