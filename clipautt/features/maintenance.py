"""Maintenance of a feature store: list its contents, verify them, and remove what is no longer needed.

In: a store, and the `References` to it. Out: a `FolderInventory` per folder, `Finding`s, or a `Collection` of what is
removed. Files and rows written in the last hour are never removed, so other jobs may write during a collection.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipautt.clips import Clip
from clipautt.features.clip_features import clip_key, fingerprint_of, pixels_of
from clipautt.features.references import References
from clipautt.features.store import (
    FRAMES,
    OK,
    SPAN,
    SPEC_FILE,
    DamagedStoreError,
    StoredFrames,
    read_part,
    read_parts,
    store_schema,
    stored_frames,
    write_part,
)
from clipautt.files import write_bytes
from clipautt.video.augmentation import AugmentedPass

Kind = Literal["leftover", "damaged", "replaced", "unreferred", "folder"]
KINDS: tuple[str, ...] = get_args(Kind)
GRACE_SECONDS = 3600.0
"""What was written within this time is never removed, seconds."""
_LEFTOVERS = (".part-*.tmp", f".{SPEC_FILE}.*.tmp", ".spec-*.tmp", "part-*.tmp", f"{SPEC_FILE}.*.tmp")
_SET_ASIDE = "_damaged-"
_FACTS = ("clip_key", "clip_id", "subject_id", "source", "status", "reason", *SPAN)


@dataclass(frozen=True)
class FolderInventory:
    """Contents of the folder of one fingerprint."""

    folder: Path
    """The folder; its name should be the fingerprint."""
    trouble: str
    """Why the specification cannot be relied on; empty if it can."""
    backbone: str
    """Name of the backbone; empty if unknown."""
    backbone_fingerprint: str
    """Fingerprint of the backbone's weights, preprocessing and precision; empty if unknown."""
    frame_size: int | None
    """Height and width of the frames in pixels; None if unknown."""
    frames_per_second: float | None
    """Sampling rate; None for every frame, or if unknown."""
    detector: str
    """Name of the face detector; empty if unknown."""
    augmented: str
    """How the frames were changed at random, and in which pass; empty if they were not, or if unknown."""
    feature_dim: int | None
    """Width of a feature, d; None if unknown."""
    ok: int
    """Number of clips with features."""
    failed: Mapping[str, int]
    """Status → number of clips that failed and have no features."""
    frames: int
    """Number of frames of the clips with features."""
    files: int
    """Number of files with rows, damaged ones included."""
    bytes: int
    """Size of everything in the folder, bytes."""
    last_written: float | None
    """Modification time of the newest file with rows, seconds since 1970; None without one."""
    damaged: int
    """Number of files with rows that cannot be read."""
    set_aside: int
    """Number of damaged files that were renamed, so that nothing reads them."""
    leftovers: int
    """Number of files left by interrupted writes."""
    replaced: int
    """Number of rows that another row of the same clip replaces."""


@dataclass(frozen=True)
class Finding:
    """Something that `verify` noticed."""

    path: Path
    """The file or folder."""
    what: str
    """What is wrong with it."""
    clip_id: str | None = None
    """Id of the clip, if it is about a row."""
    problem: bool = True
    """False for a note: nothing in the store is wrong."""

    def __str__(self) -> str:
        clip = "" if self.clip_id is None else f"clip {self.clip_id!r} "
        return f"{self.path}: {clip}{self.what}"


@dataclass(frozen=True)
class Waste:
    """Something that is no longer needed."""

    kind: Kind
    """`leftover` of an interrupted write, `damaged` file, rows `replaced` or `unreferred`, or a whole `folder`."""
    path: Path
    """The file or folder; for rows, the file that holds them."""
    rows: int
    """Number of rows; 0 for files and folders."""
    bytes: int
    """Size of the file or folder, bytes; for rows, their share of the file by frames."""


@dataclass(frozen=True)
class Collection:
    """What a collection removes, or removed."""

    wastes: tuple[Waste, ...]
    """What is removed, sorted by folder."""
    notes: tuple[str, ...]
    """Why something stays, one sentence each."""


@dataclass(frozen=True)
class _Part:
    """A file with rows, without their features."""

    file: Path
    """The file."""
    modified: float
    """Seconds since 1970."""
    bytes: int
    """Size of the file."""
    rows: pd.DataFrame
    """Columns `_FACTS`, `frames` and `has_span` (whether the file has the columns of spans); empty if damaged."""
    damage: str = ""
    """Why it cannot be used; empty if it can."""
    problems: tuple[tuple[str | None, str], ...] = field(default=())
    """Clip id, and what is wrong with its row."""


