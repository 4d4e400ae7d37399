"""Locks between the processes of a server, on files of storage that they share and that knows `flock`.

A lock belongs to an open file and ends with its process, however that ends. Lock files are empty and stay.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

_POLL_SECONDS = 0.01


@contextmanager
def locked(path: Path, *, seconds: float | None = None) -> Iterator[None]:
    """Wait for the lock of this file, and hold it during the block. Threads of one process exclude each other, too.

    Args:
        path: the file; made if it is missing.
        seconds: how long to wait; None for ever.

    Raises:
        TimeoutError: if it is held by others for that long.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _take(handle, seconds)
        yield
    finally:
        os.close(handle)


def _take(handle: int, seconds: float | None) -> None:
    if seconds is None:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise TimeoutError(f"locked by others for {seconds:g} s") from error
            time.sleep(_POLL_SECONDS)


class Alive:
    """Tells other processes, as long as this one lives, that it does.

    Args:
        folder: where the sign is set up; made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.name = uuid4().hex
        """Name of the sign."""
        self._path = folder / self.name
        hidden = folder / f".{self.name}"
        self._handle = os.open(hidden, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        os.rename(hidden, self._path)  # only now, so that nobody finds it unlocked

    def close(self) -> None:
        """Take the sign away."""
        self._path.unlink(missing_ok=True)
        os.close(self._handle)


def is_alive(folder: Path, name: str) -> bool:
    """Whether the process that set up this sign lives."""
    try:
        handle = os.open(folder / name, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
