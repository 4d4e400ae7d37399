"""What all readers share: finding files, rows of label files, problems told at once, subjects divided."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from clipautt.clips import Clip, read_manifest, write_manifest
from clipautt.datasets.layout import (
    DatasetError,
    Entry,
    Listing,
    Problem,
    Reading,
    Rules,
    Subjects,
    assemble,
    plain_label,
    read_frame_list,
    read_table,
    walk,
)
from tests.datasets.trees import pictures, video, write

RULES = Rules("demo", ("neutral", "pain"), Subjects(("t",), 0, 0), True, "auto", "", 25.0)
LISTING = Listing(
    (
        Entry("b", "t", "t/b", "pain", "labels line 1"),
        Entry("a", "s", "s/a", "neutral", "labels line 2"),
    )
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    video(tmp_path / "deep" / "s" / "a.mp4")
    video(tmp_path / "t" / "b.webm")
    return tmp_path


def message(listing: Listing, root: Path, rules: Rules = RULES) -> str:
    with pytest.raises(DatasetError) as error:
        assemble(listing, walk(str(root), dataset="demo"), rules)
    return str(error.value)


def test_entries_become_clips_and_a_manifest(root: Path) -> None:
    reading = assemble(LISTING, walk(str(root), dataset="demo"), RULES)
    assert reading.clips == (
        Clip("a", "s", str(root / "deep" / "s" / "a.mp4"), "source_train", "neutral", dataset="demo"),
        Clip("b", "t", str(root / "t" / "b.webm"), "target", "pain", dataset="demo"),
    )
    assert reading.problems == () and reading.classes == ("neutral", "pain")
    write_manifest(reading.clips, root / "manifest.parquet")
    assert read_manifest(root / "manifest.parquet").clips == reading.clips


@pytest.mark.parametrize("extension", ["mp4", "avi", "webm", "mkv", "mov", "m4v", "wmv", "mpg", "MP4"])
def test_a_video_is_found_whatever_its_kind_and_depth(tmp_path: Path, extension: str) -> None:
    video(tmp_path / "one" / "two" / f"x.1.{extension}")
    tree = walk(str(tmp_path), dataset="demo")
    for asked in ("x.1", f"x.1.{extension}", "x.1.mp4", f"elsewhere/two/x.1.{extension}", "C:\\data\\two\\x.1"):
        assert tree.find(asked) == [f"one/two/x.1.{extension}"]
    assert tree.find("x") == [] and tree.find("x.1", layout="frames") == []


def test_a_folder_of_pictures_is_found_even_if_it_is_named_like_a_video(tmp_path: Path) -> None:
    pictures(tmp_path / "crops" / "s" / "a.mp4", ["frame-1.jpg"])
    pictures(tmp_path / "crops" / "s" / "b", ["1.PNG"])
    (tmp_path / "crops" / "s" / "empty").mkdir()
    tree = walk(str(tmp_path), dataset="demo")
    assert tree.find("s/a.mp4") == ["crops/s/a.mp4"] and tree.find("s/b") == ["crops/s/b"]
    assert tree.find("empty") == [] and tree.find("a", layout="videos") == []


def test_the_place_that_agrees_with_most_of_the_path_is_taken(tmp_path: Path) -> None:
    for place in ("x/s1/c.mp4", "x/s2/c.mp4", "y/s2/c.mp4"):
        video(tmp_path / place)
    tree = walk(str(tmp_path), dataset="demo")
    assert tree.find("s1/c") == ["x/s1/c.mp4"]
    assert tree.find("s2/c") == ["x/s2/c.mp4", "y/s2/c.mp4"]
    assert tree.find("s2/c", within="y") == ["y/s2/c.mp4"]
    assert len(tree.find("s3/c")) == 3 and tree.find("s3/c", whole_path=True) == []


def test_hidden_files_are_passed_over_and_links_followed_once(tmp_path: Path) -> None:
    for place in ("data/s/a.mp4", "data/s/._a.mp4", "__MACOSX/s/a.mp4", ".trash/a.mp4"):
        video(tmp_path / place)
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    video(outside / "b.mp4")
    (tmp_path / "data" / "more").symlink_to(outside)
    tree = walk(str(tmp_path), dataset="demo")
    assert tree.videos == {"a": ["data/s/a.mp4"], "b": ["data/more/b.mp4"]}


def test_no_root(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"demo: no folder at root=.*nowhere"):
        walk(str(tmp_path / "nowhere"), dataset="demo")


def test_label_files_are_looked_for_by_name_in_order(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no label file below .*; looked for a.csv, b.txt; labels=PATH names"):
        walk(str(tmp_path), dataset="demo").label_file(None, ["a.csv", "b.txt"])
    second = write(tmp_path / "deep" / "B.txt", "x")
    assert walk(str(tmp_path), dataset="demo").label_file(None, ["a.csv", "b.txt"]) == second
    first = write(tmp_path / "deep" / "a.csv", "x")
    tree = walk(str(tmp_path), dataset="demo")
    assert tree.label_file(None, ["a.csv", "b.txt"]) == first
    assert tree.label_file("deep/B.txt", ["a.csv"]) == second == tree.label_file(str(second), [])
    with pytest.raises(FileNotFoundError, match=r"no label file at .*/c.csv, which labels=c.csv names"):
        tree.label_file("c.csv", ["a.csv"])
    write(tmp_path / "copy" / "a.csv", "x")
    with pytest.raises(DatasetError, match=r"2 files below .* hold the labels: copy/a.csv, deep/a.csv; say which"):
        walk(str(tmp_path), dataset="demo").label_file(None, ["a.csv", "b.txt"])


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_gives_text_by_column(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path / "t.csv", "\ufeff" + mark.join(["id ", "label"]), mark.join(["007", " 1 "]), "", "8")
    assert list(read_table(path, required=("label", "id"))) == [
        (2, {"id": "007", "label": "1"}),
        (4, {"id": "8", "label": ""}),
    ]


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a,b,label")
    with pytest.raises(DatasetError, match=r"no column x, y; required are x, label, y; it reads 'a,b,label'"):
        list(read_table(path, required=("x", "label", "y")))


@pytest.mark.parametrize(
    ("text", "plain"),
    [("1.0", "1"), (" 0 ", "0"), ("0.5", "0.5"), ("NaN", ""), ("nan", ""), ("", ""), ("NA", ""), ("none", "none")],
)
def test_plain_label(text: str, plain: str) -> None:
    assert plain_label(text) == plain


def test_list_of_frames_keeps_its_first_row_and_splits_paths_with_spaces_from_the_right(tmp_path: Path) -> None:
    path = write(
        tmp_path / "list.txt", "root dir/s/first/image1.jpg 1", "s/my clip/image 10.jpg 0", "s/my clip/image 2.jpg 0"
    )
    folders, problems = read_frame_list(path, shown_as="list")
    assert [(f.folder, f.name, f.parent, f.label, f.where) for f in folders] == [
        ("root dir/s/first", "first", "s", "1", "list line 1"),
        ("s/my clip", "my clip", "s", "0", "list line 2"),
    ]
    assert problems == []


def test_list_of_frames_tells_every_oddity(tmp_path: Path) -> None:
    path = write(
        tmp_path / "list.txt",
        "s/two/1.jpg 0", "s/two/2.jpg 1.0", "s/two/3.jpg 1",
        "s/none/1.jpg", "s/none/2.jpg nan",
        "s/half/1.jpg 1", "s/half/2.jpg",
        "1.jpg 0", "s/clip 0",
    )  # fmt: skip
    folders, problems = read_frame_list(path, shown_as="list")
    assert [(f.name, f.label) for f in folders] == [("half", "1")]
    assert problems == [
        Problem("unreadable", "list line 8: '1.jpg 0' is not `FOLDER/PICTURE LABEL`"),
        Problem("unreadable", "list line 9: 's/clip 0' is not `FOLDER/PICTURE LABEL`"),
        Problem("conflict", "list: clip 'two' has the labels 0 (from line 1) and 1 (from line 2)"),
        Problem("unlabelled", "list line 4: clip 'none', in 2 rows, has no label"),
        Problem("unlabelled", "list line 7: clip 'half', in 1 rows, has no label"),
    ]


def test_everything_that_is_wrong_is_told_at_once_and_left_out_if_not_strict(root: Path) -> None:
    video(root / "copy" / "t" / "b.mkv")
    pictures(root / "s" / "c", ["1.jpg"])
    listing = Listing(
        (
            *LISTING.entries,
            Entry("a", "s", "s/a", "neutral", "labels line 3"),
            Entry("c", "s", "s/c", "neutral", "labels line 4"),
            Entry("c", "s", "s/c", "pain", "labels line 5"),
            Entry("d", "s", "s/d", "pain", "labels line 6"),
        ),
        (Problem("unlabelled", "labels line 7: clip 'e' has no label"),),
    )
    text = message(listing, root)
    assert text.splitlines() == [
        f"demo at {root} has 6 problems (1 unlabelled, 1 duplicate, 1 conflict, 1 ambiguous, 1 missing, 1 absent):",
        "  labels line 7: clip 'e' has no label",
        "  labels line 2, labels line 3: clip 'a' is listed 2 times",
        "  labels line 4, labels line 5: clip 'c' is 'neutral' of subject 's' and 'pain' of subject 's'",
        "  labels line 1: 't/b' may be any of copy/t/b.mkv, t/b.webm; within=FOLDER limits the search",
        f"  labels line 6: no video or folder of frames 's/d' below {root}",
        "  target subject 't' has no clip that can be used",
        "strict=false goes on without them",
    ]
    reading = assemble(listing, walk(str(root), dataset="demo"), replace(RULES, strict=False))
    assert [clip.clip_id for clip in reading.clips] == ["a"]
    assert list(reading.problems) == [line.strip() for line in text.splitlines()[1:-1]]
    assert reading.notes == (
        "left out or absent: 1 unlabelled, 1 duplicate, 1 conflict, 1 ambiguous, 1 missing, 1 absent",
    )


def test_long_lists_are_cut_and_counted(root: Path) -> None:
    many = tuple(Entry(f"x{n}", "s", f"s/x{n}", "pain", f"labels line {n}") for n in range(40))
    lines = message(replace(LISTING, entries=(*LISTING.entries, *many)), root).splitlines()
    assert lines[0].endswith("has 40 problems (40 missing):")
    assert len(lines) == 28 and lines[-2] == "  … and 15 more"


def test_nothing_left_is_an_error_even_if_not_strict(root: Path) -> None:
    lenient = replace(RULES, strict=False)
    lost = Listing((Entry("x", "t", "t/x", "pain", "labels line 1"),))
    assert message(lost, root, lenient).endswith("no clip is left without them")
    settings = replace(lenient, subjects=Subjects((), 0, 0))
    assert message(Listing(()), root, settings) == f"demo at {root}: the label file names no clip"


def test_the_error_survives_a_process_boundary(root: Path) -> None:
    with pytest.raises(DatasetError) as error:
        assemble(Listing(()), walk(str(root), dataset="demo"), RULES)
    again = pickle.loads(pickle.dumps(error.value))
    assert isinstance(again, DatasetError) and str(again) == str(error.value)


def test_counts(tmp_path: Path) -> None:
    clips = [("t1", "target", "pain"), ("s1", "source_train", "neutral"), ("s1", "source_train", "pain")]
    clips += [("s2", "source_val", "neutral"), ("s1", "source_train", "pain"), ("s0", "source_train", "neutral")]
    reading = Reading(
        tuple(Clip(str(n), subject, "x", split, label) for n, (subject, split, label) in enumerate(clips)),  # type: ignore[arg-type]
        ("neutral", "pain"),
    )
    assert reading.manifest.counts().to_dict("split")["columns"] == ["split", "subject", "neutral", "pain", "clips"]
    assert reading.manifest.counts().to_numpy().tolist() == [
        ["source_train", "s0", 1, 0, 1],
        ["source_train", "s1", 1, 2, 3],
        ["source_val", "s2", 1, 0, 1],
        ["target", "t1", 0, 1, 1],
    ]
    by_split = reading.manifest.counts(by="split")
    assert list(by_split.columns) == ["split", "subjects", "neutral", "pain", "clips"]
    assert by_split.to_numpy().tolist() == [
        ["source_train", 2, 2, 2, 4],
        ["source_val", 1, 1, 0, 1],
        ["target", 1, 0, 1, 1],
    ]
    assert repr(reading) == "Reading(6 clips, 4 subjects, classes=('neutral', 'pain'), 0 problems)"


def test_validation_subjects_follow_from_the_seed_and_hardly_move() -> None:
    people = [f"s{number}" for number in range(60)]
    rules = Subjects(("t",), 10, 0)
    splits = rules.splits([*people, "t"])
    chosen = {subject for subject, split in splits.items() if split == "source_val"}
    assert len(chosen) == 10 and splits["t"] == "target" and rules.splits(["t", *people[::-1]]) == splits
    more = rules.splits([*people, "t", "another"])
    assert len(chosen - {subject for subject, split in more.items() if split == "source_val"}) <= 1
    other = Subjects(("t",), 10, 1).splits(people)
    assert {subject for subject, split in other.items() if split == "source_val"} != chosen


def test_no_subject_is_source_and_target_at_once() -> None:
    with pytest.raises(ValueError, match="target_subjects and validation_subjects both name b; a subject is either"):
        Subjects(("a", "b"), ("b", "c"), 0)
    with pytest.raises(ValueError, match="validation_subjects names b, who is in target"):
        Subjects((), ("b",), 0).splits(["a", "b"], known={"b": "target"})
    named = Subjects(("a",), ("c",), 0).splits("abcd")
    assert named == {"a": "target", "b": "source_train", "c": "source_val", "d": "source_train"}


def test_subjects_whose_split_is_known_keep_it_and_count() -> None:
    splits = Subjects((), 2, 0).splits("abcde", known={"a": "target", "b": "source_val", "c": "source_train"})
    assert (splits["a"], splits["b"], splits["c"]) == ("target", "source_val", "source_train")
    assert sorted((splits["d"], splits["e"])) == ["source_train", "source_val"]


def test_settings_of_subjects_are_checked() -> None:
    with pytest.raises(ValueError, match="validation_subjects=3 leaves none of the 3 source subjects to train on"):
        Subjects(("t",), 3, 0).splits(["a", "b", "c", "t"])
    assert Subjects(("t",), 3, 0).splits(["t"]) == {"t": "target"}
    with pytest.raises(ValueError, match="validation_subjects=-1; allowed are 0 or more"):
        Subjects((), -1, 0)
    with pytest.raises(ValueError, match="target_subjects='kycf' is one text; a list of subject ids is needed"):
        Subjects("kycf", 1, 0)  # type: ignore[arg-type]
    absent = Subjects(("a", "b"), ("c", "d"), 0).absent(["b", "c"])
    assert [problem.text for problem in absent] == [
        "target subject 'a' has no clip that can be used",
        "validation subject 'd' has no clip that can be used",
    ]


def test_other_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="layout='video'; allowed are auto, videos, frames"):
        replace(RULES, layout="video")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frames_per_second=0; allowed are positive numbers"):
        replace(RULES, frames_per_second=0)
