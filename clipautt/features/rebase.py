"""Features of data that was moved or copied: found by the content of its files, and taken over under their new key.

In: a store, and clips as they are now. Out: how many clips are known under another path or time; a `Rebase` per folder
of the store. Extraction records the content of every source (`contents`). Rows without that record, which earlier
versions wrote, are taken over if the old file is still there to be compared, or if the new one has its size and its
modification time to the nanosecond.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipautt.clips import Clip
from clipautt.features.clip_features import key_of, pixels_of, row_key
from clipautt.features.contents import content_of
from clipautt.features.maintenance import read_specification, store_folders
from clipautt.features.store import OK, SPAN, TRIED_AGAIN, read_part, read_parts, store_schema, write_part

_FACTS = ("clip_key", "clip_id", "subject_id", "source", "status", "content", *SPAN)
_READERS = 8
"""Files that are hashed at a time; shared storage answers several requests as fast as one."""
_Row = Mapping[str, Any]


@dataclass
class Rebase:
    """What is taken over in one folder of a store."""

    folder: Path
    """The folder of a fingerprint."""
    trouble: str = ""
    """Why the folder was left alone; empty if it was not."""
    present: int = 0
    """Clips that have a row under their present key."""
    by_content: list[str] = field(default_factory=list)
    """Ids of the clips whose file has the content of a row's."""
    by_time: list[str] = field(default_factory=list)
    """Ids of the clips whose file has the size and time of a row's that has no recorded content."""
    changed: list[str] = field(default_factory=list)
    """Ids of the clips that a row of the same name was made from other content."""
    unknown: list[str] = field(default_factory=list)
    """Ids of the clips with a row of the same name that has no recorded content, and whose file is gone or changed."""
    unreadable: list[str] = field(default_factory=list)
    """Ids of the clips whose file is not there or cannot be read now."""


def known_elsewhere(folder: Path, clips: Iterable[Clip]) -> int:
    """How many clips have features under another path or time, going by clip, subject and span.

    Rows without a recorded content do not count: an earlier version wrote them, and may have decoded other frames.

    Args:
        folder: folder of a specification, `FeatureStore.path`.
        clips: clips without features under their present key.
    """
    known = {_name(row) for _, rows in _read_rows(folder) for row in rows if row["status"] == OK and row["content"]}
    return sum(_name(vars(clip)) in known for clip in clips) if known else 0


def rebase(
    root: str | Path, clips: Sequence[Clip], *, apply: bool, on_clip: Callable[[], None] = lambda: None
) -> list[Rebase]:
    """Find features of these clips under other keys, and add them under their present ones.

    Rows are copied, one whole file after the other, so an interruption loses nothing and the next call continues. The
    old rows stay until `maintenance.collect` finds that no manifest needs them.

    Args:
        root: folder of the store.
        clips: clips as manifests name them now.
        apply: whether to write anything; otherwise only report.
        on_clip: called after each clip of each folder that has no row under its present key.

    Raises:
        FileNotFoundError: if there is no such store.
        DamagedStoreError: if a file of the store is damaged.
    """
    return [_rebase_folder(folder, clips, apply, on_clip) for folder in store_folders(root)]


def _rebase_folder(folder: Path, clips: Sequence[Clip], apply: bool, on_clip: Callable[[], None]) -> Rebase:
    facts, trouble = read_specification(folder)
    result = Rebase(folder, trouble)
    if trouble:
        return result
    parts, augmented = _read_rows(folder), "augmented" in facts
    index = _Index([row for _, rows in parts for row in rows], augmented=augmented)
    by_key = {row_key(clip, augmented=augmented): clip for clip in clips}
    missing = {key: clip for key, clip in by_key.items() if key not in index.keys}
    result.present = len(by_key) - len(missing)
    wanted: dict[str, dict[str, Clip]] = {}
    """Old key → the present keys that take its row over, with their clips."""
    for key, clip, content in _contents(missing):
        row = index.find(clip, content, result)
        if row is not None:
            wanted.setdefault(row["clip_key"], {})[key] = clip
        on_clip()
    if apply:
        _write(folder, int(facts["feature_dim"]), parts, wanted)
    return result


