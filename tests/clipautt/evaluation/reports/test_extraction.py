"""The report of an extraction names every clip without features, and takes nothing from its input for HTML."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from clipautt.evaluation.reports.extraction import Failure, Tile, write_extraction_report


def failures(count: int) -> list[Failure]:
    return [
        Failure(f"c{i}", "s1", f"/v/c{i}.mp4", "no_face" if i % 3 else "unreadable", f"why {i}") for i in range(count)
    ]


def test_every_failure_has_its_reason(tmp_path: Path) -> None:
    page = write_extraction_report(
        tmp_path, clips=40, failures=failures(7), tiles=[Tile("speed", "12.5", ("busy",))], facts=[("store", "/f")]
    ).read_text()
    assert "33 of 40 clips have features" in page and "7 have none: 4 no face, 3 unreadable." in page
    assert all(f"<td>c{i}</td>" in page and f"why {i}</td>" in page for i in range(7))
    assert "12.5" in page and "busy" in page and "/f</td>" in page and "http" not in page
    listed = pd.read_csv(tmp_path / "failures.csv")
    assert listed["clip_id"].tolist() == [f"c{i}" for i in range(7)] and listed["source"][6] == "/v/c6.mp4"


def test_a_page_of_thousands_stays_readable(tmp_path: Path) -> None:
    page = write_extraction_report(tmp_path, clips=5000, failures=failures(1200), tiles=[], facts=[]).read_text()
    assert "<td>c999</td>" in page and "<td>c1000</td>" not in page
    assert "The first 1000 are shown; all 1200 are in <code>failures.csv</code>" in page
    assert len(pd.read_csv(tmp_path / "failures.csv")) == 1200


def test_where_all_is_well_nothing_is_listed(tmp_path: Path) -> None:
    page = write_extraction_report(tmp_path, clips=3, failures=[], tiles=[], facts=[]).read_text()
    assert "3 of 3 clips have features" in page and "No clip failed." in page and "Clips without" not in page
    assert list(pd.read_csv(tmp_path / "failures.csv").columns) == [
        "clip_id",
        "subject_id",
        "source",
        "status",
        "reason",
    ]


def test_names_are_text_and_no_html(tmp_path: Path) -> None:
    bad = Failure("<script>alert(1)</script>", "s", "x", "unreadable", "a & <b>")
    page = write_extraction_report(tmp_path, clips=1, failures=[bad], tiles=[], facts=[]).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "a &amp; &lt;b&gt;" in page


def test_each_clips_share_of_frames_with_a_face(tmp_path: Path) -> None:
    said = write_extraction_report(
        tmp_path, clips=2, failures=[], tiles=[], facts=[], notes=["seen & said"], shares={"b": 1.0, "a": 0.25}
    ).read_text()
    assert "seen &amp; said" in said and "faces.csv" in said
    assert pd.read_csv(tmp_path / "faces.csv").to_dict("list") == {"clip_id": ["a", "b"], "face_share": [0.25, 1.0]}
