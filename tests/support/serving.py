"""A real server for tests: small checkpoints, prompts of two subjects, and Ray Serve on this machine."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from clipautt.action_units import VOCABULARY
from clipautt.adaptation.method import SavedState
from clipautt.adaptation.personalization import Personalization, save_personalization
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.model.checkpoint import Checkpoint, save_checkpoint
from clipautt.subjects import subject_file
from ray_jobs.platform.cluster import ClusterConfig
from ray_jobs.serve.job import serving
from ray_jobs.serve.settings import ServeConfig
from tests.support.configs import adapt_config
from tests.support.fakes import fake_checkpoint

ODD_SUBJECT = "../Ü b/%2e.. '\"<i>"
Frames = np.ndarray[Any, np.dtype[np.uint8]]


def face_frames(count: int = 50, *, size: int = 64) -> Frames:
    """Frames that change in the middle of the clip, so that windows differ."""
    frames = np.full((count, size, size, 3), 180, np.uint8)
    frames[:, size // 3 : size // 3 + 4, size // 4 : -size // 4] = 60
    frames[count // 3 : count // 2, size // 2 :, :, 1] = 30
    return frames


class _Pipe:
    """A place to write that cannot seek: what is recorded into it has no duration, as from a browser."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> int:
        self.content += bytes(data)
        return len(data)


def recorded_webm(frames: Frames) -> bytes:
    """A video as a browser's recorder writes it: WebM without a duration."""
    pipe = _Pipe()
    with av.open(pipe, "w", format="webm") as container:
        stream: Any = container.add_stream("libvpx", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return bytes(pipe.content)


def small_source(**changes: Any) -> Source:
    """A model of eight action units on the embedded backbone, with weights by chance."""
    backbone = load_backbone(BackboneConfig())
    return Source(
        fake_checkpoint(backbone=backbone, phrases=[unit.phrase for unit in VOCABULARY[:8]], **changes), backbone
    )


def save_prompts(folder: Path, checkpoint: Checkpoint, source: Source, subject: str, *, shift: float = 1.0) -> Path:
    """Adapted prompts of a subject: the source context moved far enough to change every answer."""
    context = source.context * (1 + shift)
    config = adapt_config(objective="infomax", subject_baseline=checkpoint.spec.subject_baseline)
    centre = torch.zeros(source.backbone.feature_dim)
    path = folder / subject_file(subject)
    with torch.no_grad():
        saved = SavedState({"context": context, "au_embeddings": source.au_embeddings_of(context)})
    save_personalization(Personalization(subject, config, centre, saved), path, checkpoint=checkpoint.fingerprint)
    return path


def save_model(source: Source, folder: Path) -> Path:
    """Write `checkpoint/`, and `prompts/` of the subjects s1 and `ODD_SUBJECT`; gives the folder."""
    save_checkpoint(source.checkpoint, folder / "checkpoint")
    for subject in ("s1", ODD_SUBJECT):
        save_prompts(folder / "prompts", source.checkpoint, source, subject)
    return folder


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served(model: Path, runs: Path, **settings: Any) -> Iterator[ServeConfig]:
    """A running server of a folder of `save_model`, on a Ray of its own."""
    given = {"checkpoint": model / "checkpoint", "prompts": model / "prompts"} if "models" not in settings else {}
    config = ServeConfig(
        **given
        | {"port": free_port(), "runs": str(runs), "cluster": ClusterConfig(address="local", num_cpus=2)}
        | settings
    )
    with serving(config) as url:
        assert url == config.url
        yield config
