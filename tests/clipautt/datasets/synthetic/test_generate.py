"""Whole data sets: the same each time, resumable, with disjoint subjects, and refusing a different configuration."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import av
import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from clipautt.action_units import RENDERED, TASKS
from clipautt.datasets.synthetic.dynamics import DIFFICULTIES
from clipautt.datasets.synthetic.generate import (
    SyntheticConfig,
    finish,
    generate,
    plan,
    prepare,
    read_truth,
    render_clip,
    write_subject,
)
from clipautt.datasets.synthetic.identity import draw_identity
from clipautt.settings import one_line

SMALL = SyntheticConfig(
    seed=4, source_subjects=2, source_val_subjects=1, target_subjects=1, clips_per_source_subject=2,
    clips_per_target_subject=3, num_frames=24, size=48,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faces") / "small"
    generate(SMALL, out)
    return out


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_layout_and_manifest(folder: Path) -> None:
    manifest = pd.read_parquet(folder / "manifest.parquet")
    assert list(manifest) == [
        *["clip_id", "subject_id", "source", "start_seconds", "end_seconds", "label", "split", "dataset"]
    ]
    assert manifest.clip_id.tolist() == sorted(clip.clip_id for subject in plan(SMALL) for clip in subject.clips)
    assert manifest.split.tolist() == ["source_train"] * 2 + ["source_val"] * 2 + ["target"] * 3
    assert manifest.label.tolist() == ["neutral", "pain"] * 3 + ["neutral"]
    assert set(manifest.dataset) == {"synthetic-pain-standard-seed4"}
    assert manifest[["start_seconds", "end_seconds"]].isna().all(axis=None)
    assert manifest.source.tolist()[0] == "videos/source-000/source-000_c000.mp4"
    assert all((folder / source).is_file() for source in manifest.source)
    facts = json.loads((folder / "dataset.json").read_text())
    assert facts["class_names"] == ["neutral", "pain"] and facts["configuration"]["num_frames"] == 24
    people = json.loads((folder / "subjects.json").read_text())
    assert list(people) == ["source-000", "source-001", "target-000"]
    assert list(people["target-000"]["gain"]) == list(RENDERED)
    assert (folder / "contact_sheet.png").stat().st_size > 10_000
    assert not [path for path in folder.rglob(".*")]


def test_truth_fits_the_video(folder: Path) -> None:
    for clip, positive in (("target-000_c000", False), ("target-000_c001", True)):
        video = folder / "videos" / "target-000" / f"{clip}.mp4"
        truth = read_truth(video)
        assert list(truth) == ["time_seconds", *RENDERED, "burst"]
        with av.open(str(video)) as container:
            times = [frame.time for frame in container.decode(video=0)]
        np.testing.assert_allclose(truth.time_seconds, times, atol=1e-6)
        intensities = truth[list(RENDERED)]
        assert set(intensities.dtypes) == {np.dtype(np.float32)} and truth.burst.dtype == bool
        assert intensities.min(axis=None) >= 0 and intensities.max(axis=None) <= 1
        assert truth.burst.any() == positive
    with pytest.raises(ValueError, match=r"other\.aus\.parquet is not beside it"):
        read_truth(folder / "other.mp4")


def test_same_seed_gives_the_same_files_in_any_number_of_processes(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    generate(SMALL, tmp_path / "again", workers=2, progress=lambda done, total: seen.append((done, total)))
    assert hashes(tmp_path / "again") == hashes(folder)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_frames_repeat_pixel_by_pixel() -> None:
    subject = plan(SMALL)[-1]
    person = draw_identity(subject.identity_seed)
    (first, one), (second, other) = (render_clip(person, subject.clips[1], SMALL) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first.intensities, second.intensities)
    assert first.burst == second.burst is not None


def test_no_clip_depends_on_how_many_there_are() -> None:
    """More subjects or clips extend a data set; the ones that were there stay."""
    larger = replace(SMALL, target_subjects=2, clips_per_target_subject=5)
    before, after = plan(SMALL)[-1], plan(larger)[-2]
    assert (before.subject_id, before.identity_seed) == (after.subject_id, after.identity_seed)
    assert before.clips == after.clips[:3]
    person = draw_identity(before.identity_seed)
    np.testing.assert_array_equal(
        render_clip(person, before.clips[0], SMALL)[1], render_clip(person, after.clips[0], larger)[1]
    )


def test_people_are_disjoint_between_splits_and_seeds() -> None:
    seeds = [s.identity_seed for seed in (0, 1, 2) for s in plan(SyntheticConfig(seed=seed))]
    assert len(seeds) == len(set(seeds)) == 120 and min(seeds) >= 1_000_000
    subjects = plan(SyntheticConfig())
    assert [sum(s.split == name for s in subjects) for name in ("source_train", "source_val", "target")] == [24, 6, 10]
    assert len({s.subject_id for s in subjects}) == 40
    for subject in subjects:
        labels = [clip.label for clip in subject.clips]
        assert labels.count("pain") == labels.count("neutral")


def test_resuming_renders_only_what_is_missing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "faces"
    subject = plan(SMALL)[0]
    write_subject(subject, out, SMALL)
    videos = out / "videos" / subject.subject_id
    whole, half = (videos / f"source-000_c00{number}.mp4" for number in (0, 1))
    half.with_suffix(".aus.parquet").unlink()  # as after a crash between video and table
    half.write_bytes(b"broken")
    kept = whole.stat().st_mtime_ns
    generate(SMALL, out)
    assert whole.stat().st_mtime_ns == kept
    assert hashes(out) == hashes(folder)


def test_a_clip_of_another_plan_is_rendered_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "faces"
    subject = plan(SMALL)[0]
    write_subject(subject, out, SMALL)
    first, second = (out / "videos" / "source-000" / f"source-000_c00{n}" for n in (0, 1))
    for suffix in (".mp4", ".aus.parquet"):
        first.with_suffix(suffix).write_bytes(second.with_suffix(suffix).read_bytes())
    write_subject(subject, out, SMALL)
    expected = hashes(folder)
    assert {name: value for name, value in hashes(out / "videos").items()}.items() <= {
        name.removeprefix("videos/"): value for name, value in expected.items()
    }.items()


def test_a_different_configuration_is_refused_with_the_difference(folder: Path) -> None:
    message = "holds a data set with another configuration: seed=4 there, 5 asked; num_frames=24 there, 30 asked"
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        generate(replace(SMALL, seed=5, num_frames=30), folder)


def test_strange_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"holds files but no dataset\.json; an empty or a new folder is needed"):
        prepare(SMALL, tmp_path)
    with pytest.raises(ValueError, match="out='s3://bucket/faces' is a URI"):
        prepare(SMALL, "s3://bucket/faces")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json is not readable JSON"):
        prepare(SMALL, tmp_path)


def test_foreign_subjects_and_incomplete_rows_are_refused(tmp_path: Path) -> None:
    foreign = plan(replace(SMALL, seed=9))[0]
    with pytest.raises(ValueError, match="subject 'source-000' is not in the plan of this configuration"):
        write_subject(foreign, tmp_path, SMALL)
    with pytest.raises(ValueError, match=r"rows lack 7 of 7 clips \(first: \['source-000_c000'"):
        finish(SMALL, [], tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "joy"}, "task='joy': should be one of pain, stress, ambivalence"),
        ({"difficulty": "mean"}, "difficulty='mean': should be one of standard, hard"),
        ({"seed": -1}, "seed=-1: should be greater than or equal to 0"),
        ({"source_val_subjects": 3}, "source_val_subjects=3 is more than source_subjects=2"),
        ({"source_val_subjects": 2}, "source_val_subjects=2 leaves none of the source_subjects=2 to train on"),
        ({"clips_per_target_subject": 0}, "clips_per_target_subject=0: should be greater than or equal to 1"),
        ({"num_frames": 8}, "num_frames=8: should be greater than or equal to 24"),
        ({"size": 97}, "size=97: should be a multiple of 2"),
        ({"source_subjects": 0, "source_val_subjects": 0, "target_subjects": 0}, "make an empty data set"),
    ],
)
def test_wrong_configurations_say_what_is_allowed(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        replace(SMALL, **change)
    assert message in one_line(caught.value)


def test_every_task_and_difficulty_can_be_chosen() -> None:
    hints = get_type_hints(SyntheticConfig)
    assert get_args(hints["task"]) == tuple(TASKS) and get_args(hints["difficulty"]) == tuple(DIFFICULTIES)


def test_workers_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers=0 is not allowed; 1 or more is"):
        generate(SMALL, tmp_path / "faces", workers=0)
