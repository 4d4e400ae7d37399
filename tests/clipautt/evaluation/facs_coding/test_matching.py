"""Coding of many clips: which belongs to which, what is combined, and what cannot be of its clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipautt.clips import Clip
from clipautt.evaluation.facs_coding.coding import FacsSettings
from clipautt.evaluation.facs_coding.matching import Matched, match_coding, read_coding
from tests.support.fakes import numbered_frames, write_video


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def clip(source: str, clip_id: str | None = None, subject: str = "s", **span: float) -> Clip:
    return Clip(clip_id or Path(source).stem, subject, source, "target", **span)  # type: ignore[arg-type]


def present(matched: Matched, clip_id: str, code: str, times: list[float]) -> list[float]:
    return matched.codings[clip_id].at(code, np.array(times), present_from=1)[0].tolist()


def test_a_table_names_clips_videos_and_folders(tmp_path: Path) -> None:
    """Two videos are called 07: only a folder tells them apart. AUs of the table were looked for in all its clips."""
    rows = "anna/07.mp4,4,0,1\nbo/07,12,0,1\ncut,6,0,1\nnobody,9,0,1\n"
    coding = read_coding(write(tmp_path / "all.csv", f"clip,au,onset,offset\n{rows}"))
    clips = [clip("/v/anna/07.mp4", "anna/07"), clip("/v/bo/07.mp4", "bo/07"), clip("/v/day 1.mp4", "cut")]
    matched = match_coding(coding, clips)
    assert set(matched.codings) == {"anna/07", "bo/07", "cut"} and matched.problems == {}
    assert [piece.name for piece in matched.unmatched] == ["nobody"]
    assert present(matched, "anna/07", "AU4", [0.5, 1.5]) == [1, 0]
    assert present(matched, "anna/07", "AU12", [0.5]) == [0] and matched.codings["cut"].codes == (
        "AU4",
        "AU6",
        "AU9",
        "AU12",
    )
    plain = read_coding(write(tmp_path / "plain.csv", "clip,au,onset,offset\n07,4,0,1\n"))
    assert "may belong to any of 2 videos named '07'" in match_coding(plain, clips).problems["bo/07"]


def test_coding_of_a_video_is_shifted_to_its_clips(tmp_path: Path) -> None:
    coding = read_coding(write(tmp_path / "day.csv", "au,onset,offset\n4,10,11\n"))
    clips = [clip("/v/day.mp4", "first", end_seconds=10.0), clip("/v/day.mp4", "second", start_seconds=10.0)]
    matched = match_coding(coding, clips)
    assert present(matched, "first", "AU4", [0.5]) == [0] and present(matched, "second", "AU4", [0.5, 1.5]) == [1, 0]


def test_disfa_and_bp4d_as_they_are_published(tmp_path: Path) -> None:
    """One file per AU and folder for each; occurrence and intensity of BP4D lie in folders of their own."""
    write(tmp_path / "DISFA/SN001/SN001_au1.txt", "1,0\n2,3\n")
    write(tmp_path / "DISFA/SN001/SN001_au12.txt", "1,5\n2,9\n")
    write(tmp_path / "BP4D/AU_OCC/F001_T1.csv", "0,6,12\n1,0,1\n2,1,9\n")
    write(tmp_path / "BP4D/AU_OCC/F002_T1.csv", "0,6,12\n1,1,1\n2,1,1\n")
    write(tmp_path / "BP4D/AU_INT/AU06/F001_T1_AU06.csv", "1,0\n2,4\n")
    write(tmp_path / "BP4D/F001_T1.xlsx", "")
    clips = [
        clip("/v/LeftVideoSN001_comp.avi"),
        clip("/v/F001/T1", "F001/T1", frames_per_second=25),
        clip("/v/F002/T1", "F002/T1", frames_per_second=25),
        clip("/v/F003/T1", "F003/T1", frames_per_second=25),
    ]
    coding = read_coding(tmp_path)
    assert list(coding.not_read.values()) == [
        f"{tmp_path}/BP4D/F001_T1.xlsx: workbooks are not read; save the sheet as CSV"
    ]
    matched = match_coding(coding, clips, FacsSettings(frames_per_second=20.0))
    assert set(matched.codings) == {"LeftVideoSN001_comp", "F001/T1", "F002/T1"}
    assert matched.codings["LeftVideoSN001_comp"].codes == ("AU1", "AU12")
    found, intensity = matched.codings["F001/T1"].at("AU6", np.array([0.0, 0.05]), present_from=5)
    assert found.tolist() == [0, 1] and intensity.tolist() == [0, 4]  # presence is what was coded as such
    assert present(matched, "F002/T1", "AU6", [0.0]) == [1]
    assert matched.problems == {}  # of F003/T1 nothing was coded
    twice = write(tmp_path / "BP4D/again/F001_T1.csv", "0,6,12\n1,0,1\n")
    problems = match_coding(read_coding(tmp_path), clips, FacsSettings(frames_per_second=20.0)).problems
    assert str(twice) in problems["F001/T1"] and "keep one of them" in problems["F001/T1"]


def test_tables_that_look_like_occurrence_beside_intensities_are_intensities(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "frame,AU4\n1,1\n2,0\n")
    write(tmp_path / "b.csv", "frame,AU4\n1,1\n2,3\n")
    assert [piece.kind for piece in read_coding(tmp_path).pieces] == ["intensity", "intensity"]
    assert [piece.kind for piece in read_coding(tmp_path / "a.csv").pieces] == ["occurrence"]


def test_coding_that_cannot_be_of_its_clip(tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "c.mp4", numbered_frames(30), fps=25))
    rows = "".join(f"{frame},0\n" for frame in range(1, 121))
    long = read_coding(write(tmp_path / "c_au4.txt", rows))
    (problem,) = match_coding(long, [clip(video)]).problems.values()
    assert "codes until 4.80 s, and" in problem and "ends at 1.20 s, so it is not the coding of clip 'c'" in problem
    assert problem.endswith("if its frames have another rate, give facs.frames_per_second")
    assert set(match_coding(long, [clip(video)], FacsSettings(frames_per_second=100.0)).codings) == {"c"}
    zero = read_coding(write(tmp_path / "z" / "c_au4.txt", "0,1\n1,1\n"))
    (problem,) = match_coding(zero, [clip(video)]).problems.values()
    assert problem.endswith("begins with frame 0, and facs.first_frame=1; give facs.first_frame=0")
    (problem,) = match_coding(long, [clip("/gone/c.mp4")]).problems.values()
    assert problem.endswith("does not tell its rate; give facs.frames_per_second=25")
    milliseconds = read_coding(write(tmp_path / "t.csv", "clip,au,onset,offset\nc,AU4,200,900\n"))
    (problem,) = match_coding(milliseconds, [clip(video)]).problems.values()
    assert "if its times are not in seconds, call the columns onset_ms and offset_ms" in problem


def test_what_is_no_coding(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"coding=.*none: no such file or folder"):
        read_coding(tmp_path / "none")
    with pytest.raises(ValueError, match=r"there is no \.eaf, \.csv, \.tsv or \.txt file in this folder"):
        read_coding(tmp_path)
    empty = write(tmp_path / "empty" / "t.csv", "clip,au,onset,offset\n")
    with pytest.raises(ValueError, match=r"t\.csv has a header and no rows"):
        read_coding(empty)
    write(tmp_path / "empty" / "u.csv", "clip,au,onset,offset\nc,AU4,0,1\n")
    assert list(read_coding(empty.parent).not_read) == [str(empty)], "it is named, and the others are read"
    for name in ("t.csv", "u.csv"):
        (tmp_path / "empty" / name).unlink()
    write(tmp_path / "labels.csv", "subject,label\na,b\n")
    with pytest.raises(ValueError, match="has the columns subject, label; needed are"):
        read_coding(tmp_path)
    write(tmp_path / "a.csv", "au,onset,offset\n4,0,x\n")
    write(tmp_path / "b.eaf", "<x")
    with pytest.raises(ValueError) as caught:
        read_coding(tmp_path)
    assert [line.partition(": ")[0][-13:] for line in str(caught.value).split("\n")] == [
        "a.csv, line 2",
        "b.eaf is damaged"[-13:],
    ]
