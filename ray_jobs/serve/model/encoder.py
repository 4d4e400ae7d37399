"""The deployment that encodes and predicts: decoded videos in, answers out.

Frames of several requests, models and subjects go through the image tower together; what differs between models and
subjects, the prompts and the resting face, comes after it, row by row. Models with the same backbone share it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ray import serve
from torch import Tensor

from clipautt.action_units import action_unit_columns, title_of
from clipautt.backbones.loading import Backbone, BackboneConfig
from clipautt.features.clip_features import ClipFeatures
from clipautt.model.checkpoint import load_checkpoint
from clipautt.predictor import Predictor
from clipautt.video.whole import DecodedClip
from ray_jobs.serve.model.answers import describe, describe_before
from ray_jobs.serve.model.check import check_frames
from ray_jobs.serve.model.messages import Decoded, Served
from ray_jobs.serve.refusals import Refusal, RefusedError
from ray_jobs.serve.web.asked import Ask

_NICENESS = 3
_FRAMES_AT_ONCE = 512
"""Frames of several videos in a batch at most; a single video may have more."""


@dataclass(frozen=True, eq=False)
class _Frames:
    """What one request gives to a batch."""

    backbone: str
    """Fingerprint of the backbone."""
    pixels: npt.NDArray[np.uint8]
    """[T, size, size, 3]."""
    since: float = field(default_factory=time.perf_counter)
    """When it was ready."""


@dataclass(frozen=True, eq=False)
class _Encoded:
    """What a batch gives to one request."""

    features: Tensor
    """[T, d]."""
    waited: float
    """Time until the batch began, seconds."""
    seconds: float
    """Time of the batch."""
    videos: int
    """Requests in the batch."""


def num_frames(batch: Sequence[_Frames]) -> int:
    """Frames in a batch; those of a single video always fit."""
    count = sum(len(one.pixels) for one in batch)
    return min(count, _FRAMES_AT_ONCE) if len(batch) == 1 else count


@dataclass(frozen=True)
class Encoding:
    """What an encoder needs to know."""

    served: tuple[Served, ...]
    """The models, the first of which answers where none is named."""
    backbones: tuple[BackboneConfig | None, ...]
    """How the backbone of each is loaded; None: as in training."""
    device: str
    """`cuda` or `cpu`."""
    threads: int
    """Threads of PyTorch."""


class Encoder:
    """Encodes and predicts; one replica of the deployment.

    Args:
        encoding: models, device and threads.

    Raises:
        RuntimeError: if the bundled clip is not predicted.
    """

    def __init__(self, encoding: Encoding) -> None:
        os.nice(_NICENESS)
        torch.set_num_threads(encoding.threads)
        self._served = {one.name: one for one in encoding.served}
        self._predictors = load_predictors(encoding)
        self._backbones = {one.source.backbone.fingerprint: one.source.backbone for one in self._predictors.values()}
        self._tower = ThreadPoolExecutor(1, "tower")
        self._heads = ThreadPoolExecutor(2, "heads")
        for predictor in self._predictors.values():
            _check(predictor)
        self._free = asyncio.Event()
        self._free.set()

    async def models(self) -> list[dict[str, Any]]:
        """Each model as `schemas.ServedModel`, in the order of the settings."""
        return [_facts(name, predictor) for name, predictor in self._predictors.items()]

    async def predict(self, decoded: Decoded, ask: Ask) -> dict[str, Any] | Refusal:
        """An `Answer` as plain values, of the first model that is asked, with those of further ones in it.

        Args:
            decoded: the video, decoded for these models.
            ask: which models, for whom.
        """
        began = time.perf_counter()
        videos: dict[str, DecodedClip] = {pixels: await clip for pixels, clip in decoded.clips.items()}
        fetched = time.perf_counter()
        encoded = await self._encoded_once(ask.models, videos)
        try:
            answers = [await self._answer(name, videos, encoded, ask) for name in ask.models]
        except RefusedError as error:
            return error.refusal
        for answer in answers:
            answer["duration_seconds"] = decoded.duration_seconds
            answer["timings"] |= {"decode": decoded.seconds}
            answer["timings"]["wait"] += decoded.waited + fetched - began
            answer["seconds"] = decoded.waited + decoded.seconds + time.perf_counter() - began
        first, *others = answers
        return first | {"others": others}

    async def _encoded_once(
        self, models: Sequence[str], videos: Mapping[str, DecodedClip]
    ) -> dict[tuple[str, str], _Encoded]:
        """(backbone, pixels) → the features; models that share both share them."""
        wanted = list(dict.fromkeys(map(self._key, models)))
        batches = [self._encode(_Frames(backbone, videos[pixels].frames.frames)) for backbone, pixels in wanted]
        return dict(zip(wanted, await asyncio.gather(*batches), strict=True))

    def _key(self, name: str) -> tuple[str, str]:
        return self._predictors[name].source.backbone.fingerprint, self._served[name].pixels

    async def _answer(
        self, name: str, videos: Mapping[str, DecodedClip], features: Mapping[tuple[str, str], _Encoded], ask: Ask
    ) -> dict[str, Any]:
        """What one model says of a video."""
        predictor, encoded = self._predictors[name], features[self._key(name)]
        video = videos[self._served[name].pixels]
        began = time.perf_counter()
        said = await self._threaded(self._predicted, predictor, features_of(video, encoded.features, predictor), ask)
        timings = {
            "wait": encoded.waited,
            "encode": encoded.seconds,
            "predict": time.perf_counter() - began,
            "batch_videos": encoded.videos,
        }
        facts = {"model": name, "adapt": ask.adapt, "decoder": video.frames.decoder}
        return said | facts | {"checkpoint": predictor.source.checkpoint.fingerprint, "timings": timings}

    def _predicted(self, predictor: Predictor, clip: ClipFeatures, ask: Ask) -> dict[str, Any]:
        prediction = predictor.predict_features(clip)
        if prediction.label is None:
            raise RefusedError("no_label", f"no label: {prediction.reason}")
        return describe(prediction) | {"before": None}

    async def _threaded(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._heads, work, *arguments)

    async def _encode(self, frames: _Frames) -> _Encoded:
        """Wait until the tower is free, so that all that wait meanwhile go through it together."""
        await self._free.wait()
        return await self._encode_batch(frames)

    @serve.batch(
        max_batch_size=_FRAMES_AT_ONCE, batch_wait_timeout_s=0.0, max_concurrent_batches=1, batch_size_fn=num_frames
    )
    async def _encode_batch(self, batch: list[_Frames]) -> list[_Encoded]:
        """The features of several requests' frames, in as few passes as there are backbones."""
        self._free.clear()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._tower, self._encoded, batch)
        finally:
            self._free.set()

    def _encoded(self, batch: Sequence[_Frames]) -> list[_Encoded]:
        began = time.perf_counter()
        features: dict[int, Tensor] = {}
        for fingerprint, backbone in self._backbones.items():
            of = [index for index, one in enumerate(batch) if one.backbone == fingerprint]
            if of:
                pixels = [batch[index].pixels for index in of]
                made = backbone.encode_frames(np.concatenate(pixels)).split([len(one) for one in pixels])
                features |= dict(zip(of, made, strict=True))
        seconds = time.perf_counter() - began
        return [_Encoded(features[index], began - one.since, seconds, len(batch)) for index, one in enumerate(batch)]


