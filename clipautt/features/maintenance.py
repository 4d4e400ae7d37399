"""Looks after a feature store: what lies in it, whether it is sound, and what nobody needs any more.

A row is needed while a manifest that a run names, or that is given, has its clip; a folder while a checkpoint was
trained on such features. Where that cannot be known for sure, everything is kept and the reason told. Files and rows
of the last hour are never removed, so other jobs may write while rubbish is collected.

What this module does not know: how any of it is printed.
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
import yaml

from clipautt.backbones.loading import BackboneConfig
from clipautt.clips import Clip
from clipautt.features.clip_features import FeatureSpec, clip_key, fingerprint_of
from clipautt.features.store import (
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
from clipautt.files import hidden, write_bytes
from clipautt.manifest import ManifestError, read_manifest

Kind = Literal["leftover", "damaged", "replaced", "unreferred", "folder"]
KINDS: tuple[str, ...] = get_args(Kind)
GRACE_SECONDS = 3600.0
"""What was written later than this before now is never removed."""
_LEFTOVERS = (".part-*.tmp", f".{SPEC_FILE}.*.tmp", ".spec-*.tmp", "part-*.tmp", f"{SPEC_FILE}.*.tmp")
_SET_ASIDE = "_damaged-"
_FACTS = ("clip_key", "clip_id", "subject_id", "source", "status", "reason", *SPAN)


@dataclass(frozen=True)
class FolderInventory:
    """What lies in the folder of one fingerprint."""

    folder: Path
    """The folder; its name should be the fingerprint."""
    trouble: str
    """Why the specification cannot be relied on; empty where it can."""
    backbone: str
    """Name of the backbone; empty where it is not known."""
    backbone_fingerprint: str
    """Fingerprint of the backbone's weights, preprocessing and precision; empty if unknown."""
    frame_size: int | None
    """Height and width of the frames in pixels."""
    frames_per_second: float | None
    """Moments that are encoded; None is every frame, or not known."""
    detector: str
    """Name of the face detector; empty if unknown."""
    feature_dim: int | None
    """d."""
    ok: int
    """Clips with features."""
    failed: Mapping[str, int]
    """Status → clips that have a failure and no features."""
    frames: int
    """Number of frames of the clips with features."""
    files: int
    """Number of files with rows, damaged ones included."""
    bytes: int
    """Size of everything in the folder, bytes."""
    last_written: float | None
    """Modification time of the newest file with rows, seconds since 1970; None without one."""
    damaged: int
    """Files with rows that cannot be read."""
    set_aside: int
    """Damaged files that were renamed, so that nothing reads them."""
    leftovers: int
    """Files of interrupted writes."""
    replaced: int
    """Rows of clips that a later row replaces."""


@dataclass(frozen=True)
class Finding:
    """Something that `verify` noticed."""

    path: Path
    """The file or folder."""
    what: str
    """What is the matter."""
    clip_id: str | None = None
    """The clip, where it is a row that is meant."""
    problem: bool = True
    """False for a note: nothing in the store is wrong."""

    def __str__(self) -> str:
        clip = "" if self.clip_id is None else f"clip {self.clip_id!r} "
        return f"{self.path}: {clip}{self.what}"


@dataclass(frozen=True)
class References:
    """What refers to features."""

    fingerprints: frozenset[str] | None
    """Folders that are needed; None where that is not known, and then all are kept."""
    clip_keys: frozenset[str] | None
    """Clips that are needed; None where that is not known, and then all rows are kept."""
    absent_sources: frozenset[str] = frozenset()
    """Absolute paths that manifests name and that are not there at present, so that their rows cannot be judged."""
    recipes: frozenset[tuple[str, float | None, str]] = frozenset()
    """Backbone, frames per second and face detector of runs that have no checkpoint yet."""
    notes: tuple[str, ...] = ()
    """Why something is not known, one sentence each."""


