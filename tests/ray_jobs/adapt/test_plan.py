"""What is left to do of an adaptation run, case by case; no Ray and no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from clipautt.adaptation.agreement import exact_counterparts
from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.methods.t3a import T3A
from clipautt.adaptation.methods.tda import TDA
from clipautt.clips import Clip
from clipautt.evaluation.results import COLUMNS, EVERY, Cohort
from ray_jobs.adapt.plan import (
    FAILED,
    Assignment,
    Group,
    SubjectPlan,
    SubjectWork,
    changed_clips,
    make_groups,
    make_tasks,
    plan_subject,
)
from tests.support.configs import adapt_config

PER_VIDEO = adapt_config(objective="entropy", protocol="per_video")
ONLINE = adapt_config(objective="infomax_kl", protocol="online")
CACHE = AdaptConfig(TDA(), protocol="online")
PROTOTYPES = AdaptConfig(T3A(), protocol="online")
PER_SUBJECT = adapt_config(objective="infomax_kl")
CLIP_AU = adapt_config()
ALL = frozenset({(EVERY, 0)})
LABELS = ("neutral", "pain")


def clips(count: int, *, subject: str = "s1") -> tuple[Clip, ...]:
    """`a`, `b`, … of one subject; every second one shows pain."""
    return tuple(Clip("abcdefgh"[i], subject, f"/{subject}/{i}.mp4", "target", LABELS[i % 2]) for i in range(count))


def every(names: str) -> list[Group]:
    """The group of every clip."""
    return [Group(EVERY, 0, frozenset(names))]


def rows(method: AdaptConfig, names: str, *, cohort: str = EVERY, status: str = "ok", **facts: Any) -> pd.DataFrame:
    """Rows of a result file; those of a status other than ok have no prediction."""
    given = {"method": method.name, "cohort": cohort, "draw": 0, "status": status, "subject_id": "s1"}
    prediction = "pain" if status == "ok" else ""
    table = [
        {**given, "clip_id": name, "prediction": prediction, "label": LABELS["abcdefgh".index(name) % 2], **facts}
        for name in names
    ]
    return pd.DataFrame(table, columns=list(COLUMNS))


def plan(
    count: int,
    there: pd.DataFrame,
    *methods: AdaptConfig,
    groups: Sequence[Group] | None = None,
    **options: Any,
) -> SubjectPlan | None:
    own = clips(count)
    return plan_subject(own, every("abcdefgh"[:count]) if groups is None else groups, methods, rows=there, **options)


def assignments(found: SubjectPlan | None) -> list[Assignment]:
    assert found is not None
    return list(found.work.assignments)


@pytest.mark.parametrize("method", [PER_VIDEO, ONLINE, CACHE, PROTOTYPES, PER_SUBJECT, CLIP_AU])
def test_nothing_is_left_where_every_row_stands(method: AdaptConfig) -> None:
    assert plan(3, rows(method, "abc"), method, resumable=("c", "a", "b")) is None


@pytest.mark.parametrize("method", [PER_VIDEO, ONLINE, CACHE, PROTOTYPES, PER_SUBJECT, CLIP_AU])
def test_a_new_subject_is_done_on_all_its_clips(method: AdaptConfig) -> None:
    found = plan(3, rows(method, ""), method)
    groups = ALL if method.transductive else frozenset()
    assert assignments(found) == [Assignment(method, ("a", "b", "c"), groups=groups, keep=True)]
    assert found is not None and found.kept.empty


@pytest.mark.parametrize("method", [PER_VIDEO, CLIP_AU])
def test_a_new_clip_is_predicted_alone_where_clips_do_not_matter_to_each_other(method: AdaptConfig) -> None:
    found = plan(3, rows(method, "ab"), method)
    assert assignments(found) == [Assignment(method, ("c",), keep=True)]
    assert found is not None and found.kept["clip_id"].tolist() == ["a", "b"]
    assert [clip.clip_id for clip in found.work.clips] == ["c"]


@pytest.mark.parametrize("method", [ONLINE, CACHE, PROTOTYPES])
def test_an_online_run_is_resumed_from_its_state(method: AdaptConfig) -> None:
    found = plan(4, rows(method, "ab"), method, resumable=("b", "a"))
    assert assignments(found) == [Assignment(method, ("c", "d"), ("b", "a"), groups=ALL, keep=True)]
    assert found is not None and found.kept["clip_id"].tolist() == ["a", "b"]
    assert [clip.clip_id for clip in found.work.clips] == [
        "a",
        "b",
        "c",
        "d",
    ]  # a running centre needs the earlier ones


def test_an_online_run_is_done_anew_without_a_state() -> None:
    found = plan(3, rows(ONLINE, "ab"), ONLINE)
    assert assignments(found) == [Assignment(ONLINE, ("a", "b", "c"), groups=ALL, keep=True)]
    assert found is not None and found.kept.empty


def test_an_online_run_that_is_only_compared_with_is_done_anew() -> None:
    """Its state is not kept; what is kept is that of the run's own method."""
    there = pd.concat([rows(CLIP_AU, "ab"), rows(ONLINE, "ab")])
    found = plan(3, there, CLIP_AU, ONLINE, resumable=("b", "a"))
    assert assignments(found) == [
        Assignment(CLIP_AU, ("c",), keep=True),
        Assignment(ONLINE, ("a", "b", "c"), groups=ALL),
    ]


