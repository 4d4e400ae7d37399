"""What an extraction says about faces: how often they were found, whose were left out, and which clips do not count."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from clipautt.evaluation.reports.extraction import Failure
from clipautt.features.store import ClipFacts
from clipautt.model.windows import WindowSpec
from clipautt.video.faces import FaceConfig
from ray_jobs.platform.extraction.extract import ExtractSummary
from ray_jobs.platform.extraction.faces_seen import face_lines, face_share, left_out, report_faces, report_left_out

CASCADE = FaceConfig(detector="cascade")


def summary(*found: float, others: int = 0, failures: tuple[Failure, ...] = ()) -> ExtractSummary:
    """Clips of twenty frames that show the face in these shares of them, from the start."""
    faces = {f"c{i}": ClipFacts(20, np.arange(20) < round(20 * share), others) for i, share in enumerate(found)}
    return ExtractSummary(len(found), 0, failures, None, known=faces, face_settings=CASCADE)


def test_without_a_detector_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = ExtractSummary(3, 0, (), None)
    report_faces(nothing)
    report_left_out(nothing, WindowSpec())
    assert capsys.readouterr().out == "" and math.isnan(face_share(nothing))


def test_shares_of_frames_and_other_faces() -> None:
    assert list(face_lines(summary(1.0, 0.7))) == ["face found in 85.0 % of the frames of 2 clips"]
    _, crowded = face_lines(summary(1.0, others=1))
    assert crowded.startswith(
        "1 clip shows other faces beside the one that is followed; faces.which, or a column `face`"
    )
    assert len(list(face_lines(replace(summary(1.0, others=1), named=frozenset({"c0"}))))) == 1


def test_few_faces_name_the_clips_and_another_detector(capsys: pytest.CaptureFixture[str]) -> None:
    gone = Failure("g", "s", "g.mp4", "no_face", "no face was found in 9 frames")
    report_faces(summary(*[0.1] * 22, 1.0, failures=(gone,)))
    said = capsys.readouterr().out
    assert (
        "1 clip shows no face, 22 clips show the face in fewer than 70 % of the frames; YuNet finds more faces" in said
    )
    assert "10 %" in said and "… and 2 more" in said and "c22" not in said
    _, low = face_lines(summary(0.1, 1.0))
    assert low.startswith("1 clip shows the face in fewer than 70 % of the frames; ")
    (only,) = face_lines(summary(failures=(gone,)))
    assert only.startswith("YuNet finds more faces")


def test_clips_without_a_window_that_counts_are_left_out_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    seen = summary(1.0, 0.2, 0.6)
    assert list(left_out(seen, WindowSpec(length=16))) == ["c1", "c2"]
    assert list(left_out(seen, WindowSpec(length=10))) == ["c1"]
    report_left_out(seen, WindowSpec(length=10))
    said = capsys.readouterr().out
    assert "left out" in said and "c1" in said and "the face is found in 4 of 20 frames, and no window of 10" in said