@dataclass(frozen=True)
class Waste:
    """Something that nobody needs."""

    kind: Kind
    """`leftover` of an interrupted write, `damaged` file, rows `replaced` or `unreferred`, or a whole `folder`."""
    path: Path
    """The file or folder that it is, or that it lies in."""
    rows: int
    """Number of rows of the file concerned; 0 for other kinds."""
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
    """`_FACTS`, `frames`, and whether the file says of each row what its span is, as `has_span`; empty if damaged."""
    damage: str = ""
    """Why it cannot be used; empty where it can."""
    problems: tuple[tuple[str | None, str], ...] = field(default=())
    """Clip and what is the matter with its row."""


def inventory(root: str | Path) -> list[FolderInventory]:
    """What lies in a store, by folder.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    return [_inventory(folder) for folder in store_folders(root)]


def verify(root: str | Path) -> list[Finding]:
    """Read everything in a store and tell what is wrong with it.

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


def find_references(
    runs: str | Path, *, manifests: Iterable[str | Path] = (), fingerprints: Iterable[str] = ()
) -> References:
    """What the runs below a folder refer to.

    Args:
        runs: folder of runs; `checkpoint.json` names a fingerprint, `config.yaml` a manifest and perhaps a checkpoint
            elsewhere, which, if they are relative paths, are looked for beside `runs`.
        manifests: further manifests whose clips are needed.
        fingerprints: further folders that are needed.

    Raises:
        FileNotFoundError, ManifestError: for one of `manifests`.
    """
    notes: list[str] = []
    base = Path(runs).absolute().parent
    configs, rows_known = _configs(Path(runs), notes)
    used, all_there = _checkpoints_used(configs, base, notes)
    trained, folders_known = _checkpoints({Path(runs), *used}, notes)
    folders_known = folders_known and all_there
    if not trained and not tuple(fingerprints):
        notes.append(f"no checkpoint below {runs} and no keep=[…]: all folders are kept")
        folders_known = False
    clips = [clip for path in manifests for clip in read_manifest(path).clips]
    known = bool(tuple(manifests))
    for path, (named_by, classes) in _manifests(configs, base).items():
        try:
            clips += read_manifest(path, classes=classes).clips
            known = True
        except (FileNotFoundError, ManifestError) as error:
            reason = "is gone" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            notes.append(f"manifest {path}, which {named_by} names, {reason}: all rows are kept")
            rows_known = False
    if not known:
        notes.append(f"no run below {runs} names a manifest, and there is no manifests=[…]: all rows are kept")
    return References(
        fingerprints=frozenset({*trained, *fingerprints}) if folders_known else None,
        clip_keys=frozenset(map(clip_key, clips)) if rows_known and known else None,
        absent_sources=frozenset(os.path.abspath(c.source) for c in clips if not os.path.exists(c.source)),
        recipes=frozenset(_recipes(configs)),
        notes=tuple(notes),
    )


def collect(root: str | Path, references: References, *, apply: bool, now: float | None = None) -> Collection:
    """Find what nobody needs, and remove it.

    A damaged file is renamed to `_damaged-…` and never removed. Of a file from which rows go, the others are written
    as a new file before the old one is removed: whoever reads meanwhile, or after an interruption, finds rows twice
    and never misses one.

    Args:
        root: folder of the store.
        references: what is needed.
        apply: False only tells.
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
    """The facts of a folder's specification and why they cannot be relied on, which is empty where they can."""
    try:
        facts = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
        _facts_shown(facts)
    except FileNotFoundError:
        return {}, f"it has no {SPEC_FILE}, so it is no folder of a store, or lost it; extraction writes it again"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        return {}, f"{SPEC_FILE} is no specification ({reason}); remove it, and extraction writes it again"
    fingerprint = fingerprint_of(facts)
    if fingerprint == folder.name:
        return facts, ""
    return facts, f"{SPEC_FILE} has fingerprint {fingerprint}, which is not the folder's name"


