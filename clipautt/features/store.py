"""The feature store: every frame is decoded and encoded once, then everything works on features.

In: a `FeatureSpec`, and rows of encoded or failed clips. Out: `ClipFeatures` by clip id.

A store is a folder with one subfolder per `FeatureSpec` fingerprint (backbone weights, preprocessing, sampling), which
holds Parquet files with one row per clip. Rows are only ever added, one whole file at a time, and a clip is looked up
by the file it came from, so neither a half-written file nor another data set's clip of the same name is ever used.
pandas, pyarrow and Ray Data can open the files directly. `maintenance` verifies and cleans stores.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clipautt.clips import Clip
from clipautt.features.clip_features import ClipFeatures, FeatureSpec, mean_of, share_of, side_of, turned_share_of
from clipautt.files import atomic, refuse_uri, sync_folder, write_json
from clipautt.video.reader import BOX, Boxes

OK = "ok"
TRIED_AGAIN = frozenset({"lost", "not_encoded"})
"""Statuses of failures not caused by the clip: it counts as missing, and the next extraction tries it again."""
SPEC_FILE = "_spec.json"
"""File with a folder's specification; Parquet readers skip names that begin with an underscore or a dot."""
SPAN = ("start_seconds", "end_seconds", "start_frame", "end_frame", "frames_per_second", "face")
"""Columns that say which part of its file a clip is: its span, and whose face it shows."""
_LATER = (*SPAN, "face_found", "other_faces", "boxes", "brightness", "face_sides", "content", "turned")
"""Columns that older files lack."""
_ROWS_PER_GROUP = 8
_PASSES = 8
_STATUS = ("clip_key", "clip_id", "status", "reason", "decoder")
FRAMES = ("times", "face_found", "features", "other_faces", "boxes", "brightness", "face_sides", "reason", "turned")
"""Columns that `stored_frames` reads."""
_OF_FRAMES = ("times", "face_found", "boxes", "brightness", "turned")
"""Those with a value per frame, besides the features."""
_Read = TypeVar("_Read")


class DamagedStoreError(ValueError):
    """A file is damaged or not one of the store; the message names it and says what to do."""


@dataclass(frozen=True, eq=False, repr=False)
class StoredFrames:
    """The frames of a clip as its row holds them."""

    features: npt.NDArray[np.float32] | None
    """[T, d]; None in the row of a failed clip."""
    times: npt.NDArray[np.float64] | None
    """Seconds from the start of the clip, [T]."""
    face_found: npt.NDArray[np.bool_] | None
    """Whether a face was found in the frame, [T]; None where it was not recorded."""
    other_faces: int = 0
    """Faces beside the subject's that were followed and left out."""
    boxes: Boxes | None = None
    """Where the face is in each frame, [T, 5]; None where it was not recorded."""
    brightness: npt.NDArray[np.float32] | None = None
    """Mean luma of what each frame shows, [T]; None where it was not recorded."""
    face_sides: tuple[float, ...] = ()
    """See `ClipFeatures.face_sides`."""
    reason: str = ""
    """Why there are none; of a clip with status `ok`, what could not be shown as it should be."""
    turned: npt.NDArray[np.float32] | None = None
    """See `ClipFeatures.turned`."""

    def __repr__(self) -> str:
        return f"StoredFrames({None if self.features is None else self.features.shape})"

    @property
    def damage(self) -> str | None:
        """Why these are not valid frames of a clip with status `ok`; None if they are."""
        if self.features is None or not len(self.features):
            return "has no frames"
        for name in _OF_FRAMES:
            values = getattr(self, name)
            if values is None and name == "times":
                return "has no times"
            if values is not None and len(values) != len(self.features):
                return f"has {len(self.features)} frames and {len(values)} {name}"
        return None if np.isfinite(self.features).all() else "has features that are not finite"


