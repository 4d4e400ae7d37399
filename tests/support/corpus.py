"""Files that a decoder may meet and nobody should send: cut, damaged, empty, lying about themselves, or just unusual.

`write_corpus` makes one of each kind; `mutations` damages whole files at seeded places.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.support.fakes import numbered_frames, write_sound, write_video

FRAMES = 30
FORMATS: dict[str, dict[str, Any]] = {
    "mp4": {"options": {"bf": "2", "g": "12"}, "container_options": {"movflags": "faststart"}},
    "webm": {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8", "g": "12"}},
    "avi": {"codec": "mpeg4", "options": {"g": "12"}},
}


def whole_files(folder: Path) -> dict[str, Path]:
    """An undamaged file of every format, 30 numbered frames each."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        suffix: write_video(folder / f"whole.{suffix}", numbered_frames(FRAMES), **options)
        for suffix, options in FORMATS.items()
    }


def mutations(whole: dict[str, Path], folder: Path, *, per_format: int) -> Iterator[Path]:
    """Damaged copies, one at a time: bytes changed, removed, repeated or zeroed at places that follow from a seed."""
    for suffix, source in whole.items():
        content = source.read_bytes()
        for seed in range(per_format):
            path = folder / f"mutated-{seed}.{suffix}"
            path.write_bytes(_mutated(content, np.random.default_rng([seed, len(suffix)])))
            yield path
            path.unlink()


def _mutated(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    # Half of the damage is in the first 600 bytes, where headers promise sizes, rates and dimensions.
    limit = min(len(changed), 600) if rng.random() < 0.5 else len(changed)
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(limit))
        length = int(rng.integers(1, 33))
        kind = rng.integers(4)
        if kind == 0:
            changed[at] = int(rng.integers(256))
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length]
        else:
            changed[at : at + length] = bytes(len(changed[at : at + length]))
    return bytes(changed)


def write_corpus(folder: Path) -> dict[str, Path]:
    """One file of every kind, by name of the kind."""
    whole = whole_files(folder)
    files = {f"whole {suffix}": path for suffix, path in whole.items()}
    for suffix, path in whole.items():
        for share in (0.05, 0.5, 0.95):
            files[f"{suffix} cut at {share:.0%}"] = _write(
                folder / f"cut{share}.{suffix}", path.read_bytes()[: int(path.stat().st_size * share)]
            )
    late = write_video(folder / "late.mp4", numbered_frames(FRAMES))
    files["mp4 without its index"] = _write(folder / "noindex.mp4", late.read_bytes()[:-400])
    makers: dict[str, Callable[[Path], object]] = {
        "empty.mp4": lambda path: path.touch(),
        "text.mp4": lambda path: path.write_text("this is not a video\n" * 100),
        "list.mp4": lambda path: path.write_text("ffconcat version 1.0\nfile whole.mp4\n"),
        "playlist.mp4": lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nwhole.mp4\n#EXT-X-ENDLIST\n"),
        "noise.webm": lambda path: path.write_bytes(np.random.default_rng(0).bytes(50_000)),
        "sound.mp4": write_sound,
        "noframes.mp4": _write_no_frames,
        "oneframe.mp4": lambda path: write_video(path, numbered_frames(1)),
        "oneframe.webm": lambda path: write_video(path, numbered_frames(1), codec="libvpx"),
        "tenbits.mp4": lambda path: write_video(path, numbered_frames(FRAMES), pixel_format="yuv420p10le"),
        "grey.mp4": lambda path: write_video(path, numbered_frames(FRAMES), pixel_format="gray"),
        "odd.mp4": lambda path: write_video(path, numbered_frames(9, height=40, width=61), pixel_format="yuv444p"),
        "thin.avi": lambda path: write_video(path, numbered_frames(9, height=256, width=4), codec="mpeg4"),
        "huge.mp4": lambda path: path.write_bytes(_with_size(whole["mp4"].read_bytes(), 65_500)),
        "unknown.mp4": lambda path: path.write_bytes(whole["mp4"].read_bytes().replace(b"avc1", b"zzzz")),
        "large.avi": lambda path: path.write_bytes(_avi_with_size(whole["avi"].read_bytes(), 30_000)),
        "huge.webm": lambda path: path.write_bytes(_vp8_with_size(whole["webm"].read_bytes(), 16_383)),
    }
    for name, make in makers.items():
        make(folder / name)
        files[name] = folder / name
    (folder / "folder").mkdir()
    files["empty folder"] = folder / "folder"
    return files


def write_pipe(path: Path) -> Path:
    """A named pipe that nobody writes to: whoever opens it waits for ever, as in a decoder that hangs."""
    os.mkfifo(path)
    return path


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _write_no_frames(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()


def _with_size(content: bytes, pixels: int) -> bytes:
    """An mp4 whose container declares square frames of another size."""
    at = content.index(b"avc1", content.index(b"stsd")) + 28
    return content[:at] + struct.pack(">HH", pixels, pixels) + content[at + 4 :]


def _avi_with_size(content: bytes, pixels: int) -> bytes:
    at = content.index(b"strf") + 12
    return content[:at] + struct.pack("<ii", pixels, pixels) + content[at + 8 :]


def _vp8_with_size(content: bytes, pixels: int) -> bytes:
    """A webm whose key frames themselves declare another size, so that the decoder makes room for it."""
    parts = content.split(b"\x9d\x01\x2a")
    size = struct.pack("<HH", pixels, pixels)
    return b"\x9d\x01\x2a".join([parts[0], *(size + part[4:] for part in parts[1:])])