def test_all_is_done_anew_where_other_clips_count() -> None:
    found = plan(3, rows(PER_SUBJECT, "ab"), PER_SUBJECT)
    assert assignments(found) == [Assignment(PER_SUBJECT, ("a", "b", "c"), groups=ALL, keep=True)]
    assert found is not None and found.kept.empty
    centred = adapt_config(subject_baseline="median")
    assert assignments(plan(3, rows(centred, "ab"), centred)) == [
        Assignment(centred, ("a", "b", "c"), groups=ALL, keep=True)
    ]


@pytest.mark.parametrize("prompts", [("b", "a", "c"), ("a",), ("a", "c")])
def test_a_state_of_other_clips_than_the_rows_is_not_resumed_from(prompts: tuple[str, ...]) -> None:
    """The state is written before rows, so a job that was killed in between has it ahead."""
    found = plan(3, rows(ONLINE, "ab"), ONLINE, resumable=prompts)
    assert assignments(found) == [Assignment(ONLINE, ("a", "b", "c"), groups=ALL, keep=True)]


@pytest.mark.parametrize("method", [PER_VIDEO, ONLINE, CACHE, PROTOTYPES, PER_SUBJECT, CLIP_AU])
def test_what_failed_is_tried_again(method: AdaptConfig) -> None:
    found = plan(2, rows(method, "ab", status=FAILED + "out of luck"), method)
    groups = ALL if method.transductive else frozenset()
    assert assignments(found) == [Assignment(method, ("a", "b"), groups=groups, keep=True)]
    assert found is not None and found.kept.empty


def test_only_the_clip_that_failed_is_tried_again() -> None:
    there = pd.concat([rows(PER_VIDEO, "ab"), rows(PER_VIDEO, "c", status=FAILED + "out of luck")])
    assert assignments(plan(3, there, PER_VIDEO)) == [Assignment(PER_VIDEO, ("c",), keep=True)]


def test_features_that_came_later_extend_the_subject() -> None:
    there = pd.concat([rows(PER_VIDEO, "ab"), rows(PER_VIDEO, "c", status="no features: broken")])
    assert plan(3, there, PER_VIDEO, groups=every("ab")) is None
    found = plan(3, there, PER_VIDEO)
    assert assignments(found) == [Assignment(PER_VIDEO, ("c",), keep=True)]
    assert found is not None and found.kept["clip_id"].tolist() == ["a", "b"]  # the row without a prediction goes


def test_a_new_clip_without_features_asks_for_a_row_and_for_no_work() -> None:
    found = plan(3, rows(PER_SUBJECT, "ab"), PER_SUBJECT, groups=every("ab"))
    assert assignments(found) == []
    assert found is not None and found.kept["clip_id"].tolist() == ["a", "b"]


def test_features_that_are_gone_take_their_row_along() -> None:
    """The row of a clip whose features are no longer there is no prediction of what there is now."""
    found = plan(3, rows(PER_VIDEO, "abc"), PER_VIDEO, groups=every("ab"))
    assert assignments(found) == []
    assert found is not None and found.kept["clip_id"].tolist() == ["a", "b"]


def test_a_subject_without_any_features_gets_rows_and_no_work() -> None:
    found = plan(2, rows(PER_SUBJECT, ""), PER_SUBJECT, groups=[])
    assert assignments(found) == [] and found is not None and found.work.clips == ()
    assert plan(2, rows(PER_SUBJECT, "ab", status="no features: no face"), PER_SUBJECT, groups=[]) is None


