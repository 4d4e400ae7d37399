"""Writing files so that a reader sees the old content or the new, whole, and never a part.

In: a path and what to write. Out: the file (or folder) under that name, on the disk. Whatever is killed, fails or loses
power before leaves the old file as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
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
"""How many characters of a file's name its temporary name begins with; a longer one could exceed the disk's limit."""


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; what lies there at the end of the block gets the name `path`.

    The temporary path is in the same folder, which must exist. It is unique among all machines that share the disk, and
    is called `.NAME.<32 hexadecimal digits>.tmp`, which no reader of a folder takes for one of its files. The content
    and its name are on the disk when the block ends; the temporary is removed where the block fails.

    Args:
        path: of a file, which is replaced where it exists; or of a folder, where the block makes one. A folder that
            holds something already is not replaced.

    Raises:
        OSError: if it cannot be written, or `path` is a folder that is not empty.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:_KEPT_CHARACTERS]}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        move(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Give a finished file or folder its name, in a folder of the same disk; it is on the disk afterwards."""
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
    """Bring the names in a folder to the disk."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hidden(path: Path, *, below: Path) -> bool:
    """Whether a name on the way from a folder to a path begins with a dot, as those of unfinished files and folders do.

    For searches through whole trees: `**` and `*` of `Path.glob` match such names, too.
    """
    return any(part.startswith(".") for part in path.relative_to(below).parts)


def newest(folder: str | Path, pattern: str, *, unless: Sequence[str] = ()) -> Path | None:
    """The path below a folder that was written last, of those that match.

    Args:
        folder: where to look; it may be missing.
        pattern: of `Path.glob`; what is hidden does not match.
        unless: a path that holds one of these texts does not match.
    """
    paths = (path for path in Path(folder).glob(pattern) if not hidden(path, below=Path(folder)))
    meant = [path for path in paths if not any(text in path.as_posix() for text in unless)]
    return max(meant, key=lambda path: path.stat().st_mtime, default=None)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file as a whole or not at all; its folder is made where it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write plain containers as indented JSON, as `write_bytes` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_table(path: str | Path, table: pd.DataFrame | pa.Table) -> None:
    """Write a Parquet file, without the index of a data frame, as `write_bytes` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = table if isinstance(table, pa.Table) else pa.Table.from_pandas(table, preserve_index=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        pq.write_table(rows, temporary)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file as `write_bytes` does; the tensors may lie on any device and need not be contiguous."""
    from safetensors.torch import save

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # `save_file` would make a file that nobody but its owner can read.
    write_bytes(path, save(ready, dict(metadata) if metadata else None))
