"""The one driver for every method: `adapt(source, clips, config)`.

It owns the protocol, the reset at each subject, the order of clips, the subject baseline, the fallback to the source
prompts and the cost counter, and returns one prediction per clip and one state per subject. Clips come without labels.
Whatever the order of the given clips, the result is the same: clips are sorted, and `online` visits them in an order
that follows from seed, subject and clip.

A personalization (tuned context and centre of a subject) can be saved and used again for new clips of that subject.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipautt.clips import id_number
from clipautt.features import ClipFeatures, SubjectBaseline, subject_centre
from clipautt.methods import AdaptConfig, Method, NotFiniteError, PromptState, make_method
from clipautt.source import Prediction, Source


@dataclass(frozen=True, eq=False, repr=False)
class SubjectResult:
    """What adaptation gives for one subject."""

    subject_id: str
    """Subject."""
    predictions: tuple[Prediction, ...]
    """One per clip, in the order in which the clips were visited."""
    state: Any
    """The method's state after the last clip; for CLIP-AUTT a `PromptState`."""
    centre: Tensor
    """What was subtracted from the frame features of the last clip, [d]; zeros without a subject baseline."""
    seconds: float
    """Wall time of adaptation and prediction."""

    def __repr__(self) -> str:
        return f"SubjectResult({self.subject_id!r}, {len(self.predictions)} clips, {self.seconds:.2f} s)"


def adapt(
    source: Source, clips: Iterable[ClipFeatures], config: AdaptConfig, *, method: Method | None = None
) -> dict[str, SubjectResult]:
    """Personalise to every subject among the clips and predict all of them.

    Args:
        source: the frozen model; nothing in it changes.
        clips: unlabeled clips of one or more subjects, in any order.
        config: method, objective, protocol, baseline.
        method: instead of the one that the configuration names.

    Returns:
        subject → result, subjects in alphabetical order. State never crosses from one subject to another.

    Raises:
        ValueError: if the configuration asks for a subject baseline that the checkpoint was not trained with, or if a
            clip stands twice.
        NotFiniteError: if a clip has no finite prediction even under the source prompts, naming it.
    """
    check_baseline(source, config)
    source = source.with_window(config.window)
    groups: dict[str, list[ClipFeatures]] = {}
    for clip in clips:
        groups.setdefault(clip.subject_id, []).append(clip)
    chosen = method or make_method(config)
    return {subject: _adapt_subject(source, groups[subject], config, chosen) for subject in sorted(groups)}


def check_baseline(source: Source, config: AdaptConfig) -> None:
    """Refuse a subject baseline other than the checkpoint's; zero-shot rows use none with any checkpoint.

    Raises:
        ValueError: naming both sides.
    """
    trained = source.checkpoint.spec.subject_baseline
    if config.method != "zero_shot" and config.subject_baseline != trained:
        raise ValueError(
            f"adapt.subject_baseline={config.subject_baseline!r}, but the checkpoint was trained with {trained!r}; "
            "the same centre must be removed in training and at test time"
        )


def visiting_order(clips: Sequence[ClipFeatures], config: AdaptConfig) -> list[ClipFeatures]:
    """One subject's clips in a shuffled order that follows from seed, subject and clip alone."""
    return sorted(clips, key=lambda clip: (id_number(f"{config.seed}/{clip.subject_id}/{clip.clip_id}"), clip.clip_id))


def _adapt_subject(source: Source, clips: Sequence[ClipFeatures], config: AdaptConfig, method: Method) -> SubjectResult:
    began = time.perf_counter()
    ordered = visiting_order(clips, config)
    twice = [clip_id for clip_id, count in Counter(clip.clip_id for clip in ordered).items() if count > 1]
    if twice:
        raise ValueError(f"subject {ordered[0].subject_id!r} has clips twice: {', '.join(twice)}")
    run = {"per_video": _per_video, "online": _online, "per_subject": _per_subject}[config.protocol]
    predictions, state, centre = run(source, ordered, config, method)
    return SubjectResult(ordered[0].subject_id, tuple(predictions), state, centre, time.perf_counter() - began)


_Run = tuple[list[Prediction], Any, Tensor]


def _per_video(source: Source, clips: Sequence[ClipFeatures], config: AdaptConfig, method: Method) -> _Run:
    predictions = []
    for clip in clips:
        centred, centre = centre_clips([clip], config.subject_baseline)
        start = method.start(source, config)
        fitted, status = _fit(method, start, source, centred)
        prediction, state = _step(method, fitted, start, source, centred[0], config)
        predictions.append(prediction if status is None else replace(prediction, status=status))
    return predictions, state, centre


def _online(source: Source, clips: Sequence[ClipFeatures], config: AdaptConfig, method: Method) -> _Run:
    start = state = method.start(source, config)
    predictions, seen = [], []
    for clip in clips:
        seen.append(clip.features)
        centre = subject_centre(torch.cat(seen), config.subject_baseline)
        prediction, state = _step(method, state, start, source, replace(clip, features=clip.features - centre), config)
        predictions.append(prediction)
    return predictions, state, centre


