"""Files as browsers and phones make them: a face that changes, recorded without a length, a picture, or sound only."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image


class Pipe:
    """A place to write that cannot seek: what is recorded into it has no duration, as from a browser."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> int:
        """Append."""
        self.content += bytes(data)
        return len(data)


def face_frames(count: int = 50, *, size: int = 64) -> npt.NDArray[np.uint8]:
    """Frames that change in the middle of the clip, so that windows differ."""
    frames = np.full((count, size, size, 3), 180, np.uint8)
    frames[:, size // 3 : size // 3 + 4, size // 4 : -size // 4] = 60
    frames[count // 3 : count // 2, size // 2 :, :, 1] = 30
    return frames


def recorded_webm(frames: npt.NDArray[np.uint8]) -> bytes:
    """A video as a browser's recorder writes it: WebM without a duration."""
    pipe = Pipe()
    with av.open(pipe, "w", format="webm") as container:
        stream: Any = container.add_stream("libvpx", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return bytes(pipe.content)


def jpeg(frame: npt.NDArray[np.uint8], **options: Any) -> bytes:
    """A frame as a JPEG; the options are Pillow's."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", **options)
    return file.getvalue()


def audio_file(path: Path) -> Path:
    """Sound without a picture."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        for _ in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
