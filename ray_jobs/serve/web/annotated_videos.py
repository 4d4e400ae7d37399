"""Annotated videos, kept for a while: each has an address that cannot be guessed, and is deleted when its time is over.

In: a finished file. Out: a token, and later the response that plays the file. Nothing of a request becomes a path.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

from ray_jobs.serve.private import private_folder
from ray_jobs.serve.refusals import KINDS, RefusedError

_SUFFIX = ".mp4"
_HEADERS = {"Cache-Control": "no-store"}
_LONGEST_PAUSE = 30.0
"""Seconds between two sweeps at most."""


@dataclass
class _Video:
    path: Path
    size: int
    until: float
    """Time of the clock at which it goes."""
    readers: int = 0
    """Responses that are sending it."""
    gone: bool = False
    """Whether it is deleted after the last of them."""


class AnnotatedVideos:
    """The videos of this process.

    Args:
        folder: where they lie; it belongs to this process alone.
        seconds: how long each can be fetched.
        max_bytes: of all; where a further one does not fit, the oldest go.
        clock: gives seconds that never go back.

    Raises:
        OSError: the folder is not this user's, or cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seconds: float = 600.0,
        max_bytes: int = 1 << 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._seconds, self._max_bytes, self._clock = folder, seconds, max_bytes, clock
        self._videos: dict[bytes, _Video] = {}
        self._begun: dict[Path, float] = {}
        private_folder(folder)

    @property
    def used(self) -> int:
        """Bytes of the videos that there are."""
        return sum(video.size for video in self._videos.values())

    def begin(self) -> Path:
        """Where a new video is to be written; then `keep` it, and in any case `discard` the path."""
        path = self._folder / f"{uuid.uuid4().hex}{_SUFFIX}"
        self._begun[path] = self._clock() + self._seconds
        return path

    def discard(self, path: Path) -> None:
        """Delete what was written, unless it is kept; also what is written later, by a worker that was given up."""
        if path in self._begun:
            path.unlink(missing_ok=True)

    def keep(self, path: Path) -> str:
        """Keep a finished video.

        Args:
            path: from `begin`.

        Returns:
            Its token: 256 random bits as letters, digits, `-` and `_`. Empty if it is larger than all may be together.
        """
        self.sweep_now()
        size = path.stat().st_size
        if size > self._max_bytes:
            return ""
        while self.used + size > self._max_bytes:
            self._remove(next(iter(self._videos)))
        path.chmod(0o600)
        del self._begun[path]
        token = secrets.token_urlsafe(32)
        self._videos[_digest(token)] = _Video(path, size, self._clock() + self._seconds)
        return token

    def response(self, name: str) -> FileResponse:
        """The response that sends a video, or the range of it that is asked for.

        Args:
            name: `TOKEN.mp4`.

        Raises:
            RefusedError: `unknown_video`, if there is none of this name, or its time is over.
        """
        return _Sent(self, self._find(name), name)

    def sweep_now(self) -> None:
        """Delete the videos whose time is over."""
        for key in [key for key, video in self._videos.items() if video.until <= self._clock()]:
            self._remove(key)
        for path in [path for path, until in self._begun.items() if until <= self._clock()]:
            self._delete_files(path.name)
            del self._begun[path]

    async def sweep(self) -> None:
        """Sweep now and then, until the task is cancelled; then delete all."""
        try:
            while True:
                await asyncio.sleep(min(_LONGEST_PAUSE, self._seconds / 4))
                self.sweep_now()
        finally:
            self.close()

    def close(self) -> None:
        """Delete all videos."""
        self._videos.clear()
        self._begun.clear()
        self._delete_files("*")

    def _delete_files(self, name: str) -> None:
        """Delete the files of a name, or of any, and what was begun of them."""
        for pattern in (f"{name.removesuffix(_SUFFIX)}{_SUFFIX}", f".{name}.tmp", f".{name}.*.tmp"):
            for path in self._folder.glob(pattern):
                path.unlink(missing_ok=True)

    def _find(self, name: str) -> _Video:
        video = self._videos.get(_digest(name.removesuffix(_SUFFIX)))
        if video is None or video.until <= self._clock() or not video.path.is_file():
            raise RefusedError("unknown_video", KINDS["unknown_video"][1])
        return video

    def _remove(self, key: bytes) -> None:
        video = self._videos.pop(key)
        video.gone = True
        if not video.readers:
            video.path.unlink(missing_ok=True)


class _Sent(FileResponse):
    """A video on its way; it is not deleted meanwhile."""

    def __init__(self, videos: AnnotatedVideos, video: _Video, name: str) -> None:
        self._videos, self._video, self._name = videos, video, name
        super().__init__(
            video.path,
            headers=_HEADERS,
            media_type="video/mp4",
            filename=f"prediction{_SUFFIX}",
            content_disposition_type="inline",
            stat_result=os.stat(video.path),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._videos._find(self._name)  # it may have gone since
        self._video.readers += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._video.readers -= 1
            if self._video.gone and not self._video.readers:
                self._video.path.unlink(missing_ok=True)


def _digest(token: str) -> bytes:
    """What a token is looked up by, so that the time of a look tells nothing of the tokens."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
