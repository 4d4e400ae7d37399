"""Rows for feature stores, and processes that write them; quick to import, since processes do."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from clipautt.clips import Clip
from clipautt.features.clip_features import FeatureSpec, clip_key
from clipautt.features.store import FeatureStore
from clipautt.video.preprocessing import Preprocessing
from clipautt.video.reader import FrameSpec

WIDTH = 16
SPEC = FeatureSpec("fake", "0" * 16, FrameSpec(Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "area")), WIDTH)
"""Of no backbone that there is, where it does not matter."""


def clip_at(folder: Path, clip_id: str = "c1", *, content: str = "video", **fields: Any) -> Clip:
    """A clip with a file of its own, or of the name `file`."""
    path = folder / f"{fields.pop('file', clip_id)}.mp4"
    if not path.exists():
        path.write_text(content)
    return Clip(clip_id, "s1", str(path), "target", **fields)


def features_of(seed: int, num_frames: int = 3) -> Any:
    """Random features [T, 16] that are not all short in binary."""
    values = np.random.default_rng(seed).normal(size=(num_frames, WIDTH)).astype(np.float32)
    values[0, 0] = np.float32(1) / 3
    return values


def row(clip: Clip, features: Any, **facts: Any) -> dict[str, Any]:
    """The store's row of a clip; without features a failure."""
    times = None if features is None else np.arange(len(features)) / 12.5
    names = ("clip_id", "subject_id", "source", "start_seconds", "end_seconds", "start_frame", "end_frame", "face")
    basis = {name: getattr(clip, name) for name in (*names, "frames_per_second")} | {"clip_key": clip_key(clip)}
    status = {"status": "ok" if features is not None else "unreadable", "reason": "", "decoder": "decord"}
    return basis | status | {"times": times, "features": features} | facts


def numbered_row(number: int) -> dict[str, Any]:
    """A row without a file behind it; everything in it follows from its number."""
    clip = Clip(f"c{number}", "s1", f"/nowhere/{number}.mp4", "target")
    return row(clip, features_of(number, 40), clip_key=f"key-{number}")


def append_numbers(root: str, numbers: Sequence[int]) -> None:
    """One file for each number."""
    store = FeatureStore(root, SPEC)
    for number in numbers:
        store.append([numbered_row(number)])


def append_for_ever(root: str, first: int, done: Connection) -> None:
    """One file after the other, each told once it is there."""
    store, number = FeatureStore(root, SPEC), first
    while True:
        store.append([numbered_row(number)])
        done.send(number)
        number += 1