class _Index:
    """The rows of a folder, by what they can be recognized by; failures that are tried again are omitted.

    A row of augmented features serves only a clip of the same id, which decides how the frames are changed.
    """

    def __init__(self, rows: Sequence[_Row], *, augmented: bool) -> None:
        self.augmented = augmented
        final = [row for row in rows if row["status"] not in TRIED_AGAIN]
        ordered = sorted(final, key=lambda row: row["status"] == OK)  # features come last and so replace failures
        self.keys = {row["clip_key"] for row in final}
        self.by_content: dict[tuple[Any, ...], _Row] = {
            (row["content"], *self._part(row)): row for row in ordered if row["content"]
        }
        self.by_name: dict[tuple[Any, ...], list[_Row]] = {}
        for row in reversed(ordered):
            for name in {_name(row)} if augmented else {_name(row), _place(row)}:
                self.by_name.setdefault(name, []).append(row)

    def _part(self, row: _Row) -> tuple[Any, ...]:
        """What must be the same in two rows of the same content."""
        return (*_span(row), row["clip_id"]) if self.augmented else _span(row)

    def find(self, clip: Clip, content: str | None, result: Rebase) -> _Row | None:
        """The row that a clip takes over; notes in `result` how it was found, or why there is none."""
        namesakes = self.by_name.get(_name(vars(clip)), [])
        if content is None:
            if namesakes:
                result.unreadable.append(clip.clip_id)
            return None
        same = self.by_content.get((content, *self._part(vars(clip))))
        if same is not None:
            result.by_content.append(clip.clip_id)
            return same
        alike = [*namesakes, *self.by_name.get(_place(vars(clip)), ())]
        unrecorded: list[_Row] = [row for row in alike if not row["content"]]
        for row in unrecorded:
            if _same_time(row, clip):
                result.by_time.append(clip.clip_id)
                return row
        compared = [_same_content(row, clip, content) for row in unrecorded]
        if True in compared:
            result.by_content.append(clip.clip_id)
            return unrecorded[compared.index(True)]
        if namesakes:
            (result.unknown if None in compared else result.changed).append(clip.clip_id)
        return None


def _contents(clips: Mapping[str, Clip]) -> Iterator[tuple[str, Clip, str | None]]:
    """Key, clip and content, in order; None where the source cannot be read."""

    def read(clip: Clip) -> str | None:
        try:
            return content_of(clip.source)
        except OSError:
            return None

    with ThreadPoolExecutor(_READERS) as pool:
        yield from zip(clips, clips.values(), pool.map(read, clips.values()), strict=True)


def _same_time(row: _Row, clip: Clip) -> bool:
    """Whether the row was made from a file of the clip's size and time; only its key tells."""
    stat = os.stat(clip.source)
    return bool(row["source"]) and key_of(row["source"], stat, clip) == pixels_of(row["clip_key"])


def _same_content(row: _Row, clip: Clip, content: str) -> bool | None:
    """Whether the file that the row was made from has this content; None if it is gone or has changed since."""
    try:
        if not row["source"] or key_of(row["source"], os.stat(row["source"]), clip) != pixels_of(row["clip_key"]):
            return None
        return content_of(row["source"]) == content
    except OSError:
        return None


def _read_rows(folder: Path) -> list[tuple[Path, list[_Row]]]:
    """The files with rows, and the facts of their rows."""
    return read_parts(folder, lambda file: (file, read_part(file, list(_FACTS)).to_pylist()))


def _write(
    folder: Path,
    feature_dim: int,
    parts: Sequence[tuple[Path, list[_Row]]],
    wanted: Mapping[str, Mapping[str, Clip]],
) -> None:
    """Add the wanted rows under their new keys; a file of new rows for every file that holds old ones."""
    schema, left = store_schema(feature_dim), dict(wanted)
    for file, rows in parts:
        chosen = [row["clip_key"] in left and row["status"] not in TRIED_AGAIN for row in rows]
        # A success and a failure of one clip may both be there: the row that was chosen has features if any has.
        if not any(chosen):
            continue
        table = read_part(file, schema.names, feature_dim=feature_dim, chosen=chosen)
        copies = [
            _moved(table.slice(number, 1), key, clip)
            for number, old in enumerate(table["clip_key"].to_pylist())
            for key, clip in left[old].items()
        ]
        write_part(folder, pa.concat_tables(copies).cast(schema))


def _moved(row: pa.Table, key: str, clip: Clip) -> pa.Table:
    """A row of the store, as the row of this clip."""
    facts = {"clip_key": key, "clip_id": clip.clip_id, "subject_id": clip.subject_id, "source": clip.source}
    facts["content"] = content_of(clip.source)
    for name, value in facts.items():
        row = row.set_column(row.schema.get_field_index(name), name, pa.array([value], pa.string()))
    return row


def _span(row: _Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in SPAN)


def _name(row: _Row) -> tuple[Any, ...]:
    return (row["clip_id"], row["subject_id"], *_span(row))


def _place(row: _Row) -> tuple[Any, ...]:
    """What a move of the whole data set leaves as it is: names of the file and its folder, and the span."""
    return (*Path(row["source"] or "").parts[-2:], *_span(row))
