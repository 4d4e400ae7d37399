"""What all readers share: entries become clips, problems are told at once, subjects are divided."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clipautt.clips import Clip
from clipautt.datasets.files import DatasetError, Problem, walk
from clipautt.datasets.layout import Entry, Listing, Reading, Rules, Subjects, assemble, settle
from clipautt.manifest import read_manifest, write_manifest
from tests.support.trees import pictures, video

RULES = Rules("demo", ("neutral", "pain"), Subjects(("t",), 0, 0), True, "auto", 25.0)
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
        f"demo at {root} has 7 problems (2 absent, 1 unlabelled, 1 duplicate, 1 conflict, 1 ambiguous, 1 missing):",
        "  labels line 7: clip 'e' has no label",
        "  labels line 2, labels line 3: clip 'a' is listed 2 times",
        "  labels line 4, labels line 5: clip 'c' is 'neutral' of subject 's' and 'pain' of subject 's'",
        "  labels line 1: 't/b' may be any of copy/t/b.mkv, t/b.webm; dataset.within=FOLDER limits the search",
        f"  labels line 6: no video or folder of frames 's/d' below {root}",
        "  target subject 't' has no clip that can be used",
        "  class 'pain' has no clip that can be used",
        "strict=false omits them",
    ]
    reading = assemble(listing, walk(str(root), dataset="demo"), replace(RULES, strict=False))
    assert [clip.clip_id for clip in reading.clips] == ["a"]
    assert list(reading.problems) == [line.strip() for line in text.splitlines()[1:-1]]
    assert reading.notes == (
        "omitted or absent: 2 absent, 1 unlabelled, 1 duplicate, 1 conflict, 1 ambiguous, 1 missing",
    )


def test_one_place_is_not_the_clip_of_two(tmp_path: Path) -> None:
    for place in ("s/day2/x.mp4", "y.mp4", "s/z.mp4", "t/w.mp4"):
        video(tmp_path / place)
    paths = {"1": "s/day1/x", "2": "s/day2/x", "3": "s/y", "4": "t/y", "5": "s/z", "6": "t/w"}
    entries = tuple(
        Entry(number, path[0], path, "pain" if number == "6" else "neutral", f"labels line {number}")
        for number, path in paths.items()
    )
    text = message(Listing(entries), tmp_path)
    assert text.splitlines()[1:-1] == [
        "  labels line 1: 's/day1/x' fits only s/day2/x.mp4, as does 's/day2/x' of labels line 2",
        "  labels line 3: 's/y' fits only y.mp4, as does 't/y' of labels line 4",
        "  labels line 4: 't/y' fits only y.mp4, as does 's/y' of labels line 3",
    ]
    reading = assemble(Listing(entries), walk(str(tmp_path), dataset="demo"), replace(RULES, strict=False))
    assert [clip.clip_id for clip in reading.clips] == ["2", "5", "6"]


def test_a_clip_is_not_taken_from_the_folder_of_another_subject(tmp_path: Path) -> None:
    for place in ("Videos/t/1/rest.mp4", "Videos/s/1/lift.mp4"):
        video(tmp_path / place)
    source = Entry("a", "s", "Videos/s/1/rest.mp4", "neutral", "labels line 1")
    entries = (source, Entry("b", "s", "Videos/s/1/lift.mp4", "pain", "labels line 2"))
    others = (
        (Listing(entries, subjects=frozenset({"t"})), RULES),
        (Listing(entries), RULES),
    )  # in the file; the settings
    for listing, rules in others:
        text = message(listing, tmp_path, rules)
        assert (
            f"labels line 1: no video or folder of frames 'Videos/s/1/rest.mp4' below {tmp_path}; Videos/t/1/rest.mp4 "
            "lies in the folder of another subject than 's'"
        ) in text
    mine = Entry("c", "t", "Videos/t/1/rest.mp4", "neutral", "labels line 3")
    reading = assemble(Listing((*entries, mine)), walk(str(tmp_path), dataset="demo"), replace(RULES, strict=False))
    assert [(clip.clip_id, clip.subject_id) for clip in reading.clips] == [("b", "s"), ("c", "t")]


def test_a_file_that_two_subjects_claim_belongs_to_none(root: Path) -> None:
    listing = Listing((*LISTING.entries, Entry("c", "t", "s/a", "neutral", "labels line 3")))
    assert "labels line 2 and 1 more: 's/a' is listed for subjects 's' and 't'" in message(listing, root)


def test_a_class_without_clips_is_a_problem(root: Path) -> None:
    text = message(LISTING, root, replace(RULES, classes=("neutral", "pain", "joy")))
    assert text.splitlines()[1] == "  class 'joy' has no clip that can be used"


def test_a_link_to_nowhere_is_told(root: Path) -> None:
    (root / "t" / "b.webm").unlink()
    (root / "t" / "b.webm").symlink_to(root / "annex")
    assert f"no video or folder of frames 't/b' below {root}; t/b.webm is a broken link" in message(LISTING, root)


def test_the_layout_is_the_one_in_which_more_clips_are_there(tmp_path: Path) -> None:
    pictures(tmp_path / "crops" / "s" / "a", ["1.jpg"])
    pictures(tmp_path / "crops" / "t" / "b", ["1.jpg"])
    video(tmp_path / "demo.mp4")
    listing, rules = settle(LISTING, walk(str(tmp_path), dataset="demo"), RULES)
    assert rules.layout == "frames" and listing == LISTING
    video(tmp_path / "t" / "b.mp4")
    listing, rules = settle(LISTING, walk(str(tmp_path), dataset="demo"), RULES)
    note = "layout=auto reads frames: 1 of 2 clips are there as videos, 2 as folders of frames"
    assert rules.layout == "frames" and listing.notes == (note,)
    video(tmp_path / "s" / "a.mp4")
    assert settle(LISTING, walk(str(tmp_path), dataset="demo"), RULES)[1].layout == "videos"


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
    with pytest.raises(ValueError, match=r"target_subjects and dataset\.validation_subjects both name b"):
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
    with pytest.raises(ValueError, match=r"allowed, or make them targets.*: 'dataset.target_subjects=\[a,b,c\]'$"):
        Subjects((), 3, 0).splits(["a", "b", "c"])
    for rules, known in ((Subjects(("s", "t"), 3, 0), {}), (Subjects((), 0, 0), {"s": "target", "t": "target"})):
        assert rules.splits(["s", "t"], known=known) == {"s": "target", "t": "target"}  # type: ignore[arg-type]
    absent = Subjects(("a", "b"), ("c", "d"), 0).absent(["b", "c"])
    assert [problem.text for problem in absent] == [
        "target subject 'a' has no clip that can be used",
        "validation subject 'd' has no clip that can be used",
    ]
