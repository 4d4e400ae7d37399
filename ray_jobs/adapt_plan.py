"""What is left to do of an adaptation run, subject by subject: which rows stand, which methods adapt on which clips.

Rows that stand are kept. A clip that came later extends its subject: where a clip's prediction does not depend on the
others it is predicted alone, an `online` run of the run's own method goes on from its saved prompts, and everything
else that the clip could have changed is done anew. What this module does not know: Ray, and how anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from clipautt.adapt_config import AdaptConfig
from clipautt.adaptation import visiting_order
from clipautt.clips import Clip, id_number
from clipautt.personalization import subject_file
from clipautt.results import Cohort, read_rows

EVERY = "every clip"
"""Name of the group with all clips of a subject, labelled or not; its adapted prompts are kept."""
COMPARED = frozenset({("compared with a cheap mode", 0)})
"""Stands for the groups of an assignment whose predictions are compared and become no rows."""
REPLAYED = frozenset({("explained afterwards", 0)})
"""The same, where all clips are adapted on once more, in the order of their visits, to write what that changed."""
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
    past_ids: tuple[str, ...] = ()
    """Clips of the `online` run that goes on, in the order of its visits."""
    groups: frozenset[tuple[str, int]] = frozenset()
    """Cohort and draw of the groups it is for; none serves all: where clips do not matter to each other."""
    keep: bool = False
    """Whether the prompts are kept, for predictions to come."""
    explain: bool = False
    """Whether what it changed is written."""
    in_order: bool = False
    """Whether the clips are visited in the order of their ids here."""

    @property
    def makes_rows(self) -> bool:
        """Whether its predictions become rows."""
        return self.groups not in (COMPARED, REPLAYED)

    def serves(self, group: Group) -> bool:
        """Whether predictions are a group's."""
        return not self.groups or (group.cohort, group.draw) in self.groups


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


@dataclass(frozen=True, repr=False)
class SubjectPlan:
    """A subject with work left."""

    clips: tuple[Clip, ...]
    """All of the subject's clips, with labels."""
    groups: tuple[Group, ...]
    """Of the clips with features."""
    kept: pd.DataFrame
    """Rows that stand, without those of clips that have no features."""
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
    went_on_from: Sequence[str] | None = None,
    exact: Sequence[AdaptConfig] = (),
    explained: Iterable[str] | None = None,
) -> SubjectPlan | None:
    """What is left to do for one subject.

    Args:
        clips: all of the subject's clips.
        groups: of those that have features; none where no clip has.
        methods: of the run, its own first.
        rows: of the subject's result file, empty where there is none.
        went_on_from: clips that the saved prompts were made from, in the order of the visits; None without prompts.
        exact: exact counterparts of cheap methods that this subject is to be compared under.
        explained: clips that what the run's own method changed has been written of; None where nobody asks for it.

    Returns:
        None where nothing is left.
    """
    assignments: list[Assignment] = []
    kept: list[pd.DataFrame] = []
    for number, method in enumerate(methods):
        own = rows[(rows["method"] == method.name) & (rows["prediction"] != "")]
        standing, missing = _plan_method(method, own, groups, went_on_from if number == 0 else None)
        kept.append(standing)
        missing = [replace(one, keep=number == 0 and one.keep) for one in missing]
        if number == 0 and groups and explained is not None and set(explained) != groups[0].clip_ids:
            missing = _explaining(missing, method, clips, groups[0], standing)
        assignments += missing
    if groups:
        every = tuple(sorted(groups[0].clip_ids))
        beside = [method for method in dict.fromkeys(exact) if method not in methods]
        assignments += [Assignment(method, every, groups=COMPARED) for method in beside]
    with_features = groups[0].clip_ids if groups else frozenset()
    empty = {clip.clip_id for clip in clips} - with_features
    written = set(rows.loc[(rows["prediction"] == "") & ~rows["status"].str.startswith(FAILED), "clip_id"])
    labels = {clip.clip_id: clip.label or "" for clip in clips}
    same_labels = all(labels.get(row) == label for row, label in zip(rows["clip_id"], rows["label"], strict=True))
    if not assignments and empty == written & labels.keys() and same_labels:
        return None
    named = {clip_id for one in assignments for clip_id in (*one.clip_ids, *one.past_ids)}
    needed = tuple(replace(clip, label=None) for clip in clips if clip.clip_id in named)
    work = SubjectWork(clips[0].subject_id, needed, tuple(assignments))
    standing = pd.concat(kept) if kept else rows.iloc[:0]
    return SubjectPlan(tuple(clips), tuple(groups), standing, work)


