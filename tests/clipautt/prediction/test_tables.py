"""Tables are written part by part, whole or not at all, and are read back as they were."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from clipautt.prediction.columns import CLIP, Column
from clipautt.prediction.tables import check_place, unknown_row, write_rows

COLUMNS = [
    Column("clip", "Name"),
    Column("share", "A share", "0 to 1"),
    Column("frames", "Frames", "count"),
    Column("chosen", "Chosen", "true or false"),
]
PARTS = [
    pd.DataFrame({"clip": ["a", 'b "x", ü'], "share": [0.25, math.nan], "frames": [3, 4], "chosen": [True, False]}),
    unknown_row(COLUMNS, {"clip": "c"}),
]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "new" / "t.csv"
    assert write_rows(path, COLUMNS, PARTS) == 3
    text = path.read_text(encoding="utf-8")
    assert text == 'clip,share,frames,chosen\na,0.25,3,True\n"b ""x"", ü",,4,False\nc,,,\n'


def test_parquet_has_types_and_what_the_columns_mean(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    assert write_rows(path, COLUMNS, PARTS) == 3
    schema = pq.read_schema(path)
    assert [str(schema.field(name).type) for name in schema.names] == ["string", "double", "int64", "bool"]
    assert schema.field("share").metadata == {b"about": b"A share", b"unit": b"0 to 1"}
    back = pd.read_parquet(path)
    assert back["frames"].tolist()[:2] == [3, 4] and back.isna().sum().tolist() == [0, 2, 1, 1]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_no_rows_are_a_table_all_the_same(tmp_path: Path, name: str) -> None:
    assert write_rows(tmp_path / name, COLUMNS, []) == 0
    read = pd.read_csv if name.endswith("csv") else pd.read_parquet
    assert list(read(tmp_path / name).columns) == ["clip", "share", "frames", "chosen"]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_what_fails_midway_leaves_the_old_table(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_rows(path, COLUMNS, PARTS)
    before = path.read_bytes()

    def failing() -> object:
        yield PARTS[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_rows(path, COLUMNS, failing())  # type: ignore[arg-type]
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="table has the columns other; allowed: those that are documented"):
        write_rows(path, COLUMNS, [pd.DataFrame({"clip": ["a"], "other": [1]})])


def test_a_name_says_the_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out=t\.xlsx: a table is written as \.csv or \.parquet; .* out=t\.xlsx\.csv"):
        check_place("t.xlsx")
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(ValueError, match="is a folder; name a file"):
        check_place(str(tmp_path / "x.csv"))
    with pytest.raises(OSError, match=r"out=/proc/none/t\.csv cannot be written \(.*\); name another folder"):
        check_place("/proc/none/t.csv")
    check_place(str(tmp_path / "new" / "t.csv"))
    assert list((tmp_path / "new").iterdir()) == []


def test_only_tables_of_predictions_are_replaced(tmp_path: Path) -> None:
    """A table of clips that is given as input, or labels beside the videos, would be lost."""
    for name in ("t.csv", "t.parquet"):
        write_rows(tmp_path / name, [*CLIP, *COLUMNS[1:]], PARTS)
        check_place(str(tmp_path / name))
    (tmp_path / "clips.csv").write_text("clip;subject;label\n1;a;b\n")
    pd.DataFrame({"source": ["a.mp4"]}).to_parquet(tmp_path / "m.parquet")
    (tmp_path / "no.parquet").write_text("text")
    for name in ("clips.csv", "m.parquet", "no.parquet"):
        with pytest.raises(FileExistsError, match=rf"out=.*{name} is a file, but no table of predictions; name anothe"):
            check_place(str(tmp_path / name))
    (tmp_path / "empty.csv").touch()
    check_place(str(tmp_path / "empty.csv"))
