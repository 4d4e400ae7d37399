"""Small stand-ins for what is large: a random CLIP, a checkpoint on top of it, clip features with a known structure.

Everything follows from seeds. Nothing here has learned anything; what it is good for is to be exact and fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from open_clip.model import CLIP, CustomTextCLIP

from clipautt.action_units import TASKS, VOCABULARY
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import Backbone
from clipautt.clips import id_number
from clipautt.features.clip_features import ClipFeatures, FeatureSpec, SubjectBaseline
from clipautt.model.checkpoint import Checkpoint, CheckpointSpec
from clipautt.model.network import ClipAU, initial_model
from clipautt.model.windows import WindowSpec
from clipautt.video.decoding import Sampling
from clipautt.video.preprocessing import Preprocessing

torch.set_num_threads(1)  # models this small only lose by sharing their work

IMAGE_SIZE, FEATURE_DIM, TEXT_WIDTH = 32, 16, 32
CONTEXT = "a human face with"
PHRASES = tuple(unit.phrase for unit in VOCABULARY[:6])
PREPROCESSING = Preprocessing(IMAGE_SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "area")


def fake_clip_model(*, seed: int = 0, custom_text: bool = False, **text: Any) -> CLIP | CustomTextCLIP:
    """A random open_clip model: a 32 px image tower of width 8, a text tower of width 32 with two blocks."""
    kind = CustomTextCLIP if custom_text else CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: CLIP | CustomTextCLIP = kind(
            embed_dim=FEATURE_DIM,
            vision_cfg={"image_size": IMAGE_SIZE, "layers": 1, "width": 8, "head_width": 8, "patch_size": 16},
            text_cfg={
                "context_length": 77,
                "vocab_size": 49408,
                "width": TEXT_WIDTH,
                "heads": 2,
                "layers": 2,
                **text,
            },
        )
    return model


def fake_backbone(*, seed: int = 0, custom_text: bool = False, known_tokens: frozenset[int] | None = None) -> Backbone:
    """A new `Backbone` around `fake_clip_model`."""
    model = fake_clip_model(seed=seed, custom_text=custom_text)
    return Backbone(model, name="fake", preprocessing=PREPROCESSING, known_tokens=known_tokens)


@lru_cache(maxsize=1)
def shared_backbone() -> Backbone:
    """One `fake_backbone` for all tests that only read."""
    return fake_backbone()


def fake_model(*, feature_dim: int = FEATURE_DIM, num_prompts: int = len(PHRASES), seed: int = 0) -> ClipAU:
    """An untrained CLIP-AU whose logits are spread as a trained one's: some windows are certain, some are not."""
    model = initial_model(feature_dim, num_prompts, 2, seed=seed)
    with torch.no_grad():
        model.classifier[0].weight.mul_(3)
        model.classifier[2].weight.mul_(6)
    return model.eval().requires_grad_(False)


def fake_checkpoint(
    *,
    backbone: Backbone | None = None,
    phrases: Sequence[str] = PHRASES,
    window: WindowSpec | None = None,
    subject_baseline: SubjectBaseline = "none",
    seed: int = 0,
) -> Checkpoint:
    """A checkpoint for `shared_backbone`, or another one."""
    backbone = backbone or shared_backbone()
    spec = CheckpointSpec(
        classes=TASKS["pain"].classes,
        phrases=tuple(phrases),
        context=CONTEXT,
        context_tokens=4,
        features=FeatureSpec.of(backbone, Sampling(12.5)),
        subject_baseline=subject_baseline,
        window=window or WindowSpec(length=6),
        training={"seed": seed},
        metrics={"uar": 0.5},
        descriptions=TASKS["pain"].descriptions,
    )
    return Checkpoint(fake_model(feature_dim=backbone.feature_dim, num_prompts=len(phrases), seed=seed), spec)


def fake_source(**options: Any) -> Source:
    """A `Source` of `fake_checkpoint(**options)`."""
    backbone = options.get("backbone") or shared_backbone()
    return Source(fake_checkpoint(**options), backbone)