def _explaining(
    missing: Sequence[Assignment], method: AdaptConfig, clips: Sequence[Clip], every: Group, rows: pd.DataFrame
) -> list[Assignment]:
    """What is missing, and what was changed is written by the way; or else by one more pass over all clips.

    An explanation is always made of all clips at once, so that it depends on nothing but them. `online`, clips whose
    rows stand come first, in the order in which they were visited.
    """
    whole = [one.keep and not one.past_ids and set(one.clip_ids) == every.clip_ids for one in missing]
    if any(whole):
        return [replace(one, explain=explains) for one, explains in zip(missing, whole, strict=True)]
    online = method.protocol == "online"
    before = rows[rows["cohort"] == EVERY].sort_values("position")["clip_id"].tolist() if online else []
    new = [clip for clip in clips if clip.clip_id in every.clip_ids and clip.clip_id not in before]
    order = (*before, *(clip.clip_id for clip in visiting_order(new, method)))
    return [Assignment(method, order, groups=REPLAYED, in_order=True, explain=True), *missing]


def _plan_method(
    method: AdaptConfig, rows: pd.DataFrame, groups: Sequence[Group], went_on_from: Sequence[str] | None
) -> tuple[pd.DataFrame, list[Assignment]]:
    """A method's rows that stand, and what is missing."""
    if not groups:
        return rows.iloc[:0], []
    if not method.transductive:
        wanted = frozenset().union(*(group.clip_ids for group in groups))
        standing = rows[rows["clip_id"].isin(wanted)]
        missing = sorted(wanted - set(standing["clip_id"]))
        return standing, [Assignment(method, tuple(missing), keep=True)] if missing else []
    kept, assignments = [], []
    for group in groups:
        own = rows[(rows["cohort"] == group.cohort) & (rows["draw"] == group.draw)]
        there, key = frozenset(own["clip_id"]), frozenset({(group.cohort, group.draw)})
        if there == group.clip_ids:
            kept.append(own)
        elif goes_on(method, group, there, went_on_from):
            kept.append(own)
            assert went_on_from is not None
            new = tuple(sorted(group.clip_ids - there))
            assignments.append(Assignment(method, new, tuple(went_on_from), key, keep=True))
        else:
            every = tuple(sorted(group.clip_ids))
            assignments.append(Assignment(method, every, groups=key, keep=group.cohort == EVERY))
    return pd.concat(kept) if kept else rows.iloc[:0], _once(assignments)


def goes_on(method: AdaptConfig, group: Group, there: frozenset[str], went_on_from: Sequence[str] | None) -> bool:
    """Whether an `online` run goes on: its prompts were made from just the clips whose rows stand, and all remain."""
    return (
        method.protocol == "online"
        and group.cohort == EVERY
        and bool(there)
        and there < group.clip_ids
        and went_on_from is not None
        and frozenset(went_on_from) == there
    )


def _once(assignments: Iterable[Assignment]) -> list[Assignment]:
    """Groups of the same clips need one assignment, which keeps prompts where one of them does."""
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], Assignment] = {}
    for one in assignments:
        key = (one.clip_ids, one.past_ids)
        before = found.get(key, one)
        found[key] = replace(one, groups=one.groups | before.groups, keep=one.keep or before.keep)
    return list(found.values())


def standing_rows(file: Path) -> pd.DataFrame:
    """A subject's rows; none where there is no file."""
    try:
        return read_rows([file] if file.is_file() else [])
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise ValueError(f"{file} is damaged ({error}); remove it, and its subject is done anew") from error


def exact_sample(subjects: Iterable[str], count: int) -> set[str]:
    """The subjects on which cheap modes are compared with the exact one: so many, the same in every run."""
    return set(sorted(subjects, key=lambda subject: (id_number(subject), subject))[:count])


def exact_counterpart(method: AdaptConfig) -> AdaptConfig:
    """The same in the exact mode, with the same step size in its own unit."""
    return replace(method, tune="context", precision="fp32", relinearise=0)


def exact_counterparts(methods: Sequence[AdaptConfig]) -> dict[str, AdaptConfig]:
    """Name of each cheap method → its exact counterpart."""
    return {method.name: exact_counterpart(method) for method in methods if method.cheap}


def make_tasks(work: Sequence[SubjectWork], *, clips_per_task: int) -> list[list[SubjectWork]]:
    """Small subjects together, large ones alone: tasks of about so many clips, in alphabetical order of subjects.

    Which subjects stand together follows from what is to be done, not from the number of actors.
    """
    tasks: list[list[SubjectWork]] = []
    room = 0
    for one in sorted(work, key=lambda one: one.subject_id):
        if len(one.clips) > room:
            tasks.append([])
            room = clips_per_task
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