@dataclass(frozen=True, eq=False, repr=False)
class ClipFacts:
    """What is known of a clip besides its features; the fields are those of `ClipFeatures`."""

    num_frames: int
    """Number of frames T."""
    face_found: npt.NDArray[np.bool_] | None = None
    """Whether the subject's face was found in the frame, [T]; None where it was not recorded."""
    other_faces: int = 0
    """Faces beside it that were followed and left out."""
    face_sides: tuple[float, ...] = ()
    """The side of the face in a few frames; empty where nothing was looked at."""
    mean_brightness: float = float("nan")
    """Mean luma of what the frames show, 0..1; nan where it was not recorded."""
    notes: tuple[str, ...] = ()
    """What could not be shown as it should be."""
    min_share: float = 0.0
    """Share of a window's frames that must show the face; 0 without a detector."""
    face_pixels: float = float("nan")
    """Median side of the face's box; nan where it was not recorded."""
    turned_share: float = float("nan")
    """Share of the frames with the face in which it is turned away; nan where nothing tells."""
    rendered: bool | None = None
    """Whether its faces are rendered; a store does not know."""

    @property
    def face_share(self) -> float:
        """Share of the frames in which the face was found, 0..1; nan without a detector."""
        return share_of(self.face_found) if self.min_share else float("nan")

    def __repr__(self) -> str:
        return f"ClipFacts({self.num_frames} frames, {self.other_faces} other faces)"


class FeatureStore:
    """The stored rows of one feature specification.

    Args:
        root: folder of the store; the subfolder of the specification is created on the first write.
        spec: specification of the features.

    Raises:
        ValueError: if `root` is a URI.
    """

    def __init__(self, root: str | Path, spec: FeatureSpec) -> None:
        refuse_uri(root, "store")
        self.spec = spec
        self.path = Path(root) / spec.fingerprint
        self.schema = store_schema(spec.feature_dim)
        self._keys: dict[Path, list[tuple[str, bool]]] = {}

    def append(self, rows: Sequence[dict[str, Any]]) -> Path | None:
        """Add rows as one file, written atomically and flushed to disk.

        Args:
            rows: values by column of the schema; `features` is an array [T, d], or None if status is not `ok`. Absent
                columns become null.

        Returns:
            The file, or None when there are no rows.

        Raises:
            ValueError: if features are not finite, have another width, or lack a time for each frame; the message names
                the clip.
        """
        if not rows:
            return None
        for row in rows:
            _check(row, self.spec.feature_dim)
        table = _to_table(rows, self.schema, self.spec.feature_dim)
        if not self.path.is_dir():
            self.path.mkdir(parents=True, exist_ok=True)
            sync_folder(self.path.parent)
        spec_file = self.path / SPEC_FILE
        if not spec_file.exists():
            write_json(spec_file, self.spec.facts)
        return write_part(self.path, table)

    def status(self) -> pd.DataFrame:
        """One row per stored clip: `clip_key, clip_id, status, reason, decoder`; a later success replaces a failure.

        Raises:
            DamagedStoreError: if a file is damaged or not one of this store.
        """
        tables = read_parts(self.path, lambda file: self._read(file, _STATUS))
        if not tables:
            return pd.DataFrame(columns=list(_STATUS))
        every: pd.DataFrame = pa.concat_tables(tables).to_pandas()
        ordered = every.sort_values("status", key=lambda s: s.eq(OK), kind="stable")
        return ordered.drop_duplicates("clip_key", keep="last")

    def missing(self, clips: Iterable[Clip], *, retry_failed: bool = False) -> list[Clip]:
        """The clips without a row or with a status `TRIED_AGAIN`; with `retry_failed`, all clips without features."""
        status = self.status()
        final = status["status"] == OK if retry_failed else ~status["status"].isin(TRIED_AGAIN)
        done = set(status.loc[final, "clip_key"])
        return [clip for clip in clips if self.spec.key(clip) not in done]

    def present(self, clips: Iterable[Clip]) -> set[str]:
        """Ids of the clips that have features; does not read the features."""
        status = self.status()
        there = set(status.loc[status["status"] == OK, "clip_key"])
        return {clip.clip_id for clip in clips if self.spec.key(clip) in there}

    def load(self, clips: Iterable[Clip]) -> dict[str, ClipFeatures]:
        """Features by `clip_id`; clips without features are omitted.

        Besides the result, one file at a time is in memory. Files never change, so the keys in a file are read once:
        many small loads from one `FeatureStore` read only the files that they need.

        Raises:
            DamagedStoreError: if a file is damaged or not one of this store.
        """
        wanted: dict[str, list[Clip]] = {}
        for clip in clips:
            wanted.setdefault(self.spec.key(clip), []).append(clip)
        loaded: dict[str, ClipFeatures] = {}
        for part in read_parts(self.path, lambda file: self._frames(file, wanted.keys())):
            for key, frames in part.items():
                assert frames.features is not None and frames.times is not None
                features = torch.from_numpy(frames.features)
                for clip in wanted[key]:
                    loaded[clip.clip_id] = ClipFeatures(
                        clip.clip_id,
                        clip.subject_id,
                        features,
                        frames.times,
                        frames.face_found,
                        min_share=self.spec.frames.faces.window_share,
                        notes=(frames.reason,) * bool(frames.reason),
                        other_faces=frames.other_faces,
                        boxes=frames.boxes,
                        brightness=frames.brightness,
                        face_sides=frames.face_sides,
                        turned=frames.turned,
                    )
        return dict(sorted(loaded.items()))

    def facts(self, clips: Iterable[Clip]) -> dict[str, ClipFacts]:
        """What is known of the clips that have features, by `clip_id`; does not read the features."""
        columns = ("clip_key", "status", *(name for name in FRAMES if name != "features"))
        share = self.spec.frames.faces.window_share
        known: dict[str, ClipFacts] = {}
        for table in read_parts(self.path, lambda file: self._read(file, columns)):
            for index in range(len(table)):
                row = {name: table[name][index] for name in columns}
                if row["status"].as_py() == OK and row["times"].is_valid:
                    known[row["clip_key"].as_py()] = _facts_of(row, share)
        return {clip.clip_id: known[key] for clip in clips if (key := self.spec.key(clip)) in known}

    def _read(self, file: Path, columns: Sequence[str], chosen: Sequence[bool] | None = None) -> pa.Table:
        return read_part(file, columns, feature_dim=self.spec.feature_dim, chosen=chosen)

    def _frames(self, file: Path, keys: Set[str]) -> dict[str, StoredFrames]:
        """Frames by key of the wanted clips in a file; features are read only if it has any of them."""
        if file not in self._keys:
            rows = self._read(file, ["clip_key", "status"]).to_pylist()
            self._keys[file] = [(row["clip_key"], row["status"] == OK) for row in rows]
        chosen = [ok and key in keys for key, ok in self._keys[file]]
        if not any(chosen):
            return {}
        table = self._read(file, ["clip_key", *FRAMES], chosen)
        stored = dict(zip(table["clip_key"].to_pylist(), stored_frames(table, self.spec.feature_dim), strict=True))
        for key, frames in stored.items():
            if frames.damage:
                raise damaged(file, f"the clip of clip_key {key} {frames.damage}")
        return stored


