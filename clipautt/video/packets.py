"""Proves from a file's packets that decord gives the right frames of it, without decoding more than one.

In: an open container and its stream. Out: the times of its frames, or a `DecodeError` that says what is not proven;
PyAV then reads the file. decord counts frames by packets and finds them by seeking, so there must be one whole picture
in each packet, every picture must be shown, and every seek must end where it is meant to. It shows frames as they are
stored, in the size of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from clipautt.video.containers import DecodeError
from clipautt.video.display import display_of

_CONTAINERS = ("mov", "matroska")
"""First of FFmpeg's names of the containers in which decord seeks reliably."""
_FIRST_PACKETS = 64
_TOLD = 256


class _Syntax:
    """What is told from the units (NAL) of a packet of H.264 or HEVC."""

    def __init__(self, name: str, extradata: bytes) -> None:
        self.hevc = name == "hevc"
        self.length = 1 + (extradata[21 if self.hevc else 4] & 3)
        try:
            self.size = self._declared_size(extradata)
        except IndexError:  # cut short
            self.size = b""

    def _declared_size(self, extradata: bytes) -> bytes:
        """The unit that says how large all pictures are; empty where there are several."""
        groups = extradata[22] if self.hevc else 1
        at, found = (23, []) if self.hevc else (5, [])
        for _ in range(groups):
            wanted = self.is_size(extradata[at] & 0x3F) if self.hevc else True
            count = int.from_bytes(extradata[at + 1 : at + 3], "big") if self.hevc else extradata[at] & 0x1F
            at += 3 if self.hevc else 1
            for _ in range(count):
                end = at + 2 + int.from_bytes(extradata[at : at + 2], "big")
                found += [extradata[at + 2 : end]] if wanted else []
                at = end
        return found[0] if len(found) == 1 else b""

    def units(self, packet: Any) -> Iterator[tuple[int, bytes]]:
        """Type and bytes of each unit; of pictures, only the first bytes."""
        content, at = memoryview(packet), 0
        while at + self.length < len(content):
            size = int.from_bytes(content[at : at + self.length], "big")
            at += self.length
            first = content[at]
            kind = first >> 1 & 0x3F if self.hevc else first & 0x1F
            yield kind, bytes(content[at : at + (size if self.is_size(kind) else 4)])
            at += size

    def is_size(self, kind: int) -> bool:
        """Whether a unit says how large the pictures are (SPS)."""
        return kind == (33 if self.hevc else 7)

    def begins_picture(self, kind: int, unit: bytes) -> bool:
        """Whether a unit is the first slice of a picture."""
        is_slice, header = (kind < 32, 2) if self.hevc else (kind in (1, 5), 1)
        return is_slice and len(unit) > header and unit[header] >= 0x80

    def is_fresh(self, kind: int) -> bool:
        """Whether a slice belongs to a picture after which nothing refers to what came before (IDR)."""
        return kind in (19, 20) if self.hevc else kind == 5


def proven_times(
    container: Any, stream: Any, on_progress: Callable[[], None] = lambda: None
) -> npt.NDArray[np.float64]:
    """Seconds of every frame from the first one, ascending, of a file that decord reads right.

    Args:
        container: open, at its beginning; it is read to its end.
        stream: the video stream.
        on_progress: called now and then, to show that the file is still being read.

    Raises:
        DecodeError: with the first thing that is not proven.
    """
    _check_streams(container, stream)
    syntax = _Syntax(stream.codec_context.name, stream.codec_context.extradata)
    if not syntax.size:
        raise DecodeError("the size of its pictures may change")
    stream.codec_context.thread_count = 1
    shown, size = False, (stream.width, stream.height)
    stamps: list[int] = []
    key: int | None = None
    position = -1
    for packet in container.demux(stream):
        if len(stamps) % _TOLD == 0:
            on_progress()
        if not packet.size:
            continue
        if packet.pts is None:
            raise DecodeError("frames without time stamps")
        if packet.is_discard or packet.pos is None or packet.pos <= position:
            raise DecodeError("it has an edit list, by which players leave frames out or repeat them")
        position = packet.pos
        stamps.append(packet.pts)
        _check_picture(packet, syntax)
        if packet.is_keyframe:
            key = packet.pts
        if key is None or packet.pts < key:
            raise DecodeError("its groups of pictures are open, so frames would be miscounted after a seek")
        if not shown and len(stamps) <= _FIRST_PACKETS:
            shown = _check_shown(packet, stream, size)
    if not shown:
        raise DecodeError("no frames at its beginning")
    times = np.sort(np.array(stamps, np.int64))
    if (np.diff(times) <= 0).any():
        raise DecodeError("several frames have the same time stamp")
    return np.asarray((times - times[0]) * float(stream.time_base), np.float64)


def _check_streams(container: Any, stream: Any) -> None:
    name = container.format.name.split(",")[0]
    if name not in _CONTAINERS:
        raise DecodeError(f"in {name} it does not find frames reliably")
    if len(container.streams.video) > 1:
        raise DecodeError("of several video streams, it decodes another one than players show")
    context = stream.codec_context
    extradata = context.extradata or b""
    if context.name not in ("h264", "hevc") or len(extradata) < 23 - 16 * (context.name == "h264") or extradata[0] != 1:
        raise DecodeError(f"frames of {context.name} cannot be counted without decoding them")
    if stream.metadata.get("rotate", "0") != "0":
        raise DecodeError("it turns pictures by a tag that players ignore")


def _check_picture(packet: Any, syntax: _Syntax) -> None:
    """Check that a packet holds one whole picture of the declared size, and a key frame a new beginning."""
    pictures, fresh = 0, False
    for kind, unit in syntax.units(packet):
        if syntax.is_size(kind) and unit != syntax.size:
            raise DecodeError("the size of its pictures may change")
        if syntax.begins_picture(kind, unit):
            pictures, fresh = pictures + 1, syntax.is_fresh(kind)
    if packet.has_sidedata("new_extradata") or packet.has_sidedata("param_change"):
        raise DecodeError("the size of its pictures may change")
    if pictures != 1:
        raise DecodeError(f"a packet holds {pictures} pictures")
    if packet.is_keyframe and not fresh:
        raise DecodeError("its groups of pictures are open, so frames would be miscounted after a seek")


def _check_shown(packet: Any, stream: Any, size: tuple[int, int]) -> bool:
    """Decode until the first frame, which says how all are shown; whether it has come."""
    for frame in islice(packet.decode(), 1):
        if (frame.width, frame.height) != size:
            raise DecodeError("its pictures have another size than the container says")
        if not display_of(frame, stream, size).is_plain:
            raise DecodeError("its pictures are shown other than they are stored")
        return True
    return False
