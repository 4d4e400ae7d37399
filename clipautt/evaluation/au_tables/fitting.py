"""Whether a table belongs to a clip: its duration and its rate are compared with those of the video.

In: the path of a table and the clip that it is named after. Out: an `AuTrack` in seconds of the clip, or the reason why
the table cannot be of that video. Two videos of one length and rate are not told apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from clipautt.clips import Clip
from clipautt.evaluation.au_tables.faces import Which
from clipautt.evaluation.au_tables.matching import names_of_video
from clipautt.evaluation.au_tables.reading import AuTable, AuTrack, read_au_table
from clipautt.tables import nfc
from clipautt.video.containers import open_container

_TOLERANCE = 0.1
"""How far durations and rates may differ, as a share."""
_FEW_FRAMES = 2
"""Frames by which durations may differ, however short the clip."""
_CLOCK_SECONDS = 1.5
"""How far times in whole seconds may be from those of the frames, beside the tolerance."""


@dataclass(frozen=True)
class Footage:
    """How long a video is."""

    seconds: float
    """From its first frame to the end of its last."""
    frames_per_second: float
    """Mean rate."""


def read_au_table_of(path: Path, clip: Clip, *, seconds: float | None = None, which: Which = "largest") -> AuTrack:
    """Read the table of a clip, in seconds of the clip.

    A table named after the video covers all of it, so its times are shifted by the start of the clip; a table named
    after the clip starts with the clip.

    Args:
        path: the table.
        clip: whose table it is.
        seconds: how long the clip is, for where its video cannot be looked at.
        which: whose face, where the table holds several.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `read_au_table`; or if the table's duration or rate is not that of the video, by more than 10 %.
    """
    footage = footage_of(clip.source)
    table = read_au_table(path, frames_per_second=footage.frames_per_second if footage else clip.frames_per_second)
    of_video = nfc(path.stem) in names_of_video(clip)
    is_span = any(edge is not None for edge in (clip.start_seconds, clip.end_seconds, clip.start_frame, clip.end_frame))
    if of_video and is_span:
        _check_duration(table, clip, footage.seconds if footage else None, what="its video")
    else:
        length = _length(clip, footage)
        _check_duration(table, clip, seconds if length is None else length, what="the clip")
    if footage is not None:
        _check_rate(table, clip, footage.frames_per_second)
    if not of_video:
        return table.track(which=which)
    return table.track(offset_seconds=clip.start_seconds or 0.0, offset_frames=clip.start_frame or 0, which=which)


@lru_cache(maxsize=64)
def footage_of(source: str) -> Footage | None:
    """The length of a video, read without decoding; None for folders of frames, and where it is not there."""
    if not Path(source).is_file():
        return None
    try:
        with open_container(source) as container:
            stream = container.streams.best("video")
            stamps = [
                float(packet.pts * packet.time_base)
                for packet in container.demux(stream)
                if packet.pts is not None and packet.size and not packet.is_discard
            ]
    except (av.FFmpegError, OSError, ValueError, AttributeError):
        return None
    if len(stamps) < 2:
        return None
    step = (max(stamps) - min(stamps)) / (len(stamps) - 1)
    return Footage(max(stamps) - min(stamps) + step, 1 / step) if step > 0 else None


def _start(clip: Clip, footage: Footage | None) -> float:
    if clip.start_frame is not None:
        return clip.start_frame / (footage.frames_per_second if footage else 1.0)
    return clip.start_seconds or 0.0


def _end(clip: Clip, footage: Footage | None) -> float | None:
    if clip.end_frame is not None:
        return clip.end_frame / footage.frames_per_second if footage else None
    return clip.end_seconds


def _length(clip: Clip, footage: Footage | None) -> float | None:
    """Seconds of a clip; None where that is not known."""
    end = _end(clip, footage)
    if footage is not None:
        end = min(footage.seconds, end if end is not None else footage.seconds)
    return None if end is None or (footage is None and clip.start_frame is not None) else end - _start(clip, footage)


def _check_duration(table: AuTable, clip: Clip, expected: float | None, *, what: str) -> None:
    times = table.frames["time_seconds"].to_numpy(float)
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    lasts = times[-1] - times[0] + step
    if expected is None:
        return
    slack = max(_TOLERANCE * expected, _FEW_FRAMES * step)
    if abs(lasts - expected) > slack or abs(times[-1] + step - expected) > slack:
        span = (
            f"covers {lasts:.2f} s" if abs(times[0]) <= slack else f"covers {times[0]:.2f} to {times[-1] + step:.2f} s"
        )
        raise ValueError(
            f"{table.path} {span}, and {what} lasts {expected:.2f} s, so it is not the table of clip {clip.clip_id!r}; "
            f"run {table.format.tool} on {clip.source}"
        )


def _check_rate(table: AuTable, clip: Clip, rate: float) -> None:
    """Compare frames per second, by frame numbers where there are some: a tool may have skipped frames."""
    frames, layout = table.frames, table.format
    times = frames["time_seconds"].to_numpy(float)
    if len(times) < 2:
        return
    if layout.clock:
        _check_clock(table)
    if layout.frame and layout.time:
        numbers = frames[layout.frame].to_numpy(float)
        own = (numbers[-1] - numbers[0]) / (times[-1] - times[0])
    elif layout.time:
        own = (len(times) - 1) / (times[-1] - times[0])
        own *= max(1, round(rate / own))  # every second or third frame
    else:
        return  # its times were made from frame numbers with this very rate
    if not abs(own - rate) <= _TOLERANCE * rate:
        raise ValueError(
            f"{table.path} has {own:.1f} frames per second, and {clip.source} {rate:.1f}, so it is not the table of "
            f"clip {clip.clip_id!r}; run {layout.tool} on that video"
        )


def _check_clock(table: AuTable) -> None:
    """Compare times in whole seconds with those made from frame numbers and the video's rate."""
    frames = table.frames
    parts = frames[table.format.clock].str.extract(re.compile(r"^(?:(\d+):)?(\d+):(\d+)$")).fillna("0").astype(float)
    noted = (parts[0] * 60 + parts[1]) * 60 + parts[2]
    apart = (noted - frames["time_seconds"]).abs()
    if (apart > _CLOCK_SECONDS + _TOLERANCE * frames["time_seconds"]).any():
        row = frames.iloc[int(apart.to_numpy().argmax())]
        raise ValueError(
            f"{table.path}, line {row['line']}: {table.format.clock} is {row[table.format.clock]}, and the frame is "
            f"shown at {row['time_seconds']:.2f} s, so the table is of a video with another rate"
        )