def _facts_of(row: dict[str, Any], min_share: float) -> ClipFacts:
    found, notes = _numbers(row["face_found"]), row["reason"].as_py()
    found = None if found is None else found.astype(bool)
    return ClipFacts(
        len(row["times"]),
        found,
        row["other_faces"].as_py() or 0,
        tuple(row["face_sides"].as_py() or ()),
        mean_of(_numbers(row["brightness"])),
        (notes,) * bool(notes),
        min_share,
        side_of(_numbers(row["boxes"], len(BOX))),
        turned_share_of(_numbers(row["turned"]), found),
    )


def store_schema(feature_dim: int) -> pa.Schema:
    """The columns of a store's files, for features of this width."""
    text = ("clip_key", "clip_id", "subject_id", "source", "status", "reason", "decoder", "content")
    return pa.schema(
        [
            *((name, pa.string()) for name in text),
            *((name, _span_type(name)) for name in SPAN),
            ("times", pa.list_(pa.float64())),
            ("face_found", pa.list_(pa.bool_())),
            ("other_faces", pa.int64()),
            ("boxes", pa.list_(pa.list_(pa.float32(), len(BOX)))),
            ("brightness", pa.list_(pa.float32())),
            ("face_sides", pa.list_(pa.float32())),
            ("turned", pa.list_(pa.float32())),
            ("features", pa.list_(pa.list_(pa.float32(), feature_dim))),
        ]
    )


