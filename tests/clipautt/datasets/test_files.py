"""Files of data sets: which file holds the labels, and where a clip lies."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from clipautt.datasets.files import DatasetError, Layout, Tree, walk
from tests.support.trees import pictures, video, write


def find(tree: Tree, path: str, layout: Layout = "auto", *, whole_path: bool = False) -> list[str]:
    """Paths of what is found."""
    return [place.path for place in tree.find(path, layout=layout, whole_path=whole_path)]


@pytest.mark.parametrize(
    "extension",
    [
        "mp4",
        "avi",
        "webm",
        "mkv",
        "mov",
        "m4v",
        "wmv",
        "mpg",
        "MP4",
        "ts",
        "MTS",
        "m2ts",
        "3gp",
        "flv",
        "ogv",
        "mxf",
        "gif",
    ],
)
def test_a_video_is_found_whatever_its_kind_and_depth(tmp_path: Path, extension: str) -> None:
    video(tmp_path / "one" / "two" / f"x.1.{extension}")
    tree = walk(str(tmp_path), dataset="demo")
    for asked in ("x.1", f"x.1.{extension}", "x.1.mp4", f"elsewhere/two/x.1.{extension}", "C:\\data\\two\\x.1"):
        assert find(tree, asked) == [f"one/two/x.1.{extension}"]
    assert find(tree, "x") == [] and find(tree, "x.1", "frames") == []


def test_a_folder_of_pictures_is_found_even_if_it_is_named_like_a_video(tmp_path: Path) -> None:
    pictures(tmp_path / "crops" / "s" / "a.mp4", ["frame-1.jpg"])
    pictures(tmp_path / "crops" / "s" / "b", ["1.PNG"])
    (tmp_path / "crops" / "s" / "empty").mkdir()
    tree = walk(str(tmp_path), dataset="demo")
    assert find(tree, "s/a.mp4") == ["crops/s/a.mp4"] and find(tree, "s/b") == ["crops/s/b"]
    assert find(tree, "empty") == [] and find(tree, "a", "videos") == []


def test_the_place_that_agrees_with_most_of_the_path_is_taken(tmp_path: Path) -> None:
    for place in ("x/s1/c.mp4", "x/s2/c.mp4", "y/s2/c.mp4"):
        video(tmp_path / place)
    tree = walk(str(tmp_path), dataset="demo")
    assert find(tree, "s1/c") == ["x/s1/c.mp4"]
    assert find(tree, "s2/c") == ["x/s2/c.mp4", "y/s2/c.mp4"]
    assert find(walk(str(tmp_path), dataset="demo", within="y"), "s2/c") == ["y/s2/c.mp4"]
    assert len(find(tree, "s3/c")) == 3 and find(tree, "s3/c", whole_path=True) == []


def test_what_lies_in_the_folder_of_another_subject_is_not_found(tmp_path: Path) -> None:
    for place in ("x/s1/c.mp4", "x/s2/c.mp4", "x/d.mp4", "s1/2/e.mp4"):
        video(tmp_path / place)
    tree, everyone = walk(str(tmp_path), dataset="demo"), frozenset({"s1", "s2", "s3", "2"})
    assert tree.find("s3/c", subject="s3", subjects=everyone) == []
    assert [place.path for place in tree.find("s1/c", subject="s1", subjects=everyone)] == ["x/s1/c.mp4"]
    assert [place.path for place in tree.find("s3/d", subject="s3", subjects=everyone)] == ["x/d.mp4"]
    assert [place.path for place in tree.find("s1/2/e", subject="s1", subjects=everyone)] == ["s1/2/e.mp4"]


def test_hidden_files_are_passed_over_and_links_followed_once(tmp_path: Path) -> None:
    for place in ("data/s/a.mp4", "data/s/._a.mp4", "__MACOSX/s/a.mp4", ".trash/a.mp4"):
        video(tmp_path / place)
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    video(outside / "b.mp4")
    (tmp_path / "data" / "more").symlink_to(outside)
    tree = walk(str(tmp_path), dataset="demo")
    assert [place.path for place in tree.places] == ["data/more/b.mp4", "data/s/a.mp4"]


def test_links_to_nowhere_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "s" / "b").mkdir(parents=True)
    (tmp_path / "s" / "a.mp4").symlink_to(tmp_path / "annex" / "a")
    (tmp_path / "s" / "b" / "1.jpg").symlink_to(tmp_path / "annex" / "1")
    tree = walk(str(tmp_path), dataset="demo")
    assert tree.places == () and tree.broken == {"a": "s/a.mp4", "b": "s/b/1.jpg"}


def test_a_folder_is_known_by_its_real_path(tmp_path: Path) -> None:
    video(tmp_path / "bob" / "deep" / "rest.mp4")
    (tmp_path / "a_link").symlink_to(tmp_path / "bob")
    (tmp_path / "bob" / "a").symlink_to(tmp_path / "bob" / "deep")
    assert [place.path for place in walk(str(tmp_path), dataset="demo").places] == ["bob/deep/rest.mp4"]
    assert find(walk(str(tmp_path), dataset="demo", within="a_link"), "rest") == ["bob/deep/rest.mp4"]


def test_within(tmp_path: Path) -> None:
    video(tmp_path / "data" / "x" / "s" / "a.mp4")
    video(tmp_path / "data" / "y" / "s" / "a.mp4")
    (tmp_path / "data2").mkdir()
    root = str(tmp_path / "data")
    for within in ("x", "x/", "./x", str(tmp_path / "data" / "x"), "y/../x"):
        tree = walk(root, dataset="demo", within=within)
        assert find(tree, "s/a") == ["x/s/a.mp4"] and tree.below == str(tmp_path / "data" / "x")
    with pytest.raises(FileNotFoundError, match=r"demo: no folder at .*/data/z, which dataset.within=z names"):
        walk(root, dataset="demo", within="z")
    with pytest.raises(FileNotFoundError, match=r"no folder at .*a.mp4, which dataset.within=x/s/a.mp4 names"):
        walk(root, dataset="demo", within="x/s/a.mp4")
    with pytest.raises(ValueError, match=r"demo: dataset.within=../data2 lies outside root=.*data; a folder below"):
        walk(root, dataset="demo", within="../data2")


def test_videos_come_before_frames_and_the_extension_decides(tmp_path: Path) -> None:
    for name in ("rest.mp4", "rest.avi", "lift.mp4"):
        video(tmp_path / "ann" / name)
    for name in ("rest", "lift"):
        pictures(tmp_path / "ann" / name, ["1.jpg"])
    tree = walk(str(tmp_path), dataset="demo")
    assert find(tree, "ann/lift") == ["ann/lift.mp4"] and find(tree, "ann/lift", "frames") == ["ann/lift"]
    assert find(tree, "ann/rest.mp4") == ["ann/rest.mp4"] and find(tree, "ann/rest.avi") == ["ann/rest.avi"]
    assert find(tree, "ann/rest") == ["ann/rest.avi", "ann/rest.mp4"] == find(tree, "ann/rest.webm")


def test_the_place_that_is_the_whole_path_wins_over_copies(tmp_path: Path) -> None:
    for place in ("ann/rest.mp4", "old/ann/rest.mp4", "old/bob/rest.mp4", "older/bob/rest.mp4"):
        video(tmp_path / place)
    tree = walk(str(tmp_path), dataset="demo")
    assert find(tree, "ann/rest", whole_path=True) == ["ann/rest.mp4"]
    assert len(find(tree, "bob/rest", whole_path=True)) == 2
    inside = walk(str(tmp_path), dataset="demo", within="old")
    assert find(inside, "ann/rest", whole_path=True) == ["old/ann/rest.mp4"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_compared_whatever_their_unicode_form(tmp_path: Path, form: str) -> None:
    name = unicodedata.normalize(form, "zo\u00eb")
    video(tmp_path / name / f"{name}.mp4")
    tree = walk(str(tmp_path), dataset="demo")
    for other in ("NFC", "NFD"):
        assert find(tree, unicodedata.normalize(other, "zo\u00eb/zo\u00eb")) == [f"{name}/{name}.mp4"]


def test_no_root(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"demo: no folder at root=.*nowhere"):
        walk(str(tmp_path / "nowhere"), dataset="demo")


def test_label_files_are_looked_for_by_name_in_order(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no label file below .*; looked for a.csv, b.txt; dataset.labels="):
        walk(str(tmp_path), dataset="demo").label_file(None, ["a.csv", "b.txt"])
    second = write(tmp_path / "deep" / "B.txt", "x")
    assert walk(str(tmp_path), dataset="demo").label_file(None, ["a.csv", "b.txt"]) == second
    first = write(tmp_path / "deep" / "a.csv", "x")
    tree = walk(str(tmp_path), dataset="demo")
    assert tree.label_file(None, ["a.csv", "b.txt"]) == first
    assert tree.label_file("deep/B.txt", ["a.csv"]) == second == tree.label_file(str(second), [])
    with pytest.raises(FileNotFoundError, match=r"no label file at .*/c.csv, which dataset.labels=c.csv names"):
        tree.label_file("c.csv", ["a.csv"])
    write(tmp_path / "copy" / "a.csv", "x")
    with pytest.raises(DatasetError, match=r"2 files below .* hold the labels: copy/a.csv, deep/a.csv; say which"):
        walk(str(tmp_path), dataset="demo").label_file(None, ["a.csv", "b.txt"])
