"""One frame of a live session: similarities of the action units, and what the running window says of the classes.

In: a `Predictor`, and a frame with what came before. Out: a `Moment` or a `Refusal`. The window is the model's, counted
in frames: 16 frames are 1.3 s at the 12.5 frames per second of training, and 2 s where a camera or a slow connection
gives eight. Movements then look faster to the model than those that it has learned. The similarities of action units
are of single frames and do not change with the rate.
"""

from __future__ import annotations

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


def moment(
    predictor: Predictor, look: Look, feature: Tensor, personalization: Personalization | None = None
) -> Moment | Refusal:
    """What a model sees in a frame of a session.

    Without a personalization and without a resting face the centre is that of `Look.centre_of`: the session's own
    frames so far stand for the resting face, as a video's do in `Predictor.predict`.

    Args:
        predictor: the model.
        look: the frame and what came before.
        feature: of the frame, float32 [d].
        personalization: that of `Look.subject_id` for this model. Its prompts are used, and its centre as well unless
            the session has a resting face of its own, which shows the same person in today's light.

    Returns:
        A `Refusal` where numbers are not finite.
    """
    if personalization is None:
        session = Session.open(predictor.source, predictor.config)
        after = state_before(session)
    else:
        session = personalization.session(predictor.source)
        after = personalization.after(session)
    window = _window(session, look, feature, None if personalization is None else personalization.centre)
    try:
        prediction = _predicted(session, after, window)
    except NotFiniteError:
        return _NOT_FINITE
    if not bool(torch.isfinite(feature).all()) or (prediction is not None and not prediction.made):
        return _NOT_FINITE
    classes = predictor.source.classes
    return Moment(
        feature.numpy(),
        _action_units(predictor, feature) if look.shown else {},
        None if prediction is None else dict(zip(classes, prediction.probabilities.tolist(), strict=True)),
        None if prediction is None else prediction.entropy,
        window.frames,
        window.needed,
        None if look.centre is None and look.centre_of is None else window.centre.numpy(),
    )


def _window(session: Session, look: Look, feature: Tensor, stored: Tensor | None) -> _Window:
    """The running window with a frame; `stored` is the personalization's centre."""
    source = session.source
    spec, share = source.window, source.checkpoint.spec.features.frames.faces.window_share
    needed = (spec.length - 1) * spec.stride
    past = min(needed, len(look.past))
    past -= past % spec.stride  # counted back from the newest frame
    features = torch.cat([torch.tensor(look.past[len(look.past) - past :]).reshape(past, len(feature)), feature[None]])
    found = np.append(look.past_found[len(look.past) - past :], look.found)
    centre = _centre(session, look, features, stored)
    clip = ClipFeatures(
        "live", "", features - centre, np.arange(past + 1, dtype=np.float64), face_found=found, min_share=share
    )
    return _Window(clip, 1 + past // spec.stride, needed, centre)


def _centre(session: Session, look: Look, window: Tensor, stored: Tensor | None) -> Tensor:
    """What is removed from the session's features, [d]."""
    if look.centre_of is not None and len(look.centre_of):
        return subject_centre(torch.tensor(look.centre_of), session.config.subject_baseline)
    if look.centre is not None:
        return torch.tensor(look.centre)
    if stored is not None:
        return stored.cpu()
    return subject_centre(window, session.config.subject_baseline)


def _predicted(session: Session, after: SubjectState, window: _Window) -> Prediction | None:
    """None where the window is not full, or shows the face too seldom, or earlier frames are not finite."""
    source, clip = session.source, window.clip
    full = window.frames == source.window.length and bool(torch.isfinite(clip.features).all())
    return predict_clips(session, after, [clip])[0] if full and source.why_no_window(clip) is None else None


def _action_units(predictor: Predictor, feature: Tensor) -> dict[str, float]:
    """FACS code → similarity in the frame."""
    source = predictor.source
    (row,) = source.face_similarities(ClipFeatures("live", "", feature[None], np.zeros(1)))
    return dict(zip(action_unit_columns(source.checkpoint.spec.phrases), row.tolist(), strict=True))
