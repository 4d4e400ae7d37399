"""The deployment that encodes and predicts: decoded videos in, answers out.

Frames of several requests, models and subjects go through the image tower together; what differs between models and
subjects, the prompts and the resting face, comes after it, row by row. Models with the same backbone share it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from ray import serve
from torch import Tensor

from clipautt.action_units import action_unit_columns, title_of
from clipautt.adaptation.method import AdaptConfig, TuningConfig
from clipautt.backbones.loading import Backbone, BackboneConfig
from clipautt.features.clip_features import ClipFeatures
from clipautt.footage import rendered_only
from clipautt.prediction.answers import VideoPrediction
from clipautt.predictor import Predictor
from clipautt.video.whole import DecodedClip
from ray_jobs.serve.model.answers import describe, describe_before
from ray_jobs.serve.model.check import check_frames
from ray_jobs.serve.model.live import moment
from ray_jobs.serve.model.looks import Look, Moment
from ray_jobs.serve.model.messages import Decoded, NotHere, Personalizing, Served
from ray_jobs.serve.model.personalized import Sent, personalize, to_encode_again
from ray_jobs.serve.model.subjects import SubjectStore
from ray_jobs.serve.model.tuned import finite, labelled, predict_online, predict_per_video
from ray_jobs.serve.refusals import Refusal, RefusedError
from ray_jobs.serve.web.asked import Ask
from ray_jobs.serve.web.keys import Who

_T = TypeVar("_T")

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
    busy: bool
    """Whether other videos are in work, so that the decoders need their cores."""


@dataclass(frozen=True, eq=False)
class _Encoded:
    """What a batch gives to one request."""

    features: Tensor
    """[T, d]."""
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
    backbone: BackboneConfig | None
    """How their backbones are loaded; None: as in training."""
    device: str
    """`cuda` or `cpu`."""
    threads: int | None
    """Threads of PyTorch; None: this machine's cores, shared by the encoders, and by the decoders while they are busy.
    """
    encoders: int
    """Copies of the models."""
    decoders: int
    """Processes that decode."""
    subjects: str
    """Folder of what is stored of subjects."""
    adapt: AdaptConfig
    """How a stored subject is personalized."""
    per_video: AdaptConfig
    """How the model is tuned to a single video."""
    tuning: TuningConfig
    """What tuning may cost."""


class Encoder:
    """Encodes and predicts; one replica of the deployment.

    Args:
        encoding: models, device and threads.

    Raises:
        RuntimeError: if the bundled clip is not predicted.
    """

    def __init__(self, encoding: Encoding) -> None:
        os.nice(_NICENESS)
        self._encoding = encoding
        self._served = {one.name: one for one in encoding.served}
        self._predictors = load_predictors(encoding)
        self._backbones = {one.source.backbone.fingerprint: one.source.backbone for one in self._predictors.values()}
        prompts = {one.name: Path(one.prompts) if one.prompts else None for one in encoding.served}
        self._store = SubjectStore(Path(encoding.subjects), prompts)
        cores = len(os.sched_getaffinity(0))
        self._cores = encoding.threads or max(1, cores // encoding.encoders)
        self._cores_when_busy = encoding.threads or max(1, (cores - encoding.decoders) // encoding.encoders)
        self._tower = ThreadPoolExecutor(1, "tower")
        self._heads = _threads("heads", 2, cores=1)  # what they compute is too small to be shared
        self._tuners = _threads("tuners", 1, cores=self._cores_when_busy)
        for predictor in self._predictors.values():
            _check(predictor)
        self._free = asyncio.Event()
        self._free.set()

    async def models(self) -> list[dict[str, Any]]:
        """Each model as `schemas.ServedModel`, in the order of the settings."""
        return [_facts(name, predictor) for name, predictor in self._predictors.items()]

    async def predict(self, decoded: Decoded, ask: Ask, busy: bool) -> dict[str, Any] | Refusal:
        """An `Answer` as plain values, of the first model that is asked, with those of further ones in it.

        Args:
            decoded: the video, decoded for these models.
            ask: which models, for whom.
            busy: whether other videos are in work.
        """
        videos: dict[str, DecodedClip] = {pixels: await clip for pixels, clip in decoded.clips.items()}
        encoded = await self._encoded_once(ask.models, videos, busy)
        try:
            answers = [await self._answer(name, videos, encoded, ask) for name in ask.models]
        except RefusedError as error:
            return error.refusal
        for answer in answers:
            answer["duration_seconds"] = decoded.duration_seconds
            answer["timings"]["decode"] = decoded.seconds
        first, *others = answers
        return first | {"others": others}

    async def _encoded_once(
        self, models: Sequence[str], videos: Mapping[str, DecodedClip], busy: bool
    ) -> dict[tuple[str, str], _Encoded]:
        """(backbone, pixels) → the features; models that share both share them."""
        wanted = list(dict.fromkeys(map(self._key, models)))
        batches = [self._encode(_Frames(backbone, videos[pixels].frames.frames, busy)) for backbone, pixels in wanted]
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
        clip = features_of(video, encoded.features, predictor)
        threads = self._heads if ask.adapt == "none" else self._tuners
        said = await self._threaded(threads, self._predicted, name, clip, ask)
        seconds = time.perf_counter() - began
        timings = {
            "encode": encoded.seconds,
            "predict": seconds if ask.adapt == "none" else 0.0,
            "adapt": 0.0 if ask.adapt == "none" else seconds,
            "batch_videos": encoded.videos,
        }
        facts = {"model": name, "adapt": ask.adapt, "decoder": video.frames.decoder}
        return said | facts | {"checkpoint": predictor.source.checkpoint.fingerprint, "timings": timings}

    def _predicted(self, name: str, clip: ClipFeatures, ask: Ask) -> dict[str, Any]:
        """The answer of one model, with what it would be without personalization."""
        predictor, config = self._predictors[name], self._encoding
        before: VideoPrediction | None
        if ask.adapt == "per_video":
            adapted = predict_per_video(predictor, clip, config=config.per_video)
            prediction, before = adapted.prediction, adapted.before
        elif ask.adapt == "online" and ask.subject_id is not None:
            adapted = predict_online(
                self._store,
                ask.who,
                ask.subject_id,
                name,
                predictor,
                clip,
                config=config.adapt,
                ticket=ask.ticket,
                tuning=config.tuning,
            )
            prediction, before = adapted.prediction, adapted.before
        else:
            prediction, before = self._predict_plainly(name, clip, ask)
        said = describe(labelled(prediction)) | {"before": before and describe_before(before)}
        for code, sentence in _warnings(name, predictor, ask, said).items():
            said["warning_codes"].append(code)
            said["warnings"].append(sentence)
        return said

    def _predict_plainly(
        self, name: str, clip: ClipFeatures, ask: Ask
    ) -> tuple[VideoPrediction, VideoPrediction | None]:
        """With what is stored of the subject, and without it; the latter is None where nothing is stored."""
        predictor = self._predictors[name]
        with finite():
            plain = predictor.predict_features(clip)
            if ask.subject_id is None:
                return plain, None
            try:
                made = self._store.personalization(ask.who, ask.subject_id, name, predictor.source)
            except RefusedError as error:
                if error.refusal.code != "unknown_subject":
                    raise
                return plain, None
            return predictor.predict_features(clip, personalization=made), plain

    async def subjects(self, who: Who) -> list[str]:
        """See `SubjectStore.ids`."""
        return await self._threaded(self._heads, self._store.ids, who)

    async def subject(self, who: Who, subject_id: str) -> dict[str, Any] | Refusal:
        """See `SubjectStore.describe`."""
        prints = {name: one.source.checkpoint.fingerprint for name, one in self._predictors.items()}
        return await self._refusing(self._heads, self._store.describe, who, subject_id, prints)

    async def ticket(self, who: Who, subject_id: str, models: Sequence[str]) -> tuple[int, list[Path]] | Refusal:
        """Begin a personalization: its ticket, and the kept videos that have to be encoded again for these models."""
        sources = {name: self._predictors[name].source for name in models}

        def begun() -> tuple[int, list[Path]]:
            ticket = self._store.ticket(who, subject_id)
            return ticket, to_encode_again(self._store, who, subject_id, sources) if sources else []

        return await self._refusing(self._heads, begun)

    async def personalize(self, work: Personalizing) -> dict[str, Any] | NotHere | Refusal:
        """Personalize to a subject and store it; see `personalized.personalize`."""
        if work.keep and not all(path in work.contents or path.is_file() for path, _ in work.videos):
            return NotHere()
        sent = [await self._sent(path, found, work) for path, found in work.videos]
        sources = {name: self._predictors[name].source for name in work.models}
        made = partial(
            personalize,
            self._store,
            work.who,
            work.subject_id,
            sent,
            sources,
            config=self._encoding.adapt,
            keep=work.keep,
            ticket=work.ticket,
            tuning=self._encoding.tuning,
        )
        return await self._refusing(self._tuners, made)

    async def _sent(self, path: Path, found: Decoded | Refusal, work: Personalizing) -> Sent:
        """A video of a personalization, encoded."""
        models = work.models
        content = await work.contents[path] if path in work.contents else None
        if isinstance(found, Refusal):
            return Sent(path, {}, found)
        videos: dict[str, DecodedClip] = {pixels: await clip for pixels, clip in found.clips.items()}
        encoded = await self._encoded_once(models, videos, busy=True)  # in the background
        features = {}
        for name in models:
            video = videos[self._served[name].pixels]
            features[name] = features_of(video, encoded[self._key(name)].features, self._predictors[name])
        return Sent(path, features, content=content)

    async def erase(self, who: Who, subject_id: str) -> list[str] | Refusal:
        """See `SubjectStore.erase`; the other replicas are told by `forget`."""
        return await self._refusing(self._heads, self._store.erase, who, subject_id)

    async def forget(self, who: Who, subject_id: str) -> None:
        """Drop what is in memory of a subject that another replica erased."""
        self._store.forget(who, subject_id)

    def check_health(self) -> None:
        """Called by Ray Serve every few seconds: what is in memory of files that are gone is dropped."""
        self._store.drop_stale()

    async def moment(self, look: Look) -> Moment | Refusal:
        """What a model sees in a frame of a live session."""
        predictor = self._predictors[look.model]
        encoded = await self._encode(_Frames(predictor.source.backbone.fingerprint, look.frame[None], busy=False))

        def seen() -> Moment | Refusal:
            made = None
            if look.subject_id is not None and look.who is not None:
                made = self._store.personalization(look.who, look.subject_id, look.model, predictor.source)
            return moment(predictor, look, encoded.features[0], made)

        return await self._refusing(self._heads, seen)

    async def _threaded(self, threads: ThreadPoolExecutor, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)

    async def _refusing(self, threads: ThreadPoolExecutor, work: Callable[..., _T], *arguments: Any) -> _T | Refusal:
        """`_threaded`, with a refusal as a value."""
        try:
            return await self._threaded(threads, work, *arguments)
        except RefusedError as error:
            return error.refusal

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
        torch.set_num_threads(self._cores_when_busy if any(one.busy for one in batch) else self._cores)
        features: dict[int, Tensor] = {}
        for fingerprint, backbone in self._backbones.items():
            of = [index for index, one in enumerate(batch) if one.backbone == fingerprint]
            if of:
                pixels = [batch[index].pixels for index in of]
                made = backbone.encode_frames(np.concatenate(pixels)).split([len(one) for one in pixels])
                features |= dict(zip(of, made, strict=True))
        seconds = time.perf_counter() - began
        return [_Encoded(features[index], seconds, len(batch)) for index in range(len(batch))]


def _threads(name: str, count: int, *, cores: int) -> ThreadPoolExecutor:
    """Threads, in each of which PyTorch uses so many cores."""
    return ThreadPoolExecutor(count, name, initializer=torch.set_num_threads, initargs=(cores,))


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
    for one in encoding.served:
        backbone = shared.get(one.backbone) or encoding.backbone
        predictors[one.name] = Predictor.load(one.checkpoint, backbone=backbone, device=encoding.device)
        shared[one.backbone] = predictors[one.name].source.backbone
    return predictors


def _warnings(name: str, predictor: Predictor, ask: Ask, said: Mapping[str, Any]) -> dict[str, str]:
    """What speaks against an answer besides the cautions of its clip: code → sentence."""
    found = {}
    rendered = rendered_only(predictor.source.footage)
    if rendered and "unseen_footage" not in said["warning_codes"]:  # which says the same of this very video
        found["rendered_only"] = rendered
    if ask.subject_id is not None and said["personalized_for"] is None:
        who = f"subject {ask.subject_id!r} and model {name!r}"
        found["not_personalized"] = f"Not personalized: nothing is stored for {who}."
    return found


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
    frames, codes = spec.features.frames, list(action_unit_columns(spec.phrases))
    return {
        "name": name,
        "classes": list(spec.classes),
        "checkpoint": source.checkpoint.fingerprint,
        "backbone": source.backbone.name,
        "trained_on": {part: str(seen) for part, seen in footage.items()},
        "rendered_only": rendered_only(footage) is not None,
        "detector": frames.faces.detector,
        "frames_per_second": frames.sampling.frames_per_second,
        "window_frames": source.window.length,
        "action_units": {code: title_of(code) for code in codes},
        "not_learned": list(source.backbone.facts.not_learned(codes)),
    }
