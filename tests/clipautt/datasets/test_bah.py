"""BAH: split files with unquoted transcripts, segments, and face crops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from clipautt.clips import Clip
from clipautt.datasets.bah import BAH, TARGETS, cut, exclusive_end
from clipautt.datasets.layout import DatasetError
from clipautt.manifest import read_manifest, write_manifest
from clipautt.settings import one_line
from clipautt.video.decoding import Sampling, stream_clip
from tests.support.fakes import read_number
from tests.support.trees import (
    BAH_SUBJECTS,
    SEGMENTS_HEADER,
    bah_crops,
    bah_path,
    bah_segments,
    bah_videos,
    pictures,
    video,
    write,
)

STEM = "82553_Question_1_2024-11-19_15-12-23_Video"


def reader(root: Path) -> BAH:
    return BAH(str(root), target_subjects=("82711", "82714"), validation_subjects=1)


def test_videos_of_the_split_files(tmp_path: Path) -> None:
    reading = reader(bah_videos(tmp_path)).read()
    assert reading.classes == ("neutral", "ambivalence") and reading.problems == () and len(reading.clips) == 8
    assert reading.clips[0].clip_id == STEM and reading.clips[0].label == "neutral"
    assert reading.clips[-1] == Clip(
        "82714_Question_2_2024-11-19_15-12-23_Video",
        "82714",
        str(tmp_path / bah_path("82714", 2)),
        "target",
        "ambivalence",
        dataset="bah",
    )


def test_the_targets_of_the_paper_are_the_default(tmp_path: Path) -> None:
    assert len(TARGETS) == 10
    reading = BAH(str(bah_videos(tmp_path, [*TARGETS, *(f"9{n:04d}" for n in range(15))]))).read()
    assert {clip.subject_id for clip in reading.clips if clip.split == "target"} == set(TARGETS)
    assert reading.manifest.counts(by="split")["subjects"].tolist() == [5, 10, 10]


def test_transcripts_hold_commas_quotes_and_line_separators_and_paths_hold_spaces(tmp_path: Path) -> None:
    paths = [f"Videos/{s}/Visite 1/{s} Question {q} 2024-11-19 15-12-23 Video.mp4" for s in "abc" for q in (1, 2)]
    for path in paths:
        video(tmp_path / "data" / path)
    said = ['I, well, "no, never', "", "a\u2028b, c", "1,0,1", "x,", "'"]
    write(
        tmp_path / "data" / "split" / "train.txt",
        *(f"{p},{n % 2},{t}" for n, (p, t) in enumerate(zip(paths, said, strict=True))),
    )
    for name in ("val.txt", "test.txt"):
        write(tmp_path / "data" / "split" / name)
    clips = BAH(str(tmp_path), target_subjects=("c",), validation_subjects=1).read().clips
    assert [(clip.subject_id, clip.label) for clip in clips] == [
        (s, label) for s in "abc" for label in ("neutral", "ambivalence")
    ]
    assert clips[0].source == str(tmp_path / "data" / paths[0])


def test_the_first_row_counts_unless_it_names_columns(tmp_path: Path) -> None:
    bah_videos(tmp_path)
    rows = [f"{bah_path(subject, question)},{question - 1}" for subject in BAH_SUBJECTS for question in (1, 2)]
    for header in ((), ("path,label,transcript",)):
        write(tmp_path / "own.txt", *header, *rows)
        assert len(replace(reader(tmp_path), labels="own.txt").read().clips) == 8


def test_labels_may_be_words(tmp_path: Path) -> None:
    bah_videos(tmp_path)
    words = ["No A/H", "With A/H", "neutral", "Ambivalence", "0.0", "1.0", "absent", "Ambivalence/Hesitancy"]
    paths = [bah_path(subject, question) for subject in BAH_SUBJECTS for question in (1, 2)]
    write(tmp_path / "own.txt", *(f"{path},{word},x" for path, word in zip(paths, words, strict=True)))
    clips = replace(reader(tmp_path), labels="own.txt").read().clips
    assert [clip.label for clip in clips] == ["neutral", "ambivalence"] * 4


def test_problems_of_the_split_files(tmp_path: Path) -> None:
    bah_videos(tmp_path)
    (tmp_path / bah_path("82557", 1)).unlink()
    first = bah_path("82553", 1)
    write(tmp_path / "split" / "test.txt", f"{first},0,again")
    write(
        tmp_path / "split" / "val.txt",
        f"{bah_path('82553', 2)},0,x", f"{bah_path('82557', 2)},,x", "and so on, after a line break",
        f"{bah_path('82711', 1)},maybe,x", "Videos/name.mp4,1,x", f"{bah_path('82714', 1)},nan",
    )  # fmt: skip
    rows = [f"{bah_path(s, q)},{q - 1},x" for s in ("82553", "82557", "82711", "82714") for q in (1, 2)]
    write(tmp_path / "split" / "train.txt", *rows)
    reading = replace(reader(tmp_path), strict=False).read()
    assert reading.problems == (
        "split/val.txt line 2: video '82557_Question_2_2024-11-19_15-12-23_Video' has no label",
        "split/val.txt line 3: 'and so on, after a line break' does not begin with the path of a video",
        "split/val.txt line 4: label 'maybe' of video '82711_Question_1_2024-11-19_15-12-23_Video' is not one of "
        "0, 1, neutral, ambivalence",
        "split/val.txt line 5: 'Videos/name.mp4' is not a path Videos/SUBJECT/…",
        "split/val.txt line 6: video '82714_Question_1_2024-11-19_15-12-23_Video' has no label",
        f"split/test.txt line 1, split/train.txt line 1: clip '{STEM}' is listed 2 times",
        "split/train.txt line 2, split/val.txt line 1: clip '82553_Question_2_2024-11-19_15-12-23_Video' is "
        "'ambivalence' of subject '82553' and 'neutral' of subject '82553'",
        f"split/train.txt line 3: no video '{bah_path('82557', 1)}' below {tmp_path}",
    )
    assert len(reading.clips) == 6
    with pytest.raises(DatasetError, match="has 8 problems"):
        reader(tmp_path).read()


@pytest.mark.parametrize("labels", [None, "split"])
def test_an_absent_split_file_is_told_and_names_may_be_in_capitals(tmp_path: Path, labels: str | None) -> None:
    bah_videos(tmp_path)
    config = replace(reader(tmp_path), labels=labels)
    (tmp_path / "split" / "train.txt").rename(tmp_path / "split" / "Train.txt")
    assert len(config.read().clips) == 8
    (tmp_path / "split" / "val.txt").unlink()
    with pytest.raises(DatasetError, match=r"1 missing\):\n  no split file val.txt beside split/T"):
        config.read()
    assert len(replace(config, strict=False).read().clips) == 5


def test_a_face_is_not_taken_for_another_subject(tmp_path: Path) -> None:
    """Who is a target would be trained on under the name of a source subject."""
    for path in ("82553/Visite_1/lift", "82557/Visite_1/rest", "82711/Visite_1/rest"):
        video(tmp_path / "Videos" / f"{path}.mp4")
    rows = [
        "82553/Visite_1/rest.mp4,0",
        "82553/Visite_1/lift.mp4,1",
        "82557/Visite_1/rest.mp4,0",
        "82711/Visite_1/rest.mp4,",
    ]
    write(tmp_path / "own.txt", *(f"Videos/{row},x" for row in rows))
    (tmp_path / "Videos" / "82557" / "Visite_1" / "rest.mp4").rename(tmp_path / "Videos" / "82557" / "rest.mp4")
    config = BAH(str(tmp_path), target_subjects=(), validation_subjects=0, labels="own.txt", strict=False)
    assert {clip.clip_id: clip.source for clip in config.read().clips} == {
        "lift": str(tmp_path / "Videos/82553/Visite_1/lift.mp4"),
        "82557/Visite_1/rest": str(tmp_path / "Videos/82557/rest.mp4"),
    }
    assert any("'Videos/82553/Visite_1/rest.mp4' below" in problem for problem in config.read().problems)


def test_names_that_repeat_get_the_path_from_the_subject_on(tmp_path: Path) -> None:
    paths = ["82553/Visite_1/Q1", "82553/Visite_2/Q1", "82557/Visite_1/Q1", "82557/Visite_1/Q2"]
    for path in paths:
        video(tmp_path / "Videos" / f"{path}.mp4")
    write(tmp_path / "own.txt", *(f"Videos/{path}.mp4,{number % 2},x" for number, path in enumerate(paths)))
    config = BAH(str(tmp_path), target_subjects=("82557",), validation_subjects=0, labels="own.txt")
    assert [clip.clip_id for clip in config.read().clips] == [*paths[:3], "Q2"]
    write(tmp_path / "segments.csv", SEGMENTS_HEADER, *(f"Videos/{p}.mp4,1,{n % 2},5,0,5" for n, p in enumerate(paths)))
    clips = replace(config, unit="segments", labels=None).read().clips
    assert [clip.clip_id for clip in clips] == [*(f"{path}_segment001" for path in paths[:3]), "Q2_segment001"]


def test_a_path_in_quotes_may_hold_commas(tmp_path: Path) -> None:
    bah_videos(tmp_path)
    video(tmp_path / "Videos" / "82553" / "Visite_1" / "a, b.mp4")
    rows = [f"{bah_path(subject, question)},{question - 1}" for subject in BAH_SUBJECTS for question in (1, 2)]
    write(tmp_path / "own.txt", '"Videos/82553/Visite_1/a, b.mp4",1,"well, no"', *rows)
    clips = replace(reader(tmp_path), labels="own.txt").read().clips
    assert len(clips) == 9 and clips[-1].clip_id == "a, b" and clips[-1].label == "ambivalence"
    write(tmp_path / "own.txt", "well, no", *rows)
    lenient = replace(reader(tmp_path), labels="own.txt", strict=False).read()
    assert len(lenient.clips) == 8 and lenient.problems == (
        "own.txt line 1: 'well, no' is neither `PATH,LABEL,TRANSCRIPT` nor the names of these columns",
    )


def test_a_stray_video_does_not_hide_the_crops(tmp_path: Path) -> None:
    video(bah_crops(tmp_path) / "demo.mp4")
    assert len(reader(tmp_path).read().clips) == 8


def test_lists_of_frames_and_of_unlabelled_videos_are_no_split_files(tmp_path: Path) -> None:
    bah_videos(tmp_path)
    write(tmp_path / "split-frames" / "train.txt", f"{bah_path('82553', 1)}/frame-1.jpg,1")
    write(tmp_path / "test_unlabeled" / "split" / "test.txt", "Videos/9/Visite_1/x.mp4,0,x")
    assert len(reader(tmp_path).read().clips) == 8
    with pytest.raises(DatasetError, match=r"split-frames/train.txt line 1: .* is neither `PATH,LABEL,TRANSCRIPT`"):
        replace(reader(tmp_path), labels="split-frames/train.txt").read()
    write(tmp_path / "old" / "val.txt", "Videos/9/Visite_1/x.mp4,0,x")
    with pytest.raises(
        DatasetError, match=r"2 folders below .* have split files: old, split; say which with dataset.labels=FOLD"
    ):
        reader(tmp_path).read()
    assert len(replace(reader(tmp_path), labels="split").read().clips) == 8


@pytest.mark.parametrize("folder", ["cropped_aligned", "cropped-aligned-faces"])
def test_crops(tmp_path: Path, folder: str) -> None:
    reading = reader(bah_crops(tmp_path, folder=folder)).read()
    assert len(reading.clips) == 8 and reading.problems == ()
    assert reading.clips[-1] == Clip(
        "82714_Question_2_2024-11-19_15-12-23_Video",
        "82714",
        str(tmp_path / folder / bah_path("82714", 2)),
        "target",
        "ambivalence",
        dataset="bah",
        frames_per_second=24.0,
    )


def test_videos_and_several_kinds_of_crops(tmp_path: Path) -> None:
    bah_crops(bah_videos(tmp_path))
    assert reader(tmp_path).read().clips[0].source == str(tmp_path / bah_path("82553", 1))
    frames = replace(reader(tmp_path), layout="frames")
    assert frames.read().clips[0].source == str(tmp_path / "cropped_aligned" / bah_path("82553", 1))
    for subject in BAH_SUBJECTS:
        for question in (1, 2):
            pictures(tmp_path / "Frames" / bah_path(subject, question), ["frame-1.jpg"])
    with pytest.raises(DatasetError, match=r"\(8 ambiguous, 2 absent\)"):
        frames.read()
    assert len(replace(frames, within="cropped_aligned").read().clips) == 8


@pytest.mark.parametrize(
    ("start", "end", "length", "pieces"),
    [
        (0, 10, None, [(0, 10)]),
        (5, 15, 10, [(5, 15)]),
        (5, 16, 10, [(5, 15), (15, 16)]),
        (0, 100, 30, [(0, 30), (30, 60), (60, 90), (90, 100)]),
        (7, 8, 1, [(7, 8)]),
        (0, 3, 1, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_cut(start: int, end: int, length: int | None, pieces: list[tuple[int, int]]) -> None:
    assert cut(start, end, length) == pieces


def test_cut_never_drops_a_frame_and_keeps_the_length() -> None:
    for end in range(1, 120):
        for length in (1, 2, 7, 16, 50):
            pieces = cut(0, end, length)
            assert [frame for a, b in pieces for frame in range(a, b)] == list(range(end))
            assert all(b - a == length for a, b in pieces[:-1]) and len(pieces) == -(-end // length)


def test_exclusive_end() -> None:
    assert exclusive_end(5, 14, 10) == 15  # 14 belongs to it
    assert exclusive_end(5, 15, 10) == 15  # 15 does not
    assert exclusive_end(5, 16, 10) is None and exclusive_end(5, 13, 10) is None


def test_segments_keep_start_and_end(tmp_path: Path) -> None:
    videos = [bah_path(subject, 1) for subject in BAH_SUBJECTS]
    rows = [f"{path},1,0,10,5,14" for path in videos] + [f"{path},2,1,20,15,35" for path in videos]
    reading = replace(reader(bah_segments(tmp_path, rows)), unit="segments").read()
    assert [(c.clip_id, c.label, c.start_frame, c.end_frame) for c in reading.clips[:2]] == [
        (f"{STEM}_segment001", "neutral", 5, 15),
        (f"{STEM}_segment002", "ambivalence", 15, 35),
    ]
    assert len(reading.clips) == 8 and {clip.frames_per_second for clip in reading.clips} == {None}
    write_manifest(reading.clips, tmp_path / "manifest.parquet")
    assert read_manifest(tmp_path / "manifest.parquet").clips == reading.clips


def test_segments_of_real_videos_are_the_frames_that_the_table_names(tmp_path: Path) -> None:
    config = replace(reader(bah_segments(tmp_path, frames=30)), unit="segments", clip_frames=4)
    clips = config.read().clips[:3]
    assert [(clip.start_frame, clip.end_frame) for clip in clips] == [(5, 9), (9, 13), (13, 15)]
    shown = [[read_number(f) for _, f in stream_clip(clip, Sampling(None), decoder="pyav")] for clip in clips]
    assert shown == [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14]]


def test_long_segments_are_cut(tmp_path: Path) -> None:
    rows = [f"{bah_path(subject, 1)},7,1,25,100,124" for subject in BAH_SUBJECTS]
    rows.append(f"{bah_path('82557', 1)},8,0,1,0,1")
    config = replace(reader(bah_segments(tmp_path, rows)), unit="segments", clip_frames=10)
    clips = config.read().clips
    assert [(c.clip_id, c.start_frame, c.end_frame) for c in clips if c.subject_id == "82553"] == [
        (f"{STEM}_segment007_part1of3", 100, 110),
        (f"{STEM}_segment007_part2of3", 110, 120),
        (f"{STEM}_segment007_part3of3", 120, 125),
    ]


def test_segments_of_crops(tmp_path: Path) -> None:
    root = bah_crops(tmp_path)
    write(
        root / "bah-segments.csv",
        SEGMENTS_HEADER,
        *(f"{bah_path(s, 2)},1,{int(s > '82600')},4,3,6" for s in BAH_SUBJECTS),
    )
    clip = replace(reader(root), unit="segments").read().clips[0]
    assert (clip.start_frame, clip.end_frame, clip.frames_per_second) == (3, 7, 24.0)
    assert clip.source == str(root / "cropped_aligned" / bah_path("82553", 2))


def test_problems_of_segments(tmp_path: Path) -> None:
    path = bah_path("82553", 1)
    rows = [f"{bah_path(subject, 1)},1,0,10,5,14" for subject in BAH_SUBJECTS]
    rows.append(f"{path},9,1,10,5,14")
    rows += [f"{path},2,1,10,5,16", f"{path},3,1,,5,14", f"{path},4,,10,5,14", f"{path},1,1,10,5,14"]
    rows += [f"{path},5,1,0,5,5", f"{path},6,1,6,-1,5", "Videos/82553/x.mp4,1,0,10,5,14"]
    reading = replace(reader(bah_segments(tmp_path, rows)), unit="segments", strict=False).read()
    assert reading.problems == (
        "segments.csv line 7: num_frames=10, start_frame=5, end_frame=16 do not fit together",
        "segments.csv line 8: segment_id=3, num_frames=, start_frame=5, end_frame=14: a number is missing",
        f"segments.csv line 9: video '{STEM}' has no label",
        "segments.csv line 11: num_frames=0, start_frame=5, end_frame=5 do not fit together",
        "segments.csv line 12: num_frames=6, start_frame=-1, end_frame=5 do not fit together",
        f"segments.csv line 2, segments.csv line 10: clip '{STEM}_segment001' is 'neutral' of subject '82553', frames "
        "5 to 15 and 'ambivalence' of subject '82553', frames 5 to 15",
        f"segments.csv line 13: no video 'Videos/82553/x.mp4' below {tmp_path}",
    )
    assert len(reading.clips) == 4


def test_missing_and_ambiguous_label_files(tmp_path: Path) -> None:
    (tmp_path / "split").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"bah: no split file below .*; looked for train.txt, val.txt, test.txt"
    ):
        reader(tmp_path).read()
    with pytest.raises(FileNotFoundError, match=r"bah: no split file in .*/split; looked for train.txt"):
        replace(reader(tmp_path), labels="split").read()
    segments = replace(reader(tmp_path), unit="segments")
    with pytest.raises(FileNotFoundError, match=r"bah: no label file below .*; looked for segments.csv"):
        segments.read()
    write(tmp_path / "a_segments.csv", "x")
    with pytest.raises(DatasetError, match="no column video, segment_id"):
        segments.read()
    write(tmp_path / "b_segments.csv", "x")
    with pytest.raises(DatasetError, match=r"2 tables .* may hold the segments: a_segments.csv, b_segments.csv"):
        segments.read()


def test_settings_are_checked_at_once() -> None:
    for given, message in (
        ({"unit": "frames"}, "unit='frames': should be one of videos, segments"),
        ({"unit": "segments", "clip_frames": 0}, "clip_frames=0: should be greater than 0"),
        ({"frames_per_second": 0}, "frames_per_second=0: should be greater than 0"),
        ({"target_subjects": "82711"}, "target_subjects='82711': should be a list"),
        ({"validation_subjects": -1}, "validation_subjects=-1: should be greater than or equal to 0 or a list"),
        ({"validation_subjects": "a"}, "validation_subjects='a': should be an integer or a list"),
    ):
        with pytest.raises(ValidationError) as caught:
            BAH("x", **given)  # type: ignore[arg-type]
        assert one_line(caught.value) == message
    with pytest.raises(ValueError, match="clip_frames=16 needs unit=segments; whole videos are not cut"):
        BAH("x", clip_frames=16)


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("video_path,label", "{path},{label}"),
        ("Label;Transcript;Video", "{label}.0;well, I mean;{path}"),
        ("participant_id,video_name,label", "{subject},{name},{label}"),
        ("video,label", "{name},{label}"),
        ("what,which", "{path},{label},well, I mean, yes"),
    ],
)
def test_label_files_in_two_parts_keep_their_split(tmp_path: Path, header: str, row: str) -> None:
    parts: dict[str, list[str]] = {"train": [header], "val": [header]}
    for subject in BAH_SUBJECTS:
        for question in (1, 2):
            path = bah_path(subject, question)
            video(tmp_path / path)
            line = row.format(path=path, label=question - 1, subject=subject, name=Path(path).name)
            parts["val" if subject == "82557" else "train"].append(line)
    for part, lines in parts.items():
        write(tmp_path / "labels" / f"bah_{part}_labels.csv", *lines)
    if header == "what,which":  # no header at all
        for part in parts:
            write(tmp_path / "labels" / f"bah_{part}_labels.csv", *parts[part][1:])
    reading = reader(tmp_path).read()
    assert {clip.subject_id: clip.split for clip in reading.clips} == {
        "82553": "source_train",
        "82557": "source_val",
        "82711": "target",
        "82714": "target",
    }
    assert len(reading.clips) == 8 and {clip.label for clip in reading.clips} == {"neutral", "ambivalence"}


def test_parts_that_contradict_each_other_or_lack_one_are_told(tmp_path: Path) -> None:
    for subject in BAH_SUBJECTS[:2]:
        for question in (1, 2):
            video(tmp_path / bah_path(subject, question))
    rows = [f"{bah_path(subject, question)},{question - 1}" for subject in BAH_SUBJECTS[:2] for question in (1, 2)]
    write(tmp_path / "train_labels.csv", "video,label", *rows)
    config = BAH(str(tmp_path), target_subjects=(), validation_subjects=0)
    with pytest.raises(DatasetError, match=r"no …val_labels.csv beside train_labels.csv"):
        config.read()
    write(tmp_path / "val_labels.csv", "video,label", rows[0])
    with pytest.raises(DatasetError, match=r"train_labels.csv line 2, val_labels.csv line 2: subject '82553' is in so"):
        config.read()
    write(tmp_path / "new_val_labels.csv", "video,label", rows[0])
    with pytest.raises(DatasetError, match=r"several files .* end with val_labels.csv: .*; say which folder"):
        config.read()
