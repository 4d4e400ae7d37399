"""What a clip's source contains, so that it is recognized under another path or time.

In: the path of a video file or of a folder of frames. Out: a hash. Imports nothing heavy: decoding tasks call it.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from clipautt.video.decoding import VERSION
from clipautt.video.pictures import PICTURES

_PIECE = 1 << 20
_DIGITS = 32


def content_of(source: str | Path) -> str:
    """Hash of a video file, or of the pictures in a folder with their names: 32 hex digits of a SHA-256.

    A file that several clips are spans of is read once, as long as its size and time stay the same. The hash of a video
    file changes with the version of decoding, since the same file may then give other frames.

    Raises:
        OSError: if it is not there or cannot be read.
    """
    path = Path(source)
    if not path.is_dir():
        stat = path.stat()
        decoded = f"decoding {VERSION} {_of_file(str(path), stat.st_size, stat.st_mtime_ns)}"
        return hashlib.sha256(decoded.encode()).hexdigest()[:_DIGITS]
    digest = hashlib.sha256()
    for name in sorted(name for name in os.listdir(path) if Path(name).suffix.lower() in PICTURES):
        picture = path / name
        stat = picture.stat()
        digest.update(f"{name}\0{_of_file(str(picture), stat.st_size, stat.st_mtime_ns)}\0".encode(errors="replace"))
    return digest.hexdigest()[:_DIGITS]


@lru_cache(maxsize=4096)
def _of_file(path: str, size: int, time_ns: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()[:_DIGITS]
