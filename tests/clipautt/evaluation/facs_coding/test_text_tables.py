"""Intervals, tables with a column per AU, and files of one AU, in all dialects; and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipautt.evaluation.facs_coding.coding import ClipCoding, Piece
from clipautt.evaluation.facs_coding.text_tables import UnknownTableError, read_text_coding


def written(folder: Path, text: str, *, name: str = "clip.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def values(piece: Piece, code: str, times: list[float], **options: float) -> tuple[list[float], list[float]]:
    """Presence and intensity at these times, at 10 frames per second."""
    coding = ClipCoding((piece,), frames_per_second=10.0)
    present, intensity = coding.at(code, np.array(times), present_from=options.get("present_from", 1.0))
    return present.tolist(), intensity.tolist()


def same(found: list[float], expected: list[float]) -> bool:
    return bool(np.array_equal(found, expected, equal_nan=True))


NAN = float("nan")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("clip,au,onset,offset,intensity\nc 1,AU12,0.5,1.5,C\n", "utf-8-sig"),
        ("Video;Action Unit;Start;End;Intensity\r\nc 1.mp4;12C;0,5;1,5;\r\n", "utf-8"),
        ("clip_id\tAU\tonset_ms\toffset_ms\tintensity\nc 1\t12\t500\t1500\t3\n", "utf-16"),
        ("file,code,Begin Time,End Time,level\nc 1,R12,0:00:00.5,00:01.5,3\n", "utf-8"),
        ("clip,au,onset,offset,intensity\nc 1,AU12L,0.5,1.0,A\nc 1,12R,0.7,1.5,C\nc 1,L12,0.5,0.7,C\n", "utf-8"),
    ],
)
def test_intervals_in_the_dialects_of_spreadsheets(tmp_path: Path, text: str, encoding: str) -> None:
    (piece,) = read_text_coding(written(tmp_path, text, encoding=encoding))
    assert piece.name.removesuffix(".mp4") == "c 1" and piece.comprehensive
    present, intensity = values(piece, "AU12", [0.0, 0.5, 1.2, 1.49, 1.5, 9.0])
    assert present == [0, 1, 1, 1, 0, 0]
    assert intensity == [0, 3, 3, 3, 0, 0]


def test_intervals_in_frames_end_with_their_last_frame(tmp_path: Path) -> None:
    text = "clip,au,onset_frame,offset_frame\na,1+2,3,4\na,4B,1,1\nb,,,\n"
    a, b = read_text_coding(written(tmp_path, text))
    times = [0.0, 0.1, 0.2, 0.3, 0.4]  # frames 1 to 5
    assert values(a, "AU1", times)[0] == values(a, "AU2", times)[0] == [0, 0, 1, 1, 0]
    assert same(values(a, "AU2", times)[1], [NAN] * 5)  # no intensity was coded
    assert values(a, "AU4", times) == ([1, 0, 0, 0, 0], [2, 0, 0, 0, 0])
    assert values(a, "AU4", times, present_from=3)[0] == [0, 0, 0, 0, 0]
    assert b.name == "b" and b.tracks == {}  # coded, and nothing occurred


def test_what_was_not_visible_is_missing_and_not_absent(tmp_path: Path) -> None:
    text = "au,onset,offset\n4,0,1\n12,0,3\n70,1,2\n73,2.5,3\n"
    (piece,) = read_text_coding(written(tmp_path, text))
    assert sorted(piece.tracks) == ["AU12", "AU4"]
    assert same(values(piece, "AU4", [0.5, 1.5, 2.2, 2.7])[0], [1, NAN, 0, NAN])
    assert same(values(piece, "AU12", [0.5, 1.5, 2.2, 2.7])[0], [1, 1, 1, NAN])


def test_bp4d_tables_of_occurrence(tmp_path: Path) -> None:
    """The first row numbers the AUs; 9 is missing; frames that are not in the table were not coded."""
    text = "0,1,2,12,73\n5,0,9,1,0\n6,1,0,9,0\n7,1,1,1,1\n"
    (piece,) = read_text_coding(written(tmp_path, text, name="F001_T1.csv"))
    assert (piece.name, piece.kind, sorted(piece.tracks)) == ("F001_T1", "occurrence", ["AU1", "AU12", "AU2"])
    times = [0.3, 0.4, 0.5, 0.6, 0.7]  # frames 4 to 8
    assert same(values(piece, "AU1", times)[0], [NAN, 0, 1, NAN, NAN])
    assert same(values(piece, "AU2", times)[0], [NAN, NAN, 0, NAN, NAN])
    assert same(values(piece, "AU12", times)[0], [NAN, 1, NAN, NAN, NAN])


@pytest.mark.parametrize(
    ("name", "text", "clip"),
    [
        ("SN001_au12.txt", "1,0\n2,3\n3,9\n4,5\n", "SN001"),
        ("F001_T1_AU12.csv", "1,0\r\n2,3\r\n3,9\r\n4,5\r\n", "F001_T1"),
        ("my clip AU12.csv", "frame,intensity\n1,0\n2,C\n3,\n4,E\n", "my clip"),
    ],
)
def test_files_of_one_au(tmp_path: Path, name: str, text: str, clip: str) -> None:
    (piece,) = read_text_coding(written(tmp_path, text, name=name))
    assert (piece.name, piece.kind, piece.one_au) == (clip, "intensity", True)
    present, intensity = values(piece, "AU12", [0.0, 0.1, 0.2, 0.3, 0.4])
    assert same(present, [0, 1, NAN, 1, NAN]) and same(intensity, [0, 3, NAN, 5, NAN])
    assert same(values(piece, "AU12", [0.1, 0.3], present_from=4)[0], [0, 1])


def test_a_column_per_au_over_seconds(tmp_path: Path) -> None:
    text = "time,AU4,AU12 L,remark\n0.0,0,2,x\n0.5,1,0,\n1.0,4,,\n"
    (piece,) = read_text_coding(written(tmp_path, text))
    assert piece.kind == "intensity"
    assert piece.notes == ("clip.csv: columns remark are no action units and not read",)
    assert same(values(piece, "AU12", [0.2, 0.6, 1.2, 1.6])[1], [2, 0, NAN, NAN])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.csv", "", "c.csv is empty"),
        ("c.csv", "clip,au,onset,offset\na,4,1\n", "line 2: '' is no time"),
        ("c.csv", "clip,au,onset,offset\na,4,2,1\n", "line 2: the interval ends at 1, and begins at 2"),
        ("c.csv", "clip,au,onset,offset\na,4,1,1\n", "line 2: the interval ends at 1, and begins at 1"),
        ("c.csv", "clip,au,onset,offset\na,4,nan,1\n", "line 2: 'nan' is no time; allowed: seconds such as 1.25"),
        ("c.csv", "clip,au,onset,offset\na,4,-1,1\n", "line 2: '-1' is no time"),
        ("c.csv", "clip,au,onset,offset\n,4,0,1\n", "line 2: no clip is named"),
        ("c.csv", "clip,au,onset,offset\na,smile,0,1\n", "line 2: 'smile' is no action unit"),
        ("c.csv", "clip,au,onset,offset,intensity\na,4B,0,1,C\n", "line 2: '4B' and the column of intensities"),
        ("c.csv", "clip,au,onset,offset\na,4,0,1,7\n", "line 2: the row has 5 cells, the header 4"),
        ("c.csv", "clip,au,onset,start,offset\na,4,0,0,1\n", "columns 'onset' and 'start' mean the same"),
        (
            "c.csv",
            "au,onset,offset,coder\n4,0,1,anna\n4,0,1,bo\n",
            "coding of 2 people; choose one, as in facs.coder=anna",
        ),
        ("c.csv", "frame,AU4\n1,0\n1,1\n", "line 3: 1 comes after 1; frames must ascend, each once"),
        ("c.csv", "clip,au,onset,offset\na,4,0,1e999\n", "line 2: '1e999' is no time, it is infinite"),
        ("c.csv", "frame,AU4\n1,7\n", "line 2: '7' is no intensity"),
        ("c.csv", "frame,AU4\n1.5,0\n", "line 2: '1.5' is no number of a frame"),
        ("c.csv", "frame,AU4,4\n1,0,0\n", "two columns are of the same action unit"),
        ("c.csv", "frame,AU4+7\n1,0\n", "column 'AU4+7' is a combination"),
        ("x_au4.txt", "1,0\n2\n", "line 2: the row has 1 cells; frame and intensity are needed"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_text_coding(written(tmp_path, text, name=name))
    assert said in str(caught.value) and not isinstance(caught.value, UnknownTableError)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("frame, face_id, timestamp, confidence, AU01_r\n1,0,0,1,2\n", "is a table by OpenFace, not coding by people"),
        ("Begin Time - ss.msec\tEnd Time - ss.msec\tAU4\n0\t1\tx\n", "give the .eaf file itself"),
        ("subject,label\na,pain\n", "has the columns subject, label; needed are au, onset and offset (intervals)"),
        ("0,1\n1,1\n", "has the columns 0, 1; needed are"),  # values, and not the numbers of AUs
    ],
)
def test_other_tables_are_told_apart(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UnknownTableError) as caught:
        read_text_coding(written(tmp_path, text))
    assert said in str(caught.value)


def test_a_coder_is_chosen(tmp_path: Path) -> None:
    path = written(tmp_path, "au,onset,offset,coder\n4,0,1,anna\n7,0,1,bo\n")
    assert [sorted(piece.tracks) for piece in read_text_coding(path, coder="bo")] == [["AU7"]]
    with pytest.raises(ValueError, match="holds no coding by 'eve'; there are: anna, bo"):
        read_text_coding(path, coder="eve")
