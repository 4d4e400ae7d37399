"""Uploaded files on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Upload:
    """An uploaded file, which is deleted when its request has been answered."""

    path: Path
    """Where it lies."""
    size: int
    """Bytes."""