def inventory(root: str | Path) -> list[FolderInventory]:
    """The contents of a store, by folder.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    return [_inventory(folder) for folder in store_folders(root)]


def verify(root: str | Path) -> list[Finding]:
    """Read everything in a store and report what is wrong with it.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    found: list[Finding] = []
    for folder in store_folders(root):
        facts, trouble = read_specification(folder)
        if trouble:
            found.append(Finding(folder, trouble))
        for part in _parts(folder, facts, features=True):
            if part.damage and not part.problems:
                found.append(Finding(part.file, part.damage))
            found += [Finding(part.file, what, clip) for clip, what in part.problems]
            found += [Finding(part.file, what, clip, problem=False) for clip, what in _source_notes(part)]
    return found


def collect(root: str | Path, references: References, *, apply: bool, now: float | None = None) -> Collection:
    """Find what is no longer needed, and remove it.

    A damaged file is renamed to `_damaged-…` and never removed. To remove rows of a file, its other rows are written to
    a new file before the old one is removed: a job that reads meanwhile, or after an interruption, may find rows twice
    but never misses one.

    Args:
        root: folder of the store.
        references: what is needed.
        apply: whether to remove anything; otherwise only report.
        now: seconds since 1970; the present by default.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    before = (time.time() if now is None else now) - GRACE_SECONDS
    wastes: list[Waste] = []
    notes = list(references.notes)
    for folder in store_folders(root):
        facts, trouble = read_specification(folder)
        if trouble:
            notes.append(f"{folder} is left alone: {trouble}")
            continue
        leftovers = [(file, stat) for file, stat in _leftovers(folder) if stat.st_mtime < before]
        for file, stat in leftovers:
            wastes.append(Waste("leftover", file, 0, stat.st_size))
            if apply:
                file.unlink(missing_ok=True)
        if _is_needed(folder, facts, references):
            wastes += _collect_rows(folder, facts, references, apply=apply, before=before)
        elif any(stat.st_mtime >= before for stat in _stats(folder)):
            notes.append(f"{folder} is kept: nothing refers to it, but it was written to in the last hour")
        else:
            wastes += _collect_folder(folder, {file for file, _ in leftovers}, apply=apply)
    return Collection(tuple(wastes), tuple(notes))


def read_specification(folder: Path) -> tuple[Mapping[str, Any], str]:
    """The facts of a folder's specification, and why they cannot be relied on; empty if they can."""
    try:
        facts = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
        _facts_shown(facts)
    except FileNotFoundError:
        return {}, f"it has no {SPEC_FILE}: it is not a folder of a store, or lost the file; extraction writes it again"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        return {}, f"{SPEC_FILE} is not a specification ({reason}); remove it, and extraction writes it again"
    fingerprint = fingerprint_of(facts)
    if fingerprint == folder.name:
        return facts, ""
    return facts, f"{SPEC_FILE} has fingerprint {fingerprint}, which is not the folder's name"


