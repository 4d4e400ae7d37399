"""What a job says of its footage before it works with it: a kind that the backbone has never seen, faces too small.

In: the clips of a manifest. Out: sentences, and the `Footage` that a checkpoint records.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipautt.backbones.loading import BackboneConfig, facts_of
from clipautt.clips import Clip
from clipautt.footage import Footage, is_rendered_clip, other_footage
from clipautt.manifest import Manifest
from clipautt.video.decoding import DecodeError
from clipautt.video.face_check import face_warning
from clipautt.video.reader import FrameSpec
from clipautt.video.reader_process import read_clip

_LOOKED_AT = 5


def training_footage(manifest: Manifest, backbone: BackboneConfig) -> Footage:
    """What the training clips show; prints a warning if the backbone has never seen footage of this kind."""
    clips = manifest.of_split("source_train")
    rendered = [is_rendered_clip(clip) for clip in clips]
    warn(other_footage({f"the backbone {backbone.name!r}": facts_of(backbone).footage}, rendered))
    return Footage.of(rendered, (clip.dataset for clip in clips))


def uncropped_warning(clips: Sequence[Clip], frames: FrameSpec) -> str | None:
    """A sentence if no detector crops to the faces, and they do not fill the pictures; None otherwise.

    One frame of each of five clips is looked at. Rendered clips are passed over, and those that this machine cannot
    read, which the extraction reports.
    """
    if frames.faces.detector != "none":
        return None
    places = np.linspace(0, len(clips) - 1, min(_LOOKED_AT, len(clips))).round().astype(int)
    looked_at = []
    for clip in (clips[place] for place in places):
        if is_rendered_clip(clip) is not False:
            continue
        try:
            looked_at.append(next(read_clip(clip, frames)).frames[-1])
        except (DecodeError, OSError):
            continue
    return face_warning(looked_at)


def warn(sentence: str | None) -> None:
    """Print a warning, if there is one."""
    if sentence:
        print(f"warning: {sentence}")
