"""What the deployments hand on to each other; without PyTorch, since the web side and the decoders read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipautt.video.reader import FrameSpec
from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.web.keys import Who


@dataclass(frozen=True)
class Served:
    """A model as the processes without PyTorch know it."""

    name: str
    """Name in requests."""
    checkpoint: str
    """Its folder."""
    prompts: str | None
    """Folder of the prompts that `clipautt adapt` wrote for it; None without."""
    frames: FrameSpec
    """What the frames of a video become for it."""
    pixels: str
    """Hash of the facts of `frames`: a video is decoded once for all models that take the same frames."""
    backbone: str
    """Fingerprint of its backbone: models with the same one share it."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """A video after the decoder: its frames lie in Ray's object store, and only their references travel."""

    clips: dict[str, Any] = field(repr=False)
    """`Served.pixels` → reference of a `DecodedClip`."""
    duration_seconds: float
    """Length of the video."""
    seconds: float
    """Time that decoding took."""


@dataclass(frozen=True, eq=False)
class Personalizing:
    """A subject's videos, decoded."""

    who: Who
    """The subject's owner."""
    subject_id: str
    """Whose videos they are."""
    videos: tuple[tuple[Path, Decoded | Refusal], ...]
    """Each file, and what became of it."""
    models: tuple[str, ...]
    """Names of the models."""
    keep: bool
    """Whether the files are kept."""
    ticket: int
    """See `Encoder.ticket`."""
    contents: dict[Path, Any] = field(default_factory=dict, repr=False)
    """File → reference of its bytes, where the files lie on another node than the encoder and are to be kept."""


@dataclass(frozen=True)
class NotHere:
    """The file of an upload lies on another node: send its content."""
