"""Result rows and cohorts: literal counts, and figures that can be checked by hand."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clipautt.clips import Clip
from clipautt.evaluation.results import Cohort, ResultRow, as_table, cohorts_of, read_rows, subject_scores, write_rows


def clips_of(positives: int, negatives: int, subject: str = "s1") -> list[Clip]:
    labels = ["pain"] * positives + ["neutral"] * negatives
    return [Clip(f"{subject}-{i:03}", subject, "x.mp4", "target", label) for i, label in enumerate(labels)]


def counts(clips: list[Clip]) -> tuple[int, int]:
    positives = sum(clip.label == "pain" for clip in clips)
    return positives, len(clips) - positives


def members(clips: list[Clip], share: float, *, draw: int = 0, seed: int = 0) -> list[Clip]:
    return Cohort(share).members(clips, positive="pain", draw=draw, seed=seed)


@pytest.mark.parametrize(
    ("share", "positives", "negatives", "expected"),
    [
        (0.5, 20, 20, (20, 20)),
        (0.2, 20, 20, (5, 20)),
        (0.05, 20, 20, (1, 20)),
        (0.8, 20, 20, (20, 5)),
        (0.5, 7, 20, (7, 7)),
        (0.01, 20, 20, (1, 20)),
        (0.2, 3, 40, (3, 12)),
        (0.2, 1, 2, (1, 2)),
    ],
)
def test_counts_literal(share: float, positives: int, negatives: int, expected: tuple[int, int]) -> None:
    chosen = members(clips_of(positives, negatives), share)
    assert counts(chosen) == expected
    assert [c.clip_id for c in chosen] == sorted({c.clip_id for c in chosen})


def test_order_of_the_clips_chooses_nothing() -> None:
    clips = clips_of(20, 20)
    for seed in range(5):
        shuffled = [clips[i] for i in np.random.default_rng(seed).permutation(40)]
        assert members(shuffled, 0.2) == members(clips, 0.2)


def test_draws_seeds_and_subjects_choose_differently() -> None:
    def chosen(subject: str = "subject-1", **options: int) -> list[str]:
        drawn = members(clips_of(20, 20, subject), 0.2, **options)
        return [c.clip_id.rpartition("-")[2] for c in drawn if c.label == "pain"]

    assert chosen() == chosen()
    different = [chosen(), chosen(draw=1), chosen(seed=1), chosen("subject-2"), chosen("subject-3")]
    assert len({tuple(ids) for ids in different}) == 5


def test_draws_together_reach_every_positive() -> None:
    clips = clips_of(20, 20)
    seen = {c.clip_id for draw in range(40) for c in members(clips, 0.2, draw=draw) if c.label == "pain"}
    assert len(seen) == 20


def test_subjects_without_both_classes_have_no_cohort() -> None:
    clips = [*clips_of(4, 4, "b"), *clips_of(3, 0, "one-sided"), *clips_of(4, 4, "a")]
    clips.append(Clip("unlabelled", "a", "x.mp4", "target"))
    cohorts = cohorts_of(clips, Cohort(), positive="pain", draw=0, seed=0)
    assert list(cohorts) == ["a", "b"] and {s: counts(c) for s, c in cohorts.items()} == {"a": (4, 4), "b": (4, 4)}


def test_names_of_cohorts() -> None:
    assert [Cohort(share).name for share in (0.5, 0.2, 0.05)] == ["balanced", "20%", "5%"]


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.0}, {"share": 0.2, "draws": 0}])
def test_cohorts_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cohort share=.*; allowed: 0 < share < 1 and draws from 1"):
        Cohort(**options)


ROW = ResultRow(
    clip_id="c1",
    subject_id="001",
    split="target",
    label="pain",
    prediction="pain",
    probability=1 / 3,
    window_start_seconds=0.5,
    window_end_seconds=1.78,
    entropy=0.1,
    status="ok",
    method="CLIP-AU, best window",
    method_key="clip_autt",
    logits_from="head",
    adapts=False,
    settings='{"method": {"name": "clip_autt"}}',
    objective="none",
    protocol="per_subject",
    subject_baseline="none",
    readout="best_window",
    window_length=16,
    window_stride=1,
    context_tokens=4,
    steps=0,
    learning_rate=0.3,
    tune="context",
    prior=0.2,
    training_prior=0.5,
    position=3,
    cohort="balanced",
    draw=0,
    seed=0,
    backbone="fake 0123",
    checkpoint="abcd",
    manifest="ef01",
    code_version="0.1.0",
    seconds=0.25,
    face_share=0.75,
)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, clip_id="c2", status="not adapted: the loss is nan", probability=0.1)]
    write_rows(as_table(rows[:1]), tmp_path / "b.parquet")
    write_rows(as_table(rows[1:]), tmp_path / "a.parquet")
    table = read_rows([tmp_path / "b.parquet", tmp_path / "a.parquet"])
    assert list(table.columns) == [f.name for f in fields(ResultRow)]
    assert [ResultRow(**row) for row in table.to_dict("records")] == rows[::-1]  # in the order of the file names
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_no_rows_are_a_table_too(tmp_path: Path) -> None:
    write_rows(as_table([]), tmp_path / "none.parquet")
    for table in (read_rows([]), read_rows([tmp_path / "none.parquet"])):
        assert len(table) == 0 and list(table.columns) == [f.name for f in fields(ResultRow)]
    assert len(subject_scores(read_rows([]), classes=("neutral", "pain"))) == 0


def table_of(*outcomes: tuple[str, str, str], **facts: Any) -> pd.DataFrame:
    """Rows of (subject, label, prediction)."""
    rows = [
        replace(ROW, clip_id=f"c{i}", subject_id=subject, label=label, prediction=prediction, **facts)
        for i, (subject, label, prediction) in enumerate(outcomes)
    ]
    return pd.DataFrame([vars(row) for row in rows])


def test_subject_scores_literal() -> None:
    n, p = "neutral", "pain"
    table = table_of(("a", n, n), ("a", n, n), ("a", n, p), ("a", p, p), ("b", p, n), ("b", n, n))
    scores = subject_scores(table, classes=(n, p)).set_index("subject_id")
    assert list(scores.index) == ["a", "b"]
    assert scores.loc["a", ["war", "uar", "num_clips", "positive_share"]].tolist() == pytest.approx(
        [0.75, (2 / 3 + 1) / 2, 4, 0.25]
    )
    assert scores.loc["a", "f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert scores.loc["a", ["majority_war", "majority_uar", "majority_f1"]].tolist() == pytest.approx(
        [0.75, 0.5, 0.75 / 1.75]
    )
    assert scores.loc["b", ["war", "uar", "f1"]].tolist() == pytest.approx([0.5, 0.5, 1 / 3])
    expected = ["method", "split", "cohort", "seed", "subject_id", "war", "uar", "f1", "num_clips", "positive_share"]
    assert list(scores.reset_index()[expected].columns) == expected and "draw" not in scores


def test_draws_are_averaged_and_methods_and_seeds_kept_apart() -> None:
    right, wrong = ("a", "pain", "pain"), ("a", "pain", "neutral")
    table = pd.concat(
        [
            table_of(right, right, draw=0),
            table_of(right, wrong, draw=1),
            table_of(wrong, wrong, seed=1),
            table_of(wrong, right, method="other"),
        ]
    )
    scores = subject_scores(table, classes=("neutral", "pain")).set_index(["method", "seed"])["war"]
    assert scores.to_dict() == {
        ("CLIP-AU, best window", 0): 0.75,
        ("CLIP-AU, best window", 1): 0.0,
        ("other", 0): 0.5,
    }


def test_two_rows_of_one_clip_are_an_error_and_no_average() -> None:
    table = pd.concat([table_of(("a", "pain", "pain")), table_of(("a", "pain", "neutral"), learning_rate=0.1)])
    with pytest.raises(ValueError, match=r"1 rows are duplicates, the first is method='CLIP-AU, best window', .*'c0'"):
        subject_scores(table, classes=("neutral", "pain"))
