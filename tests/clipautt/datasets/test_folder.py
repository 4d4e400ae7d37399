"""Data sets of one's own: a folder per subject, videos or folders of frames, and labels.csv."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from time import process_time

import pytest

from clipautt.clips import Clip
from clipautt.datasets.folder import Folder
from clipautt.datasets.layout import DatasetError
from clipautt.manifest import read_manifest, write_manifest
from clipautt.video.decoding import Sampling, stream_clip
from tests.support.fakes import read_number
from tests.support.trees import own_videos, pictures, video, write

ROWS = [f"{subject},{clip},{label}" for subject in "abct" for clip, label in (("1", "pain"), ("2", "neutral"))]


def tree(root: Path, header: str = "subject,clip,label", *rows: str) -> Folder:
    """Two videos of each of the subjects a, b, c and t."""
    for row in ROWS:
        subject, clip, _ = row.split(",")
        video(root / subject / f"{clip}.mp4")
    write(root / "labels.csv", header, *(rows or ROWS))
    return Folder(str(root), target_subjects=("t",), validation_subjects=1)


def test_splits_by_setting(tmp_path: Path) -> None:
    reading = tree(tmp_path).read()
    assert reading.classes == ("neutral", "pain") and reading.problems == () and reading.notes == ()
    assert len(reading.clips) == 8
    assert reading.clips[-2] == Clip("t/1", "t", str(tmp_path / "t" / "1.mp4"), "target", "pain", dataset="folder")
    assert reading.manifest.counts(by="split").to_numpy().tolist() == [
        ["source_train", 2, 2, 2, 4],
        ["source_val", 1, 1, 1, 2],
        ["target", 1, 1, 1, 2],
    ]
    write_manifest(reading.clips, tmp_path / "manifest.parquet")
    assert read_manifest(tmp_path / "manifest.parquet").clips == reading.clips


def test_splits_by_column(tmp_path: Path) -> None:
    splits = {"a": "source_train", "b": "source_val", "c": "source", "t": "target"}
    config = tree(tmp_path, "subject,clip,label,split", *(f"{row},{splits[row[0]]}" for row in ROWS))
    by_column = replace(config, target_subjects=()).read()
    assert {clip.subject_id: clip.split for clip in by_column.clips} == {
        "a": "source_train", "b": "source_val", "c": "source_train", "t": "target",
    }  # fmt: skip
    two = replace(config, target_subjects=(), validation_subjects=2).read()
    assert {clip.subject_id: clip.split for clip in two.clips}["c"] == "source_val"
    by_setting = replace(config, target_subjects=("a",)).read()
    assert {clip.subject_id for clip in by_setting.clips if clip.split == "target"} == {"a"}


def test_one_row_of_a_subject_may_say_the_split_for_all(tmp_path: Path) -> None:
    rows = [f"{row},{'target' if row.startswith('t,1') else ''}" for row in ROWS]
    config = replace(tree(tmp_path, "subject,clip,label,split", *rows), target_subjects=())
    assert {clip.clip_id for clip in config.read().clips if clip.split == "target"} == {"t/1", "t/2"}


def test_a_subject_in_two_splits_is_refused(tmp_path: Path) -> None:
    splits = ["source_train", "target", "source_train", "source_train", "source_val", "source_val", "target", "target"]
    rows = [f"{row},{split}" for row, split in zip(ROWS, splits, strict=True)]
    config = replace(tree(tmp_path, "subject,clip,label,split", *rows), target_subjects=())
    with pytest.raises(DatasetError, match=r"line 2, labels.csv line 3: subject 'a' is in source_train and target"):
        config.read()
    assert {clip.subject_id for clip in replace(config, strict=False).read().clips} == {"b", "c", "t"}


def test_the_targets_that_a_message_advises_can_be_read(tmp_path: Path) -> None:
    rows = [f"{row},{'target' if row[0] in 'ct' else ''}" for row in ROWS]
    config = replace(tree(tmp_path, "subject,clip,label,split", *rows), target_subjects=(), validation_subjects=2)
    with pytest.raises(ValueError, match="or make them targets") as caught:
        config.read()
    advised = re.findall(r"[\w]+(?=[],])", str(caught.value).rpartition("target_subjects=")[2])
    assert {clip.split for clip in replace(config, target_subjects=tuple(advised)).read().clips} == {"target"}


def test_a_missing_split_of_r_is_no_split(tmp_path: Path) -> None:
    rows = [f"{row},{'target' if row.startswith('t') else 'NA'}" for row in ROWS]
    config = replace(tree(tmp_path, "subject,clip,label,split", *rows), target_subjects=())
    assert {clip.subject_id for clip in config.read().clips if clip.split == "target"} == {"t"}


@pytest.mark.parametrize(
    "row",
    ["dan,rest,,target", "dan,rest,NA,Target", "dan,,pain,target", "dan,lost,pain,target", "dan,rest,pain,x,target"],
)
def test_a_target_whose_row_is_dropped_is_no_source(tmp_path: Path, row: str) -> None:
    config = Folder(str(own_videos(tmp_path)), validation_subjects=1, strict=False)
    rows = [f"{subject},{clip}" for subject in ("ann", "bob", "cem") for clip in ("rest,neutral,", "lift,pain,")]
    write(tmp_path / "labels.csv", "Subject,CLIP,Label,Split", *rows, row, "dan,lift,pain,")
    reading = config.read()
    assert {clip.clip_id: clip.split for clip in reading.clips if clip.subject_id == "dan"} == {"dan/lift": "target"}
    assert len(reading.clips) == 7 and len(reading.problems) == 1


def test_a_subject_whose_split_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    config = Folder(str(own_videos(tmp_path)), validation_subjects=1, strict=False)
    text = (tmp_path / "labels.csv").read_text().replace("dan,rest,neutral,target", "dan,rest,neutral,test")
    write(tmp_path / "labels.csv", *text.replace("dan,lift,pain,target", "dan,lift,pain,").splitlines())
    assert {clip.subject_id for clip in config.read().clips} == {"ann", "bob", "cem"}


def test_target_subjects_alone_need_no_class_and_no_label(tmp_path: Path) -> None:
    everyone = Folder(str(own_videos(tmp_path)), target_subjects=("ann", "bob", "cem", "dan")).read()
    assert {clip.split for clip in everyone.clips} == {"target"} and everyone.classes == ("neutral", "pain")
    write(tmp_path / "labels.csv", "subject,clip,label,split", "dan,rest,,target", "dan,lift,heavy,target")
    reading = Folder(str(tmp_path)).read()
    assert [(clip.clip_id, clip.label) for clip in reading.clips] == [("dan/lift", "heavy"), ("dan/rest", None)]
    assert reading.classes == () and reading.problems == ()  # a checkpoint knows the classes
    write_manifest(reading.clips, tmp_path / "manifest.parquet", classes=reading.classes)
    again = read_manifest(tmp_path / "manifest.parquet", classes=("rest", "heavy"))
    assert again.clips == reading.clips and again.classes == ("rest", "heavy")


def test_a_broken_link_among_clips_without_labels_is_told(tmp_path: Path) -> None:
    own_videos(tmp_path)
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "ann" / "gone.mp4").symlink_to(tmp_path / "nothing")
    (tmp_path / "ann" / "notes.pdf").symlink_to(tmp_path / "nothing")
    with pytest.raises(DatasetError, match=r"1 problem .*\n  ann/gone.mp4 is a broken link"):
        Folder(str(tmp_path)).read()
    assert len(Folder(str(tmp_path), strict=False).read().clips) == 8


def test_a_folder_without_labels_is_a_folder_of_target_subjects(tmp_path: Path) -> None:
    own_videos(tmp_path)
    (tmp_path / "labels.csv").unlink()
    video(tmp_path / "again.mp4")
    reading = Folder(str(tmp_path)).read()
    assert len(reading.clips) == 9 and {(clip.split, clip.label) for clip in reading.clips} == {("target", None)}
    assert reading.notes == ("there is no labels.csv: 9 clips of 5 subjects are to be adapted to, without labels",)
    own = {clip.clip_id: clip for clip in reading.clips}[f"{tmp_path.name}/again"]
    assert (own.subject_id, own.source) == (tmp_path.name, str(tmp_path / "again.mp4"))
    person = Folder(str(tmp_path / "ann")).read()
    assert [(clip.clip_id, clip.subject_id) for clip in person.clips] == [("ann/lift", "ann"), ("ann/rest", "ann")]
    some = Folder(str(tmp_path), target_subjects=("ann",), strict=False).read()
    assert {clip.subject_id for clip in some.clips} == {"ann"} and len(some.problems) == 7


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("my labels.csv", "give \"dataset.labels='my labels.csv'\""),
        ("labels.xlsx", "save labels.xlsx as CSV, labels.csv"),
    ],
)
def test_a_label_file_of_another_name_is_asked_about(tmp_path: Path, name: str, told: str) -> None:
    video(tmp_path / "a.mp4")
    write(tmp_path / "a.csv", "frame,AU04_r")  # another tool's table, beside its video
    assert len(Folder(str(tmp_path)).read().clips) == 1
    write(tmp_path / name, "subject,clip,label")
    with pytest.raises(FileNotFoundError) as caught:
        Folder(str(tmp_path)).read()
    assert f"no labels.csv below {tmp_path}, and {name} may hold the labels: {told}, or move it" in str(caught.value)


def test_one_person_with_labels_is_told_how_to_be_a_target(tmp_path: Path) -> None:
    write(tmp_path / "labels.csv", "subject,clip,label", "ann,rest,neutral", "ann,lift,pain")
    for clip in ("rest", "lift"):
        video(tmp_path / "ann" / f"{clip}.mp4")
    with pytest.raises(ValueError, match=r"make them targets, .*: 'dataset.target_subjects=\[ann\]'"):
        Folder(str(tmp_path)).read()
    assert len(Folder(str(tmp_path), target_subjects=("ann",)).read().clips) == 2


@pytest.mark.parametrize(("written", "there"), [("7", "007"), ("7.0", "7"), ("Ann", "ann"), ("1.0", "01")])
def test_what_a_spreadsheet_made_of_a_name_is_told(tmp_path: Path, written: str, there: str) -> None:
    for clip in ("a", "b"):
        video(tmp_path / there / f"{clip}.mp4")
    write(
        tmp_path / "labels.csv", "subject,clip,label,split", f"{written},a,neutral,source", f"{written},b,pain,source"
    )
    with pytest.raises(DatasetError) as caught:
        Folder(str(tmp_path), validation_subjects=0).read()
    assert f"'{written}/a' below {tmp_path}; {there}/a.mp4 is there: spreadsheets change names" in str(caught.value)


def test_a_label_that_is_probably_a_slip_is_asked_about(tmp_path: Path) -> None:
    config = tree(tmp_path, "subject,clip,label", *ROWS[:-2], "t,1,paln", ROWS[-1])
    with pytest.raises(DatasetError) as caught:
        config.read()
    told = "labels.csv line 8: label 'paln' beside 'pain'; correct it, or say that both are classes with "
    assert f"{told}'dataset.classes=[neutral,pain,paln]'" in str(caught.value)
    assert replace(config, strict=False).read().classes == ("neutral", "pain")
    assert replace(config, classes=("neutral", "pain", "paln")).read().classes == ("neutral", "pain", "paln")


def test_labels_that_pandas_wrote_as_decimals_are_whole_numbers(tmp_path: Path) -> None:
    rows = [row.replace("pain", "1.0").replace("neutral", "0.0") for row in ROWS]
    config = replace(tree(tmp_path, "Unnamed: 0;Subject;clip;label".replace(";", ","), *(f"0,{r}" for r in rows)))
    reading = replace(config, classes=("0", "1")).read()
    assert {clip.label for clip in reading.clips} == {"0", "1"} and reading.notes == ()


def test_columns_that_are_not_read_are_told(tmp_path: Path) -> None:
    rows = [f"{row},3" for row in ROWS]
    config = tree(tmp_path, "subject,clip,label,age", *rows)
    assert config.read().notes == ("labels.csv: columns that are not used: age",)
    write(tmp_path / "labels.csv", "subject,clip,label,splits", *rows)
    with pytest.raises(DatasetError, match=r"labels.csv: 'splits' is no column that is read; did you mean 'split'\?"):
        config.read()


def test_names_that_are_not_utf_8_are_left_out_and_told(tmp_path: Path) -> None:
    config = tree(tmp_path)
    video(tmp_path / "a" / "caf\udce9.mp4")
    reading = config.read()
    assert len(reading.clips) == 8 and "1 file left out, as no table can name it" in reading.notes[-1]


@pytest.mark.parametrize("label", ["NA", "null", "n/a", "NaN", ""])
def test_what_stands_for_no_label_is_no_class(tmp_path: Path, label: str) -> None:
    config = tree(tmp_path, "subject,clip,label", *ROWS[:-1], f"t,2,{label}")
    reading = replace(config, strict=False).read()
    assert reading.classes == ("neutral", "pain")
    assert reading.problems == ("labels.csv line 9: clip 't/2' has no label",)


def test_a_row_with_surplus_cells_gives_no_clip(tmp_path: Path) -> None:
    config = tree(tmp_path, "subject,clip,label", *ROWS[:-1], "t,2, heavy,neutral")
    reading = replace(config, strict=False).read()
    assert reading.classes == ("neutral", "pain") and len(reading.clips) == 7
    assert reading.problems == ("labels.csv line 9: the row has 4 cells, the header 3",)


def test_the_extension_in_the_table_decides(tmp_path: Path) -> None:
    config = tree(tmp_path, "subject,clip,label", ROWS[0].replace("1", "1.avi"), *ROWS[1:])
    video(tmp_path / "a" / "1.avi")
    clip = config.read().clips[0]
    assert (clip.clip_id, clip.source) == ("a/1", str(tmp_path / "a" / "1.avi"))


def test_copies_in_deeper_folders_change_nothing(tmp_path: Path) -> None:
    config = tree(tmp_path)
    before = config.read()
    for row in ROWS:
        video(tmp_path / "old" / row.split(",")[0] / f"{row.split(',')[1]}.mp4")
    pictures(tmp_path / "a" / "1", ["1.jpg"])
    after = config.read()
    assert after.clips == before.clips and after.notes == ()


def test_subjects_with_equally_named_clips_are_read_in_seconds(tmp_path: Path) -> None:
    rows = [f"s{subject},{clip},{'pain' if clip else 'neutral'}" for subject in range(300) for clip in range(20)]
    write(tmp_path / "labels.csv", "subject,clip,label", *rows)
    for row in rows:
        subject, clip, _ = row.split(",")
        (tmp_path / subject).mkdir(exist_ok=True)
        (tmp_path / subject / f"{clip}.mp4").touch()
    start = process_time()
    assert len(Folder(str(tmp_path)).read().clips) == 6000
    assert process_time() - start < 4  # looking through all places for every clip takes a minute


def test_without_targets_everyone_is_a_source(tmp_path: Path) -> None:
    reading = replace(tree(tmp_path), target_subjects=()).read()
    assert {clip.split for clip in reading.clips} == {"source_train", "source_val"}


@pytest.mark.parametrize("extension", ["", ".mp4"])
def test_the_clip_may_be_a_path_with_or_without_extension(tmp_path: Path, extension: str) -> None:
    rows = [f"{row.replace(',', '/', 1).replace(',', f'{extension},', 1)}" for row in ROWS]
    reading = tree(tmp_path, "clip,label", *rows).read()
    assert [clip.clip_id for clip in reading.clips] == ["a/1", "a/2", "b/1", "b/2", "c/1", "c/2", "t/1", "t/2"]


def test_folders_of_frames_and_videos_together(tmp_path: Path) -> None:
    config = tree(tmp_path)
    (tmp_path / "t" / "1.mp4").unlink()
    pictures(tmp_path / "t" / "1", ["2.png", "10.png", "1.png"], decodable=True)
    clip = replace(config, frames_per_second=10.0).read().clips[-2]
    assert (clip.source, clip.frames_per_second) == (str(tmp_path / "t" / "1"), 10.0)
    shown = [
        (round(time, 3), read_number(frame)) for time, frame in stream_clip(clip, Sampling(None), decoder="images")
    ]
    assert shown == [(0.0, 2), (0.1, 0), (0.9, 1)]  # in the order of the numbers in their names: 1, 2, 10
    with pytest.raises(DatasetError, match="no video 't/1' below"):
        replace(config, layout="videos").read()


def test_real_videos_can_be_decoded(tmp_path: Path) -> None:
    clips = Folder(str(own_videos(tmp_path, frames=6)), validation_subjects=1, name="ward").read().clips
    assert len(clips) == 8 and {clip.dataset for clip in clips} == {"ward"}
    frames = [read_number(frame) for _, frame in stream_clip(clips[-1], Sampling(None), decoder="pyav")]
    assert frames == [0, 1, 2, 3, 4, 5]


def test_equal_names_of_different_subjects_are_not_confused(tmp_path: Path) -> None:
    config = tree(tmp_path)
    (tmp_path / "a" / "1.mp4").unlink()
    with pytest.raises(DatasetError, match=r"labels.csv line 2: no video or folder of frames 'a/1' below"):
        config.read()
    video(tmp_path / "a" / "1.webm")
    assert config.read().clips[0].source == str(tmp_path / "a" / "1.webm")
    video(tmp_path / "a" / "1.mov")
    with pytest.raises(DatasetError, match=r"'a/1' may be any of a/1.mov, a/1.webm"):
        config.read()


def test_problems_are_told_at_once(tmp_path: Path) -> None:
    rows = [*ROWS, "a,1,pain", "b,1,neutral", "c,3,pain", "c,2,", "t,1,nan", ",1,pain", "t,,pain", "t,4,joy"]
    config = replace(tree(tmp_path, "subject,clip,label", *rows), classes=("neutral", "pain"))
    reading = replace(config, strict=False).read()
    assert reading.problems == (
        "labels.csv line 13: clip 'c/2' has no label",
        "labels.csv line 14: clip 't/1' has no label",
        "labels.csv line 15: '1' is not SUBJECT/CLIP",
        "labels.csv line 16: 't' is not SUBJECT/CLIP",
        "labels.csv line 17: label 'joy' of clip 't/4' is not one of neutral, pain",
        "labels.csv line 2, labels.csv line 10: clip 'a/1' is listed 2 times",
        "labels.csv line 4, labels.csv line 11: clip 'b/1' is 'pain' of subject 'b' and 'neutral' of subject 'b'",
        f"labels.csv line 12: no video or folder of frames 'c/3' below {tmp_path}",
    )
    assert len(reading.clips) == 7
    with pytest.raises(DatasetError, match="has 8 problems"):
        config.read()


def test_an_unknown_split_is_told(tmp_path: Path) -> None:
    config = tree(tmp_path, "subject,clip,label,split", *(f"{row},train" for row in ROWS))
    with pytest.raises(
        DatasetError,
        match="line 2: split 'train' of subject 'a' is not one of source_train, source_val, target, source",
    ):
        replace(config, target_subjects=()).read()


def test_clips_without_a_row_are_noted(tmp_path: Path) -> None:
    config = tree(tmp_path)
    video(tmp_path / "a" / "extra.mp4")
    assert config.read().notes == ("1 videos or folders of frames have no labelled row, the first is a/extra.mp4",)


def test_classes(tmp_path: Path) -> None:
    rows = [row.replace("pain", "1").replace("neutral", "0") for row in ROWS]
    config = tree(tmp_path, "subject,clip,label", *rows)
    with pytest.raises(ValueError, match=r"labels.csv has the labels 0, 1 and none is 'neutral'; name the classes"):
        config.read()
    reading = replace(config, classes=("0", "1")).read()
    assert reading.classes == ("0", "1") and reading.clips[0].label == "1"
    with pytest.raises(ValueError, match=r"classes=\('a', 'a'\): should be different names"):
        replace(config, classes=("a", "a"))


def test_ids_and_labels_are_text(tmp_path: Path) -> None:
    for subject in ("007", "08", "1e5"):
        video(tmp_path / subject / "01.mp4")
    write(tmp_path / "labels.csv", "subject,clip,label", "007,01,neutral", "08,01,None", "1e5,01,1.0")
    reading = Folder(str(tmp_path), target_subjects=("007",), validation_subjects=1).read()
    assert [(clip.clip_id, clip.label) for clip in reading.clips] == [
        ("007/01", "neutral"), ("08/01", "None"), ("1e5/01", "1.0"),
    ]  # fmt: skip


def test_missing_label_file_and_columns(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"folder: no label file below .*; looked for labels.csv; dataset"):
        Folder(str(tmp_path)).read()
    write(tmp_path / "labels.csv", "a,1,pain")
    with pytest.raises(
        DatasetError, match="the first line has no column clip, label; required are clip, label; it read"
    ):
        Folder(str(tmp_path)).read()
