"""The log of faults: what went wrong in the server itself, with tracebacks, for whoever runs it.

In: what the modules of the server log as warnings and errors. Out: lines in a file that only its owner may read.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ray_jobs.serve.web.access_log import PrivateFile

_LOGGER = "ray_jobs.serve"
_MAX_BYTES, _FILES = 10_000_000, 3


def open_fault_log(path: Path) -> None:
    """Write the server's warnings and errors of this process to a file from now on, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = PrivateFile(path, maxBytes=_MAX_BYTES, backupCount=_FILES, encoding="utf-8", delay=True)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger(_LOGGER).addHandler(handler)
