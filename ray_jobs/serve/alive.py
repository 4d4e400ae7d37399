"""Which processes of a server live: a file that each holds locked, in storage that they share and that knows `flock`.

The lock belongs to an open file and ends with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from uuid import uuid4


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


def remove_dead(signs: Path, folder: Path) -> None:
    """Remove what processes left that live no more, and their signs.

    Args:
        signs: where the signs are.
        folder: has a subfolder for each process, of the name of its sign; it may be the folder above `signs`.
    """
    for left in folder.glob("[!.]*"):
        if left.is_dir() and not left.is_symlink() and not is_alive(signs, left.name):
            shutil.rmtree(left, ignore_errors=True)
    for sign in signs.glob("[!.]*"):
        if not is_alive(signs, sign.name):
            sign.unlink(missing_ok=True)