def _per_subject(source: Source, clips: Sequence[ClipFeatures], config: AdaptConfig, method: Method) -> _Run:
    # The set of clips is what counts: a sum over them must not depend on the seed's order either.
    centred, centre = centre_clips(sorted(clips, key=lambda clip: clip.clip_id), config.subject_baseline)
    start = method.start(source, config)
    state, status = _fit(method, start, source, centred)
    predictions = []
    for clip in centred:
        prediction, state = _step(method, state, start, source, clip, config)
        predictions.append(prediction if status is None else replace(prediction, status=status))
    return predictions, state, centre


def _fit(method: Method, start: Any, source: Source, clips: Sequence[ClipFeatures]) -> tuple[Any, str | None]:
    """The fitted state; when numbers stop being finite, the start and the reason."""
    try:
        return method.fit(start, source, clips), None
    except NotFiniteError as error:
        return start, f"source prompts: {error}"


def _step(
    method: Method, state: Any, start: Any, source: Source, clip: ClipFeatures, config: AdaptConfig
) -> tuple[Prediction, Any]:
    """One step; when numbers stop being finite, the clip is predicted without adaptation and the state is reset."""
    try:
        prediction, following = method.step(state, source, clip)
        return _finite(prediction), following
    except NotFiniteError as error:
        unadapted = make_method(replace(config, method="clip_autt", objective="none"))
        prediction, _ = unadapted.step(unadapted.start(source, config), source, clip)
        return replace(_finite(prediction), status=f"source prompts: {error}"), start


def _finite(prediction: Prediction) -> Prediction:
    if not torch.isfinite(prediction.probabilities).all():
        raise NotFiniteError(
            f"subject {prediction.subject_id!r}, clip {prediction.clip_id!r}: probabilities not finite"
        )
    return prediction


def centre_clips(clips: Sequence[ClipFeatures], baseline: SubjectBaseline) -> tuple[list[ClipFeatures], Tensor]:
    """One subject's clips with their common centre removed, and that centre [d]."""
    centre = subject_centre(torch.cat([clip.features for clip in clips]), baseline)
    return [replace(clip, features=clip.features - centre) for clip in clips], centre


@dataclass(frozen=True, eq=False, repr=False)
class Personalization:
    """What a subject's adaptation leaves behind, to predict further clips of that subject."""

    subject_id: str
    """Subject."""
    config: AdaptConfig
    """How it was made."""
    centre: Tensor
    """Subtracted from frame features, [d]."""
    context: Tensor | None = None
    """Tuned context vectors [K, M, d_text]; None leaves the source prompts."""
    predictions: tuple[str, ...] = field(default=())
    """Ids of the clips it was made from."""

    def __repr__(self) -> str:
        return f"Personalization({self.subject_id!r}, {self.config.name})"

    @classmethod
    def of(cls, result: SubjectResult, config: AdaptConfig) -> Personalization:
        """From a finished adaptation; methods without prompts leave the centre only."""
        context = result.state.context if isinstance(result.state, PromptState) else None
        return cls(result.subject_id, config, result.centre, context, tuple(p.clip_id for p in result.predictions))

    def state(self, source: Source) -> PromptState:
        """The prompts as a state to predict from."""
        if self.context is None:
            return PromptState(au_embeddings=source.au_embeddings)
        context = self.context.to(source.backbone.device)
        with torch.no_grad():
            return PromptState(context, source.au_embeddings_of(context))


def subject_file(subject_id: str) -> str:
    """File name for a subject's adapted prompts; every id gives a name of its own, and none leads out of the folder."""
    return quote(subject_id, safe="").replace(".", "%2E") + ".safetensors"


def save_personalization(personalization: Personalization, path: Path, *, checkpoint: str) -> None:
    """Write one subject's prompts and centre, aside and renamed, with the checkpoint's fingerprint inside."""
    tensors = {"centre": personalization.centre.contiguous()}
    if personalization.context is not None:
        tensors["context"] = personalization.context.contiguous()
    config = {k: v for k, v in vars(personalization.config).items() if k != "window"}
    window = personalization.config.window
    facts = {
        "subject_id": personalization.subject_id,
        "checkpoint": checkpoint,
        "config": config | {"window": None if window is None else vars(window)},
        "clips": personalization.predictions,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file(tensors, aside, metadata={"personalization": json.dumps(facts)})
    os.replace(aside, path)


def load_personalization(path: Path, source: Source) -> Personalization:
    """Read what `save_personalization` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it belongs to another checkpoint, naming both.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no adapted prompts at {path}")
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["personalization"])
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    if facts["checkpoint"] != source.checkpoint.fingerprint:
        raise ValueError(
            f"{path} was adapted from checkpoint {facts['checkpoint']}, given is {source.checkpoint.fingerprint}"
        )
    window = facts["config"].pop("window")
    config = AdaptConfig(**facts["config"], window=None if window is None else type(source.window)(**window))
    return Personalization(
        facts["subject_id"], config, tensors["centre"], tensors.get("context"), tuple(facts["clips"])
    )