def _facts_shown(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Those that `inventory` shows, by the names of its fields; KeyError or TypeError for what is no specification."""
    frames = facts["frames"]
    return {
        "backbone": str(facts["backbone"]),
        "backbone_fingerprint": str(facts["backbone_fingerprint"]),
        "frame_size": int(frames["preprocessing"]["size"]),
        "frames_per_second": frames["sampling"]["frames_per_second"],
        "detector": str(frames["faces"]["detector"]),
        "feature_dim": int(facts["feature_dim"]),
    }


_UNKNOWN: dict[str, Any] = {
    "backbone": "",
    "backbone_fingerprint": "",
    "frame_size": None,
    "frames_per_second": None,
    "detector": "",
    "feature_dim": None,
}


def store_folders(root: str | Path) -> list[Path]:
    """The folders in a store; those of a fingerprint are named by it.

    Raises:
        FileNotFoundError: if there is no such store.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no feature store at {root}; `clipautt extract` makes one, or give store=FOLDER")
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _stats(folder: Path) -> list[os.stat_result]:
    found = []
    for path in folder.iterdir():
        try:
            found.append(path.stat())
        except FileNotFoundError:
            continue  # a write that was just finished
    return found


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
    """Every file with rows, in the order of writing; with `features`, all of it is read and looked at."""
    return read_parts(folder, lambda file: _read(file, facts.get("feature_dim"), features=features))


def _read(file: Path, feature_dim: int | None, *, features: bool) -> _Part:
    stat = file.stat()
    columns = [*_FACTS, "times", *(("face_found", "features") if features else ())]
    try:
        table = read_part(file, columns, feature_dim=feature_dim)
        has_span = set(SPAN) <= set(pq.read_schema(file).names)
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
    """Why the file cannot be used, and what is the matter with its rows."""
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
            problems.append((clip, "has times that go back"))
        elif status != OK and not reason:
            problems.append((clip, f"has status {status!r} without a reason"))
    return damage, tuple(problems)


def _source_notes(part: _Part) -> Iterator[tuple[str, str]]:
    """Clips with features whose source is gone, or not what it was."""
    for row in part.rows[part.rows["status"] == OK].to_dict("records"):
        if not os.path.exists(row["source"] or ""):
            yield row["clip_id"], f"was made of {row['source']}, which is gone"
        elif row["has_span"]:
            span: dict[str, Any] = {name: None if pd.isna(row[name]) else row[name] for name in SPAN}
            clip = Clip(row["clip_id"], row["subject_id"], row["source"], "target", **span)
            if clip_key(clip) != row["clip_key"]:
                yield row["clip_id"], f"was made of {row['source']}, which has changed since"


def _rows(parts: Sequence[_Part]) -> pd.DataFrame:
    """The rows of all files that can be used, with the number of their file as `part`."""
    empty = pd.DataFrame(columns=[*_FACTS, "frames", "has_span", "part"])
    tables = [part.rows.assign(part=i) for i, part in enumerate(parts) if not part.damage and len(part.rows)]
    return pd.concat(tables, ignore_index=True) if tables else empty


def _replaced(rows: pd.DataFrame) -> pd.Series[bool]:
    """Which rows no reader uses: a success replaces failures, and of several rows of one kind the last one counts."""
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
    """The damaged files of a folder, and the rows that nobody needs.

    Every file is read whole before anything goes, because a row is only replaced by one that can be read.
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
        for kind, going in kinds:
            if (mine & going).any():
                share = float(weight[going].sum() / weight.sum())
                yield Waste(kind, part.file, int((mine & going).sum()), round(part.bytes * share))
        if apply:
            _rewrite(part.file, ~(replaced | unreferred)[mine].to_numpy(bool))


def _unreferred(rows: pd.DataFrame, references: References) -> pd.Series[bool]:
    """Rows whose clip no manifest has; one whose source cannot be looked at now is given the benefit of the doubt."""
    if references.clip_keys is None:
        return pd.Series(False, rows.index)
    absent = rows["source"].map(lambda source: os.path.abspath(source or "") in references.absent_sources)
    return ~(rows["clip_key"].isin(references.clip_keys) | absent.astype(bool))


def _rewrite(file: Path, kept: Any) -> None:
    """Leave only some rows of a file: those are written anew before the file goes."""
    if kept.any():
        try:
            with pq.ParquetFile(file, page_checksum_verification=True) as part:
                table = part.read()
        except FileNotFoundError:
            return  # another collector was here
        write_part(file.parent, table.filter(pa.array(kept)))
    file.unlink(missing_ok=True)


def _rename(file: Path, to: Path) -> None:
    try:
        os.replace(file, to)
    except FileNotFoundError:
        return  # another collector was here


def _collect_folder(folder: Path, leftovers: set[Path], *, apply: bool) -> Iterator[Waste]:
    """A folder that nothing refers to; damaged files that were set aside in it stay."""
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
    except OSError:  # someone began to write here just now
        write_bytes(spec, content)


def _walk(runs: Path, name: str) -> list[Path]:
    found = (Path(folder) / name for folder, _, files in os.walk(runs) if name in files)
    return sorted(path for path in found if not hidden(path, below=runs))


def _checkpoints_used(
    configs: Mapping[Path, Mapping[str, Any]], base: Path, notes: list[str]
) -> tuple[set[Path], bool]:
    """Folders of checkpoints that runs were told to use, wherever they lie, and whether all of them are there."""
    found, complete = set(), True
    for path, settings in configs.items():
        if not isinstance(settings.get("checkpoint"), str):
            continue
        folder = base / Path(settings["checkpoint"]).expanduser()
        if _walk(folder, "checkpoint.json"):
            found.add(folder)
        else:
            notes.append(f"{path} names the checkpoint {folder}, which is gone: all folders are kept")
            complete = False
    return found, complete


def _checkpoints(folders: Iterable[Path], notes: list[str]) -> tuple[set[str], bool]:
    """Fingerprints of the features that checkpoints were trained on, and whether these are all."""
    found, complete = set(), True
    for path in sorted({path for folder in folders for path in _walk(folder, "checkpoint.json")}):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            found.add(FeatureSpec.from_json(facts["features"]).fingerprint)
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"{path} cannot be read ({type(error).__name__}: {error}): all folders are kept")
            complete = False
    return found, complete


def _configs(runs: Path, notes: list[str]) -> tuple[dict[Path, Mapping[str, Any]], bool]:
    """The settings of every run, by their file, and whether all could be read."""
    found: dict[Path, Mapping[str, Any]] = {}
    complete = True
    for path in _walk(runs, "config.yaml"):
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            notes.append(f"{path} cannot be read ({' '.join(str(error).split())}): all rows are kept")
            complete = False
            continue
        if isinstance(settings, dict):
            found[path] = settings
    return found, complete


def _manifests(
    configs: Mapping[Path, Mapping[str, Any]], base: Path
) -> dict[Path, tuple[Path, tuple[str, ...] | None]]:
    """Manifest → a run that names it, and its classes where they were given."""
    named: dict[Path, tuple[Path, tuple[str, ...] | None]] = {}
    for path, settings in configs.items():
        if isinstance(settings.get("manifest"), str):
            classes = tuple(settings.get("classes") or ()) or None
            named.setdefault(base / Path(settings["manifest"]).expanduser(), (path, classes))
    return named


def _recipes(configs: Mapping[Path, Mapping[str, Any]]) -> Iterator[tuple[str, float | None, str]]:
    """What runs extract that have no checkpoint yet: which weights these are cannot be seen from their settings."""
    for path, settings in configs.items():
        parts = [settings.get(name) for name in ("backbone", "sampling", "faces")]
        if all(isinstance(part, dict) for part in parts) and not _walk(path.parent, "checkpoint.json"):
            backbone, sampling, faces = (dict(part or {}) for part in parts)
            name = BackboneConfig(str(backbone.get("name"))).name  # a folder's path as the store has it
            yield name, sampling.get("frames_per_second"), str(faces.get("detector"))
