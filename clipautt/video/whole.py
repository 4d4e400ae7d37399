"""A clip decoded as a whole, without an image tower: for servers, where another process encodes.

In: a clip and a `FrameSpec`. Out: a `DecodedClip`, with everything that is known of the frames before they are encoded.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipautt.clips import Clip
from clipautt.footage import is_rendered_clip
from clipautt.video.face_check import FrameSample, sample_of
from clipautt.video.reader import FrameChunk, FrameSpec
from clipautt.video.reader_process import ReadLimits, read_clip


class TooManyFramesError(ValueError):
    """A clip has more frames than are allowed at once in memory."""


@dataclass(frozen=True, eq=False, repr=False)
class DecodedClip:
    """The sampled frames of one clip, and what is known of them."""

    clip: Clip
    """What was decoded."""
    frames: FrameChunk
    """All its frames."""
    face_sides: tuple[float, ...]
    """As in `ClipFeatures`."""
    rendered: bool | None
    """Whether its faces are rendered, see `footage.is_rendered`; None if that is not known."""

    def __repr__(self) -> str:
        return f"DecodedClip({self.clip.clip_id!r}, {self.frames})"


def decode_clip(
    clip: Clip, frames: FrameSpec, *, limits: ReadLimits | None = None, max_frames: int | None = None
) -> DecodedClip:
    """Decode, crop and resize a clip in a child process, and keep all frames.

    Args:
        clip: what to decode.
        frames: what its frames become.
        limits: deadlines, pixels and memory.
        max_frames: most frames that are kept; None: any number.

    Raises:
        TooManyFramesError: if there are more.
        FileNotFoundError, DecodeError, NoFaceError: as `read_clip`.
    """
    held: list[FrameChunk] = []
    sample = FrameSample(wanted=False)
    for chunk in read_clip(clip, frames, limits):
        if not held or held[-1].decoder != chunk.decoder:  # the first chunk, or the clip is read again from its start
            held, sample = [], sample_of(clip, frames.faces)
        sample.add(chunk.frames)
        held.append(chunk)
        if max_frames is not None and sum(len(one.times) for one in held) > max_frames:
            raise TooManyFramesError(f"more than {max_frames} frames at {_rate(frames)}")
    return DecodedClip(clip, FrameChunk.joined(held), sample.sides(), is_rendered_clip(clip))


def _rate(frames: FrameSpec) -> str:
    rate = frames.sampling.frames_per_second
    return f"{rate:g} frames per second" if rate else "every frame"