def test_a_cohort_that_changed_is_done_anew_and_the_others_stand() -> None:
    there = pd.concat([rows(PER_SUBJECT, "abcd"), rows(PER_SUBJECT, "ab", cohort="balanced")])
    found = plan(4, there, PER_SUBJECT, groups=[*every("abcd"), Group("balanced", 0, frozenset("cd"))])
    assert assignments(found) == [Assignment(PER_SUBJECT, ("c", "d"), groups=frozenset({("balanced", 0)}))]
    assert found is not None and set(found.kept["cohort"]) == {EVERY}


def test_a_cohort_of_every_clip_needs_no_run_of_its_own() -> None:
    groups = [*every("ab"), Group("balanced", 0, frozenset("ab")), Group("20%", 0, frozenset("a"))]
    found = plan(2, rows(PER_SUBJECT, ""), PER_SUBJECT, groups=groups)
    both, few = ALL | {("balanced", 0)}, frozenset({("20%", 0)})
    assert assignments(found) == [
        Assignment(PER_SUBJECT, ("a", "b"), groups=both, keep=True),
        Assignment(PER_SUBJECT, ("a",), groups=few),
    ]
    # Where clips do not matter to each other, cohorts only choose among rows.
    assert assignments(plan(2, rows(CLIP_AU, ""), CLIP_AU, groups=groups)) == [
        Assignment(CLIP_AU, ("a", "b"), keep=True)
    ]
    assert plan(2, rows(CLIP_AU, "ab"), CLIP_AU, groups=groups) is None


def test_an_online_run_that_is_resumed_serves_every_clip_only() -> None:
    """A cohort of the same clips is visited from the start."""
    groups = [*every("abcd"), Group("balanced", 0, frozenset("abcd"))]
    found = plan(4, rows(ONLINE, "ab"), ONLINE, groups=groups, resumable=("b", "a"))
    assert assignments(found) == [
        Assignment(ONLINE, ("c", "d"), ("b", "a"), groups=ALL, keep=True),
        Assignment(ONLINE, ("a", "b", "c", "d"), groups=frozenset({("balanced", 0)})),
    ]
    first, second = assignments(found)
    assert [first.serves(group) for group in groups] == [True, False]
    assert [second.serves(group) for group in groups] == [False, True]
    assert Assignment(CLIP_AU, ("a",)).serves(groups[1])


def test_a_further_method_is_done_beside_those_that_stand() -> None:
    assert assignments(plan(2, rows(PER_VIDEO, "ab"), PER_VIDEO, CLIP_AU)) == [Assignment(CLIP_AU, ("a", "b"))]


def test_what_is_not_explained_is_done_again_in_the_same_order_and_makes_no_rows() -> None:
    there = pd.concat([rows(ONLINE, "b", position=0), rows(ONLINE, "a", position=1), rows(CLIP_AU, "ab")])
    for explained in ([], ["a"]):
        found = plan(2, there, ONLINE, CLIP_AU, explained=explained)
        (again,) = assignments(found)
        assert again == Assignment(ONLINE, ("b", "a"), purpose="explanation", in_order=True, explain=True)
        assert not any(again.serves(group) for group in every("ab"))
        assert found is not None and len(found.kept) == 4
    assert plan(2, there, ONLINE, CLIP_AU, explained=["a", "b"]) is None


def test_an_explanation_is_made_by_the_way_where_all_clips_are_adapted_on_and_else_once_more_of_all() -> None:
    fresh = assignments(plan(2, rows(ONLINE, ""), ONLINE, CLIP_AU, explained=[]))
    assert [one.explain for one in fresh] == [True, False] and [one.groups for one in fresh] == [ALL, frozenset()]
    there = pd.concat([rows(ONLINE, "b", position=0), rows(ONLINE, "a", position=1)])
    again, extended = assignments(plan(4, there, ONLINE, resumable=("b", "a"), explained=["a", "b"]))
    assert again.clip_ids[:2] == ("b", "a") and sorted(again.clip_ids[2:]) == ["c", "d"] and again.explain
    assert extended == Assignment(ONLINE, ("c", "d"), ("b", "a"), groups=ALL, keep=True)
    again, extended = assignments(plan(3, rows(PER_VIDEO, "ab"), PER_VIDEO, explained=["a", "b"]))
    assert sorted(again.clip_ids) == ["a", "b", "c"] and again.explain and not extended.explain
    (whole,) = assignments(plan(3, rows(PER_SUBJECT, "ab"), PER_SUBJECT, explained=["a", "b"]))
    assert whole.clip_ids == ("a", "b", "c") and whole.explain and whole.purpose == "rows"


