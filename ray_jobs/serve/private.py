"""Folders for what people upload, below a temporary folder that other users of the machine can write to, too.

In: a path. Out: a folder of this user alone, or an error. Whoever owned it, or set a link in its place, would read the
videos, or choose what a sweep deletes.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def private_folder(folder: Path) -> None:
    """Make a folder that only this user may look into; one that is there already has to be this user's own.

    Raises:
        OSError: it is a link or another user's, or cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    there = os.lstat(folder)
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it is a link or belongs to another user", str(folder))
    folder.chmod(0o700)
