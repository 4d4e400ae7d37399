"""The manifest is checked at the door: every problem at once, with row, column and value."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest

from clipautt.clips import Clip
from clipautt.manifest import Manifest, ManifestError, absent_sources, by_subject, read_manifest, write_manifest

HEADER = "clip_id,subject_id,source,start_seconds,end_seconds,label,split,dataset\n"


def csv(folder: Path, *lines: str, header: str = HEADER) -> Path:
    path = folder / "manifest.csv"
    path.write_text(header + "".join(f"{line}\n" for line in lines))
    return path


def test_csv_to_clips(tmp_path: Path) -> None:
    path = csv(
        tmp_path,
        "b,s2,videos/b.mp4,,,pain,target,demo",
        "a,s1,/data/a.mp4,1.5,4,neutral,source_train,demo",
        "c,s3,/elsewhere/c.mp4,,,,target,demo",
    )
    manifest = read_manifest(path)
    assert manifest.clips == (
        Clip("a", "s1", "/data/a.mp4", "source_train", "neutral", 1.5, 4.0, "demo"),
        Clip("b", "s2", str(tmp_path / "videos" / "b.mp4"), "target", "pain", None, None, "demo"),
        Clip("c", "s3", "/elsewhere/c.mp4", "target", None, None, None, "demo"),
    )
    assert manifest.classes == ("neutral", "pain") and len(manifest) == 3
    assert repr(manifest) == "Manifest(3 clips, 3 subjects, classes=('neutral', 'pain'))"


def test_numeric_ids_stay_text_with_their_zeros(tmp_path: Path) -> None:
    manifest = read_manifest(
        csv(tmp_path, "0010,007,x.mp4,,,1,source_train,", "011,08,x.mp4,,,0,target,"), classes=("0", "1")
    )
    assert [clip.clip_id for clip in manifest.clips] == ["0010", "011"]
    assert [clip.subject_id for clip in manifest.clips] == ["007", "08"]
    assert [clip.label for clip in manifest.clips] == ["1", "0"] and manifest.classes == ("0", "1")


def test_the_neutral_class_is_not_guessed(tmp_path: Path) -> None:
    """`alert` comes before `rest`; a manifest that says nothing would make it the neutral class."""
    rows = "a,s1,x.mp4,,,rest,source_train,", "b,s2,x.mp4,,,alert,target,"
    with pytest.raises(ManifestError, match=r"no label of alert, rest is 'neutral'; .*'classes=\[alert,rest\]'"):
        read_manifest(csv(tmp_path, *rows))
    manifest = read_manifest(csv(tmp_path, *rows), classes=("rest", "alert"))
    write_manifest(manifest.clips, tmp_path / "m.parquet", classes=manifest.classes)
    again = read_manifest(tmp_path / "m.parquet")
    assert again.classes == ("rest", "alert") and again.fingerprint == manifest.fingerprint
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_blanks_around_a_cell_make_no_other_subject(tmp_path: Path) -> None:
    rows = "a,ann,x.mp4,,,neutral ,source_train,", "b,ann ,x.mp4,,, pain,target,"
    with pytest.raises(ManifestError, match="subject 'ann' is in source_train and target"):
        read_manifest(csv(tmp_path, *rows))
    pd.read_csv(csv(tmp_path, *rows)).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"has 1 problem:\n  subject 'ann' is in source_train and target"):
        read_manifest(tmp_path / "m.parquet")


def test_an_unquoted_comma_moves_no_cell(tmp_path: Path) -> None:
    header = "clip_id,subject_id,source,label,split\n"
    with pytest.raises(
        ManifestError, match=r"line 2 has 6 cells, the header 5; put cells that contain commas in quotes"
    ):
        read_manifest(csv(tmp_path, "v1,ann,Doe, Jane/v1.mp4,neutral,source_train", header=header))
    (clip,) = read_manifest(csv(tmp_path, 'v1,ann,"Doe, Jane/v1.mp4",neutral,source_train', header=header)).clips
    assert clip.source.endswith("/Doe, Jane/v1.mp4")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.CSV", b"", "missing columns clip_id, .*; there are: none"),
        (
            "m.csv",
            "clip_id,subject_id,source,split\na,J\xf6rg,x,target\n".encode("cp1252"),
            r"m.csv line 2: byte 0xf6 is not UTF-8; save the file as UTF-8",
        ),
        ("m.parquet", b"no parquet", "m.parquet cannot be read as Parquet"),
        ("m.xlsx", b"PK", "m.xlsx is a workbook; save its sheet as CSV"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path / name)


def test_words_that_pandas_takes_for_missing_are_names(tmp_path: Path) -> None:
    manifest = read_manifest(csv(tmp_path, "NA,None,nan,,,none,source_train,", "x,n/a,y,,,neutral,target,NA"))
    first, second = manifest.clips
    assert (first.clip_id, first.subject_id, Path(first.source).name, first.label) == ("NA", "None", "nan", "none")
    assert (second.subject_id, second.dataset) == ("n/a", "NA")


def test_a_missing_label_of_r_is_asked_about(tmp_path: Path) -> None:
    header = "clip_id,subject_id,source,label,split\n"
    path = csv(tmp_path, "a,s,x,NA,target", "b,s,y,neutral,target", header=header)
    with pytest.raises(ManifestError, match=r"row 0: label 'NA' is how programs write that .*'classes=\[NA,neutral\]'"):
        read_manifest(path)
    assert read_manifest(path, classes=("neutral", "NA")).clips[0].label == "NA"


def test_parquet_with_numbers_as_ids_and_labels(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "clip_id": [2, 1],
            "subject_id": [7, 8],
            "source": ["a", "b"],
            "label": [1, 0],
            "split": ["target", "source_val"],
        }
    )
    table.to_parquet(tmp_path / "m.parquet")
    manifest = read_manifest(tmp_path / "m.parquet", classes=("0", "1"))
    assert [(c.clip_id, c.subject_id, c.label) for c in manifest.clips] == [("1", "8", "0"), ("2", "7", "1")]


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    path = csv(
        tmp_path,
        "a,s1,x.mp4,,,pain,source_train,",
        "a,s1,x.mp4,,,pain,target,",
        ",s2,x.mp4,,,neutral,target,",
        "c,s3,,,,neutral,target,",
        "d,s4,x.mp4,3,2,neutral,target,",
        "e,s5,x.mp4,-1,,neutral,target,",
        "f,s6,x.mp4,soon,,neutral,target,",
        "g,s7,x.mp4,,,,source_val,",
        "h,s8,x.mp4,,,joy,test,",
    )
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, classes=("neutral", "pain"))
    assert str(caught.value).splitlines() == [
        f"{path} has 10 problems:",
        "  row 2: clip_id is empty",
        "  row 3: source is empty",
        "  row 1: clip_id 'a' is listed twice",
        "  row 8: split 'test' is not one of source_train, source_val, target",
        "  row 8: label 'joy' is not one of neutral, pain",
        "  row 7: label is empty; only target clips may be unlabelled",
        "  row 6: start_seconds 'soon' is not a number",
        "  row 4: the span from 3 to 2 in seconds is empty or negative",
        "  row 5: the span from -1 to the end in seconds is empty or negative",
        "  subject 's1' is in source_train and target; a subject belongs to one split",
    ]


def test_long_lists_of_problems_end_with_a_count(tmp_path: Path) -> None:
    lines = [f"c{i},s{i},x.mp4,,,pain,nowhere," for i in range(30)]
    with pytest.raises(ManifestError, match=r"has 30 problems") as caught:
        read_manifest(csv(tmp_path, *lines))
    assert str(caught.value).endswith("… and 10 more")


def test_missing_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ManifestError, match="missing columns subject_id, split; required are clip_id, subject_id, source"
    ):
        read_manifest(csv(tmp_path, "a,x.mp4", header="clip_id,source\n"))


def test_labels_are_needed_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="row 0: label is empty; only target clips may be unlabelled"):
        read_manifest(csv(tmp_path, "a,s,x.mp4,source_train", header="clip_id,subject_id,source,split\n"))
    path = csv(tmp_path, "a,s,x.mp4,target", header="clip_id,subject_id,source,split\n")
    assert read_manifest(path).clips[0].label is None


def test_spans_by_frame_number(tmp_path: Path) -> None:
    header = "clip_id,subject_id,source,split,start_frame,end_frame,frames_per_second\n"
    (clip,) = read_manifest(csv(tmp_path, "a,s,crops,target,5,20,1000", header=header)).clips
    assert (clip.start_frame, clip.end_frame, clip.frames_per_second) == (5, 20, 1000.0)
    assert type(clip.start_frame) is int
    with pytest.raises(ManifestError) as caught:
        read_manifest(csv(tmp_path, "a,s,x,target,5.5,2,0", "b,s,x,target,9,3,x", header=header))
    assert str(caught.value).splitlines()[1:] == [
        "  row 0: start_frame '5.5' is not a whole number",
        "  row 1: frames_per_second 'x' is not a number",
        "  row 0: the span from 5.5 to 2 in frames is empty or negative",
        "  row 1: the span from 9 to 3 in frames is empty or negative",
        "  row 0: frames_per_second 0 is not positive",
    ]


def test_a_span_is_given_once(tmp_path: Path) -> None:
    header = "clip_id,subject_id,source,split,start_seconds,start_frame\n"
    with pytest.raises(ManifestError, match="row 0: both start_seconds and start_frame are given; give one of them"):
        read_manifest(csv(tmp_path, "a,s,x.mp4,target,1,25", header=header))


def test_counts_per_split_class_and_subject() -> None:
    clips = [
        Clip(f"{s}{i}", s, "x", split, label)
        for s, split in (("a", "source_train"), ("b", "target"), ("c", "target"))
        for i, label in enumerate(("pain", "neutral", "pain", None))
    ]  # type: ignore[arg-type]
    manifest = Manifest(tuple(clips), ("neutral", "pain"))
    assert manifest.counts(by="split").to_numpy().tolist() == [
        ["source_train", 1, 1, 2, 1, 4],
        ["target", 2, 2, 4, 2, 8],
    ]
    assert manifest.counts().to_numpy().tolist()[2] == ["target", "c", 1, 2, 1, 4]
    assert list(manifest.counts().columns) == ["split", "subject", "neutral", "pain", "unlabelled", "clips"]


@pytest.mark.parametrize("column", ["start_seconds", "end_seconds", "start_frame", "end_frame"])
def test_one_end_of_the_span_alone_is_checked_too(tmp_path: Path, column: str) -> None:
    path = csv(tmp_path, "a,s,x.mp4,target,-2", header=f"clip_id,subject_id,source,split,{column}\n")
    with pytest.raises(ManifestError, match=r"row 0: the span from .*-2.* in (seconds|frames) is empty or negative"):
        read_manifest(path)


def test_manifest_without_rows(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"has 1 problem:\n  no rows"):
        read_manifest(csv(tmp_path))


def test_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no manifest at .*manifest\.parquet; `clipautt synth out=.*` makes one"
    ):
        read_manifest(tmp_path / "manifest.parquet")
    with pytest.raises(FileNotFoundError, match=r"no manifest at .*gone\.csv; give manifest=PATH"):  # synth writes none
        read_manifest(tmp_path / "gone.csv")


@pytest.mark.parametrize("other", ["source_train", "source_val"])
def test_subject_on_both_sides_is_refused(tmp_path: Path, other: str) -> None:
    path = csv(tmp_path, f"a,s1,x.mp4,,,pain,{other},", "b,s1,y.mp4,,,pain,target,")
    with pytest.raises(ManifestError, match=f"subject 's1' is in {other} and target; a subject belongs to one split"):
        read_manifest(path)


def test_uris_are_refused_at_the_door(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"row 1: source 's3://bucket/b.mp4' is a URI; give a path"):
        read_manifest(csv(tmp_path, "a,s1,a.mp4,,,,target,", "b,s1,s3://bucket/b.mp4,,,,target,"))


def clips(folder: Path) -> list[Clip]:
    return [
        Clip("b", "s1", str(folder / "videos" / "b.mp4"), "target", "pain", None, 2.0, "demo"),
        Clip("a", "s0", "/elsewhere/a.mp4", "source_train", "neutral", dataset="demo"),
        Clip("c", "s2", "/elsewhere/c.mp4", "target"),
    ]


def test_written_manifest_reads_the_same_and_moves_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    write_manifest(clips(tmp_path / "here"), tmp_path / "here" / "manifest.parquet")
    read = read_manifest(tmp_path / "here" / "manifest.parquet")
    assert list(read.clips) == sorted(clips(tmp_path / "here"), key=lambda clip: clip.clip_id)
    table = pd.read_parquet(tmp_path / "here" / "manifest.parquet")
    assert table["source"].tolist() == ["/elsewhere/a.mp4", "videos/b.mp4", "/elsewhere/c.mp4"]
    (tmp_path / "here").rename(tmp_path / "there")
    moved = read_manifest(tmp_path / "there" / "manifest.parquet")
    assert moved.clips[1].source == str(tmp_path / "there" / "videos" / "b.mp4")
    assert moved.fingerprint == read.fingerprint


def test_fingerprint_is_of_clips_and_labels_in_any_order(tmp_path: Path) -> None:
    ordered = tuple(sorted(clips(tmp_path), key=lambda clip: clip.clip_id))
    original = Manifest(ordered, ("neutral", "pain"))
    changes = [{"label": "neutral"}, {"subject_id": "s9"}, {"end_seconds": 3.0}, {"clip_id": "bb"}, {"dataset": "x"}]
    others = {
        Manifest((ordered[0], replace(ordered[1], **c), ordered[2]), original.classes).fingerprint for c in changes
    }
    assert len(others | {original.fingerprint}) == 6
    elsewhere = Manifest(tuple(replace(clip, source="/moved") for clip in ordered), original.classes)
    assert elsewhere.fingerprint == original.fingerprint


def test_whole_seconds_have_the_fingerprint_of_their_decimals(tmp_path: Path) -> None:
    one = read_manifest(csv(tmp_path, "a,s,x.mp4,1,4,pain,target,")).fingerprint
    assert read_manifest(csv(tmp_path, "a,s,x.mp4,1.0,4.0,pain,target,")).fingerprint == one


def test_splits_labels_and_subjects(tmp_path: Path) -> None:
    manifest = Manifest(tuple(clips(tmp_path)), ("neutral", "pain"))
    assert [clip.clip_id for clip in manifest.of_split("target")] == ["b", "c"]
    assert [clip.clip_id for clip in manifest.of_split("source_train", "source_val")] == ["a"]
    assert manifest.label_index(manifest.clips[0]) == 1
    with pytest.raises(ValueError, match="clip 'c' has no label"):
        manifest.label_index(manifest.clips[2])
    assert list(by_subject(manifest.clips)) == ["s0", "s1", "s2"]


def test_positions_of_the_record_are_stable() -> None:
    assert [f.name for f in fields(Clip)][:4] == ["clip_id", "subject_id", "source", "split"]


BARE = "clip_id,subject_id,source,label,split\n"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_csv_of_a_spreadsheet_is_read(tmp_path: Path, mark: str, encoding: str) -> None:
    path = tmp_path / "m.csv"
    rows = ["clip_id,subject_id,source,label,split,start_seconds,", "a,Zoe\u0308,x.mp4,pain,target,#,"]
    number = "1,5" if mark == ";" else "1.5"
    path.write_bytes("\r\n".join(row.replace(",", mark).replace("#", number) for row in rows).encode(encoding))
    (clip,) = read_manifest(path).clips
    assert (clip.subject_id, clip.start_seconds) == ("Zo\u00eb", 1.5)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_what_pandas_makes_of_whole_numbers_is_undone(tmp_path: Path, kind: str) -> None:
    table = pd.DataFrame(
        {
            "clip_id": ["a", "b", "c"],
            "subject_id": [7.0, 7.0, 8.0],
            "source": "x.mp4",
            "label": [0, 1, None],
            "split": ["source_train", "source_train", "target"],
            "start_frame": [0.0, None, 5.0],
        }
    )
    path = tmp_path / f"m.{kind}"
    table.to_csv(path) if kind == "csv" else table.set_index("clip_id").to_parquet(path)  # with the index, in both
    manifest = read_manifest(path, classes=("0", "1"))
    assert [(c.clip_id, c.subject_id, c.label, c.start_frame) for c in manifest.clips] == [
        ("a", "7", "0", 0),
        ("b", "7", "1", None),
        ("c", "8", None, 5),
    ]
    assert manifest.notes == ()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_spans_may_be_time_differences(tmp_path: Path, kind: str) -> None:
    seconds = pd.to_timedelta([1.5, 90], "s")
    table = pd.DataFrame({"clip_id": ["a", "b"], "subject_id": "s", "source": "x.mp4", "split": "target"})
    table = table.assign(start_seconds=seconds, end_seconds=["0:00:02", "00:01:31.5"])
    table.to_csv(tmp_path / "m.csv") if kind == "csv" else table.to_parquet(tmp_path / "m.parquet")
    clips = read_manifest(tmp_path / f"m.{kind}").clips
    assert [(clip.start_seconds, clip.end_seconds) for clip in clips] == [(1.5, 2.0), (90.0, 91.5)]
    table.assign(start_seconds=pd.Timestamp("2024-01-01")).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="row 1: start_seconds '2024-01-01 00:00:00' is not a number"):
        read_manifest(tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text("clip_id,subject_id,source,split,start_seconds\na,s,x.mp4,target,01:30\n")
    with pytest.raises(ManifestError, match="row 0: start_seconds '01:30' is not a number"):
        read_manifest(tmp_path / "m.csv")


def test_rows_of_joined_tables_are_numbered_anew(tmp_path: Path) -> None:
    part = pd.DataFrame({"clip_id": ["a"], "subject_id": "s", "source": "x.mp4", "split": "nowhere"})
    other = part.assign(split="target", subject_id="t")
    pd.concat([other, part.assign(clip_id="b")]).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"has 1 problem:\n  row 1: split 'nowhere'"):
        read_manifest(tmp_path / "m.parquet")


def test_a_column_that_nobody_knows_is_asked_about(tmp_path: Path) -> None:
    header = "clip_id,subject_id,source,Label,split,start_second,age\n"
    with pytest.raises(ManifestError) as caught:
        read_manifest(csv(tmp_path, "a,s,x.mp4,pain,target,1,30", header=header))
    assert str(caught.value).splitlines()[1:] == [
        "  'Label' is no column that is read; did you mean 'label'?",
        "  'start_second' is no column that is read; did you mean 'start_seconds'?",
    ]
    known = header.replace("Label", "label").replace("start_second", "start_seconds")
    assert read_manifest(csv(tmp_path, "a,s,x.mp4,pain,target,1,30", header=known)).notes == (
        "columns that are not used: age",
    )
    with pytest.raises(ManifestError, match="column 'label' occurs 2 times; keep one of them"):
        read_manifest(csv(tmp_path, "a,s,x.mp4,pain,target,no", header=BARE.replace("\n", ",label\n")))


@pytest.mark.parametrize("word", ["fps", "subject", "video", "class", "start", "Split ", "lable", "end_sec"])
def test_another_word_for_a_column_names_the_one_that_is_read(tmp_path: Path, word: str) -> None:
    with pytest.raises(ManifestError, match=f"'{word.strip()}' is no column that is read; did you mean"):
        read_manifest(csv(tmp_path, "1", header=f"{word}\n"))


def test_a_label_that_is_probably_a_slip_is_asked_about(tmp_path: Path) -> None:
    rows = [f"{n},s{n},x.mp4,{'pain' if n % 2 else 'neutral'},source_train" for n in range(6)]
    path = csv(tmp_path, *rows, "7,t,x.mp4,paln,target", header=BARE)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert str(caught.value).splitlines()[1] == (
        "  row 6: label 'paln' occurs once, beside 'pain' 3 times; correct it, or say that both are classes with "
        "'classes=[neutral,pain,paln]'"
    )
    assert read_manifest(path, classes=("neutral", "pain", "paln")).classes == ("neutral", "pain", "paln")


def test_target_subjects_alone_need_no_neutral_class(tmp_path: Path) -> None:
    path = csv(tmp_path, "a,s,x.mp4,lift,target", "b,s,y.mp4,rest,target", header=BARE)
    assert read_manifest(path, classes=("rest", "lift")).label_index(read_manifest(path).clips[0]) == 1
    assert read_manifest(path).classes == ("lift", "rest")


@pytest.mark.parametrize("written", ["videos\\\\a.mp4", "videos/cafe\u0301.mp4", "videos/caf\u00e9.mp4"])
@pytest.mark.parametrize("there", ["cafe\u0301.mp4", "caf\u00e9.mp4", "a.mp4"])
def test_a_source_may_be_spelled_as_another_system_does(tmp_path: Path, written: str, there: str) -> None:
    written = written.replace("\\\\", "\\")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / there).write_text("x")
    (clip,) = read_manifest(csv(tmp_path, f"a,s,{written},pain,target", header=BARE)).clips
    assert Path(clip.source).exists() == (("a.mp4" in written) == (there == "a.mp4"))


def test_a_drive_of_windows_is_told(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"row 0: source 'C:.*a.mp4' is on a drive of Windows; give its path"):
        read_manifest(csv(tmp_path, "a,s,C:\\data\\a.mp4,pain,target", header=BARE))


def test_videos_that_are_not_there_are_listed(tmp_path: Path) -> None:
    for name, text in (("there.mp4", "x"), ("empty.mp4", "")):
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nothing")
    (tmp_path / "007").mkdir()
    names = ["there.mp4", "empty.mp4", "folder", "link.mp4", "gone.mp4", "7"]
    clips = [Clip(name, "s", str(tmp_path / name), "target") for name in names]
    assert absent_sources(clips) == {
        "empty.mp4": f"{tmp_path}/empty.mp4: an empty file",
        "folder": f"{tmp_path}/folder: an empty folder",
        "link.mp4": f"{tmp_path}/link.mp4: a broken link",
        "gone.mp4": f"{tmp_path}/gone.mp4: no such file or folder",
        "7": f"{tmp_path}/7: no such file or folder, but 007",
    }


def test_several_people_of_one_video(tmp_path: Path) -> None:
    """A row per person; numbers of faces as spreadsheets write them."""
    header = "clip_id,subject_id,source,split,face\n"
    path = csv(tmp_path, "a,anna,v.mp4,target,left", "b,bob,v.mp4,target,2.0", "c,cleo,w.mp4,target,", header=header)
    manifest = read_manifest(path)
    assert [clip.face for clip in manifest.clips] == ["left", "2", None]
    write_manifest(manifest.clips, tmp_path / "m.parquet")
    again = read_manifest(tmp_path / "m.parquet")
    assert again.clips == manifest.clips and again.fingerprint == manifest.fingerprint
    plain = Manifest(tuple(replace(clip, face=None) for clip in manifest.clips), manifest.classes)
    assert plain.fingerprint != manifest.fingerprint
    wrong = csv(tmp_path, "a,anna,v.mp4,target,above", "b,bob,v.mp4,target,0", header=header)
    with pytest.raises(ManifestError) as error:
        read_manifest(wrong)
    assert str(error.value).splitlines()[1:] == [
        f"  row {row}: face {face!r} is not one of largest, left, right, center, or a number from 1"
        for row, face in enumerate(("above", "0"))
    ]
