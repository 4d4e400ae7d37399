"""`clipautt report table=`: from predictions to a page and files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from clipautt.adaptation.method import AdaptConfig
from clipautt.predictor import Predictor
from ray_jobs import cli
from tests.support.clip_tables import tiny_table
from tests.support.configs import adapt_config
from tests.support.fakes import fake_clip, fake_source


def predicted_table() -> pd.DataFrame:
    """Rows of real predictions, as `predict` writes them, with the columns of a manifest after the subject."""
    config: AdaptConfig = adapt_config(protocol="per_video")
    predictor, rows = Predictor(fake_source(), config=config), []
    for subject in ("001", "002", "003", "004"):
        for condition in ("rest", "pressure"):
            clip = fake_clip(f"{subject}/{condition}", subject, positive=condition == "pressure", seed=int(subject))
            row = predictor.predict_features(clip, video=f"gone/{subject}/{condition}.mp4").row
            rows.append({"clip": row.pop("clip"), "subject": row.pop("subject"), "condition": condition} | row)
    return pd.DataFrame(rows)


def test_a_table_of_predictions_becomes_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "my clips.csv"
    predicted_table().to_csv(table, index=False, float_format="%.7g")
    assert cli.main(["report", f"table={table}", "reference=rest"]) == 0
    said = capsys.readouterr().out
    out = tmp_path / "my clips_report"
    assert "4 subjects, 2 conditions, 8 of 8 clips count\nProbability of pain: " in said
    assert f"report: {out / 'report.html'}" in said and (out / "figures" / "classes.png").is_file()
    subjects = pd.read_csv(out / "subjects.csv", encoding="utf-8-sig", dtype={"subject": str})
    assert subjects["subject"].tolist() == ["001", "001", "002", "002", "003", "003", "004", "004"]
    assert subjects["condition"].tolist() == ["rest", "pressure"] * 4
    assert {"AU1_mean", "AU1_rise", "predicted_pain", "warned_too_short", "face_share"} <= set(subjects)
    differences = pd.read_csv(out / "differences.csv", encoding="utf-8-sig")
    assert set(differences["condition_second"]) == {"pressure"} and set(differences["subjects"]) <= {0, 4}


def test_several_tables_and_excluded_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_table().assign(day="1").to_csv(tmp_path / "a.csv", index=False)
    second = tiny_table().assign(day="2", warnings="too_dark", source="second.mp4")
    second["probability_pain"] = second["probability_pain"] / 2
    second.to_parquet(tmp_path / "b.parquet")
    words = [f"table=[{tmp_path / 'a.csv'},{tmp_path / 'b.parquet'}]", "by=[condition,day]", f"out={tmp_path / 'o'}"]
    assert cli.main(["report", *words]) == 0
    assert "3 subjects, 4 conditions, 20 of 20 clips count" in capsys.readouterr().out
    assert cli.main(["report", *words, "exclude_warnings=too_dark"]) == 0
    said = capsys.readouterr().out
    assert "3 subjects, 4 conditions, 10 of 20 clips count" in said
    assert "excluded  warning_too_dark  Excluded on request: What the model sees is darker" in " ".join(said.split(" "))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=x", "table=clips.csv"], "run= and table= are two different reports; give one of them"),
        (["by=condition"], "by=condition belongs to a report of clips: give table=clips.csv as well"),
        (["table=[]"], "table=[]: name at least one table of clips"),
        (["table=gone.csv"], "table=gone.csv: no such file; `clipautt predict FOLDER out=gone.csv` writes one"),
        (["table=clips.csv", "by=wether"], "by=wether: the table has no such column; allowed: condition"),
        (["table=clips.csv", "out=clips.csv"], "out=clips.csv is a file; name a folder"),
        (["table=subjects.csv", "out=."], "out=.: subjects.csv would be overwritten; give another folder"),
    ],
)
def test_what_cannot_be_reported_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clips.csv", "subjects.csv"):
        tiny_table().to_csv(name, index=False)
    assert cli.main(["report", *words]) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"clips.csv", "subjects.csv"}, "nothing is written"
