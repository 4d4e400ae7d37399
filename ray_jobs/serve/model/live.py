"""One frame of a live session: similarities of the action units, and what the running window says of the classes.

In: a `Predictor`, and frames of any number of sessions. Out: a `Moment` or a `Refusal` for each. The window is the
model's, counted in frames: 16 frames are 1.3 s at the 12.5 frames per second of training, and 2 s where a camera or a
slow connection gives eight. Movements then look faster to the model than those that it has learned. The similarities of
action units are of single frames and do not change with the rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipautt.action_units import action_unit_columns
from clipautt.adaptation.driver import SubjectState, predict_clips, state_before
from clipautt.adaptation.method import Session
from clipautt.adaptation.personalization import Personalization
from clipautt.adaptation.predictions import NotFiniteError, Prediction
from clipautt.features.clip_features import ClipFeatures, subject_centre
from clipautt.predictor import Predictor
from ray_jobs.serve.model.looks import Look, Moment
from ray_jobs.serve.refusals import Refusal

_NOT_FINITE = Refusal("not_finite", "the model's numbers for this frame are not finite")


@dataclass(frozen=True, eq=False)
class LiveAsk:
    """A frame of a session, and whose it is."""

    look: Look
    """The frame and what came before."""
    personalization: Personalization | None = None
    """That of `Look.subject_id` for this model. Its prompts are used, and its centre as well unless the session has a
    resting face of its own, which shows the same person in today's light."""


@dataclass(frozen=True, eq=False)
class _Head:
    """What predicts the sessions of one personalization."""

    session: Session
    after: SubjectState
    centre: Tensor | None
    """The personalization's, [d]."""

    @classmethod
    def of(cls, predictor: Predictor, personalization: Personalization | None) -> _Head:
        if personalization is None:
            session = Session.open(predictor.source, predictor.config)
            return cls(session, state_before(session), None)
        session = personalization.session(predictor.source)
        return cls(session, personalization.after(session), personalization.centre)


@dataclass(frozen=True, eq=False)
class _Window:
    """The running window of a session."""

    clip: ClipFeatures
    """Its frames, the centre removed."""
    frames: int
    """How many they are so far, after the stride."""
    needed: int
    """As in `Moment`."""
    centre: Tensor
    """What was removed, [d]."""


def moments(predictor: Predictor, asks: Sequence[LiveAsk], features: Tensor | None = None) -> list[Moment | Refusal]:
    """What a model sees in frames of several sessions, computed together; no session changes another's result.

    Without a personalization and without a resting face the centre is that of `Look.centre_of`: the session's own
    frames so far stand for the resting face, as a video's do in `Predictor.predict`.

    Args:
        predictor: the model.
        asks: one frame each.
        features: of the frames, float32 [n, d]; None: they are encoded here.

    Returns:
        One for each; a `Refusal` where numbers are not finite.
    """
    if features is None:
        features = predictor.source.backbone.encode_frames(np.stack([ask.look.frame for ask in asks]))
    people = {id(ask.personalization): ask.personalization for ask in asks}
    heads = {key: _Head.of(predictor, one) for key, one in people.items()}
    of = [heads[id(ask.personalization)] for ask in asks]
    windows = [_window(head, ask.look, feature) for head, ask, feature in zip(of, asks, features, strict=True)]
    said: dict[int, Prediction | None] = {}
    for head in heads.values():
        said |= _predicted(head, {number: window for number, window in enumerate(windows) if of[number] is head})
    units = _action_units(predictor, features)
    return [
        _moment(ask.look, feature, window, units[number], said[number], predictor.source.classes)
        for number, (ask, feature, window) in enumerate(zip(asks, features, windows, strict=True))
    ]


def _window(head: _Head, look: Look, feature: Tensor) -> _Window:
    source = head.session.source
    spec, share = source.window, source.checkpoint.spec.features.frames.faces.window_share
    needed = (spec.length - 1) * spec.stride
    past = min(needed, len(look.past))
    past -= past % spec.stride  # counted back from the newest frame
    features = torch.cat([torch.tensor(look.past[len(look.past) - past :]).reshape(past, len(feature)), feature[None]])
    found = np.append(look.past_found[len(look.past) - past :], look.found)
    centre = _centre(head, look, features)
    clip = ClipFeatures(
        "live", "", features - centre, np.arange(past + 1, dtype=np.float64), face_found=found, min_share=share
    )
    return _Window(clip, 1 + past // spec.stride, needed, centre)


def _centre(head: _Head, look: Look, window: Tensor) -> Tensor:
    """What is removed from the session's features, [d]."""
    if look.centre_of is not None and len(look.centre_of):
        return subject_centre(torch.tensor(look.centre_of), head.session.config.subject_baseline)
    if look.centre is not None:
        return torch.tensor(look.centre)
    if head.centre is not None:
        return head.centre.cpu()
    return subject_centre(window, head.session.config.subject_baseline)


def _predicted(head: _Head, windows: dict[int, _Window]) -> dict[int, Prediction | None]:
    """Number of a session → its prediction; None where the window is not full, or shows the face too seldom."""
    source = head.session.source
    ready = {
        number: window.clip
        for number, window in windows.items()
        if window.frames == source.window.length
        and bool(torch.isfinite(window.clip.features).all())
        and source.why_no_window(window.clip) is None
    }
    nothing: dict[int, Prediction | None] = dict.fromkeys(windows)
    try:
        return nothing | dict(zip(ready, predict_clips(head.session, head.after, list(ready.values())), strict=True))
    except NotFiniteError:  # one of them: the others have an answer
        return nothing | {number: _alone(head, clip) for number, clip in ready.items()}


def _alone(head: _Head, clip: ClipFeatures) -> Prediction:
    try:
        return predict_clips(head.session, head.after, [clip])[0]
    except NotFiniteError as error:
        return Prediction.missing(clip, str(error), num_classes=len(head.session.source.classes))


def _action_units(predictor: Predictor, features: Tensor) -> list[dict[str, float]]:
    """FACS code → similarity in each frame."""
    source = predictor.source
    frames = ClipFeatures("live", "", features, np.arange(len(features), dtype=np.float64))
    codes = tuple(action_unit_columns(source.checkpoint.spec.phrases))
    return [dict(zip(codes, row.tolist(), strict=True)) for row in source.face_similarities(frames)]


def _moment(
    look: Look,
    feature: Tensor,
    window: _Window,
    units: dict[str, float],
    prediction: Prediction | None,
    classes: Sequence[str],
) -> Moment | Refusal:
    if not bool(torch.isfinite(feature).all()) or (prediction is not None and not prediction.made):
        return _NOT_FINITE
    return Moment(
        feature.numpy(),
        units if look.shown else {},
        None if prediction is None else dict(zip(classes, prediction.probabilities.tolist(), strict=True)),
        None if prediction is None else prediction.entropy,
        window.frames,
        window.needed,
        None if look.centre is None and look.centre_of is None else window.centre.numpy(),
    )