def features_of(video: DecodedClip, features: Tensor, predictor: Predictor) -> ClipFeatures:
    """A decoded and encoded video as methods take it."""
    faces = predictor.source.checkpoint.spec.features.frames.faces
    return ClipFeatures.of(
        video.clip, video.frames, features, faces=faces, sides=video.face_sides, rendered=video.rendered
    )


def load_predictors(encoding: Encoding) -> dict[str, Predictor]:
    """The predictor of each model; models with the same backbone share it."""
    shared: dict[str, Backbone] = {}
    predictors: dict[str, Predictor] = {}
    for one, config in zip(encoding.served, encoding.backbones, strict=True):
        wanted = load_checkpoint(one.checkpoint).spec.features.backbone_fingerprint
        backbone = shared.get(wanted) or config
        predictor = Predictor.load(one.checkpoint, backbone=backbone, device=encoding.device)
        shared[predictor.source.backbone.fingerprint] = predictor.source.backbone
        predictors[one.name] = predictor
    return predictors


def _check(predictor: Predictor) -> None:
    """Predict the bundled clip."""
    video = check_frames(predictor.source.checkpoint.spec.features.frames)
    features = predictor.source.backbone.encode_frames(video.frames.frames)
    prediction = predictor.predict_features(features_of(video, features, predictor))
    if prediction.label is None and prediction.reason:
        raise RuntimeError(f"the bundled clip is not predicted: {prediction.reason}")


def _facts(name: str, predictor: Predictor) -> dict[str, Any]:
    source = predictor.source
    spec, footage = source.checkpoint.spec, source.footage
    frames = spec.features.frames
    return {
        "name": name,
        "classes": list(spec.classes),
        "checkpoint": source.checkpoint.fingerprint,
        "backbone": source.backbone.name,
        "trained_on": {part: str(seen) for part, seen in footage.items()},
        "rendered_only": any(seen.faces == "rendered" for seen in footage.values()),
        "detector": frames.faces.detector,
        "frames_per_second": frames.sampling.frames_per_second,
        "window_frames": source.window.length,
        "action_units": {code: title_of(code) for code in action_unit_columns(spec.phrases)},
    }
