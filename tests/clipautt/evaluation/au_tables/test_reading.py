"""Tables of OpenFace: which rows count, whose clip they are, and what is said of a table that cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clipautt.clips import Clip
from clipautt.evaluation.au_tables.fitting import read_au_table_of
from clipautt.evaluation.au_tables.matching import list_au_tables, match_au_tables
from clipautt.evaluation.au_tables.reading import AuTrack, read_au_table, window_means

INTENSITIES = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
PRESENCES = tuple(sorted({*INTENSITIES, 28}))
POSE = ("gaze_0_x", "pose_Rx", "p_scale", "x_0")
Row = Mapping[str, float | str]


def write_openface(
    path: Path,
    rows: Iterable[Row],
    *,
    separator: str = ", ",
    facts: Sequence[str] = ("frame", "face_id", "timestamp", "confidence", "success"),
    units: bool = True,
) -> Path:
    """A file with the columns and number formats of OpenFace 2; what a row does not give is 0.

    OpenFace writes times with three digits, confidences and action units with two, and a blank after each comma.
    """
    names = [*facts, *POSE]
    names += [f"AU{n:02d}_r" for n in INTENSITIES] + [f"AU{n:02d}_c" for n in PRESENCES] if units else []
    lines = [separator.join(names)]
    for number, row in enumerate(rows):
        given: dict[str, float | str] = {
            "frame": str(number + 1),
            "face_id": "0",
            "timestamp": f"{number / 25:.3f}",
            "confidence": 0.98,
            "success": "1",
            **row,
        }
        cells = [given.get(name, 0.0) for name in names]
        lines.append(separator.join(cell if isinstance(cell, str) else f"{cell:.2f}" for cell in cells))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def read_track(path: Path, **options: Any) -> AuTrack:
    return read_au_table(path).track(**options)


def test_a_file_of_openface_comes_in_our_codes(tmp_path: Path) -> None:
    path = write_openface(tmp_path / "a.csv", [{"AU04_r": 0.5}, {"AU04_r": 1.25, "AU04_c": 1.0}, {"AU28_c": 1.0}])
    track = read_track(path)
    assert track.intensities["time_seconds"].tolist() == [0.0, 0.04, 0.08]
    assert track.intensities["AU4"].tolist() == [0.5, 1.25, 0.0]
    assert track.presences["AU4"].tolist() == [0.0, 1.0, 0.0] and track.presences["AU28"].tolist() == [0.0, 0.0, 1.0]
    assert list(track.intensities) == ["time_seconds", *(f"AU{n}" for n in INTENSITIES)]
    assert len(track.presences.columns) == 1 + 18 and "AU28" not in track.intensities
    assert (track.num_rows, track.num_dropped, track.num_other_faces, track.face) == (3, 0, 0, "")
    assert repr(track) == "AuTrack('a.csv', OpenFace 2, 3 of 3 rows)"


@pytest.mark.parametrize("separator", [", ", ","])
@pytest.mark.parametrize("facts", [("frame", "face_id", "timestamp", "confidence", "success"), ("frame", "timestamp")])
def test_headers_of_every_version_are_read(tmp_path: Path, separator: str, facts: Sequence[str]) -> None:
    path = write_openface(tmp_path / "a.csv", [{"AU12_r": 2.0}], separator=separator, facts=facts)
    assert read_track(path).intensities["AU12"].tolist() == [2.0]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))  # as a spreadsheet saves it
    assert read_track(path).intensities["AU12"].tolist() == [2.0]


def test_frames_that_openface_is_not_sure_of_do_not_count(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"AU01_r": 1.0},
        {"AU01_r": 2.0, "success": "0"},
        {"AU01_r": 3.0, "confidence": 0.74},
        {"AU01_r": "-nan(ind)"},
        {"AU01_r": 4.0, "confidence": "nan"},
        {"AU01_r": 5.0, "confidence": 0.75},
    ]
    path = write_openface(tmp_path / "a.csv", rows)
    track = read_track(path)
    assert track.intensities["AU1"].tolist() == [1.0, 5.0] and track.presences["time_seconds"].tolist() == [0.0, 0.2]
    assert (track.num_rows, track.num_dropped) == (6, 4)


def test_a_video_without_a_face_has_no_rows_and_is_no_error(tmp_path: Path) -> None:
    track = read_track(write_openface(tmp_path / "a.csv", [{"success": "0", "confidence": 0.02}] * 4))
    assert len(track.intensities) == 0 and track.num_dropped == 4
    intensities, presences = track.in_windows([0.0], [1.0])
    assert intensities["AU4"].isna().tolist() == [True] and presences["AU28"].isna().tolist() == [True]


def test_of_several_faces_the_most_frequent_is_taken(tmp_path: Path) -> None:
    seen = [("0", 0, 1.0), ("7", 0, 2.0), ("7", 1, 3.0), ("0", 2, 1.0), ("7", 2, 4.0)]
    rows: list[Row] = [{"face_id": face, "timestamp": f"{n / 25:.3f}", "AU06_r": value} for face, n, value in seen]
    track = read_track(write_openface(tmp_path / "a.csv", rows))
    assert (track.face, track.num_rows, track.num_other_faces) == ("7", 3, 2)
    assert track.notes == ("2 faces without positions; the one in the most frames is taken",)
    assert track.intensities["AU6"].tolist() == [2.0, 3.0, 4.0]


def test_windows_hold_the_frames_from_their_start_to_before_their_end(tmp_path: Path) -> None:
    rows: list[Row] = [{"AU04_r": float(n % 5), "AU04_c": float(n >= 4)} for n in range(6)]
    track = read_track(write_openface(tmp_path / "a.csv", rows))
    intensities, presences = track.in_windows([0.0, 0.08, 0.24, 0.05], [0.08, 0.24, 1.0, 0.07])
    np.testing.assert_allclose(intensities["AU4"], [0.5, (2 + 3 + 4 + 0) / 4, np.nan, np.nan])
    np.testing.assert_allclose(presences["AU4"], [0.0, 0.5, np.nan, np.nan])


def test_window_means_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    frames = pd.DataFrame({"time_seconds": np.sort(rng.uniform(0, 9, 300)), "AU1": rng.uniform(0, 5, 300)})
    starts = rng.uniform(0, 8, 50)
    looped = [frames["AU1"][(frames["time_seconds"] >= s) & (frames["time_seconds"] < s + 0.5)].mean() for s in starts]
    np.testing.assert_allclose(window_means(frames, starts, starts + 0.5)["AU1"], looped)


def test_a_span_of_a_longer_video_begins_at_its_own_zero(tmp_path: Path) -> None:
    path = write_openface(tmp_path / "long.csv", [{} for _ in range(100)])
    by_seconds = read_track(path, offset_seconds=2.0).intensities["time_seconds"]
    by_frames = read_track(path, offset_frames=50).intensities["time_seconds"]
    assert by_seconds.iloc[[0, 50, 99]].tolist() == pytest.approx([-2.0, 0.0, 1.96])
    pd.testing.assert_series_equal(by_seconds, by_frames)


def clip(clip_id: str, source: str, **span: float) -> Clip:
    return Clip(clip_id, "s", source, "target", start_seconds=span.get("start_seconds"))


def found(folder: Any, *clips: Clip) -> dict[str, Path]:
    """The files of these clips, where there is nothing wrong."""
    paths, problems = match_au_tables(folder, clips)
    assert not problems
    return paths


def test_a_clip_finds_its_own_file_before_that_of_its_video(tmp_path: Path) -> None:
    video = write_openface(tmp_path / "day1" / "interview.csv", [{"AU04_r": 1.0}] * 50)
    interview = clip("c1", "/data/interview.mp4")
    assert found(tmp_path, interview) == {"c1": video}
    own = write_openface(tmp_path / "c1.csv", [{"AU04_r": 2.0}] * 3)
    assert found(tmp_path, interview, clip("c2", "/data/other.mp4")) == {"c1": own}
    assert found(list_au_tables(tmp_path), clip("c1", "/data/x.mp4")) == {"c1": own}


def test_folders_of_frames_and_ids_with_slashes_find_theirs(tmp_path: Path) -> None:
    frames = write_openface(tmp_path / "frames.v2.csv", [{}])
    assert found(tmp_path, clip("c1", "/data/frames.v2")) == {"c1": frames}
    first, second = (write_openface(tmp_path / subject / "c1.csv", [{}]) for subject in ("s1", "s2"))
    assert found(tmp_path, clip("s1/c1", "/data/x.mp4"), clip("s2/c1", "/data/x.mp4")) == {
        "s1/c1": first,
        "s2/c1": second,
    }


def test_videos_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    """A person's file is never taken for another person's clip."""
    clips = [clip("a", "/data/s1/clip01.mp4"), clip("b", "/data/s2/clip01.mp4")]
    first = write_openface(tmp_path / "s1" / "clip01.csv", [{}])
    paths, problems = match_au_tables(tmp_path, clips)
    assert paths == {"a": first}
    assert problems == {
        "b": f"clip 'b': {first} may belong to any of 2 videos named 'clip01'; put it into a folder named 's2', or "
        "name it after clip_id"
    }
    second = write_openface(tmp_path / "s2" / "clip01.csv", [{}])
    assert found(tmp_path, *clips) == {"a": first, "b": second}
    (tmp_path / "flat").mkdir()
    first.rename(tmp_path / "flat" / "clip01.csv")
    assert match_au_tables(tmp_path / "flat", clips)[0] == {}
    spans = [clip("a", "/data/s1/clip01.mp4"), clip("b", "/data/s1/clip01.mp4", start_seconds=1.0)]
    assert set(found(tmp_path / "flat", *spans)) == {"a", "b"}


def test_pictures_of_faces_are_not_looked_through(tmp_path: Path) -> None:
    write_openface(tmp_path / "c1_aligned" / "c9.csv", [{}])
    own = write_openface(tmp_path / "c1.CSV", [{}])
    assert list_au_tables(tmp_path) == {"c1": [own]}


def test_only_a_file_of_the_whole_video_is_shifted(tmp_path: Path) -> None:
    video = write_openface(tmp_path / "long.csv", [{} for _ in range(100)])
    span = clip("c1", "/data/long.mp4", start_seconds=1.0)
    assert read_au_table_of(video, span).intensities["time_seconds"].iloc[0] == -1.0
    by_frames = read_au_table_of(video, Clip("c1", "s", "/data/long.mp4", "target", start_frame=25))
    assert by_frames.intensities["time_seconds"].iloc[0] == -1.0
    own = write_openface(tmp_path / "c1.csv", [{} for _ in range(10)])
    assert read_au_table_of(own, span).intensities["time_seconds"].iloc[0] == 0.0


def test_two_files_of_one_name_are_named_both(tmp_path: Path) -> None:
    for folder in ("day1", "day2"):
        write_openface(tmp_path / folder / "c1.csv", [{}])
    _, problems = match_au_tables(tmp_path, [clip("c1", "/data/x.mp4"), clip("c2", "/data/y.mp4")])
    assert problems == {
        "c1": f"clip 'c1': {tmp_path}/day1/c1.csv and {tmp_path}/day2/c1.csv are both named 'c1'; keep one of "
        "them, or name the tables after clip_id"
    }


def broken(path: Path, old: str, new: str) -> Path:
    """A file of OpenFace in which something is replaced once."""
    text = write_openface(path, [{"AU01_r": 1.11}, {"AU01_r": 2.22}, {"AU01_r": 3.33}]).read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (" timestamp", " time", "no column timestamp (columns: frame, face_id, time, confidence, success, gaze_0_x,"),
        ("2.22", "much", "a.csv, line 3: AU01_r is 'much'; a number is needed"),
        ("2.22", "5.10", "a.csv, line 3: AU01_r is 5.1; allowed is 0 to 5"),
        ("0.040", "nan", "a.csv, line 3: timestamp is 'nan'; a number is needed"),
        ("0.040", "0.090", "a.csv, line 4: time 0.08 s comes after 0.09 s; times must ascend"),
        ("0.040", "\n0.040", "a.csv, line 3: "),
    ],
)
def test_an_error_names_file_line_and_column(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_track(broken(tmp_path / "a.csv", old, new))


def test_a_presence_is_0_or_1(tmp_path: Path) -> None:
    path = write_openface(tmp_path / "a.csv", [{}, {"AU45_c": 0.5}])
    with pytest.raises(ValueError, match=re.escape("a.csv, line 3: AU45_c is 0.5; allowed is 0 or 1")):
        read_track(path)


@pytest.mark.parametrize("cut", [30, 6, 1])
def test_a_last_line_that_was_cut_off_costs_that_line(tmp_path: Path, cut: int) -> None:
    path = write_openface(tmp_path / "a.csv", [{"AU01_r": 1.0}, {"AU01_r": 2.0}])
    path.write_text(path.read_text()[:-cut])
    track = read_track(path)
    assert track.intensities["AU1"].tolist() == ([1.0] if cut > 1 else [1.0, 2.0])
    assert track.notes == (("a.csv: line 3, the last, was cut off and is left out",) if cut > 1 else ())


def test_a_last_line_cut_off_inside_a_word_is_left_out_too(tmp_path: Path) -> None:
    path = write_openface(tmp_path / "a.csv", [{}, {"AU45_c": "-nan(ind)"}])
    path.write_text(path.read_text()[:-4])
    assert len(read_track(path).intensities) == 1 and "was cut off" in read_track(path).notes[0]


def test_a_short_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = write_openface(tmp_path / "a.csv", [{}, {}, {}])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:-30], lines[3], ""]))
    with pytest.raises(ValueError, match=r"a\.csv, line 3: the row has \d+ cells, the header 44"):
        read_au_table(path)


def test_tables_of_spreadsheets_are_read(tmp_path: Path) -> None:
    path = write_openface(tmp_path / "a.csv", [{"AU04_r": 0.5}, {"AU04_r": 1.5}], separator=",")
    text = path.read_text()
    head, *rows = text.splitlines()
    variants = {
        "trailing commas in rows": "\n".join([head, *(f"{row}," for row in rows), ""]).encode(),
        "trailing commas in all": "\n".join([f"{line},," for line in (head, *rows)]).encode(),
        "semicolons and decimal commas": text.replace(",", ";").replace(".", ",").encode("utf-8-sig"),
        "tabs": text.replace(",", "\t").encode("utf-16"),
    }
    for name, content in variants.items():
        path.write_bytes(content)
        assert read_track(path).intensities["AU4"].tolist() == [0.5, 1.5], name
    path.write_text("\n".join([head, f"{rows[0]},7", rows[1], ""]))
    with pytest.raises(ValueError, match=r"a\.csv, line 2: the row has 45 cells, the header 44"):
        read_au_table(path)


def test_blank_lines_count_as_lines_and_nothing_else(tmp_path: Path) -> None:
    path = broken(tmp_path / "a.csv", "\n2,", "\n\n2,")
    assert len(read_track(path).intensities) == 3
    path.write_text(path.read_text().replace("3.33", "x"))
    with pytest.raises(ValueError, match="line 5: AU01_r is 'x'"):
        read_track(path)


def test_files_without_rows_or_units_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("")
    with pytest.raises(ValueError, match=re.escape(f"{path} is empty; write it anew")):
        read_track(path)
    with pytest.raises(ValueError, match=re.escape(f"{path} has a header and no rows; run OpenFace 2 again")):
        read_track(write_openface(path, []))
    with pytest.raises(
        ValueError, match=r"no action units such as AU04_r \(columns: frame, .*; run OpenFace with -aus"
    ):
        read_track(write_openface(path, [{}], units=False))
    with pytest.raises(ValueError, match="the time is 0 s in all 3 rows, so frames cannot be placed in time"):
        read_track(write_openface(path, [{"timestamp": "0.000"}] * 3))
    path.write_bytes(b"\xff\xfe\x00timestamp")
    with pytest.raises(ValueError, match=re.escape(f"{path} is no table of OpenFace 2, py-feat, Lib")):
        read_track(path)


def test_what_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"no table of action units at {tmp_path}/a.csv")):
        read_track(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match=re.escape(f"aus={tmp_path}/none: no such folder")):
        list_au_tables(tmp_path / "none")
    path = write_openface(tmp_path / "a.csv", [{}, {}])
    with pytest.raises(ValueError, match=r"no row has frame 8, where the clip begins \(offset_frames=7\)"):
        read_track(path, offset_frames=7)
