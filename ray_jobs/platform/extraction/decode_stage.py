"""The decoding half of the pipeline, in tasks that import no torch.

In: rows of one clip each. Out: rows of one frame each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clipautt.clips import Clip
from clipautt.features.contents import content_of
from clipautt.video.augmentation import FrameChange
from clipautt.video.decoding import DecodeError
from clipautt.video.face_check import sample_of
from clipautt.video.faces import make_detector
from clipautt.video.reader import BOX, FrameChunk, FrameSpec, NoFaceError
from clipautt.video.reader_process import ReadLimits, read_clip

Status = Literal["ok", "no_face", "missing", "unreadable", "not_finite", "not_encoded", "lost"]
"""How a clip ended. The last two are not the clip's fault and are tried again: the backbone failed on it, or its worker
died or could not work."""
Batch = dict[str, npt.NDArray[Any]]
Augment = Callable[[str], FrameChange]
"""Clip id → how the frames of that clip are changed."""


class DecodeStage:
    """Turns clips into rows of one frame each; a clip's last row holds its number of frames, or why it has none."""

    def __init__(self, frames: FrameSpec, limits: ReadLimits, augment: Augment | None = None) -> None:
        self.frames, self.limits, self.augment = frames, limits, augment
        self.node = ""

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        self.node = this_node()
        for index, text in zip(batch["index"].tolist(), batch["clip"].tolist(), strict=True):
            try:
                self._check_worker()
                yield from self._blocks(index, Clip(**json.loads(text)))
            except Exception as error:  # the fault of this worker or its node: another one tries the clip
                yield self._failure(index, "lost", f"{type(error).__name__}: {error}")

    def _check_worker(self) -> None:
        """Check that the face detector can be loaded here; if it cannot, no clip is to blame."""
        if self.frames.faces.detector != "none":
            make_detector(self.frames.faces)

    def _blocks(self, index: int, clip: Clip) -> Iterator[Batch]:
        """The rows of a clip in blocks; one is held back, because the last one carries the number of frames."""
        held: Batch | None = None
        attempt, number, decoder = -1, 0, ""
        sample = sample_of(clip, self.frames.faces)
        change = self.augment(clip.clip_id) if self.augment else None
        try:
            check_readable(clip.source)
        except OSError as error:
            reason = f"clip {clip.clip_id!r}: no video file or folder of frames at {clip.source}"
            yield self._failure(index, "missing", reason if isinstance(error, FileNotFoundError) else str(error))
            return
        try:
            for chunk in read_clip(clip, self.frames, self.limits):
                if chunk.decoder != decoder:  # the previous decoder failed midway
                    attempt, number, decoder, held = attempt + 1, 0, chunk.decoder, None
                    sample = sample_of(clip, self.frames.faces)
                sample.add(chunk.frames)
                if held is not None:
                    yield held
                changed = replace(chunk, frames=change(chunk.frames)) if change else chunk
                held = _rows(index, attempt, number, changed, self.node)
                number += len(chunk.times)
        except (DecodeError, NoFaceError) as error:
            yield self._failure(index, "no_face" if isinstance(error, NoFaceError) else "unreadable", str(error))
            return
        if held is None:
            raise AssertionError(f"{clip} ended without frames and without an error")
        held["total"][-1] = number
        held["content"] = np.full(len(held["total"]), content_of(clip.source))
        held["face_sides"] = np.full(len(held["total"]), json.dumps(sample.sides()))
        yield held

    def _failure(self, index: int, status: Status, reason: str) -> Batch:
        size = self.frames.preprocessing.size
        boxes, number = np.zeros((1, len(BOX)), np.float32), np.zeros(1, np.float32)
        of_frames = np.zeros((1, size, size, 3), np.uint8), np.zeros(1), np.zeros(1, np.bool_), boxes, number, number
        empty = FrameChunk("images", *of_frames)
        rows = _rows(index, 0, 0, empty, self.node)
        return rows | {"total": np.zeros(1, np.int64), "status": np.array([status]), "reason": np.array([reason])}


def this_node() -> str:
    """Ray's id of the node that this process runs on; empty without Ray."""
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def check_readable(source: str) -> None:
    """Check that a clip's file or folder can be opened here.

    Raises:
        OSError: if it cannot; the message names the path.
    """
    if os.path.isfile(source):
        with open(source, "rb") as file:
            file.read(1)
    elif os.path.isdir(source):
        os.listdir(source)
    else:
        os.stat(source)  # a pipe would keep whoever opens it waiting


def _rows(index: int, attempt: int, number: int, chunk: FrameChunk, node: str) -> Batch:
    count = len(chunk.times)
    return {
        "index": np.full(count, index),
        "attempt": np.full(count, attempt),
        "number": np.arange(number, number + count),
        "total": np.full(count, -1),
        "status": np.full(count, "ok"),
        "reason": np.full(count, "; ".join(chunk.notes)),
        "decoder": np.full(count, chunk.decoder),
        "node": np.full(count, node),
        "content": np.full(count, ""),
        "time": chunk.times,
        "found": chunk.found,
        "box": chunk.boxes,
        "brightness": chunk.brightness,
        "turned": chunk.turned,
        "face_sides": np.full(count, ""),
        "other_faces": np.full(count, chunk.other_faces),
        "frame": chunk.frames,
    }
