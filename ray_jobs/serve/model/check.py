"""The bundled clip with which every replica checks itself before it counts, and `/readyz` all of them together.

In: what a replica decodes or predicts with. Out: nothing, or the error that keeps it from starting.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from clipautt.clips import Clip
from clipautt.video.faces import FaceConfig
from clipautt.video.reader import FrameSpec, NoFaceError
from clipautt.video.reader_process import ReadLimits
from clipautt.video.whole import DecodedClip, decode_clip

CLIP = Path(str(resources.files("ray_jobs.serve") / "check.mp4"))
"""A rendered face, four seconds; `python -m tests.support.check_clip` writes it."""


def decode_check(frames: FrameSpec, limits: ReadLimits | None = None) -> None:
    """Decode the clip as videos are decoded. That the detector finds no face in it is no failure: it ran.

    Raises:
        DecodeError: if it cannot be decoded, as no other video could be.
    """
    try:
        decode_clip(Clip("check", "", str(CLIP), "target"), frames, limits=limits)
    except NoFaceError:
        return


def check_frames(frames: FrameSpec) -> DecodedClip:
    """The clip's frames for an image tower; its face fills them, so that none has to be found.

    Raises:
        DecodeError: as `decode_check`.
    """
    whole = FrameSpec(frames.preprocessing, frames.sampling, FaceConfig())
    return decode_clip(Clip("check", "", str(CLIP), "target"), whole)
