"""StressID: the official table with videos, and folders of frames with a list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clipautt.clips import Clip
from clipautt.datasets.layout import DatasetError
from clipautt.datasets.stressid import TARGETS, StressID
from clipautt.video.pictures import list_frames
from tests.support.trees import STRESSID_SUBJECTS, pictures, stressid_frames, stressid_rows, stressid_videos, write

HEADER = "subject/task,binary-stress,affect3-class"


def reader(root: Path) -> StressID:
    return StressID(str(root), target_subjects=("kycf", "uymz"), validation_subjects=1)


def test_official_layout(tmp_path: Path) -> None:
    reading = reader(stressid_videos(tmp_path)).read()
    assert reading.classes == ("neutral", "stress") and reading.problems == () and len(reading.clips) == 8
    assert reading.clips[4:6] == (
        Clip("kycf_Math", "kycf", str(tmp_path / "Videos/kycf/kycf_Math.mp4"), "target", "stress", dataset="stressid"),
        Clip(
            "kycf_Relax", "kycf", str(tmp_path / "Videos/kycf/kycf_Relax.mp4"), "target", "neutral", dataset="stressid"
        ),
    )
    assert reading.manifest.counts(by="split").to_numpy().tolist() == [
        ["source_train", 1, 1, 1, 2],
        ["source_val", 1, 1, 1, 2],
        ["target", 2, 2, 2, 4],
    ]


def test_the_targets_of_the_paper_are_the_default(tmp_path: Path) -> None:
    assert len(TARGETS) == 10
    everyone = [*TARGETS, *(f"a{n:03d}" for n in range(20))]
    reading = StressID(str(stressid_videos(tmp_path, everyone))).read()
    assert {clip.subject_id for clip in reading.clips if clip.split == "target"} == set(TARGETS)
    assert len({clip.subject_id for clip in reading.clips if clip.split == "source_val"}) == 10


def test_frames(tmp_path: Path) -> None:
    reading = reader(stressid_frames(tmp_path)).read()
    assert len(reading.clips) == 8 and reading.problems == ()
    first = reading.clips[4]
    assert first == Clip(
        "kycf_Math", "kycf", str(tmp_path / "sub_images/kycf/kycf_Math"), "target", "stress",
        dataset="stressid", frames_per_second=25.0,
    )  # fmt: skip
    assert [path.name for *_, path in list_frames(Path(first.source), 25.0)] == ["image_2.jpg", "image_10.jpg"]
    assert replace(reader(tmp_path), frames_per_second=5.0).read().clips[0].frames_per_second == 5.0


def test_the_first_row_of_the_list_of_frames_counts(tmp_path: Path) -> None:
    lines = (stressid_frames(tmp_path) / "all_sub_labels.txt").read_text().splitlines()
    write(tmp_path / "all_sub_labels.txt", *lines[1:])
    clips = reader(tmp_path).read().clips
    assert len(clips) == 8 and clips[1].clip_id == "2ea4_Relax"


def test_rows_without_a_label_are_listed_and_left_out(tmp_path: Path) -> None:
    stressid_videos(tmp_path)
    write(
        tmp_path / "labels.csv", HEADER, *stressid_rows(),
        "2ea4_Stroop,,", "kycf_Stroop,nan,nan", "3def_Stroop,NaN,1.0", "uymz_Stroop",
    )  # fmt: skip
    with pytest.raises(DatasetError, match=r"has 4 problems \(4 unlabelled\)"):
        reader(tmp_path).read()
    reading = replace(reader(tmp_path), strict=False).read()
    assert len(reading.clips) == 8 and reading.notes == ("omitted or absent: 4 unlabelled",)
    assert reading.problems == (
        "labels.csv line 10: clip '2ea4_Stroop' has no label",
        "labels.csv line 11: clip 'kycf_Stroop' has no label",
        "labels.csv line 12: clip '3def_Stroop' has no label",
        "labels.csv line 13: clip 'uymz_Stroop' has no label",
    )


def test_other_problems(tmp_path: Path) -> None:
    stressid_videos(tmp_path)
    write(
        tmp_path / "labels.csv", HEADER, *stressid_rows(),
        "2ea4_Math,0,0", "2ea4_Relax,0,0", "2ea4_Video1,1,1", "2ea4_Video2,2,1", "Video2,1,1",
    )  # fmt: skip
    reading = replace(reader(tmp_path), strict=False).read()
    assert reading.problems == (
        "labels.csv line 13: label '2' of clip '2ea4_Video2' is not one of 0, 1",
        "labels.csv line 14: 'Video2' is not SUBJECT_TASK",
        "labels.csv line 2, labels.csv line 11: clip '2ea4_Relax' is listed 2 times",
        "labels.csv line 3, labels.csv line 10: clip '2ea4_Math' is 'stress' of subject '2ea4' and 'neutral' of "
        "subject '2ea4'",
        f"labels.csv line 12: no video '2ea4/2ea4_Video1' below {tmp_path}",
    )
    with pytest.raises(DatasetError, match="has 5 problems"):
        reader(tmp_path).read()


def test_subject_and_task_may_be_parted_by_a_slash(tmp_path: Path) -> None:
    stressid_videos(tmp_path)
    write(tmp_path / "labels.csv", HEADER, *(row.replace("_", "/") for row in stressid_rows()))
    assert len(reader(tmp_path).read().clips) == 8


def test_both_layouts_side_by_side(tmp_path: Path) -> None:
    stressid_frames(stressid_videos(tmp_path))
    assert reader(tmp_path).read().clips[0].source.endswith(".mp4")
    assert replace(reader(tmp_path), layout="frames").read().clips[0].source.endswith("sub_images/2ea4/2ea4_Math")


def test_paths_of_frames_may_come_from_another_machine_and_hold_spaces(tmp_path: Path) -> None:
    rows = []
    for row in stressid_rows():
        name, label, _ = row.split(",")
        pictures(tmp_path / "my images" / name[:4] / name, ["image_1.jpg"])
        rows.append(f"/home/some one/data/{name[:4]}/{name}/image_1.jpg {label}")
    write(tmp_path / "labels.txt", *rows)
    clips = reader(tmp_path).read().clips
    assert len(clips) == 8 and {clip.subject_id for clip in clips} == set(STRESSID_SUBJECTS)


def test_missing_label_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"stressid: no label file below .*; looked for labels.csv, all_sub"):
        reader(tmp_path).read()