def _facts_shown(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that `inventory` shows, by field; KeyError, TypeError or ValueError for other contents."""
    frames = facts["frames"]
    return {
        "backbone": str(facts["backbone"]),
        "backbone_fingerprint": str(facts["backbone_fingerprint"]),
        "frame_size": int(frames["preprocessing"]["size"]),
        "frames_per_second": frames["sampling"]["frames_per_second"],
        "detector": str(frames["faces"]["detector"]),
        "augmented": str(AugmentedPass.from_json(facts["augmented"])) if "augmented" in facts else "",
        "feature_dim": int(facts["feature_dim"]),
    }


_UNKNOWN: dict[str, Any] = {
    "backbone": "",
    "backbone_fingerprint": "",
    "frame_size": None,
    "frames_per_second": None,
    "detector": "",
    "augmented": "",
    "feature_dim": None,
}


def store_folders(root: str | Path) -> list[Path]:
    """The folders in a store; each should be named by a fingerprint.

    Raises:
        FileNotFoundError: if there is no such store, or the folder holds other things.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no feature store at {root}; `clipautt extract` makes one, or give store=FOLDER")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if folders and not any((folder / SPEC_FILE).exists() or any(folder.glob("*.parquet")) for folder in folders):
        raise FileNotFoundError(f"{root} is not a feature store: none of its folders holds features; give store=FOLDER")
    return folders


def _stats(folder: Path) -> list[os.stat_result]:
    stats = []
    for path in folder.iterdir():
        try:
            stats.append(path.stat())
        except FileNotFoundError:
            continue  # the temporary file of a write that has just finished
    return stats


def _leftovers(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in sorted({path for pattern in _LEFTOVERS for path in folder.glob(pattern)}):
        try:
            yield path, path.stat()
        except FileNotFoundError:
            continue


def _inventory(folder: Path) -> FolderInventory:
    facts, trouble = read_specification(folder)
    parts = _parts(folder, facts, features=False)
    rows = _rows(parts)
    kept = rows[~_replaced(rows)]
    return FolderInventory(
        folder=folder,
        trouble=trouble,
        **(_facts_shown(facts) if facts else _UNKNOWN),
        ok=int((kept["status"] == OK).sum()),
        failed=dict(sorted(Counter(kept.loc[kept["status"] != OK, "status"].astype(str)).items())),
        frames=int(kept.loc[kept["status"] == OK, "frames"].sum()),
        files=len(parts),
        bytes=sum(stat.st_size for stat in _stats(folder)),
        last_written=max((part.modified for part in parts), default=None),
        damaged=sum(bool(part.damage) for part in parts),
        set_aside=sum(1 for _ in folder.glob(f"{_SET_ASIDE}*")),
        leftovers=sum(1 for _ in _leftovers(folder)),
        replaced=len(rows) - len(kept),
    )


def _parts(folder: Path, facts: Mapping[str, Any], *, features: bool) -> list[_Part]:
    """Every file with rows, in the order of writing; with `features`, everything in it is read and checked."""
    return read_parts(folder, lambda file: _read(file, facts.get("feature_dim"), features=features))


def _read(file: Path, feature_dim: int | None, *, features: bool) -> _Part:
    stat = file.stat()
    columns = list(dict.fromkeys([*_FACTS, "times", *(FRAMES if features else ())]))
    try:
        table = read_part(file, columns, feature_dim=feature_dim)
        has_span = set(SPAN) - {"face"} <= set(pq.read_schema(file).names)  # earlier files have no faces to name
    except DamagedStoreError as error:
        nothing = store_schema(1).empty_table().select(list(_FACTS)).to_pandas().assign(frames=0, has_span=False)
        return _Part(file, stat.st_mtime, stat.st_size, nothing, str(error).removeprefix(f"{file} "))
    rows = table.select(list(_FACTS)).to_pandas(integer_object_nulls=True).assign(has_span=has_span)
    text = [name for name in _FACTS if name not in SPAN]
    rows[text] = rows[text].astype(object).where(rows[text].notna(), None)
    rows["frames"] = pc.fill_null(pc.list_value_length(table["times"]), 0).to_numpy()
    if not features:
        return _Part(file, stat.st_mtime, stat.st_size, rows)
    width = table.schema.field("features").type.value_type.list_size
    damaged, problems = _check_rows(rows, stored_frames(table, width))
    return _Part(file, stat.st_mtime, stat.st_size, rows, damaged, problems)


def _check_rows(rows: pd.DataFrame, frames: Iterable[StoredFrames]) -> tuple[str, tuple[tuple[str | None, str], ...]]:
    """Why the file cannot be used, and what is wrong with its rows."""
    damage = ""
    problems: list[tuple[str | None, str]] = []
    for clip, key, status, reason, stored in zip(
        rows["clip_id"], rows["clip_key"], rows["status"], rows["reason"], frames, strict=True
    ):
        found = stored.damage if status == OK else None
        if key is None:
            found = "has no clip_key"
        if found:
            damage = damage or f"clip {clip!r} {found}"
            problems.append((clip, found))
        elif status == OK and stored.times is not None and (np.diff(stored.times) < 0).any():
            problems.append((clip, "has times that decrease"))
        elif status != OK and not reason:
            problems.append((clip, f"has status {status!r} without a reason"))
    return damage, tuple(problems)


def _source_notes(part: _Part) -> Iterator[tuple[str, str]]:
    """Clips with features whose source is gone or has changed."""
    for row in part.rows[part.rows["status"] == OK].to_dict("records"):
        if not os.path.exists(row["source"] or ""):
            yield row["clip_id"], f"was made from {row['source']}, which is gone"
        elif row["has_span"]:
            span: dict[str, Any] = {name: None if pd.isna(row[name]) else row[name] for name in SPAN}
            clip = Clip(row["clip_id"], row["subject_id"], row["source"], "target", **span)
            if clip_key(clip) != pixels_of(row["clip_key"]):
                yield row["clip_id"], f"was made from {row['source']}, which has changed since"


def _rows(parts: Sequence[_Part]) -> pd.DataFrame:
    """The rows of all files that can be used, with the number of their file as `part`."""
    empty = pd.DataFrame(columns=[*_FACTS, "frames", "has_span", "part"])
    tables = [part.rows.assign(part=i) for i, part in enumerate(parts) if not part.damage and len(part.rows)]
    return pd.concat(tables, ignore_index=True) if tables else empty


def _replaced(rows: pd.DataFrame) -> pd.Series[bool]:
    """Which rows no reader uses: a success replaces failures, and a later success or failure an earlier one."""
    ordered = rows.sort_values("status", key=lambda status: status.eq(OK), kind="stable")
    return ordered["clip_key"].duplicated(keep="last").astype(bool).reindex(rows.index)


def _is_needed(folder: Path, facts: Mapping[str, Any], references: References) -> bool:
    if references.fingerprints is None or folder.name in references.fingerprints:
        return True
    shown = _facts_shown(facts)
    return (shown["backbone"], shown["frames_per_second"], shown["detector"]) in references.recipes


def _collect_rows(
    folder: Path, facts: Mapping[str, Any], references: References, *, apply: bool, before: float
) -> Iterator[Waste]:
    """The damaged files of a folder, and the rows that are no longer needed.

    All files are read completely before anything is removed, because only a readable row replaces another.
    """
    parts = _parts(folder, facts, features=True)
    rows = _rows(parts)
    replaced = _replaced(rows)
    unreferred = ~replaced & _unreferred(rows, references)
    for number, part in enumerate(parts):
        if part.damage:
            yield Waste("damaged", part.file, 0, part.bytes)
            if apply:
                _rename(part.file, part.file.with_name(f"{_SET_ASIDE}{part.file.name}"))
            continue
        mine = rows["part"] == number
        if part.modified >= before or not (mine & (replaced | unreferred)).any():
            continue
        weight = rows["frames"].where(mine, 0) + mine
        kinds: tuple[tuple[Kind, pd.Series[bool]], ...] = (("replaced", replaced), ("unreferred", unreferred))
        for kind, removed in kinds:
            if (mine & removed).any():
                share = float(weight[removed].sum() / weight.sum())
                yield Waste(kind, part.file, int((mine & removed).sum()), round(part.bytes * share))
        if apply:
            _rewrite(part.file, ~(replaced | unreferred)[mine].to_numpy(bool))


def _unreferred(rows: pd.DataFrame, references: References) -> pd.Series[bool]:
    """Rows whose clip is in no manifest; not those whose source is absent at present."""
    if references.clip_keys is None:
        return pd.Series(False, rows.index)
    absent = rows["source"].map(lambda source: os.path.abspath(source or "") in references.absent_sources)
    return ~(rows["clip_key"].map(pixels_of).isin(references.clip_keys) | absent.astype(bool))


def _rewrite(file: Path, kept: Any) -> None:
    """Keep only some rows of a file: they are written to a new file before this one is removed."""
    if kept.any():
        try:
            with pq.ParquetFile(file, page_checksum_verification=True) as part:
                table = part.read()
        except FileNotFoundError:
            return  # another collection removed it
        write_part(file.parent, table.filter(pa.array(kept)))
    file.unlink(missing_ok=True)


def _rename(file: Path, to: Path) -> None:
    try:
        os.replace(file, to)
    except FileNotFoundError:
        return  # another collection removed it


def _collect_folder(folder: Path, leftovers: set[Path], *, apply: bool) -> Iterator[Waste]:
    """Collect a folder that nothing refers to; damaged files that were set aside in it stay."""
    files = [f for f in sorted(folder.glob("part-*.parquet")) if f not in leftovers]
    spec = folder / SPEC_FILE
    others = [p for p in folder.iterdir() if p not in leftovers and p not in files and p != spec]
    if others and not files:
        return
    yield Waste("folder", folder, 0, sum(f.stat().st_size for f in [*files, *([] if others else [spec])]))
    if not apply:
        return
    for file in files:
        file.unlink(missing_ok=True)
    if others:
        return
    content = spec.read_bytes()
    spec.unlink()
    try:
        folder.rmdir()
    except OSError:  # another job has just begun to write here
        write_bytes(spec, content)