def _span_type(name: str) -> pa.DataType:
    if name == "face":
        return pa.string()
    return pa.int64() if name.endswith("_frame") else pa.float64()


def part_files(folder: Path) -> set[Path]:
    """The files with rows in a specification's folder; none if there is no such folder.

    The folder is listed twice: a listing may miss a file that is being replaced, under both its old and its new name,
    but then the second listing has the new one.
    """
    try:
        names = {*os.listdir(folder), *os.listdir(folder)}
    except FileNotFoundError:
        return set()
    return {folder / name for name in names if name.startswith("part-") and name.endswith(".parquet")}


def read_parts(folder: Path, read: Callable[[Path], _Read]) -> list[_Read]:
    """Apply `read` to every file with rows.

    A file that disappears before it is read was rewritten by another job, so the folder is listed again and new files
    are read too; no file is read twice.

    Returns:
        Results in the order of writing, so that the last of several failures of a clip gives the reason.

    Raises:
        DamagedStoreError: as `read` does, or if files keep disappearing.
    """
    done: dict[Path, tuple[int, _Read]] = {}
    for _ in range(_PASSES):
        gone = 0
        for file in sorted(part_files(folder) - done.keys()):
            try:
                done[file] = file.stat().st_mtime_ns, read(file)
            except FileNotFoundError:
                gone += 1
        if not gone:
            ordered = sorted(done, key=lambda file: (done[file][0], file.name))
            return [done[file][1] for file in ordered]
    raise DamagedStoreError(
        f"files of {folder} keep disappearing while they are read; try again when no other job removes them"
    )


def read_part(
    file: Path, columns: Sequence[str], *, feature_dim: int | None = None, chosen: Sequence[bool] | None = None
) -> pa.Table:
    """Read some columns of a file and verify their page checksums; columns that an older file lacks are null.

    Args:
        file: one of `part_files`.
        columns: names in the schema.
        feature_dim: d; None accepts any.
        chosen: True for each row to read; all by default. Row groups without such rows are not read.

    Raises:
        FileNotFoundError: if it no longer exists.
        DamagedStoreError: if it is damaged or not one of a store.
    """
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as part:
            schema = part.schema_arrow
            _check_schema(file, schema, feature_dim)
            there = [name for name in columns if name in schema.names]
            table = _read_rows(part, there, chosen)
            table.validate(full=True)
    except (MemoryError, pa.ArrowCancelled):
        raise  # the fault of this process, not of the file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) == errno.ESTALE:
            raise FileNotFoundError(errno.ENOENT, "the file no longer exists", str(file)) from error
        if isinstance(error, OSError) and error.errno:
            raise  # the fault of the disk or the permissions, not of the file
        raise damaged(file, " ".join(str(error).split())) from error
    for name in columns:
        if name not in there:
            table = table.append_column(name, pa.nulls(len(table), store_schema(1).field(name).type))
    return table.select(list(columns))


def _read_rows(part: pq.ParquetFile, columns: Sequence[str], chosen: Sequence[bool] | None) -> pa.Table:
    if chosen is None:
        return part.read(columns=columns, use_threads=False)
    ends = np.cumsum([part.metadata.row_group(i).num_rows for i in range(part.num_row_groups)])
    of_group = np.split(np.asarray(chosen, bool), ends[:-1])
    groups = [number for number, rows in enumerate(of_group) if rows.any()]
    mask = np.concatenate([of_group[number] for number in groups]) if groups else np.empty(0, bool)
    return part.read_row_groups(groups, columns=columns, use_threads=False).filter(pa.array(mask))


def damaged(file: Path, reason: str) -> DamagedStoreError:
    """The error that names a damaged file and says what to do."""
    return DamagedStoreError(
        f"{file} is damaged or not a file of this store ({reason}); `clipautt store gc store={file.parent.parent} "
        "apply=true` sets it aside, and the next extraction encodes its clips again"
    )


def _check_schema(file: Path, schema: pa.Schema, feature_dim: int | None) -> None:
    for field in store_schema(feature_dim or _width(schema)):
        if field.name not in schema.names:
            if field.name in _LATER:
                continue
            raise damaged(file, f"it has no column {field.name}")
        if schema.field(field.name).type != field.type:
            raise damaged(file, f"column {field.name} has type {schema.field(field.name).type}, not {field.type}")


