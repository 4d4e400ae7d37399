"""The rows of label files: no cell moves, no first row is lost, and what is odd is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipautt.datasets.files import DatasetError, Problem
from clipautt.datasets.label_files import plain_label, read_frame_list, read_lines, read_table
from tests.support.trees import write


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_gives_text_by_column(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path / "t.csv", "\ufeff" + mark.join(["id ", "label"]), mark.join(["007", " 1 "]), "", "8")
    assert read_table(path, required=("label", "id"), shown_as="t").rows == (
        ("t line 2", {"id": "007", "label": "1"}),
        ("t line 4", {"id": "8", "label": ""}),
    )


def test_columns_may_be_written_in_capitals_but_not_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "ID,Label,", "a,1")
    assert read_table(path, required=("id",), shown_as="t").rows == (("t line 2", {"id": "a", "label": "1"}),)
    write(path, "id,label,Label,", "a,1,0")
    with pytest.raises(DatasetError, match=r"t.csv: the first line has several columns label; one of each is allowed"):
        read_table(path, required=("id",), shown_as="t")


def test_cells_beyond_the_header_are_a_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "subject,clip,label", "ann,rest,neutral,,", "ann,lift, heavy,pain")
    table = read_table(path, required=("label",), shown_as="t")
    assert [where for where, _ in table.rows] == ["t line 2"]
    assert table.problems == (Problem("unreadable", "t line 3: the row has 4 cells, the header 3"),)
    assert table.misfits == (("t line 3", ("ann", "lift", "heavy", "pain")),)


@pytest.mark.parametrize("row", ['b,"neutral', '"b\nc",1', 'b,"x" y'])
def test_a_stray_quote_is_named_with_its_line(tmp_path: Path, row: str) -> None:
    path = write(tmp_path / "t.csv", "id,label", 'a,"1, 2"', row, "d,0", 'e,"0"')
    with pytest.raises(DatasetError, match=r"t.csv line 3: a quote is not closed, or something follows it"):
        read_table(path, required=("id",), shown_as="t")


def test_other_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("id,label\na,1\nb,m\u00fcde\n".encode("cp1252"))
    for read in (lambda: read_table(path, required=("id",), shown_as="t"), lambda: list(read_lines(path))):
        with pytest.raises(DatasetError, match=r"t.csv line 3: byte 0xfc is not UTF-8; save the file as UTF-8"):
            read()
    path.write_bytes(b"id,label\na,\0\n")
    with pytest.raises(DatasetError, match=r"t.csv: this is (UTF-16, or )?no text"):
        read_table(path, required=("id",), shown_as="t")


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a,b,label")
    with pytest.raises(DatasetError, match=r"no column x, y; required are x, label, y; it reads 'a,b,label'"):
        read_table(path, required=("x", "label", "y"), shown_as="t")


@pytest.mark.parametrize(
    ("text", "plain"),
    [("1.0", "1"), (" 0 ", "0"), ("0.5", "0.5"), ("NaN", ""), ("nan", ""), ("", ""), ("NA", ""), ("none", "none")],
)
def test_plain_label(text: str, plain: str) -> None:
    assert plain_label(text) == plain


def test_list_of_frames_keeps_its_first_row_and_splits_paths_with_spaces_from_the_right(tmp_path: Path) -> None:
    path = write(
        tmp_path / "list.txt", "root dir/s/first/image1.jpg 1", "s/my clip/image 10.jpg 0", "s/my clip/image 2.jpg 0"
    )
    folders, problems = read_frame_list(path, shown_as="list")
    assert [(f.folder, f.name, f.parent, f.label, f.where) for f in folders] == [
        ("root dir/s/first", "first", "s", "1", "list line 1"),
        ("s/my clip", "my clip", "s", "0", "list line 2"),
    ]
    assert problems == []


def test_list_of_frames_tells_every_oddity(tmp_path: Path) -> None:
    path = write(
        tmp_path / "list.txt",
        "s/two/1.jpg 0", "s/two/2.jpg 1.0", "s/two/3.jpg 1",
        "s/none/1.jpg", "s/none/2.jpg nan",
        "s/half/1.jpg 1", "s/half/2.jpg",
        "1.jpg 0", "s/clip 0",
    )  # fmt: skip
    folders, problems = read_frame_list(path, shown_as="list")
    assert [(f.name, f.label) for f in folders] == [("half", "1")]
    assert problems == [
        Problem("unreadable", "list line 8: '1.jpg 0' is not `FOLDER/PICTURE LABEL`"),
        Problem("unreadable", "list line 9: 's/clip 0' is not `FOLDER/PICTURE LABEL`"),
        Problem("conflict", "list: clip 'two' has the labels 0 (from line 1) and 1 (from line 2)"),
        Problem("unlabelled", "list line 4: clip 'none', in 2 rows, has no label"),
        Problem("unlabelled", "list line 7: clip 'half', in 1 rows, has no label"),
    ]
