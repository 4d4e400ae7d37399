"""Tables of every tool: found by their headers, read under our codes, and refused by the name of the tool."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipautt.evaluation.au_tables.formats import find_format
from clipautt.evaluation.au_tables.reading import AuTable, AuTrack, read_au_table

BOX = "FaceRectX,FaceRectY,FaceRectWidth,FaceRectHeight,FaceScore"
AFFDEX = (
    "Row,Timestamp,EventSource,StimType,EventSource,SampleNumber,Joy,Brow Furrow,Inner Brow Raise,Smile,Smirk,Blink"
)


def table(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def columns_of(track: AuTrack) -> dict[str, list[float]]:
    return {name: track.intensities[name].tolist() for name in track.intensities}


def test_py_feat_gives_probabilities_of_frames(tmp_path: Path) -> None:
    """With the index that pandas writes, and a frame without a face."""
    path = table(
        tmp_path / "a.csv",
        f",{BOX},x_0,AU01,AU04,anger,Identity,input,frame,approx_time",
        "0,10,10,50,60,0.99,1,0.2,0.9,0.1,Person_0,a.mp4,0,00:00",
        "1,,,,,,,,,,,a.mp4,1,00:00",
        "2,10,10,50,60,0.99,1,0.4,0.5,0.1,Person_0,a.mp4,2,00:00",
    )
    track = read_au_table(path, frames_per_second=25.0).track()
    assert track.tool == "py-feat"
    assert columns_of(track) == {"time_seconds": [0.0, 0.08], "AU1": [0.2, 0.4], "AU4": [0.9, 0.5]}
    assert track.presences["AU1"].tolist() == [0.0, 0.0] and track.presences["AU4"].tolist() == [1.0, 1.0]
    assert (track.num_rows, track.num_dropped, track.num_other_faces) == (3, 1, 0)
    with pytest.raises(ValueError, match="py-feat writes frame numbers and no exact times, and the video is not there"):
        read_au_table(path)


def test_py_feat_s_index_beside_its_frames_is_no_second_column(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", f"frame,{BOX},AU12,frame", "0,1,1,9,9,1,0.5,4", "1,1,1,9,9,1,0.6,5")
    assert read_au_table(path, frames_per_second=10).track().intensities["time_seconds"].tolist() == [0.4, 0.5]


def test_libreface_gives_intensities_and_presences_of_different_units(tmp_path: Path) -> None:
    path = table(
        tmp_path / "a.csv",
        ",frame_idx,frame_time_in_ms,path_to_frame,facial_expression,au_1,au_24,au_1_intensity,au_26_intensity",
        "0,0,0.0,./tmp/0.png,Neutral,0,1,0.25,4.5",
        "1,1,40.0,./tmp/1.png,Happiness,1,0,5.01,0.0",
        "2,2,80.0,./tmp/2.png,,,,,",
    )
    track = read_au_table(path).track()
    assert track.tool == "LibreFace" and track.num_dropped == 1
    assert columns_of(track) == {"time_seconds": [0.0, 0.04], "AU1": [0.25, 5.01], "AU26": [4.5, 0.0]}
    assert list(track.presences) == ["time_seconds", "AU1", "AU24"] and track.presences["AU24"].tolist() == [1.0, 0.0]


def test_imotions_gives_percentages_between_rows_of_other_sensors(tmp_path: Path) -> None:
    """A raw export: what it knows of the recording stands before the header, and rows of other sensors in between."""
    path = table(
        tmp_path / "a.csv",
        "\ufeff#INFO,",
        "#Study name,Pain,",
        "#METADATA,,Sensor,Affectiva AFFDEX",
        "#DATA,",
        AFFDEX,
        "1,0,Affectiva AFFDEX,TestImage,,1,0,99.5,0,50,0,0",
        "2,3,Shimmer GSR,TestImage,,1,0,99.5,0,50,0,0",
        "3,40,,TestImage,Affectiva AFFDEX,2,0,12,100,49,0,1",
        "4,80,Affectiva AFFDEX,TestImage,,3,,,,,,",
    )
    track = read_au_table(path).track()
    assert track.tool == "iMotions"
    assert columns_of(track) == {"time_seconds": [0, 0.04], "AU1": [0, 100], "AU4": [99.5, 12], "AU12": [50, 49]}
    assert track.presences["AU12"].tolist() == [1.0, 0.0] and (track.num_rows, track.num_dropped) == (3, 1)


def test_imotions_in_tabs_without_sensors(tmp_path: Path) -> None:
    header = "Timestamp\tBrow Raise\tSmile\tJaw Drop"
    path = table(tmp_path / "a.txt", header, "0\t1\t2\t3", "33\t4\t5\t6")
    assert list(columns_of(read_au_table(path).track())) == ["time_seconds", "AU2", "AU12", "AU26"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("frame,timestamp,confidence," + ",".join(f"AU0{n}_r" for n in range(1, 9)), "OpenFace 3 wrote this table: "),
        ("timestamp,AU08_r", "its AU08_r and the columns beside it are numbered from 1 to 8, not by FACS"),
        ("frame,AU01_r", "no column timestamp (columns: frame, AU01_r); OpenFace's FeatureExtraction writes it"),
        ("FaceScore,AU01", "no column frame (columns: FaceScore, AU01); py-feat's detect writes it for videos"),
        ("au_1,au_1_intensity", "no column frame_time_in_ms (columns: au_1, au_1_intensity); LibreFace writes it"),
        ("Smile,Dimpler,Jaw Drop", "no column Timestamp (columns: Smile, Dimpler, Jaw Drop); export the raw data"),
        ("timestamp,confidence,x_0", "no action units such as AU04_r (columns: timestamp, confidence, x_0)"),
        ("a,b", "a.csv is no table of OpenFace 2, py-feat, LibreFace or iMotions (columns: a, b)"),
        ("AU1,AU2,Joy", "a.csv is no table of OpenFace 2, py-feat, LibreFace or iMotions (columns: AU1, AU2, Joy)"),
    ],
)
def test_what_is_not_read_is_named(header: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        find_format(Path("a.csv"), header.split(","))
    assert message in str(caught.value)


def test_a_percentage_is_no_probability(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", f"frame,{BOX},AU12", "0,1,1,9,9,1,45")
    with pytest.raises(ValueError, match=r"a\.csv, line 2: AU12 is 45; allowed is 0 to 1"):
        read_au_table(path, frames_per_second=25).track()


def faces(path: Path, *, names: bool) -> AuTable:
    """Two faces in py-feat's table: a small one on the right that is always there, a large one on the left for half."""
    lines = [f"frame,{BOX},AU04,Identity"]
    for frame in range(8):
        small = f"{frame},{300 + 20 * frame},0,40,40,1,0.1,{'b' if names else ''}"
        large = f"{frame},{100 - 5 * frame},0,100,100,1,0.9,{'a' if names else ''}"
        lines += [small, large][: 2 if frame % 4 < 2 else 1]
    lines.append("8,,,,,,,")  # nobody is there
    return read_au_table(table(path, *lines), frames_per_second=25)


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize(
    ("which", "value", "rows"), [("largest", 0.9, 4), ("left", 0.9, 4), ("right", 0.1, 8), (1, 0.9, 4), (2, 0.1, 8)]
)
def test_of_several_faces_one_is_chosen_by_its_position(
    tmp_path: Path, which: int | str, value: float, rows: int, names: bool
) -> None:
    """Also where the tool gives faces no names: each is followed from frame to frame."""
    track = faces(tmp_path / "a.csv", names=names).track(which=which)  # type: ignore[arg-type]
    assert track.intensities["AU4"].tolist() == [value] * rows
    assert (track.num_rows, track.num_dropped, track.num_other_faces, track.notes) == (rows + 1, 1, 12 - rows, ())


def test_a_face_that_is_not_there_cannot_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="face 3 is asked for, and the table holds 2"):
        faces(tmp_path / "a.csv", names=True).track(which=3)


def test_openface_s_faces_have_positions_by_their_jaws(tmp_path: Path) -> None:
    rows = [f"{n},{n % 2},{n / 25:.3f},1,{(10, 200)[n % 2]},{(40, 300)[n % 2]},{n % 2}" for n in range(9)]
    rows += [f"9,0,{n},0,0,9000,0" for n in (1, 2)]  # a face that was lost has no place
    path = table(tmp_path / "a.csv", "frame,face_id,timestamp,success,x_0,x_16,AU04_r", *rows)
    assert read_au_table(path).track().intensities["AU4"].tolist() == [1] * 4
    assert read_au_table(path).track(which="left").face == "0"
