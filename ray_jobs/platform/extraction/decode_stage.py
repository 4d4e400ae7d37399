"""The decoding half of the pipeline, in tasks that import no torch.

In: rows of one clip each. Out: rows of one frame each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clipautt.clips import Clip
from clipautt.video.augmentation import FrameChange
from clipautt.video.decoding import DecodeError
from clipautt.video.faces import make_detector
from clipautt.video.reader import FrameChunk, FrameSpec, NoFaceError
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

    def __call__(self, batch: Batch) -> Iterator[Batch]:
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
        change = self.augment(clip.clip_id) if self.augment else None
        try:
            for chunk in read_clip(clip, self.frames, self.limits):
                if chunk.decoder != decoder:  # the previous decoder failed midway
                    attempt, number, decoder, held = attempt + 1, 0, chunk.decoder, None
                if held is not None:
                    yield held
                held = _rows(index, attempt, number, replace(chunk, frames=change(chunk.frames)) if change else chunk)
                number += len(chunk.times)
        except (DecodeError, NoFaceError, FileNotFoundError) as error:
            yield self._failure(index, _status(error), str(error))
            return
        if held is None:
            raise AssertionError(f"{clip} ended without frames and without an error")
        held["total"][-1] = number
        yield held

    def _failure(self, index: int, status: Status, reason: str) -> Batch:
        size = self.frames.preprocessing.size
        empty = FrameChunk("images", np.zeros((1, size, size, 3), np.uint8), np.zeros(1), np.zeros(1, np.bool_))
        rows = _rows(index, 0, 0, empty)
        return rows | {"total": np.zeros(1, np.int64), "status": np.array([status]), "reason": np.array([reason])}


def _rows(index: int, attempt: int, number: int, chunk: FrameChunk) -> Batch:
    count = len(chunk.times)
    return {
        "index": np.full(count, index),
        "attempt": np.full(count, attempt),
        "number": np.arange(number, number + count),
        "total": np.full(count, -1),
        "status": np.full(count, "ok"),
        "reason": np.full(count, ""),
        "decoder": np.full(count, chunk.decoder),
        "time": chunk.times,
        "found": chunk.found,
        "other_faces": np.full(count, chunk.other_faces),
        "frame": chunk.frames,
    }


def _status(error: Exception) -> Status:
    if isinstance(error, NoFaceError):
        return "no_face"
    return "missing" if isinstance(error, FileNotFoundError) else "unreadable"
