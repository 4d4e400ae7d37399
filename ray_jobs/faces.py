"""Look at what the face detector sees in a video: where the crop lies, and what the model would be shown.

Writes `annotated.mp4` with the crop drawn in, `contact_sheet.png` with crops in the order of time, and `track.csv` with
the numbers. The settings are those of `extract`, so what looks right here is what is encoded there. The video is
decoded in this process: one that hangs its decoder is stopped with Ctrl-C.

Example:
    clipautt faces interview.mp4 out=look
    clipautt faces interview.mp4 out=look faces=yunet faces.model=face_detection_yunet_2023mar.onnx
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from clipautt.clips import Clip
from clipautt.decoding import DecodeError, Decoder, Sampling, decoders_of, stream_clip
from clipautt.face_tracks import FaceTrack, crop_face
from clipautt.faces import FaceConfig, make_detector
from clipautt.preprocessing import Frames
from clipautt.reader import NoFaceError, follow_face
from clipautt.reports.face_sheet import draw_contact_sheet, evenly_chosen, write_annotated_video
from ray_jobs import cli
from ray_jobs.configuration import instantiate

POSITIONAL = "video"
OUTPUTS = ("annotated.mp4", "contact_sheet.png", "track.csv")
_CROP_PIXELS = 224


def look(video: Path, out: Path, *, faces: FaceConfig, sampling: Sampling, max_pixels: int) -> FaceTrack:
    """Write the annotated video, the contact sheet and the table.

    Raises:
        DecodeError: if no decoder reads the video, with the reason of each.
        NoFaceError: if there is no face in it.
    """
    make_detector(faces)  # a mistake in its settings is not the video's
    frames, track = _follow(video, faces, sampling, max_pixels)
    write_annotated_video(out / OUTPUTS[0], iter(frames), track)
    times = _write_crops(iter(frames), track, out / OUTPUTS[1])
    columns = {"centre_x": track.centre[:, 0], "centre_y": track.centre[:, 1], "side": track.side}
    table = pd.DataFrame({"seconds": times, "found": track.found, **columns, "angle_radians": track.angle})
    table.round(4).to_csv(out / OUTPUTS[2], index=False)
    return track


def _follow(video: Path, faces: FaceConfig, sampling: Sampling, max_pixels: int) -> tuple[_Frames, FaceTrack]:
    """The frames of the first decoder that reads all of them, and where the face is."""
    failures = []
    for decoder in decoders_of(str(video)):
        frames = _Frames(video, sampling, decoder, max_pixels)
        try:
            return frames, follow_face(iter(frames), faces)[0]
        except NoFaceError as error:
            raise NoFaceError(f"{video}: {error}") from None
        except Exception as error:  # decoders raise types of their own; each reason is kept
            failures.append(f"{decoder}: {error}")
    raise DecodeError(f"{video} cannot be decoded ({'; '.join(failures)})")


class _Frames:
    """The sampled frames of a video, as often as they are asked for."""

    def __init__(self, video: Path, sampling: Sampling, decoder: Decoder, max_pixels: int) -> None:
        self.clip = Clip(video.stem, "unknown", str(video), "target")
        self.sampling, self.decoder, self.max_pixels = sampling, decoder, max_pixels

    def __iter__(self) -> Iterator[tuple[float, Frames]]:
        return stream_clip(self.clip, self.sampling, decoder=self.decoder, max_pixels=self.max_pixels)


def _write_crops(frames: Iterator[tuple[float, Frames]], track: FaceTrack, path: Path) -> list[float]:
    """The contact sheet of some of the frames; returns the times of all."""
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


def main(cfg: DictConfig) -> int:
    """Run the job."""
    video, out, config = Path(cfg.video), Path(cfg.out), instantiate(cfg.faces)
    if not video.exists():
        raise FileNotFoundError(f"video={video}: no such file or folder")
    if config.detector == "none":
        raise ValueError("faces=none looks for nothing; allowed here are cascade and yunet")
    if any((out / name).exists() and (out / name).samefile(video) for name in OUTPUTS):
        raise ValueError(f"out={out}: {video.name} would be written over; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    track = look(video, out, faces=config, sampling=instantiate(cfg.sampling), max_pixels=cfg.max_pixels)
    print(f"face found in {int(track.found.sum())} of {len(track.found)} frames")
    for name in OUTPUTS:
        print(f"  {out / name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.main(["faces", *sys.argv[1:]]))
