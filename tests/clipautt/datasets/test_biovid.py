"""BioVid: the official table with videos, and face crops with a list of frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from clipautt.clips import Clip
from clipautt.datasets.biovid import TARGETS, BioVid
from clipautt.datasets.layout import DatasetError
from clipautt.manifest import read_manifest, write_manifest
from clipautt.settings import one_line
from tests.support.trees import (
    BIOVID_SUBJECTS,
    SAMPLES_HEADER,
    biovid_frames,
    biovid_samples,
    biovid_videos,
    pictures,
    video,
    write,
)

HERE = ("071309_w_21", "081014_w_27")


def reader(root: Path) -> BioVid:
    return BioVid(str(root), target_subjects=HERE, validation_subjects=1)


def problems_of(config: BioVid) -> tuple[str, ...]:
    """What a lenient reading tells, after checking that a strict one refuses it."""
    reading = replace(config, strict=False).read()
    with pytest.raises(DatasetError) as error:
        config.read()
    assert all(problem in str(error.value) for problem in reading.problems)
    return reading.problems


def test_official_layout(tmp_path: Path) -> None:
    reading = reader(biovid_videos(tmp_path)).read()
    assert reading.classes == ("neutral", "pain") and reading.problems == ()
    assert reading.notes == ("only BL1 and PA4 are used; samples of other classes are omitted: 4 of PA3",)
    assert len(reading.clips) == 8
    assert reading.clips[:2] == (
        Clip(
            "071309_w_21-BL1-080",
            "071309_w_21",
            str(tmp_path / "video" / "071309_w_21" / "071309_w_21-BL1-080.mp4"),
            "target",
            "neutral",
            dataset="biovid",
        ),
        Clip(
            "071309_w_21-PA4-084",
            "071309_w_21",
            str(tmp_path / "video" / "071309_w_21" / "071309_w_21-PA4-084.mp4"),
            "target",
            "pain",
            dataset="biovid",
        ),
    )
    splits = {clip.subject_id: clip.split for clip in reading.clips}
    assert (splits["071309_w_21"], splits["081014_w_27"]) == ("target", "target")
    assert sorted((splits["083013_w_47"], splits["100214_m_50"])) == ["source_train", "source_val"]


def test_the_targets_of_the_paper_are_the_default(tmp_path: Path) -> None:
    assert len(TARGETS) == 10 and BioVid("x").target_subjects == TARGETS
    everyone = [*TARGETS, *(f"0{n}0101_m_{n}" for n in range(10, 87))]
    reading = BioVid(str(biovid_videos(tmp_path, everyone))).read()
    assert reading.manifest.counts(by="split").to_numpy().tolist() == [
        ["source_train", 67, 67, 67, 134],
        ["source_val", 10, 10, 10, 20],
        ["target", 10, 10, 10, 20],
    ]
    assert {clip.subject_id for clip in reading.clips if clip.split == "target"} == set(TARGETS)


def test_crops(tmp_path: Path) -> None:
    reading = reader(biovid_frames(tmp_path)).read()
    assert len(reading.clips) == 8 and reading.problems == ()
    assert reading.clips[0] == Clip(
        "071309_w_21-BL1-080",
        "071309_w_21",
        str(tmp_path / "crops" / "071309_w_21" / "071309_w_21-BL1-080"),
        "target",
        "neutral",
        dataset="biovid",
        frames_per_second=1000.0,
    )
    write_manifest(reading.clips, tmp_path / "manifest.parquet")
    assert read_manifest(tmp_path / "manifest.parquet").clips == reading.clips


def test_the_first_row_of_the_list_of_crops_counts(tmp_path: Path) -> None:
    """Taken for a header, the only frame of the first sample would be lost, and with it the sample."""
    root = biovid_frames(tmp_path)
    lines = (root / "labels.txt").read_text().splitlines()
    write(root / "labels.txt", *lines[2:])
    clips = reader(root).read().clips
    assert len(clips) == 8 and clips[0].clip_id == "071309_w_21-BL1-080"


def test_both_layouts_side_by_side(tmp_path: Path) -> None:
    root = biovid_videos(biovid_frames(tmp_path))
    assert reader(root).read().clips[0].source.endswith(".mp4")
    frames = replace(reader(root), layout="frames").read().clips
    assert len(frames) == 8 and frames[0].frames_per_second == 1000.0
    (root / "labels.txt").unlink()
    assert replace(reader(root), layout="frames").read().clips == frames  # the official table names them, too
    assert len(replace(reader(root), layout="videos").read().clips) == 8


def test_crops_with_the_official_table_only(tmp_path: Path) -> None:
    root = biovid_frames(tmp_path)
    (root / "labels.txt").unlink()
    write(root / "samples.csv", SAMPLES_HEADER, *biovid_samples())
    clips = reader(root).read().clips
    assert len(clips) == 8 and {clip.frames_per_second for clip in clips} == {1000.0}


def test_list_of_crops_that_counts_five_classes(tmp_path: Path) -> None:
    rows = []
    for subject in BIOVID_SUBJECTS:
        for number, level in enumerate(("BL1", "PA1", "PA2", "PA3", "PA4")):
            pictures(tmp_path / subject / f"{subject}-{level}-080", ["image2000.jpg"])
            rows.append(f"{subject}/{subject}-{level}-080/image2000.jpg {number}")
    write(tmp_path / "all_sub_labels.txt", *rows)
    reading = reader(tmp_path).read()
    assert {(clip.clip_id[-7:], clip.label) for clip in reading.clips} == {("BL1-080", "neutral"), ("PA4-080", "pain")}
    assert "4 of PA1, 4 of PA2, 4 of PA3" in reading.notes[0]


def test_crops_whose_names_say_no_class(tmp_path: Path) -> None:
    rows = []
    for subject in ("t", "a", "b"):
        for clip, label in (("one", 0), ("two", 4)):
            pictures(tmp_path / subject / f"{subject} {clip}", ["image2000.jpg"])
            rows.append(f"{subject}/{subject} {clip}/image2000.jpg {label}")
    write(tmp_path / "labels.txt", *rows)
    clips = BioVid(str(tmp_path), target_subjects=("t",), validation_subjects=1).read().clips
    assert [(clip.subject_id, clip.label) for clip in clips] == [
        ("a", "neutral"), ("a", "pain"), ("b", "neutral"), ("b", "pain"), ("t", "neutral"), ("t", "pain"),
    ]  # fmt: skip


def test_a_stray_label_does_not_change_the_meaning_of_the_others(tmp_path: Path) -> None:
    root = biovid_frames(tmp_path)
    lines = (root / "labels.txt").read_text().splitlines()
    pictures(root / "crops" / "100214_m_50" / "odd", ["image2000.jpg"])
    write(root / "labels.txt", *lines, "100214_m_50/odd/image2000.jpg 2")
    assert problems_of(reader(root)) == (
        "labels.txt line 25: label '2' of sample 'odd' is not one of 0, 1, BL1, PA1, PA2, PA3, PA4",
    )
    assert len(replace(reader(root), strict=False).read().clips) == 8


@pytest.mark.parametrize(("stray", "pain"), [("2", "1"), ("1", "4")])
def test_a_stray_label_among_samples_whose_names_say_nothing(tmp_path: Path, stray: str, pain: str) -> None:
    rows = []
    for subject in ("t", "a", "b"):
        for clip, label in (("one", "0"), ("two", pain)):
            pictures(tmp_path / subject / f"{subject} {clip}", ["image2000.jpg"])
            rows.append(f"{subject}/{subject} {clip}/image2000.jpg {label}")
    write(tmp_path / "labels.txt", *rows, f"a/odd/image2000.jpg {stray}")
    clips = BioVid(str(tmp_path), target_subjects=("t",), validation_subjects=1, strict=False).read().clips
    assert [clip.label for clip in clips] == ["neutral", "pain"] * 3


def test_a_copy_without_pain_is_refused(tmp_path: Path) -> None:
    root = biovid_videos(tmp_path)
    rows = [row for row in biovid_samples() if "PA4" not in row]
    write(root / "starting_point" / "samples.csv", SAMPLES_HEADER, *rows)
    assert problems_of(reader(root)) == ("class 'pain' has no clip that can be used",)


def test_a_stray_video_does_not_hide_the_crops(tmp_path: Path) -> None:
    root = biovid_frames(tmp_path)
    write(root / "samples.csv", SAMPLES_HEADER, *biovid_samples())
    video(root / "demo.mp4")
    clips = reader(root).read().clips
    assert len(clips) == 8 and {clip.frames_per_second for clip in clips} == {1000.0}


def test_problems_of_the_official_layout(tmp_path: Path) -> None:
    root = biovid_videos(tmp_path)
    write(
        root / "starting_point" / "samples.csv",
        SAMPLES_HEADER,
        *biovid_samples(),
        "1\t071309_w_21\t0\tBL1\t80\t071309_w_21-BL1-080",
        "1\t071309_w_21\t0\tBL1\t99\t071309_w_21-BL1-099",
        "1\t071309_w_21\t0\t\t81\t071309_w_21-BL1-081",
        "1\t071309_w_21\t0\tBL2\t82\t071309_w_21-BL2-082",
        "1\t071309_w_21\t0\tPA4\t83\t071309_w_21-BL1-083",
        "2\t081014_w_27\t0\tBL1\t85\t100214_m_50-BL1-085",
        "2\t\t0\tBL1\t86\t",
    )
    video(root / "video_frontalized" / "100214_m_50" / "100214_m_50-PA4-084.avi")
    assert problems_of(reader(root)) == (
        "starting_point/samples.csv line 16: sample '071309_w_21-BL1-081' has no label",
        "starting_point/samples.csv line 17: label 'BL2' of sample '071309_w_21-BL2-082' is not one of "
        "BL1, PA1, PA2, PA3, PA4",
        "starting_point/samples.csv line 18: class_name of sample '071309_w_21-BL1-083' is PA4",
        "starting_point/samples.csv line 19: sample '100214_m_50-BL1-085' is listed for subject '081014_w_27'",
        "starting_point/samples.csv line 20: subject_name or sample_name is empty",
        "starting_point/samples.csv line 2, starting_point/samples.csv line 14: clip '071309_w_21-BL1-080' is listed "
        "2 times",
        "starting_point/samples.csv line 13: '100214_m_50/100214_m_50-PA4-084' may be any of "
        "video/100214_m_50/100214_m_50-PA4-084.mp4, video_frontalized/100214_m_50/100214_m_50-PA4-084.avi; "
        "dataset.within=FOLDER limits the search",
        f"starting_point/samples.csv line 15: no video '071309_w_21/071309_w_21-BL1-099' below {root}",
    )
    assert len(replace(reader(root), strict=False).read().clips) == 7
    assert len(replace(reader(root), strict=False, within="video").read().clips) == 8


def test_problems_of_crops(tmp_path: Path) -> None:
    root = biovid_frames(tmp_path)
    lines = (root / "labels.txt").read_text().splitlines()
    lines[1] = lines[1][:-1] + "1"
    lines = [line[:-1] + "0" if "100214_m_50-PA4" in line else line for line in lines]
    write(root / "labels.txt", *lines, "071309_w_21/071309_w_21-PA4-099/image2000.jpg 1")
    assert problems_of(reader(root)) == (
        "labels.txt: clip '071309_w_21-BL1-080' has the labels 0 (from line 1) and 1 (from line 2)",
        "labels.txt line 22: label '0' of sample '100214_m_50-PA4-084' means BL1",
        f"labels.txt line 25: no folder of frames '071309_w_21/071309_w_21-PA4-099' below {root}",
    )


def test_target_subjects_that_are_not_there_are_told(tmp_path: Path) -> None:
    config = BioVid(str(biovid_videos(tmp_path)), validation_subjects=1)
    problems = problems_of(config)
    assert len(problems) == 8 and problems[0] == "target subject '101609_m_36' has no clip that can be used"
    clips = replace(config, strict=False).read().clips
    assert {clip.subject_id for clip in clips if clip.split == "target"} == set(HERE)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="biovid: no folder at root="):
        reader(tmp_path / "nowhere").read()
    with pytest.raises(FileNotFoundError, match=r"looked for samples.csv, labels.txt, label.txt, all_sub_labels.txt;"):
        reader(tmp_path).read()
    with pytest.raises(FileNotFoundError, match=r"looked for samples.csv; dataset.labels=PATH names another one"):
        replace(reader(biovid_frames(tmp_path)), layout="videos").read()
    write(tmp_path / "samples.csv", "subject\tlabel")
    with pytest.raises(DatasetError, match=r"has no column subject_name, class_name, sample_name; required are"):
        reader(tmp_path).read()


def test_another_label_file(tmp_path: Path) -> None:
    root = biovid_videos(tmp_path)
    write(root / "mine.csv", SAMPLES_HEADER, *biovid_samples(BIOVID_SUBJECTS[:3]))
    assert len(replace(reader(root), labels="mine.csv", validation_subjects=0).read().clips) == 6


def test_settings_are_checked_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        BioVid("x", layout="crops")  # type: ignore[arg-type]
    assert one_line(caught.value) == "layout='crops': should be one of auto, videos, frames"
    with pytest.raises(ValueError, match="both name 081014_w_27"):
        BioVid("x", validation_subjects=("081014_w_27",))
