"""The video of an answer: its label, warnings and curves around the frames, with the face's box, a cursor and AU bars.

In: an answer, and its video. Out: an MP4 file that browsers play, with every frame of the video at its time. The text
and the curves are drawn once; box, cursor and bars in each frame. Sound is not copied.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from clipautt.clips import Clip
from clipautt.files import atomic
from clipautt.prediction.answers import VideoPrediction
from clipautt.prediction.overlay_frames import MADE, Plan, write_frames
from clipautt.prediction.overlay_plan import plan_of
from clipautt.video.reader import BOX
from clipautt.video.reader_process import ReadLimits, work_on_clip

SUFFIX = ".mp4"
_HEAD = 1 << 26
"""Bytes of a file in which its comment is looked for; the index of a day's video before it takes up half of them."""


def write_overlay(
    prediction: VideoPrediction, path: str | Path, *, clip: Clip | None = None, limits: ReadLimits | None = None
) -> Path:
    """Write the video with the answer drawn around it.

    Above the picture: label, probabilities and every warning. In it: the face's box, blue where the face was found,
    orange where its place is inferred. Below: the face over time, the chosen window, the class probabilities and the
    AUs that rose most, with a cursor; stretches without a face are hatched. Below the name of each of these AUs a bar
    shows its value at the moment: right of the zero line where it is above its usual level, left of it where it is
    below. The file has all frames of the video with their time stamps, and no sound; it appears when it is complete.

    Args:
        prediction: the answer.
        path: file to write, its name ending in .mp4.
        clip: what was predicted, for a span of a video; None: the whole file `prediction.video`.
        limits: limits for each decoder, as in `Predictor.load`.

    Returns:
        The path.

    Raises:
        ValueError: as `check_overlay`, and where neither prediction nor clip names the video.
        FileNotFoundError: if the video is gone.
        DecodeError: if no decoder reads it.
    """
    shown = clip or Clip(prediction.clip.clip_id, prediction.clip.subject_id, prediction.video, "target")
    if not shown.source:
        raise ValueError("the prediction does not say which video it is of; give clip=Clip(…) with its source")
    target = check_overlay(path, shown.source)
    plan = asdict(_plan(prediction))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as temporary:
        temporary.touch()  # where no file can be written, that is not the decoder's fault
        work_on_clip(write_frames, shown, {"target": os.path.abspath(temporary), "plan": plan}, limits)
    return target


def check_overlay(path: str | Path, video: str | Path, *, name: str = "path") -> Path:
    """Check where an overlay goes, before anything is decoded.

    Args:
        path: file to write.
        video: the video.
        name: what the path is called in messages, such as the setting that has it.

    Raises:
        ValueError: if its name does not end in .mp4, or it is a folder, the video itself or below it.
        FileExistsError: if another video lies there that is no overlay, and would be lost.
    """
    target = Path(path)
    if target.suffix.lower() != SUFFIX:
        raise ValueError(f"{name}={path}: an overlay is an MP4 video; allowed: names that end in {SUFFIX}")
    if target.is_dir():
        raise ValueError(f"{name}={path} is a folder; give the name of a file, such as {target / ('overlay' + SUFFIX)}")
    refuse_source(target, video, name=name)
    if target.exists() and target.stat().st_size and not _is_overlay(target):
        raise FileExistsError(f"{name}={path} is a file, but no overlay; give another name, or remove it")
    return target


def _is_overlay(path: Path) -> bool:
    """Whether `write_frames` made a file: its head says so."""
    with path.open("rb") as file:
        return MADE.encode() in file.read(_HEAD)


def refuse_source(path: Path, video: str | Path, *, name: str) -> None:
    """Refuse to write over the video, or into a folder of frames, where a picture would count as one of them; `name`
    as in `check_overlay`."""
    if Path(video).is_dir() and path.parent.exists() and path.parent.samefile(video):
        raise ValueError(f"{name}={path} lies in {video}, the folder of frames; give another name")
    if path.exists() and Path(video).exists() and path.samefile(video):
        raise ValueError(f"{name}={path} is the video itself, which would be overwritten; give another name")


def _plan(prediction: VideoPrediction) -> Plan:
    clip = prediction.clip
    nowhere = np.full((len(clip.times), len(BOX)), np.nan)
    return plan_of(prediction, clip.times, nowhere if clip.boxes is None else clip.boxes)
