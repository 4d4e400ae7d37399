"""One subject's file for one model: the personalization, with the clips behind it.

In: a path. Out: what the file says, whole or in short, or a `RefusedError` that names no path. The format is that of
`clipautt.adaptation.personalization`; files of `clipautt adapt` lack the clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from clipautt.adaptation.personalization import (
    Personalization,
    load_beside,
    read_personalization,
    save_personalization,
)
from clipautt.adaptation.source import Source
from ray_jobs.serve.model.remembered import Remembered, packed, unpacked
from ray_jobs.serve.refusals import RefusedError


@dataclass(frozen=True, eq=False, repr=False)
class Stored:
    """A subject's file for one model."""

    checkpoint: str
    """Fingerprint of the checkpoint that it belongs to."""
    personalization: Personalization
    """What predictions are made with."""
    clips: tuple[Remembered, ...]
    """The clips behind it, as far as they are remembered."""
    since: str
    """When the subject was first stored, ISO 8601."""


def read_stored(path: Path) -> Stored:
    """Read a file with everything in it.

    Raises:
        FileNotFoundError, ValueError: as `read_personalization`.
    """
    checkpoint, made = read_personalization(path)
    beside = load_beside(path)
    return Stored(checkpoint, made, tuple(unpacked(beside)), beside.facts.get("since", _since(path)))


def write_stored(stored: Stored, path: Path) -> None:
    """Write a file atomically."""
    beside = packed(stored.clips, since=stored.since) if stored.clips else None
    save_personalization(stored.personalization, path, checkpoint=stored.checkpoint, beside=beside)


def clips_in(path: Path) -> list[dict[str, Any]]:
    """What is known of the clips behind a file, without their features.

    Raises:
        FileNotFoundError, ValueError: as `load_beside`.
    """
    clips: list[dict[str, Any]] = load_beside(path, tensors=False).facts.get("clips", [])
    return clips


def described(path: Path, served: str | None) -> dict[str, Any]:
    """A file as `web.schemas.StoredModel` in plain values."""
    checkpoint, made = read_personalization(path)
    basis, warnings = made.basis, list(made.warnings)
    if served not in (None, checkpoint):
        warnings.insert(0, "It belongs to another checkpoint than the one that is served, and cannot be used with it.")
    return {
        "since": load_beside(path, tensors=False).facts.get("since", _since(path)),
        "method": made.config.method.name,
        "clips": basis.num_clips if basis else len(made.clips),
        "frames": made.num_frames,
        "seconds": made.seconds,
        "warnings": warnings,
    }


def check_checkpoint(checkpoint: str, subject: str, model: str, source: Source) -> None:
    """Refuse what belongs to another checkpoint than the source's.

    Raises:
        RefusedError: `other_checkpoint`.
    """
    if checkpoint != source.checkpoint.fingerprint:
        raise RefusedError(
            "other_checkpoint",
            f"what is stored for subject {subject!r} belongs to checkpoint {checkpoint}, and {model!r} is "
            f"{source.checkpoint.fingerprint} now",
        )


@contextmanager
def refusing(subject: str, model: str) -> Iterator[None]:
    """Errors of reading a file as refusals, which name no path."""
    try:
        yield
    except RefusedError:
        raise
    except FileNotFoundError as error:  # erased meanwhile
        raise RefusedError("unknown_subject", f"nothing is stored for subject {subject!r} and {model!r}") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RefusedError(
            "other_checkpoint",
            f"what is stored for subject {subject!r} and {model!r} is damaged, or of another version",
        ) from error


def _since(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")
