"""Run folders: what is written, when a run resumes and when it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from ray_jobs.platform import runs
from ray_jobs.platform.runs import differences, open_run

SETTINGS = {
    "name": "first",
    "seed": 0,
    "adapt": {"steps": 10, "rate": 1e-5},
    "cluster": {"num_cpus": 2},
    "data": "${name}",
}


def test_a_run_writes_settings_and_versions(tmp_path: Path) -> None:
    run = open_run("adapt", "first", OmegaConf.create(SETTINGS), root=tmp_path)
    assert (run.folder, run.resumed) == (tmp_path / "adapt" / "first", False)
    written = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert written == {**SETTINGS, "data": "first"}
    versions = json.loads((run.folder / "versions.json").read_text())
    assert versions["clipautt"] == runs.code_version()
    assert versions["packages"]["ray"].startswith("2.")
    assert run.path("figures", "a.png").parent.is_dir()


def test_equal_settings_resume_wherever_they_run(tmp_path: Path) -> None:
    open_run("adapt", "first", SETTINGS, root=tmp_path)
    again = open_run("adapt", "first", {**SETTINGS, "cluster": {"num_cpus": 64}, "runs": "/elsewhere"}, root=tmp_path)
    assert again.resumed


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    open_run("adapt", "first", SETTINGS, root=tmp_path)
    changed = {**SETTINGS, "adapt": {"steps": 20, "rate": 1e-5, "mode": "exact"}, "seed": None}
    with pytest.raises(ValueError) as caught:
        open_run("adapt", "first", changed, root=tmp_path)
    assert str(caught.value) == (
        f"the run {tmp_path / 'adapt' / 'first'} exists with other settings:\n"
        "  seed: 0 → null\n"
        "  adapt.steps: 10 → 20\n"
        '  adapt.mode: (not set) → "exact"\n'
        "Choose another name (name=…), or remove that folder to start over."
    )
    assert yaml.safe_load((tmp_path / "adapt" / "first" / "config.yaml").read_text())["adapt"]["steps"] == 10


def test_many_differences_are_cut_short(tmp_path: Path) -> None:
    open_run("adapt", "first", {f"key{index}": 0 for index in range(20)}, root=tmp_path)
    with pytest.raises(ValueError, match="key11: 0 → 1\n  and 8 more\n"):
        open_run("adapt", "first", {f"key{index}": 1 for index in range(20)}, root=tmp_path)


def test_differences_ignore_whole_branches_but_not_their_namesakes() -> None:
    before = {"cluster": {"a": 1}, "clusters": 1, "same": (1, 2)}
    after = {"cluster": {"a": 2, "b": 3}, "clusters": 2, "same": [1, 2]}
    assert differences(before, after, ignore=["cluster"]) == {"clusters": (1, 2)}


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", ".hidden", "a b", "-x"])
def test_a_name_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"^name=.*: expected letters, digits and \. _ \+ -"):
        open_run("adapt", name, {}, root=tmp_path)


def test_a_resumed_run_notes_other_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_run("adapt", "first", SETTINGS, root=tmp_path).folder
    first = json.loads((folder / "versions.json").read_text())
    newer = {**first, "clipautt": "9.9.9"}
    monkeypatch.setattr(runs, "versions", lambda: newer)
    for _ in range(2):
        open_run("adapt", "first", SETTINGS, root=tmp_path)
    assert json.loads((folder / "versions.json").read_text()) == {**first, "resumed_with": [newer]}


def test_missing_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root has no value; set it with data\.root=…"):
        open_run("adapt", "first", OmegaConf.create({"data": {"root": "???"}}), root=tmp_path)
    assert not (tmp_path / "adapt").exists()