def _width(schema: pa.Schema) -> int:
    """d according to the file; 1, which then fails the check, if it has none."""
    kind = schema.field("features").type if "features" in schema.names else None
    inner = kind.value_type if kind is not None and pa.types.is_list(kind) else None
    return int(inner.list_size) if inner is not None and pa.types.is_fixed_size_list(inner) else 1


def _numbers(values: Any, width: int | None = None) -> npt.NDArray[Any] | None:
    """A copy of a list of numbers, or of lists of `width` numbers as [T, width]; None where it is null."""
    if not values.is_valid:
        return None
    flat = values.values if width is None else values.values.flatten()
    copied = np.array(flat.to_numpy(zero_copy_only=False))
    return copied if width is None else copied.reshape(-1, width)


def stored_frames(table: pa.Table, feature_dim: int) -> Iterator[StoredFrames]:
    """The frames of each row, copied out of the table.

    Args:
        table: with the columns `FRAMES`.
        feature_dim: d.
    """

    for index in range(len(table)):
        row = {name: table[name][index] for name in FRAMES}
        found = _numbers(row["face_found"])
        yield StoredFrames(
            _numbers(row["features"], feature_dim),
            _numbers(row["times"]),
            None if found is None else found.astype(bool),
            row["other_faces"].as_py() or 0,
            _numbers(row["boxes"], len(BOX)),
            _numbers(row["brightness"]),
            tuple(row["face_sides"].as_py() or ()),
            row["reason"].as_py() or "",
            _numbers(row["turned"]),
        )


def write_part(folder: Path, table: pa.Table) -> Path:
    """Write rows as one new file of a specification's folder; no reader ever sees part of it."""
    file = folder / f"part-{uuid.uuid4().hex}.parquet"
    # A dictionary of floats that are all different costs time and saves nothing.
    # Small groups of rows, so that a few clips can be read without the others.
    options = {"use_dictionary": False, "write_page_checksum": True, "row_group_size": _ROWS_PER_GROUP}
    with atomic(file) as temporary:
        pq.write_table(table, temporary, **options)
    return file


def _check(row: dict[str, Any], feature_dim: int) -> None:
    """Refuse a row that could not be read back as it was."""
    if row["features"] is not None and np.shape(row["features"])[1:] != (feature_dim,):
        shape = np.shape(row["features"])
        raise ValueError(f"features of clip {row['clip_id']!r} have shape {shape}; allowed: [T, {feature_dim}]")
    if row["status"] == OK:
        per_frame = {name: row.get(name) for name in _OF_FRAMES}
        frames = StoredFrames(row["features"], **per_frame)  # type: ignore[arg-type]
        if frames.damage:
            raise ValueError(f"clip {row['clip_id']!r} with status 'ok' {frames.damage}")


def _to_table(rows: Sequence[dict[str, Any]], schema: pa.Schema, feature_dim: int) -> pa.Table:
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in schema.names}
    for name in SPAN:  # some tables turn None into NaN
        columns[name] = [None if value is None or value != value else value for value in columns[name]]
    columns["features"] = _matrices([row["features"] for row in rows], feature_dim)
    columns["boxes"] = _matrices([row.get("boxes") for row in rows], len(BOX))
    return pa.table(columns, schema=schema)


def _matrices(matrices: Sequence[npt.NDArray[np.float32] | None], width: int) -> pa.Array:
    """Arrays [T, width] as lists of lists of `width` numbers, over one flat array; None becomes null."""
    lengths = [0 if rows is None else len(rows) for rows in matrices]
    ends = np.cumsum([0, *lengths]).tolist()
    starts = [None if rows is None else start for rows, start in zip(matrices, ends, strict=False)]
    given = [np.asarray(rows, np.float32).reshape(-1) for rows in matrices if rows is not None]
    flat = pa.array(np.concatenate(given) if given else np.empty(0, np.float32))
    inner = pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(pa.float32(), width))
    return pa.ListArray.from_arrays(pa.array([*starts, ends[-1]], pa.int32()), inner)
