"""Atomic writes: a reader sees the old file or the complete new one, never a part.

In: a path and its content. Out: the file (or folder) at that path, flushed to disk. A kill, an error or a power failure
before that leaves the old file unchanged.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from torch import Tensor

_KEPT_CHARACTERS = 40
"""How many characters of a file's name its temporary name begins with; more could exceed the file system's limit."""


@contextlib.contextmanager
def atomic(path: str | Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to `path` at the end of the block.

    The temporary path is in the same folder, which must exist. Its name, `.NAME.<32 hexadecimal digits>.tmp`, is unique
    across machines that share the disk, and no reader of a folder takes it for one of its files. When the block ends,
    content and name have been flushed to disk; if the block fails, the temporary file or folder is removed.

    Args:
        path: target file, which is replaced if it exists, or target folder, if the block makes one. A folder that is
            not empty is not replaced.
        private: whether nobody but its owner can ever open the file, which then exists when the block begins.

    Raises:
        OSError: if it cannot be written, or `path` is a folder that is not empty.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:_KEPT_CHARACTERS]}.{uuid.uuid4().hex}.tmp")
    try:
        if private:
            temporary.touch(mode=0o600)
        yield temporary
        move(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield a new hidden folder inside `folder`, for files that `move` then puts into place; removed afterwards."""
    temporary = folder / f".scratch.{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name without using space where the disk allows it, else copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def move(source: Path, target: Path) -> None:
    """Rename a finished file or folder on the same disk, and flush its content and name to disk."""
    if source.is_dir():
        for folder, _, names in os.walk(source):
            for name in names:
                _sync_file(Path(folder, name))
            sync_folder(Path(folder))
    else:
        _sync_file(source)
    os.replace(source, target)
    sync_folder(target.parent)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_uri(path: str | Path, name: str) -> None:
    """Refuse a URI where a local path is expected: it would make a local folder named `s3:`.

    Args:
        path: the path as given.
        name: what it is, for the message: the name of a setting or of an argument.

    Raises:
        ValueError: naming both.
    """
    separator = ":/" if isinstance(path, Path) else "://"  # `Path` turns two slashes into one
    if re.match(rf"[A-Za-z][A-Za-z0-9+.-]+{separator}", str(path)):
        raise ValueError(
            f"{name}={path}: URIs are not read yet; give a local path, on storage that all machines share, such as a "
            "mounted bucket"
        )


def hidden(path: Path, *, below: Path) -> bool:
    """Whether a name between a folder and a path below it begins with a dot, as those of unfinished files do.

    For searches of whole trees: `**` and `*` of `Path.glob` match such names, too.
    """
    return any(part.startswith(".") for part in path.relative_to(below).parts)


def newest(folder: str | Path, pattern: str, *, unless: Sequence[str] = ()) -> Path | None:
    """The most recently written path below a folder that matches; None if there is none.

    Args:
        folder: where to look; it may be missing.
        pattern: as for `Path.glob`; hidden paths do not match.
        unless: a path that contains one of these texts does not match.
    """
    paths = (path for path in Path(folder).glob(pattern) if not hidden(path, below=Path(folder)))
    matching = [path for path in paths if not any(text in path.as_posix() for text in unless)]
    return max(matching, key=lambda path: path.stat().st_mtime, default=None)


@contextlib.contextmanager
def locked(path: str | Path, *, timeout_seconds: float = 30.0) -> Iterator[None]:
    """No other process or thread is inside such a block for the same path, so that a file can be read, then replaced.

    The lock is that of a file `.NAME.lock` beside it, which stays; the system takes it from a process that dies. A
    missing folder is created.

    Raises:
        TimeoutError: if another one does not leave its block in time.
    """
    from filelock import FileLock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout_seconds, poll_interval=0.01):
        yield


def write_bytes(path: str | Path, content: bytes, *, private: bool = False) -> None:
    """Write a file atomically; a missing folder is created. Nobody but its owner can ever open a private file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic(path, private=private) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str, *, private: bool = False) -> None:
    """Write a UTF-8 file as `write_bytes` does."""
    write_bytes(path, text.encode(), private=private)


def write_json(path: str | Path, value: Any, *, private: bool = False) -> None:
    """Write plain containers as indented JSON, as `write_bytes` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", private=private)


def write_table(path: str | Path, table: pd.DataFrame | pa.Table) -> None:
    """Write a Parquet file, without the index of a data frame, as `write_bytes` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = table if isinstance(table, pa.Table) else pa.Table.from_pandas(table, preserve_index=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        pq.write_table(rows, temporary)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file as `write_bytes` does; the tensors may be on any device and need not be contiguous."""
    from safetensors.torch import save

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # `save_file` would make a file that only its owner can read.
    write_bytes(path, save(ready, dict(metadata) if metadata else None))