def fake_clip(
    clip_id: str = "c0",
    subject_id: str = "s0",
    *,
    positive: bool = False,
    num_frames: int = 20,
    feature_dim: int = FEATURE_DIM,
    seed: int = 0,
) -> ClipFeatures:
    """Features of one clip: a subject's resting face plus noise; positive clips rise along axis 0 in a burst."""
    subject = np.random.default_rng([seed, id_number(subject_id)]).normal(size=feature_dim)
    rng = np.random.default_rng([seed, id_number(subject_id), id_number(clip_id)])
    features = subject + 0.3 * rng.normal(size=(num_frames, feature_dim))
    start = int(rng.integers(0, max(1, num_frames // 2)))
    if positive:
        features[start : start + max(1, num_frames // 3), 0] += 3.0
    times = np.arange(num_frames) / 12.5
    return ClipFeatures(clip_id, subject_id, torch.from_numpy(features).float(), times)


def fake_clips(*, subjects: int = 2, per_subject: int = 4, seed: int = 0, **options: Any) -> list[ClipFeatures]:
    """Clips `s0c0`, `s0c1`, … of several subjects; every second one is positive, see `fake_label`."""
    return [
        fake_clip(f"s{s}c{c}", f"s{s}", positive=bool(c % 2), seed=seed, **options)
        for s in range(subjects)
        for c in range(per_subject)
    ]


def fake_label(clip: ClipFeatures) -> int:
    """1 for the positive clips of `fake_clips`."""
    return int(clip.clip_id.rpartition("c")[2]) % 2


def numbered_frames(count: int, *, height: int = 64, width: int = 64) -> npt.NDArray[np.uint8]:
    """Frames [count, H, W, 3] that carry their number as eight black or white stripes; see `read_number`."""
    bits = (np.arange(count)[:, None] >> np.arange(8)) & 1
    stripes = np.repeat(bits, height // 8, axis=1).astype(np.uint8) * 255
    return np.broadcast_to(stripes[:, :, None, None], (count, height, width, 3)).copy()


def read_number(frame: npt.NDArray[np.uint8]) -> int:
    """The number of a square frame of `numbered_frames`, of any size."""
    rows = frame.mean(axis=(1, 2)).reshape(8, -1)
    centre = rows[:, rows.shape[1] // 4 : -(rows.shape[1] // 4) or None].mean(1)
    return int(((centre > 127) << np.arange(8)).sum())


def write_video(
    path: Path,
    frames: npt.NDArray[np.uint8],
    *,
    codec: str = "libx264",
    fps: int = 25,
    milliseconds: Sequence[int] | None = None,
    pixel_format: str = "yuv420p",
    rotation: int = 0,
    matrix: Sequence[int] | None = None,
    pixel_aspect: Fraction | None = None,
    tags: Mapping[str, str] | None = None,
    sound_seconds: float = 0,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
) -> Path:
    """Write a video with PyAV.

    Args:
        path: its suffix names the container.
        frames: RGB, uint8 [T, H, W, 3].
        codec: FFmpeg's name of the encoder.
        fps: frames per second, where `milliseconds` is not given.
        milliseconds: presentation time of each frame, for variable frame rates.
        pixel_format: FFmpeg's name of how the pixels are stored.
        rotation: degrees counter-clockwise by which a player is told to turn the picture.
        matrix: the display matrix, nine integers as in FFmpeg, instead of `rotation`.
        pixel_aspect: width of a pixel divided by its height; None: not told.
        tags: of the container, such as `title`.
        sound_seconds: length of silence beside the picture.
        options: of the encoder.
        container_options: of the container.
    """
    with av.open(str(path), "w", container_options=dict(container_options or {})) as container:
        container.metadata.update(tags or {})
        stream: Any = container.add_stream(codec, rate=fps, options=dict(options or {}))
        sound = container.add_stream("aac", rate=8000) if sound_seconds else None
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            stream.set_display_rotation(rotation)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        if milliseconds is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if milliseconds is None else milliseconds[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            add_silence(container, sound, sound_seconds)
    return path


def add_silence(container: Any, stream: Any, seconds: float) -> None:
    """Write silence into a stream of sound with 8000 samples per second."""
    for _ in range(max(1, round(seconds * 8000 / 1024))):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_sound(path: Path) -> Path:
    """Write a file with sound and no picture."""
    with av.open(str(path), "w") as container:
        add_silence(container, container.add_stream("aac", rate=8000), 0)
    return path
