"""The files of a study are read back as they were written: by pandas, and by R and PSPP where they are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from clipautt.study import Study, study
from clipautt.study.export import FILES, write_study
from tests.support.clip_tables import clip_row

ODD = "Druck, 'stark' \"2\""


def odd_study() -> Study:
    """Names with zeros, commas, quotes, accents and line breaks; a clip that failed, an AU that was never learned."""
    rows = [
        clip_row(f"00{number}", "", 0.1 * number + shift, **{"Zustand (Größe)": name, "not_learned": "AU6"})
        for number in range(1, 4)
        for name, shift in (("Ruhe", 0.0), (ODD, 0.6))
    ]
    rows = [row | {"clip": f"c{place}", "source": f"c{place}.mp4"} for place, row in enumerate(rows)]
    lost = {"status": "unreadable", "prediction": "", "probability_neutral": None, "probability_pain": None}
    rows.append(rows[0] | {"clip": "lost", "reason": "no video\n in the file; moov, missing"} | lost)
    return study(pd.DataFrame(rows).drop(columns="condition"), by=["Zustand (Größe)"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("study")
    write_study(made, odd_study())
    return made


def read(path: Path, *text: str) -> pd.DataFrame:
    types = dict.fromkeys(text, str)
    return pd.read_csv(path, encoding="utf-8-sig", dtype=types, keep_default_na=False, na_values=[""])


def test_pandas_reads_every_file_as_it_was(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == set(FILES)
    made = odd_study()
    subjects = read(folder / "subjects.csv", "subject")
    assert subjects["subject"].tolist() == ["001", "001", "002", "002", "003", "003"]
    assert subjects["Zustand_Grosse"].tolist() == [ODD, "Ruhe"] * 3
    assert subjects["probability_pain"].tolist() == pytest.approx(made.subjects["probability_pain"].tolist())
    assert subjects["excluded_unreadable"].tolist() == [0, 1, 0, 0, 0, 0]
    differences = read(folder / "differences.csv").set_index("measure")
    assert differences.loc["probability_pain", "difference"] == pytest.approx(-0.6)
    assert differences.loc["AU6_rise", "learned"] == 0 and differences.loc["AU4_rise", "learned"] == 1
    assert pd.isna(differences.loc["entropy", "learned"])
    clips = read(folder / "clips_export.csv", "subject")
    assert clips.set_index("clip").loc["lost", ["reason", "excluded"]].tolist() == [
        "no video in the file; moov, missing",
        "unreadable",
    ], "one line"
    assert (folder / "subjects.csv").read_bytes().startswith(b"\xef\xbb\xbfsubject,Zustand_Grosse,clips,")


def test_the_codebook_describes_every_column_of_every_file(folder: Path) -> None:
    book = read(folder / "codebook.csv")
    for file, part in book.groupby("file"):
        table = read(folder / str(file))
        assert part["name"].tolist() == list(table)
        assert part["n_missing"].tolist() == table.isna().sum().tolist() and set(part["n_rows"]) == {len(table)}
    assert set(book["file"]) == {name for name in FILES if name.endswith(".csv")} - {"codebook.csv"}
    assert book["label"].notna().all() and not book["about"].eq("As in the table of clips").any()
    assert book["name"].map(lambda name: re.fullmatch(r"[A-Za-z]\w{0,63}", name) is not None).all()
    here = book[book["file"] == "subjects.csv"].set_index("name")
    condition = here.loc["Zustand_Grosse"]
    assert condition["original_name"] == "Zustand (Größe)" and condition["values"] == f"{ODD}; Ruhe"
    assert here.loc["AU6_rise", ["label", "unit", "learned"]].tolist() == ["AU6 Cheek raiser, rise", "-2 to 2", "no"]
    assert here.loc["probability_pain", ["unit", "values"]].tolist() == ["0 to 1", "0.1 to 0.9"]
    assert set(read(folder / "conditions.csv")["measure"]) <= set(here.index), "measures are columns of subjects.csv"


def test_spss_syntax_names_every_variable_once_and_closes_every_quote(folder: Path) -> None:
    text = (folder / "import.sps").read_text("utf-8-sig")
    assert "\n    subject A3\n    Zustand_Grosse A18\n    clips F10.0\n" in text, (
        "text is as wide as it is long in bytes"
    )
    assert text.count("GET DATA") == text.count("SAVE OUTFILE=") == 5
    assert all(line.count("'") % 2 == 0 for line in text.splitlines()) and max(map(len, text.splitlines())) < 256


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
def test_r_reads_the_files(folder: Path) -> None:
    shown = "cat(subjects$subject, sum(subjects$probability_pain), nrow(clips_export))"
    code = f'source("import.R", encoding = "UTF-8"); {shown}'
    done = subprocess.run(["Rscript", "-e", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "001 001 002 002 003 003 3 7"


@pytest.mark.skipif(shutil.which("pspp") is None, reason="PSPP is not installed")
def test_pspp_reads_the_files(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "here")
    done = subprocess.run(["pspp", "import.sps"], cwd=tmp_path / "here", capture_output=True, text=True)
    assert done.returncode == 0 and "error" not in done.stdout + done.stderr
    assert (tmp_path / "here" / "subjects.sav").is_file()
