"""The deployment that decodes, on CPU cores and without PyTorch: a file in, frames for the image tower out.

Untrusted files are opened in child processes with bounded time, memory and pixels, see `video.reader_process`. Frames
go to Ray's object store once, where the encoder reads them without a copy.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from clipautt.clips import Clip
from clipautt.video.decoding import DecodeError
from clipautt.video.reader import NoFaceError
from clipautt.video.reader_process import ReadLimits
from clipautt.video.stills import Sighting, Still, StillReader
from clipautt.video.whole import DecodedClip, TooManyFramesError, decode_clip
from ray_jobs.serve.model.check import decode_check
from ray_jobs.serve.model.messages import Decoded, NotHere, Served
from ray_jobs.serve.private import private_folder
from ray_jobs.serve.refusals import Refusal, RefusedError
from ray_jobs.serve.video_check import Limits, check_video, without_paths
from ray_jobs.serve.web.spool import Spool

_T = TypeVar("_T")
_LIVE_PIXELS = 1920 * 1080
"""Largest picture of a live session, width × height; while a larger one is decoded, the other sessions wait."""
_NICENESS = 5
"""Decoders give way to the web side, which has to answer at once."""


@dataclass(frozen=True)
class Decoding:
    """What a decoder needs to know."""

    served: tuple[Served, ...]
    """The models."""
    limits: Limits
    """Of an upload."""
    reading: ReadLimits
    """Of the decoding processes."""
    at_once: int
    """Videos that are decoded at the same time."""
    spool: str
    """Folder for what is written while a video is in work; made on the decoder's node."""


class Decoders:
    """Decodes uploads; one replica of the deployment.

    Args:
        decoding: models, limits and how much at once.

    Raises:
        DecodeError: if the bundled clip cannot be decoded.
    """

    def __init__(self, decoding: Decoding) -> None:
        os.nice(_NICENESS)
        self._decoding = decoding
        private_folder(Path(decoding.spool))
        self._spool = Spool(Path(decoding.spool) / "decoders", max_bytes=sys.maxsize, free_bytes=0)
        self._served = {one.name: one for one in decoding.served}
        self._threads = ThreadPoolExecutor(decoding.at_once, "decode")
        self._drawing = ThreadPoolExecutor(1, "draw")
        self._stills = ThreadPoolExecutor(1, "stills")  # a live frame does not wait for videos
        largest = min(decoding.limits.max_pixels, _LIVE_PIXELS)
        readers = {one.pixels: StillReader(one.frames, max_pixels=largest) for one in decoding.served}
        self._readers = {one.name: readers[one.pixels] for one in decoding.served}
        for frames in {one.pixels: one.frames for one in decoding.served}.values():
            decode_check(frames, decoding.reading)

    def __del__(self) -> None:
        """Called by Ray Serve when the replica is to end; what one that was killed has left, the next one removes."""
        if hasattr(self, "_spool"):
            self._spool.close()

    async def decode(
        self, path: str, models: Sequence[str], content: npt.NDArray[np.uint8] | None = None
    ) -> Decoded | NotHere | Refusal:
        """Decode an upload for some models.

        Args:
            path: its file on the web side's node.
            models: their names.
            content: its bytes, where the file lies on another node.
        """
        return await self._threaded(self._threads, self._decode, path, tuple(models), content)

    async def annotate(
        self, path: str, answer: dict[str, Any], target: str, content: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8] | NotHere | Refusal | None:
        """Write an upload with its answer drawn around it; see `write_annotated`.

        Args:
            path: as in `decode`.
            answer: fields of `schemas.Answer`.
            target: the file that is written, on the web side's node.
            content: as in `decode`.

        Returns:
            None; or the bytes of the file, where this is another node.
        """
        return await self._threaded(self._drawing, self._annotate, path, answer, target, content)

    async def still(self, jpeg: bytes, model: str, seconds: float, seen: tuple[Sighting, ...]) -> Still | Refusal:
        """A picture of a live session as the image tower takes it; see `StillReader`."""
        return await self._threaded(self._stills, self._still, jpeg, model, seconds, seen)

    async def _threaded(self, threads: ThreadPoolExecutor, work: Callable[..., _T], *arguments: Any) -> _T | Refusal:
        """The result of some work in a thread. A refusal is a value: Ray logs what crosses it as an exception."""
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)
        except RefusedError as error:
            return error.refusal

    def _decode(self, path: str, models: tuple[str, ...], content: npt.NDArray[np.uint8] | None) -> Decoded | NotHere:
        import ray

        began = time.perf_counter()
        if content is None and not os.path.isfile(path):
            return NotHere()
        with self._file(path, content) as file:
            duration = check_video(file, self._decoding.limits)
            specs = {self._served[name].pixels: self._served[name] for name in models}
            clips = {pixels: ray.put(self._decoded(file, served)) for pixels, served in specs.items()}
        return Decoded(clips, duration, time.perf_counter() - began)

    def _annotate(
        self, path: str, answer: dict[str, Any], target: str, content: npt.NDArray[np.uint8] | None
    ) -> npt.NDArray[np.uint8] | NotHere | None:
        from ray_jobs.serve.model.annotated import write_annotated  # matplotlib, which most decoders never need

        here = os.path.isdir(os.path.dirname(target))
        if content is None and not os.path.isfile(path):
            return NotHere()
        written = Path(target) if here else self._spool.folder / f"{uuid4().hex}.mp4"
        try:
            with self._file(path, content) as file:
                try:
                    write_annotated(file, answer, written, limits=self._decoding.reading)
                except DecodeError as error:
                    raise RefusedError("not_a_video", _said(error, file)) from error
            return None if here else np.fromfile(written, np.uint8)
        finally:
            if not here:
                written.unlink(missing_ok=True)

    def _still(self, jpeg: bytes, model: str, seconds: float, seen: tuple[Sighting, ...]) -> Still:
        try:
            return self._readers[model](jpeg, seconds=seconds, seen=seen)
        except DecodeError as error:
            raise RefusedError("not_a_picture", str(error)) from error

    @contextmanager
    def _file(self, path: str, content: npt.NDArray[np.uint8] | None) -> Iterator[Path]:
        """The file, or a private one with the content."""
        if content is None:
            yield Path(path)
            return
        file = self._spool.new_file()
        try:
            file.write(content.data)
            file.close()
            yield file.path
        finally:
            file.remove()

    def _decoded(self, path: Path, served: Served) -> DecodedClip:
        clip = Clip("video", "", str(path), "target")
        try:
            return decode_clip(
                clip, served.frames, limits=self._decoding.reading, max_frames=self._decoding.limits.max_frames
            )
        except TooManyFramesError as error:
            raise RefusedError("over_limit", f"the video has {error}; cut it") from error
        except DecodeError as error:
            raise RefusedError("not_a_video", _said(error, path)) from error
        except NoFaceError as error:
            raise RefusedError("no_face", _said(error, path)) from error


def _said(error: Exception, path: Path) -> str:
    """An error about a file of this machine, for the person who sent it."""
    said = without_paths(str(error), path).removeprefix("clip 'video': ").removeprefix(f"{path.name}: ")
    return said.replace(path.name, "the video")
