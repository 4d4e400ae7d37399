"""Tables of clips are read as they were written, whatever a spreadsheet did to them, and nonsense is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clipautt.study.clip_table import clip_table, read_clips
from tests.support.clip_tables import clip_row, tiny_table


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_csv_spreadsheets_and_parquet_give_the_same_table(tmp_path: Path) -> None:
    """Saved by a German spreadsheet, with row numbers of pandas, or as Parquet with missing values as null."""
    rows = [clip_row("007", "Größe 1", 0.25), clip_row("008", "NA", 0.75), clip_row("", "x", 0.5, status="ok")]
    rows.append(clip_row("009", "x", 0.5, status="no_face", reason="no face, nowhere", probability_pain=np.nan))
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "plain.csv", index=False)
    german = frame.to_csv(index=False, sep=";", decimal=",", lineterminator="\r\n")
    (tmp_path / "german.csv").write_bytes(german.encode("utf-8-sig"))
    (tmp_path / "utf16.csv").write_bytes(frame.to_csv(index=True, sep="\t").encode("utf-16"))
    frame.replace("", None).astype({"frames": "Int64"}).to_parquet(tmp_path / "clips.parquet")
    first = read_clips([tmp_path / "plain.csv"])
    assert first.classes == ("neutral", "pain") and first.action_units == ("AU4", "AU6")
    assert first.extra == ("condition",) and first.not_learned is None
    assert first.rows["subject"].tolist() == ["007", "008", "", "009"], "zeros are kept"
    assert first.rows["condition"].tolist() == ["Größe 1", "NA", "x", "x"], "text is not taken for a missing value"
    assert first.rows["probability_pain"].tolist()[:3] == [0.25, 0.75, 0.5]
    for name in ("german.csv", "utf16.csv", "clips.parquet"):
        pd.testing.assert_frame_equal(read_clips([tmp_path / name]).rows, first.rows, check_dtype=False)


def test_conditions_of_numbers_are_text_without_decimals(tmp_path: Path) -> None:
    rows = [clip_row("1", "x", 0.5, day=1.0, visit=2), clip_row("2", "x", 0.5, day=None, visit=3)]
    pd.DataFrame(rows).to_parquet(tmp_path / "clips.parquet")
    pd.DataFrame(rows).to_csv(tmp_path / "clips.csv", index=False)  # pandas writes 1.0, as one day is missing
    for name in ("clips.parquet", "clips.csv"):
        read = read_clips([tmp_path / name])
        assert read.rows["day"].tolist() == ["1", ""] and read.rows["visit"].tolist() == ["2", "3"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chosen": True}, r"is a table of windows: a study counts clips, so give the table of clips"),
        ({"frame": 1}, r"is a table of frames"),
        ({"probability_pain": "much"}, r"row 1: probability_pain='much' is no number"),
        ({"AU4_mean": np.inf}, r"row 1: AU4_mean is infinite"),
        (
            {"probability_pain": 75.0},
            r"row 1 \(clip 'a/x0'\): a probability lies outside 0 to 1; were decimal points lost",
        ),
        ({"probability_pain": ""}, r"row 1 \(clip 'a/x0'\): status is ok, but a probability is missing"),
        ({"prediction": "joy"}, r"prediction is none of the classes neutral, pain"),
        ({"status": ""}, r"status is empty; it is ok where there is a prediction"),
        ({"clip": ""}, r"the clip has no name"),
    ],
)
def test_a_row_that_makes_no_sense_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip_table(pd.DataFrame([clip_row("a", "x", 0.5, **changed)]), name="clips.csv")


def test_what_is_no_table_of_clips_says_how_to_get_one(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("clip,label\na,pain\n")
    with pytest.raises(
        ValueError, match=r"labels.csv is no table of clips: it lacks the columns subject, source, status"
    ):
        read_clips([tmp_path / "labels.csv"])
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty.csv is no table of clips"):
        read_clips([tmp_path / "empty.csv"])
    tiny_table().head(0).to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(ValueError, match=r"none.csv has no rows"):
        read_clips([tmp_path / "none.csv"])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=r"table=.*broken.parquet is no Parquet file"):
        read_clips([tmp_path / "broken.parquet"])
    with pytest.raises(ValueError, match=r"table=.* is a folder; name the table of clips in it"):
        read_clips([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"no such file; `clipautt predict FOLDER out=gone.csv` writes one"):
        read_clips([tmp_path / "gone.csv"])
    short = tiny_table().to_csv(index=False).splitlines()
    (tmp_path / "short.csv").write_text("\n".join([*short[:2], "a,b", *short[2:]]))
    with pytest.raises(ValueError, match=r"short.csv line 3 has 2 cells, and the header has \d+"):
        read_clips([tmp_path / "short.csv"])


def test_tables_are_joined_and_no_clip_counts_twice(tmp_path: Path) -> None:
    first = written(tmp_path / "a.csv", [clip_row("a", "x", 0.5), clip_row("b", "x", 0.25)])
    other_day = written(tmp_path / "b.csv", [clip_row("a", "x", 0.75, source="day2/a.mp4", day="2")])
    joined = read_clips([first, other_day])
    assert joined.rows["probability_pain"].tolist() == [0.5, 0.25, 0.75]
    assert joined.rows["day"].tolist() == ["", "", "2"] and joined.extra == ("condition", "day")
    with pytest.raises(ValueError, match=r"clips occur more than once: a/x0, b/x0; keep one row of each"):
        read_clips([first, first])
    copied = written(tmp_path / "c.csv", [clip_row("a", "x", 0.5, source="/elsewhere/a.mp4")])
    with pytest.raises(ValueError, match=r"clips occur more than once: a/x0"):
        read_clips([first, copied])
    renamed = {"probability_pain": "probability_stress"}
    pd.DataFrame([clip_row("c", "x", 0.1)]).rename(columns=renamed).to_csv(tmp_path / "d.csv", index=False)
    with pytest.raises(
        ValueError, match=r"d.csv comes from another model than .*a.csv: their classes differ \(pain, st"
    ):
        read_clips([first, tmp_path / "d.csv"])
