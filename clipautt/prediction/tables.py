"""Writes tables of predictions, a part at a time, as CSV or Parquet.

In: data frames with the columns that are documented in `columns`. Out: one file, which appears when it is complete.
However many clips there are, one part is in memory.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipautt.commands import setting
from clipautt.files import atomic
from clipautt.prediction.columns import CLIP, Column

FORMATS = (".csv", ".parquet")
_DTYPES = {"text": "string", "number": "float64", "count": "Int64", "flag": "boolean"}
_TYPES = {"text": pa.string(), "number": pa.float64(), "count": pa.int64(), "flag": pa.bool_()}
_DIGITS = "%.7g"


def check_place(path: str, name: str = "out") -> None:
    """Refuse a file that cannot be written, before anything is computed for it; its folder is made.

    Args:
        path: the file that is to be written.
        name: the setting that names it.

    Raises:
        ValueError: if the name ends otherwise than with `.csv` or `.parquet`, or a folder lies there.
        FileExistsError: if a file lies there that is no table of predictions, and would be lost.
        OSError: if nothing can be written there; the message names the place.
    """
    if Path(path).suffix.lower() not in FORMATS:
        better = setting(name, f"{path}.csv")
        raise ValueError(f"{name}={path}: a table is written as {' or '.join(FORMATS)}; for instance {better}")
    if Path(path).is_dir():
        raise ValueError(f"{name}={path} is a folder; name a file")
    if not _is_ours(Path(path)):
        raise FileExistsError(f"{name}={path} is a file, but no table of predictions; name another file, or remove it")
    folder = Path(path).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{name}={path} cannot be written ({error.strerror}); name another folder") from error


def _is_ours(path: Path) -> bool:
    """Whether nothing is lost with a file: it is absent, empty or begins with the columns of every table here."""
    if not path.exists() or not path.stat().st_size:
        return True
    names = [column.name for column in CLIP]
    if path.suffix.lower() == ".csv":
        start = ",".join(names).encode()
        with path.open("rb") as file:
            return file.read(len(start) + 1) == start + b","
    try:
        return list(pq.read_schema(path).names)[: len(names)] == names
    except pa.ArrowInvalid:
        return False


def write_rows(path: str | Path, columns: Sequence[Column], tables: Iterable[pd.DataFrame]) -> int:
    """Write data frames below one another.

    Args:
        path: `.csv` (UTF-8, commas, decimal points, seven digits, nothing where a value is not known) or `.parquet`.
        columns: the columns of the file; a frame may lack some, which are then not known.
        tables: the rows.

    Returns:
        Number of rows.

    Raises:
        ValueError: if a frame has another column.
    """
    target, rows = Path(path), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as temporary:
        append, close = _csv(temporary) if target.suffix.lower() == ".csv" else _parquet(temporary, columns)
        try:
            append(_typed(pd.DataFrame(), columns))
            for table in tables:
                append(_typed(table, columns))
                rows += len(table)
        finally:
            close()
    return rows


def unknown_row(columns: Sequence[Column], known: Mapping[str, Any]) -> pd.DataFrame:
    """One row of which only some values are known; text that is not known is empty."""
    empty = {column.name: "" if column.kind == "text" else math.nan for column in columns}
    return _typed(pd.DataFrame([empty | dict(known)]), columns)


def _typed(table: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    other = sorted(set(table.columns) - {column.name for column in columns})
    if other:
        raise ValueError(f"table has the columns {', '.join(other)}; allowed: those that are documented in `columns`")
    types = {column.name: _DTYPES[column.kind] for column in columns}
    return table.reindex(columns=list(types)).astype(types)


def _csv(path: Path) -> tuple[Any, Any]:
    file = path.open("w", encoding="utf-8", newline="")
    header = [True]

    def append(table: pd.DataFrame) -> None:
        table.to_csv(file, index=False, header=header.pop() if header else False, float_format=_DIGITS)

    return append, file.close


def _parquet(path: Path, columns: Sequence[Column]) -> tuple[Any, Any]:
    fields = [
        pa.field(column.name, _TYPES[column.kind], metadata={"about": column.about, "unit": column.unit})
        for column in columns
    ]
    writer = pq.ParquetWriter(path, pa.schema(fields))

    def append(table: pd.DataFrame) -> None:
        if len(table):
            writer.write_table(pa.Table.from_pandas(table, schema=writer.schema, preserve_index=False))

    return append, writer.close
