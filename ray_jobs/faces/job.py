"""Look at what the face detector sees in a video: where the crop lies, and what the model would be shown.

Writes `annotated.mp4` with the crop drawn in, `contact_sheet.png` with crops in time order, and `track.csv` with the
numbers. The settings are those of `extract`, so what looks right here is what is encoded there. The video is decoded as
there, in its own process and under limits; if every decoder fails, the message says why.

Example:
    clipautt faces interview.mp4 out=look
    clipautt faces interview.mp4 out=look faces=yunet faces.model=face_detection_yunet_2023mar.onnx
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from clipautt.clips import Clip
from clipautt.evaluation.reports.face_sheet import draw_contact_sheet, evenly_chosen, write_annotated_video
from clipautt.files import move, write_text
from clipautt.video.decoding import Sampling, stream_clip
from clipautt.video.faces import FaceConfig, make_detector
from clipautt.video.preprocessing import Frames
from clipautt.video.reader import follow_face
from clipautt.video.reader_process import ReadLimits, work_on_clip
from clipautt.video.tracks import FaceTrack, crop_face
from ray_jobs.platform.configuration import instantiate

POSITIONAL = "video"
OUTPUTS = ("annotated.mp4", "contact_sheet.png", "track.csv")
_CROP_PIXELS = 224


def look(video: Path, out: Path, *, faces: FaceConfig, sampling: Sampling, limits: ReadLimits) -> tuple[int, int]:
    """Write the annotated video, the contact sheet and the table; all three or none.

    Args:
        video: a file, or a folder of frames.
        out: an existing folder.
        faces: how the face is found and cropped.
        sampling: which moments are looked at.
        limits: limits for each decoder.

    Returns:
        Number of frames with a face, and number of frames.

    Raises:
        DecodeError: if no decoder reads the video, with each one's reason.
        NoFaceError: if there is no face in it.
    """
    make_detector(faces)  # so that wrong settings are not reported as a fault of the video
    clip = Clip(video.stem, "unknown", str(video), "target")
    # A decoder may die while it writes; from a folder beside the final files, finished ones are moved without a copy.
    with tempfile.TemporaryDirectory(prefix=".faces-", dir=out) as aside:
        arguments = {"folder": os.path.abspath(aside), "faces": asdict(faces), "sampling": asdict(sampling)}
        found, count = work_on_clip(write_outputs, clip, arguments, limits)
        for name in OUTPUTS:
            move(Path(aside, name), out / name)
    return found, count


def write_outputs(
    clip: Clip, *, folder: str, faces: dict[str, Any], sampling: dict[str, Any], **decoding: Any
) -> tuple[int, int]:
    """The work of the decoding process: follow the face, and write the three files.

    Args:
        clip: the video.
        folder: where the files go; those of a decoder that failed are overwritten.
        faces: fields of a `FaceConfig`.
        sampling: fields of a `Sampling`.
        decoding: `decoder`, `max_pixels` and `on_frame` of `stream_clip`.

    Returns:
        As `look`.
    """

    def frames() -> Iterator[tuple[float, Frames]]:
        return stream_clip(clip, Sampling(**sampling), **decoding)

    track, _ = follow_face(frames(), FaceConfig(**faces))
    annotated, sheet, table = (Path(folder, name) for name in OUTPUTS)
    write_annotated_video(annotated, frames(), track)
    times = _write_crops(frames(), track, sheet)
    _write_table(track, times, table)
    return int(track.found.sum()), len(track.found)


def _write_crops(frames: Iterator[tuple[float, Frames]], track: FaceTrack, path: Path) -> list[float]:
    """Draw the contact sheet of some of the frames; returns the times of all frames."""
    chosen = set(evenly_chosen(len(track.found)))
    times, crops, shown = [], [], []
    for index, (time, frame) in enumerate(frames):
        times.append(time)
        if index in chosen:
            where = track.centre[index], float(track.side[index]), float(track.angle[index])
            crops.append(crop_face(frame, *where, size=_CROP_PIXELS, interpolation="bicubic"))
            shown.append(index)
    counted = f"Face found in {int(track.found.sum())} of {len(track.found)} frames"
    draw_contact_sheet(crops, [times[i] for i in shown], [bool(track.found[i]) for i in shown], path, title=counted)
    return times


def _write_table(track: FaceTrack, times: list[float], path: Path) -> None:
    columns = {"centre_x": track.centre[:, 0], "centre_y": track.centre[:, 1], "side": track.side}
    table = pd.DataFrame({"seconds": times, "found": track.found, **columns, "angle_radians": track.angle})
    write_text(path, table.round(4).to_csv(index=False))


def main(cfg: DictConfig) -> int:
    """Run the job."""
    video, out, config = Path(cfg.video), Path(cfg.out), instantiate(cfg.faces)
    if not video.exists():
        raise FileNotFoundError(f"video={video}: no such file or folder")
    if config.detector == "none":
        raise ValueError("faces=none detects nothing; allowed here are cascade and yunet")
    if any((out / name).exists() and (out / name).samefile(video) for name in OUTPUTS):
        raise ValueError(f"out={out}: {video.name} would be overwritten; give another folder")
    sampling, limits = instantiate(cfg.sampling), instantiate(cfg.limits)
    out.mkdir(parents=True, exist_ok=True)
    found, count = look(video, out, faces=config, sampling=sampling, limits=limits)
    print(f"face found in {found} of {count} frames")
    for name in OUTPUTS:
        print(f"  {out / name}")
    return 0
