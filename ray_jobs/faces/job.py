"""Look at what the face detector sees in a video: where the crop lies, and what the model would be shown.

Writes `annotated.mp4` with the crop drawn in, `contact_sheet.png` with crops in time order, `track.csv` with the
numbers of the face that is followed and `people.csv` with those of every face; all four also where no face is found.
The settings are those of `extract`, so what looks right here is what is encoded there. The video is decoded as there,
in its own process and under limits; if every decoder fails, the message says why.

Example:
    clipautt faces interview.mp4 out=look
    clipautt faces interview.mp4 out=look faces.which=right
    clipautt faces interview.mp4 out=look faces=yunet faces.model=face_detection_yunet_2023mar.onnx
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from clipautt.clips import Clip
from clipautt.evaluation.reports.face_sheet import draw_contact_sheet, evenly_chosen, write_annotated_video
from clipautt.files import move, write_text
from clipautt.video.decoding import Sampling, stream_clip
from clipautt.video.faces import FaceConfig, few_faces, hints, make_detector
from clipautt.video.preprocessing import Frames
from clipautt.video.reader import Seconds, follow_people
from clipautt.video.reader_process import ReadLimits, work_on_clip
from clipautt.video.tracks import FaceTrack, People, crop_face
from ray_jobs.platform.configuration import instantiate
from ray_jobs.platform.progress import table

POSITIONAL = "video"
OUTPUTS = ("annotated.mp4", "contact_sheet.png", "track.csv", "people.csv")
_CROP_PIXELS = 224
_PAPER = 127
"""Grey around a whole frame on the contact sheet."""


@dataclass(frozen=True)
class Seen:
    """What was seen in a video."""

    found: int
    """Number of frames with the face that is followed."""
    frames: int
    """Number of frames."""
    why: str
    """Why no face is followed, as a sentence; empty if one is."""
    people: list[list[str]]
    """A row of `PEOPLE` per face."""

    @property
    def others(self) -> int:
        """Number of faces that are left out."""
        return len(self.people) - (not self.why)


PEOPLE = ("face", "frames", "from", "to", "middle", "side", "eyes in", "followed")
"""Headers of the table of faces: seconds, pixels, and numbers of frames."""


def look(video: Path, out: Path, *, faces: FaceConfig, sampling: Sampling, limits: ReadLimits) -> Seen:
    """Write the annotated video, the contact sheet and the tables; all of them or none.

    Args:
        video: a file, or a folder of frames.
        out: an existing folder.
        faces: how the face is found and cropped.
        sampling: which moments are looked at.
        limits: limits for each decoder.

    Returns:
        What was seen.

    Raises:
        DecodeError: if no decoder reads the video, with each one's reason.
    """
    make_detector(faces)  # so that wrong settings are not reported as a fault of the video
    clip = Clip(video.stem, "unknown", str(video), "target")
    # A decoder may die while it writes; from a folder beside the final files, finished ones are moved without a copy.
    with tempfile.TemporaryDirectory(prefix=".faces-", dir=out) as aside:
        arguments = {"folder": os.path.abspath(aside), "faces": asdict(faces), "sampling": asdict(sampling)}
        seen = Seen(**work_on_clip(write_outputs, clip, arguments, limits))
        for name in OUTPUTS:
            move(Path(aside, name), out / name)
    return seen


def write_outputs(
    clip: Clip, *, folder: str, faces: dict[str, Any], sampling: dict[str, Any], **decoding: Any
) -> dict[str, Any]:
    """The work of the decoding process: follow the faces, and write the files.

    Args:
        clip: the video.
        folder: where the files go; those of a decoder that failed are overwritten.
        faces: fields of a `FaceConfig`.
        sampling: fields of a `Sampling`.
        decoding: `decoder`, `max_pixels` and `on_frame` of `stream_clip`.

    Returns:
        The fields of a `Seen`.
    """

    def frames() -> Iterator[tuple[float, Frames]]:
        return stream_clip(clip, Sampling(**sampling), **decoding)

    people, _ = follow_people(frames(), FaceConfig(**faces))
    track = people.subject or FaceTrack.nowhere(len(people.counts))
    others = [other for other in people.tracks if other is not people.subject]
    annotated, sheet, followed, everyone = (Path(folder, name) for name in OUTPUTS)
    write_annotated_video(annotated, frames(), track, others=others)
    times = np.array(_write_crops(frames(), track, sheet, title=people.why))
    _write_csv(_table(track, times).assign(faces=people.counts), followed)
    tables = [_table(one, times)[one.found].assign(face=number) for number, one in enumerate(people.tracks, 1)]
    empty = _table(FaceTrack.nowhere(0), times[:0]).assign(face=0)
    _write_csv(pd.concat(tables) if tables else empty, everyone)
    return asdict(Seen(int(track.found.sum()), len(times), people.why, _rows(people, times)))


def _write_crops(frames: Iterator[tuple[float, Frames]], track: FaceTrack, path: Path, *, title: str) -> list[float]:
    """Draw the contact sheet of some of the frames; returns the times of all frames."""
    chosen = set(evenly_chosen(len(track.found)))
    times, crops, shown = [], [], []
    for index, (time, frame) in enumerate(frames):
        times.append(time)
        if index in chosen:
            crops.append(_crop(frame, track, index))
            shown.append(index)
    counted = f"Face found in {int(track.found.sum())} of {len(track.found)} frames"
    found = [bool(track.found[i]) for i in shown]
    draw_contact_sheet(crops, [times[i] for i in shown], found, path, title=title or counted)
    return times


def _crop(frame: Frames, track: FaceTrack, index: int) -> Frames:
    """The crop, or the whole frame where there is none."""
    if track.shown[index]:
        where = track.centre[index], float(track.side[index]), float(track.angle[index])
        return crop_face(frame, *where, size=_CROP_PIXELS, interpolation="bicubic")
    height, width = frame.shape[:2]
    square = np.full((max(height, width),) * 2 + (3,), _PAPER, np.uint8)
    top, left = (len(square) - height) // 2, (len(square) - width) // 2
    square[top : top + height, left : left + width] = frame
    middle = (len(square) / 2, len(square) / 2)
    return crop_face(square, middle, len(square), 0.0, size=_CROP_PIXELS, interpolation="bicubic")


def _table(track: FaceTrack, times: Seconds) -> pd.DataFrame:
    """A row per frame: where the crop lies, and how sure the detector was; empty cells where there is no crop."""
    numbers = {"centre_x": track.centre[:, 0], "centre_y": track.centre[:, 1], "side": track.side}
    where = pd.DataFrame(numbers | {"angle_radians": track.angle})
    where[~track.shown] = np.nan
    eyes = np.isfinite(track.eyes).all(axis=(1, 2))
    first = pd.DataFrame({"seconds": times, "found": track.found})
    return pd.concat([first, where, pd.DataFrame({"score": track.score, "eyes": eyes})], axis=1)


def _write_csv(rows: pd.DataFrame, path: Path) -> None:
    write_text(path, rows.round(4).to_csv(index=False))


def _rows(people: People, times: Seconds) -> list[list[str]]:
    """A row of `PEOPLE` per face."""
    rows = []
    for number, track in enumerate(people.tracks):
        at, (x, y) = times[track.found], np.median(track.centre[track.found], axis=0)
        eyes = int(np.isfinite(track.eyes).all(axis=(1, 2)).sum())
        numbers = f"{len(at)} of {len(times)}", f"{at[0]:.2f} s", f"{at[-1]:.2f} s", f"{x:.0f}, {y:.0f}"
        side = f"{np.median(track.side[track.found]):.0f}"
        rows.append([str(number + 1), *numbers, side, str(eyes), "yes" if number == people.chosen else ""])
    return rows


def main(cfg: DictConfig) -> int:
    """Run the job; the exit code is 1 where no face is followed."""
    video, out, config = Path(cfg.video), Path(cfg.out), instantiate(cfg.faces)
    if not video.exists():
        raise FileNotFoundError(f"video={video}: no such file or folder")
    if config.detector == "none":
        raise ValueError("faces=none detects nothing; allowed here are cascade and yunet")
    if any((out / name).exists() and (out / name).samefile(video) for name in OUTPUTS):
        raise ValueError(f"out={out}: {video.name} would be overwritten; give another folder")
    sampling, limits = instantiate(cfg.sampling), instantiate(cfg.limits)
    out.mkdir(parents=True, exist_ok=True)
    seen = look(video, out, faces=config, sampling=sampling, limits=limits)
    print("\n".join(said(seen, config)))
    if len(seen.people) > 1 or (seen.people and seen.why):
        table(seen.people, list(PEOPLE))
    for name in OUTPUTS:
        print(f"  {out / name}")
    return 1 if seen.why else 0


def said(seen: Seen, config: FaceConfig) -> list[str]:
    """What is printed: whether the face was found, whose, and what to try where it was not."""
    if seen.why:
        return [f"{seen.why}; {hints(config)}" if not seen.people else seen.why]
    lines = [f"face found in {seen.found} of {seen.frames} frames"]
    if seen.others:
        were = "1 other face was" if seen.others == 1 else f"{seen.others} other faces were"
        lines.append(f"{were} left out; faces.which=left, right, center or a number follows another one")
    warning = few_faces(seen.found / seen.frames, config)
    return lines if warning is None else [*lines, warning]
