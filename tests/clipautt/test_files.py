"""Files are there as a whole or not at all, whoever is killed and whoever else writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from clipautt.files import atomic, hidden, locked, move, write_bytes, write_json, write_table, write_tensors, write_text


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_temporary_paths_are_unique_hidden_and_beside_the_target(tmp_path: Path) -> None:
    with atomic(tmp_path / "rows.parquet") as one, atomic(tmp_path / "rows.parquet") as other:
        assert one != other
        for path in (one, other):
            path.write_bytes(b"x")
            assert path.parent == tmp_path and path.name.startswith(".rows.parquet.") and path.suffix == ".tmp"
            assert hidden(path, below=tmp_path)
        for pattern in ("*.parquet", "**/*.parquet", "[!.]*"):
            assert list(tmp_path.glob(pattern)) == []
    assert names(tmp_path) == ["rows.parquet"]


def test_a_name_of_the_longest_length_that_a_disk_takes_has_a_temporary(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 125 + ".json")
    write_json(path, [])
    assert names(tmp_path) == [path.name]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(KeyError), atomic(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    with pytest.raises(TypeError):
        write_bytes(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_a_folder_is_there_as_a_whole_and_replaces_none_that_is_full(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic(tmp_path / "model") as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "weights").write_bytes(b"half")
        raise KeyError
    assert names(tmp_path) == []
    for content in (b"first", b"second"):
        try:
            with atomic(tmp_path / "model") as temporary:
                temporary.mkdir()
                (temporary / "weights").write_bytes(content)
                assert not (tmp_path / "model").exists() or content == b"second"
        except OSError:
            assert content == b"second"
    assert names(tmp_path) == ["model"] and (tmp_path / "model" / "weights").read_bytes() == b"first"


_CHILD = """
import sys
from pathlib import Path
from clipautt.files import atomic
with atomic(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"n" * 1000)
    print("half", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"old")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", _CHILD, str(path)], **pipes) as child:  # type: ignore[call-overload]
        assert child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert list(tmp_path.glob("*.parquet")) == [path] and len(names(tmp_path)) == 2
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


_WRITER = """
import sys
from clipautt.files import write_bytes
for _ in range(40):
    write_bytes(sys.argv[1], sys.argv[2].encode() * 100_000)
"""


def test_two_processes_that_write_the_same_file_do_not_mix(tmp_path: Path) -> None:
    path, seen, stop = tmp_path / "file", set(), threading.Event()
    write_bytes(path, b"a" * 100_000)

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(path), letter]) for letter in "ab"]
    try:
        assert [writer.wait() for writer in writers] == [0, 0]
    finally:
        stop.set()
        reader.join()
    assert seen <= {b"a" * 100_000, b"b" * 100_000} and names(tmp_path) == ["file"]


def test_content_and_name_are_brought_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def noted_replace(source: Path, target: Path) -> None:
        order.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with atomic(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "weights").write_bytes(b"w")
    assert order == ["weights", temporary.name, "renamed", tmp_path.name]
    order.clear()
    (tmp_path / "other").write_bytes(b"o")
    move(tmp_path / "other", tmp_path / "moved")
    assert order == ["other", "renamed", tmp_path.name]


def test_helpers_make_folders_and_files_that_read_back(tmp_path: Path) -> None:
    folder, frame = tmp_path / "new" / "folder", pd.DataFrame({"a": [1, 2]}, index=[5, 6])
    write_text(folder / "t.txt", "ä\n")
    write_json(folder / "j.json", {"ä": (1, None)})
    write_table(folder / "f.parquet", frame)
    write_table(folder / "p.parquet", pa.table({"a": [1]}).replace_schema_metadata({"key": "value"}))
    write_tensors(folder / "w.safetensors", {"w": torch.arange(6.0).reshape(2, 3).T}, {"key": "value"})
    assert (folder / "t.txt").read_text(encoding="utf-8") == "ä\n"
    assert json.loads((folder / "j.json").read_text(encoding="utf-8")) == {"ä": [1, None]}
    assert pq.read_table(folder / "f.parquet").column_names == ["a"]
    assert pq.read_schema(folder / "p.parquet").metadata == {b"key": b"value"}
    assert load_file(folder / "w.safetensors")["w"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "readable by whom the folder is shared with"


def test_hidden_looks_below_a_folder_only(tmp_path: Path) -> None:
    root = tmp_path / ".dotted"
    assert hidden(root / "a" / ".b.tmp" / "c", below=root)
    assert not hidden(root / "a" / "b" / "c", below=root)


def test_what_one_reads_and_replaces_under_a_lock_is_lost_by_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "counts.json"

    def count() -> None:
        for _ in range(20):
            with locked(path):
                write_json(path, (json.loads(path.read_text()) if path.exists() else 0) + 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(path.read_text()) == 80
    with locked(path), pytest.raises(TimeoutError), locked(path, timeout_seconds=0):
        pass


def test_a_private_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_json(path, {})
    assert path.stat().st_mode & 0o777 != 0o600
    write_json(path, {"a": 1}, private=True)
    assert path.stat().st_mode & 0o777 == 0o600 and json.loads(path.read_text()) == {"a": 1}