def test_a_label_that_came_later_is_written_and_nothing_is_done_again() -> None:
    there = rows(PER_SUBJECT, "ab").assign(label="")
    found = plan(2, there, PER_SUBJECT)
    assert assignments(found) == [] and found is not None and len(found.kept) == 2


def test_the_exact_counterpart_of_an_approximation_is_asked_for_on_every_clip() -> None:
    approximate = adapt_config(objective="infomax_kl", tune="feature", precision="bf16")
    exact = exact_counterparts([approximate, CLIP_AU])
    assert exact == {approximate.name: adapt_config(objective="infomax_kl")}
    found = plan(2, rows(approximate, "ab"), approximate, exact=tuple(exact.values()))
    (asked,) = assignments(found)
    assert asked == Assignment(adapt_config(objective="infomax_kl"), ("a", "b"), purpose="comparison")
    assert not asked.serves(every("ab")[0]), "its predictions become no rows"


def test_no_label_is_in_the_work() -> None:
    found = plan(4, rows(PER_SUBJECT, ""), PER_SUBJECT)
    assert found is not None
    assert [clip.label for clip in found.clips] == ["neutral", "pain", "neutral", "pain"]
    assert [clip.label for clip in found.work.clips] == [None] * 4


def test_groups_follow_from_the_labels_and_need_both_classes() -> None:
    own = clips(4)
    groups = make_groups(own, [Cohort(0.5), Cohort(0.2, draws=2)], positive="pain", seed=0)
    assert [(g.cohort, g.draw) for g in groups] == [(EVERY, 0), ("balanced", 0), ("20%", 0), ("20%", 1)]
    assert [len(g.clip_ids) for g in groups] == [4, 4, 3, 3]
    one_class = [replace(clip, label="pain") for clip in own]
    unlabelled = [replace(clip, label=None) for clip in own]
    for few in (one_class, unlabelled):
        assert make_groups(few, [Cohort()], positive="pain", seed=0) == every("abcd")


def work(subject: str, count: int) -> SubjectWork:
    return SubjectWork(subject, clips(count, subject=subject), ())


def names(tasks: list[list[SubjectWork]]) -> list[list[str]]:
    return [[one.subject_id for one in task] for task in tasks]


def test_small_subjects_stand_together_and_large_ones_alone() -> None:
    given = [work("s1", 2), work("s2", 2), work("s3", 8), work("s4", 1), work("s5", 3), work("s6", 2)]
    assert names(make_tasks(given, clips_per_task=4, actors=1)) == [["s1", "s2"], ["s3"], ["s4", "s5"], ["s6"]]
    assert names(make_tasks(given, clips_per_task=1, actors=1)) == [["s1"], ["s2"], ["s3"], ["s4"], ["s5"], ["s6"]]
    assert names(make_tasks(given, clips_per_task=100, actors=1)) == [["s1", "s2"], ["s3", "s4"], ["s5", "s6"]]
    few = [work(f"s{i}", 8) for i in range(10)]
    assert len(make_tasks(few, clips_per_task=128, actors=8)) == 10, "work for every actor"
    assert make_tasks([], clips_per_task=4, actors=1) == []


def test_tasks_follow_from_the_work_and_not_from_its_order() -> None:
    given = [work(f"s{i}", 1 + i % 4) for i in range(9)]
    assert names(make_tasks(given[::-1], clips_per_task=5, actors=1)) == names(
        make_tasks(given, clips_per_task=5, actors=1)
    )


def test_changed_clips_are_named_with_what_changed() -> None:
    before = clips(4)
    after = {
        "a": replace(before[0], source="/moved/a.mp4"),
        "b": replace(before[1], label="neutral", start_seconds=1.5),
        "d": replace(before[3], subject_id="s2"),
        "e": Clip("e", "s9", "/e.mp4", "target"),
    }
    assert changed_clips(before, after) == [
        "clip 'b': label 'pain' → 'neutral'",
        "clip 'b': start_seconds None → 1.5",
        "clip 'c' of subject 's1' is gone",
        "clip 'd': subject_id 's1' → 's2'",
    ]
    assert changed_clips(before, {clip.clip_id: clip for clip in clips(5)}) == []
