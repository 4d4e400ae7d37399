"""The private folder that uploads lie in while they are answered.

In: a folder. Out: new files in it, see `Spool.new_file`. Each process has a subfolder of its own, of the name of its
sign of life; what a process that has died left there is removed when the next one starts.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from pathlib import Path

from ray_jobs.serve.alive import Alive, is_alive, remove_dead
from ray_jobs.serve.private import private_folder
from ray_jobs.serve.refusals import RefusedError

_SIGNS = ".alive"
"""Folder in which the processes' signs of life are."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
_RETRY_SECONDS = 10
_CHECK_BYTES = 8 * 1024 * 1024
"""How many bytes are written between two looks at the disk."""


class Spool:
    """Files of this process's uploads.

    Args:
        folder: Where; made if it is missing, then only for this user. Several processes may share it.
        max_bytes: Most bytes of this process's files.
        free_bytes: Bytes of the disk that stay free.

    Raises:
        ValueError: The folder is not this user's, or cannot be used.
    """

    def __init__(self, folder: Path, *, max_bytes: int, free_bytes: int) -> None:
        self.used = 0
        """Bytes of the files that there are now."""
        self._max_bytes = max_bytes
        self._free_bytes = free_bytes
        self._unchecked = 0
        try:
            private_folder(folder)
            self._alive = Alive(folder / _SIGNS)
            self.folder = folder / self._alive.name
            """Subfolder of this process."""
            self.folder.mkdir(mode=0o700)
            remove_dead(folder / _SIGNS, folder)
        except OSError as error:
            raise ValueError(
                f"uploads cannot be kept in {folder} ({error.strerror}); it should be this user's"
            ) from error

    def close(self) -> None:
        """Remove this process's files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._alive.close()

    def check_room(self, num_bytes: int) -> None:
        """Refuse what does not fit.

        Raises:
            RefusedError: `busy`: other uploads must end first.
        """
        if (
            self.used + num_bytes > self._max_bytes
            or shutil.disk_usage(self.folder).free < self._free_bytes + num_bytes
        ):
            raise _full()

    def new_file(self) -> SpoolFile:
        """A new empty file, open for writing."""
        return SpoolFile(self, self.folder / uuid.uuid4().hex)

    def grow(self, num_bytes: int) -> None:
        """Count bytes before they are written; raises as `check_room`."""
        self._unchecked += num_bytes
        if self.used + num_bytes > self._max_bytes:
            raise _full()
        if self._unchecked >= _CHECK_BYTES:
            self.check_room(num_bytes)
            self._unchecked = 0
        self.used += num_bytes


class SpoolFile:
    """A file that is written as its bytes arrive."""

    def __init__(self, spool: Spool, path: Path) -> None:
        self.path = path
        self.size = 0
        """Bytes so far."""
        self._spool = spool
        self._handle: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def write(self, data: bytes | memoryview) -> None:
        """Append.

        Raises:
            RefusedError: `busy`: the spool or the disk is full.
        """
        assert self._handle is not None
        self._spool.grow(len(data))
        self.size += len(data)
        try:
            while data:
                data = data[os.write(self._handle, data) :]
        except OSError as error:
            raise (_full() if error.errno in _FULL else error) from error

    def close(self) -> None:
        """No more is written."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def remove(self) -> None:
        """Delete it."""
        self.close()
        self.path.unlink(missing_ok=True)
        self._spool.used -= self.size
        self.size = 0


def sweep_dead(folder: Path) -> None:
    """Remove the folders of this user's servers at other ports that were killed and not started again.

    Args:
        folder: of a server, `…-PORT`; in each subfolder of it, such as `uploads`, processes have folders as in `Spool`.
    """
    for other in folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*"):
        own = other.is_dir() and not other.is_symlink() and other.stat().st_uid == os.geteuid()
        if not own or other == folder:
            continue
        if not any(is_alive(sign.parent, sign.name) for sign in other.glob(f"*/{_SIGNS}/*")):
            shutil.rmtree(other, ignore_errors=True)


def _full() -> RefusedError:
    return RefusedError("busy", "the server has no room for this upload now", retry_seconds=_RETRY_SECONDS)
