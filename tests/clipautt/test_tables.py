"""Text tables as other programs write them: the same cells, whatever the encoding, the separator and the columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipautt.tables import (
    Sheet,
    TableError,
    column_problems,
    doubtful_labels,
    is_index,
    point,
    read_sheet,
    whole,
    without_decimals,
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(("mark", "end"), [(",", "\n"), (";", "\r\n"), ("\t", "\r")])
def test_the_cells_do_not_depend_on_the_program_that_wrote_them(
    tmp_path: Path, encoding: str, mark: str, end: str
) -> None:
    path = tmp_path / "t.csv"
    lines = [f"id{mark} name ", f'007{mark}"Doe, Jane"', "", f"8{mark}Zoe\u0308{mark}{mark}"]
    path.write_bytes(end.join([*lines, ""]).encode(encoding))
    assert read_sheet(path) == Sheet(("id", "name"), ((2, ("007", "Doe, Jane")), (4, ("8", "Zo\u00eb"))), mark)


def test_a_table_of_one_column_or_none(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id\na\n")
    assert read_sheet(path).rows == ((2, ("a",)),)
    path.write_text("")
    assert read_sheet(path) == Sheet((), (), ",")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_line_that_tells_spreadsheets_the_separator_is_no_header(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"sep={mark}\nid{mark}name\n7{mark}Zoe\n")
    assert read_sheet(path) == Sheet(("id", "name"), ((3, ("7", "Zoe")),), mark)


def test_a_row_keeps_its_surplus_and_its_lack(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b,\n1\n1,2,,\n1,2,3\n,\n")
    assert read_sheet(path).rows == ((2, ("1",)), (3, ("1", "2")), (4, ("1", "2", "3")))


def test_what_is_no_table_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for content, told in (
        (b'a,b\n1,2\n1,"2\n3,4\n5,6"\n', r"t.csv line 3: a quote is not closed"),
        (b"a,b\n1,\xfc\n", r"t.csv line 2: byte 0xfc is not UTF-8; save the file as UTF-8"),
        (b"a,b\n1,\0\0\0\n", r"t.csv: this is no text|UTF-16, or no text"),
    ):
        path.write_bytes(content)
        with pytest.raises(TableError, match=told):
            read_sheet(path)


@pytest.mark.parametrize("name", ["Unnamed: 0", "", "index", "level_0", "__index_level_0__"])
def test_numbers_of_rows_are_no_column(name: str) -> None:
    assert is_index(name) and not is_index(f"{name}s")


def test_numbers_of_spreadsheets() -> None:
    assert without_decimals({"0.0", "-7.00"}) and not without_decimals({"0.0", "1"}) and not without_decimals(set())
    assert [whole("7.0"), point("1,5"), point("-,5"), point("1,2,3"), point("a,5")] == [
        "7",
        "1.5",
        "-.5",
        "1,2,3",
        "a,5",
    ]


@pytest.mark.parametrize(
    ("columns", "problems", "unused"),
    [
        (["clip_id", "label"], [], []),
        (["clip_id", "Label"], ["'Label' is no column that is read; did you mean 'label'?"], []),
        (["clip_id", "lable"], ["'lable' is no column that is read; did you mean 'label'?"], []),
        (["clip_id", "class"], ["'class' is no column that is read; did you mean 'label'?"], []),
        (["clip_id", "label", "Label "], ["columns 'label' and 'Label ' mean the same; keep one of them"], []),
        (["clip_id", "label", "label"], ["column 'label' occurs 2 times; keep one of them"], []),
        (["clip_id", "label", "labels", "age"], [], ["labels", "age"]),
        (["clip_id", "table", "lamp", "libel_no"], [], ["table", "lamp", "libel_no"]),
    ],
)
def test_columns_that_nobody_knows(columns: list[str], problems: list[str], unused: list[str]) -> None:
    assert column_problems(columns, ("clip_id", "label"), also={"class": "label"}) == (problems, unused)


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ({"pain": 9, "neutral": 5, "paln": 1}, {"paln": "pain"}),
        ({"pain": 9, "neutral": 5, "pan": 1, "pains": 1, "apin": 1}, {"pan": "pain", "pains": "pain", "apin": "pain"}),
        ({"pain": 9, "Pain": 7}, {"Pain": "pain"}),
        ({"pain": 9, "paln": 2}, {}),
        ({"pain": 1, "paln": 1}, {}),
        ({"PA4": 9, "PA3": 1, "no": 5, "on": 1, "neutral": 7, "natural": 1}, {}),
    ],
)
def test_labels_that_are_probably_slips(counts: dict[str, int], found: dict[str, str]) -> None:
    assert doubtful_labels(counts) == found
