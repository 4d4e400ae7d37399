"""Videos, folders, patterns and tables become clips, without a manifest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from clipautt.datasets.inputs import Inputs, find_inputs
from clipautt.manifest import ManifestError


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two people, three conditions; nothing is decoded, so the files are empty."""
    for name in ("anna/rest/1.mp4", "anna/stress/1.MOV", "anna/stress/2.webm", "bob/rest/1.mp4", "bob/rest/notes.txt"):
        path = tmp_path / "study" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    frames = tmp_path / "study/bob/walk/2"
    frames.mkdir(parents=True)
    for number in range(3):
        (frames / f"{number}.jpg").touch()
    return tmp_path / "study"


def ids(found: Inputs) -> list[str]:
    return [clip.clip_id for clip in found.clips]


def test_in_a_folder_the_first_folder_is_the_subject_and_the_next_the_condition(study: Path) -> None:
    found = find_inputs([str(study)])
    assert ids(found) == ["anna/rest/1", "anna/stress/1", "anna/stress/2", "bob/rest/1", "bob/walk/2"]
    assert [clip.subject_id for clip in found.clips] == ["anna"] * 3 + ["bob"] * 2
    assert [found.facts[name]["condition"] for name in ids(found)] == ["rest", "stress", "stress", "rest", "walk"]
    assert not found.one and found.columns == ("condition",) and found.notes == ()
    assert Path(found.clips[4].source) == study / "bob/walk/2", "a folder of frames is one clip"


def test_one_video_is_one(study: Path) -> None:
    for path in ("anna/rest/1.mp4", "bob/walk/2"):
        found = find_inputs([str(study / path)])
        assert found.one and ids(found) == [Path(path).stem] and found.clips[0].subject_id == ""
    assert not find_inputs([str(study / "anna/rest")]).one, "a folder may get more videos"


def test_several_words_share_the_folder_that_holds_them_all(study: Path) -> None:
    found = find_inputs([str(study / "bob/rest/1.mp4"), str(study / "anna"), str(study / "bob/rest/1.mp4")])
    assert ids(found) == ["anna/rest/1", "anna/stress/1", "anna/stress/2", "bob/rest/1"]
    assert found.notes == (f"{study}/bob/rest/1.mp4 is named twice and counts once",)


def test_two_names_of_one_file_are_told(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study / "anna/rest", tmp_path / "s/anna")
    (tmp_path / "s/anna/link.mp4").symlink_to("1.mp4")
    found = find_inputs([str(tmp_path / "s")])
    assert ids(found) == ["anna/1", "anna/link"] and found.notes == ("anna/1 and anna/link are the same file",)


def test_a_pattern_passes_over_what_is_no_video(study: Path) -> None:
    found = find_inputs([str(study / "*/rest/*")])
    assert ids(found) == ["anna/rest/1", "bob/rest/1"] and not found.one
    assert found.notes == (f"{study}/bob/rest/notes.txt is not a video and is left out",)
    assert ids(find_inputs([str(study / "**/*.mp4")])) == ["anna/rest/1", "bob/rest/1"]
    with pytest.raises(FileNotFoundError, match=r"\*\.avi: no file matches this pattern"):
        find_inputs([str(study / "*.avi")])


def test_a_name_with_brackets_is_a_name_where_it_exists(tmp_path: Path) -> None:
    (tmp_path / "take [1].mp4").touch()
    assert ids(find_inputs([str(tmp_path / "take [1].mp4")])) == ["take [1]"]


def test_names_that_differ_in_their_suffix_keep_it(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mov", "b.mp4"):
        (tmp_path / name).touch()
    assert ids(find_inputs([str(tmp_path)])) == ["a.mov", "a.mp4", "b"]


def test_file_names_may_say_who_and_what(tmp_path: Path) -> None:
    for name in ("p01_rest_a.mp4", "p01_stress.mp4", "p02_rest_1.mp4", "trailer.mp4"):
        (tmp_path / name).touch()
    found = find_inputs([str(tmp_path)], names="{subject}_{condition}_{}")
    assert [(clip.subject_id, found.facts[clip.clip_id]["condition"]) for clip in found.clips] == [
        ("p01", "rest"),
        ("", ""),
        ("p02", "rest"),
        ("", ""),
    ]
    assert found.notes == ("names={subject}_{condition}_{} does not fit 2 of 4 clips, as 'p01_stress'",)
    with pytest.raises(ValueError, match=r"names=\{subject\}-\{x\} fits none of 4 clips; the first is 'p01_rest_a'"):
        find_inputs([str(tmp_path)], names="{subject}-{x}")
    for wrong in ("subject", "{subject}_{subject}", "{a b}", "{}", "{subject"):
        with pytest.raises(ValueError, match="write each column once in braces"):
            find_inputs([str(tmp_path)], names=wrong)


def test_a_table_needs_sources_only_and_keeps_its_columns(study: Path) -> None:
    path = study / "clips.csv"
    path.write_text("source;group;subject_id\nanna/rest/1.mp4;old;007\nbob/rest/1.mp4;;\n", encoding="utf-8-sig")
    found = find_inputs([str(path)])
    assert ids(found) == ["anna/rest/1", "bob/rest/1"] and not found.one
    assert [clip.subject_id for clip in found.clips] == ["007", ""]
    assert found.facts == {"anna/rest/1": {"group": "old"}, "bob/rest/1": {"group": ""}}
    assert Path(found.clips[0].source) == (study / "anna/rest/1.mp4").resolve()


def test_spans_of_one_video_are_numbered_and_a_manifest_keeps_its_labels(study: Path) -> None:
    pd.DataFrame(
        {"source": ["anna/rest/1.mp4"] * 2, "start_seconds": [0, 2.5], "end_seconds": [2.5, 4], "label": ["pain", None]}
    ).to_parquet(study / "spans.parquet")
    found = find_inputs([str(study / "spans.parquet")])
    assert ids(found) == ["anna/rest/1.mp4#1", "anna/rest/1.mp4#2"]
    assert [clip.start_seconds for clip in found.clips] == [0.0, 2.5]
    assert [facts["label"] for facts in found.facts.values()] == ["pain", ""]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no video is given; name videos, folders, patterns"),
        (["gone.mp4"], r"gone\.mp4: no such file or folder"),
        (["empty"], "empty: no video and no folder of pictures below this folder"),
        (["s3://bucket/a.mp4"], "s3://bucket/a.mp4"),
        (["clips.csv", "a.mp4"], r"clips\.csv is a table of clips; give it alone, without 1 other paths"),
    ],
)
def test_what_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "clips.csv").write_text("source\na.mp4\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_inputs(words)


def test_a_table_without_sources_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("name,age\na,3\n")
    with pytest.raises(ManifestError, match=r"no column source, with the paths of the videos; there are: name, age"):
        find_inputs([str(tmp_path / "t.csv")])
    (tmp_path / "v.csv").write_text("Video,age\na.mp4,3\n")
    with pytest.raises(ManifestError, match=r"'Video' is no column that is read; did you mean 'source'\?"):
        find_inputs([str(tmp_path / "v.csv")])


def test_broken_links_are_clips_that_will_be_missing(study: Path) -> None:
    """Nothing is lost: whoever counts the rows finds them."""
    os.symlink("nowhere.mp4", study / "anna/rest/lost.mp4")
    assert "anna/rest/lost" in ids(find_inputs([str(study)]))
