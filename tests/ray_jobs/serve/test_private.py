"""A folder for uploads is this user's alone, whatever others have put in its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ray_jobs.serve.private import private_folder
from ray_jobs.serve.web.spool import Spool


def test_a_folder_is_made_or_closed_to_others(tmp_path: Path) -> None:
    before = os.umask(0)
    open_before = tmp_path / "open"
    open_before.mkdir()
    open_before.chmod(0o777)
    try:
        for folder in (tmp_path / "new", open_before):
            private_folder(folder)
    finally:
        os.umask(before)
    for folder in (tmp_path / "new", open_before):
        assert oct(folder.stat().st_mode & 0o777) == "0o700"


def test_a_link_in_its_place_is_refused_and_nothing_behind_it_is_swept(tmp_path: Path) -> None:
    precious = tmp_path / "home" / "thesis"
    precious.mkdir(parents=True)
    (tmp_path / "spool").symlink_to(tmp_path / "home")
    with pytest.raises(
        ValueError, match=r"spool \(it is a link or belongs to another user\); it should be this user's"
    ):
        Spool(tmp_path / "spool", max_bytes=1, free_bytes=0)
    assert precious.is_dir()


def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="it is a link or belongs to another user"):
        private_folder(tmp_path)
