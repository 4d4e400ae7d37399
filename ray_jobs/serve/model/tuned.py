"""Adaptation for one request: to the video alone, or to it as a further one of a subject.

In: features of the video, and the server's adaptation settings. Out: the predictions with and without adaptation, and
the subject's new state in the `SubjectStore`; or a `RefusedError`. Tuning takes its time: calls belong into a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch

from clipautt.adaptation.basis import Basis
from clipautt.adaptation.driver import History, SubjectResult, Unit, adapt_units
from clipautt.adaptation.method import AdaptationProtocol, AdaptConfig, Session, TuningConfig, check_needs
from clipautt.adaptation.personalization import Personalization
from clipautt.adaptation.predictions import NO_PREDICTION, OK, NotFiniteError
from clipautt.adaptation.source import Source
from clipautt.features.clip_features import ClipFeatures
from clipautt.prediction.answers import VideoPrediction
from clipautt.predictor import ClipAnswer, Personal, Predictor
from ray_jobs.serve.model.remembered import Remembered, find_same, next_number, now, within_bounds
from ray_jobs.serve.model.stored import Stored, check_checkpoint
from ray_jobs.serve.model.subjects import Change, SubjectStore
from ray_jobs.serve.refusals import RefusedError
from ray_jobs.serve.web.keys import Who


@dataclass(frozen=True)
class Adapted:
    """A video's answers."""

    prediction: VideoPrediction
    """With adaptation."""
    before: VideoPrediction
    """Without, from the video alone; it has no label where only the subject's other videos give one."""


def server_config(source: Source, config: AdaptConfig, protocol: AdaptationProtocol) -> AdaptConfig:
    """The server's settings for one request: with its protocol, and the checkpoint's subject baseline."""
    return replace(config, protocol=protocol, subject_baseline=source.checkpoint.spec.subject_baseline)


def check_server_method(source: Source, config: AdaptConfig) -> None:
    """Refuse, before the server starts, settings with which `adapt=per_video` or `adapt=online` cannot work.

    Raises:
        ValueError: saying what to take instead.
    """
    if not config.method.adapts:
        raise ValueError(
            f"per_video.method={config.method.name} with these settings adapts nothing, so that adapt=per_video would "
            "change no answer; take one that adapts, such as adapt@per_video=paper"
        )
    if config.prior == "estimate":
        raise ValueError(
            "adapt.prior=estimate needs all clips of a subject together, but the server adapts to one video at a time; "
            "take a number, or null"
        )
    for protocol in get_args(AdaptationProtocol):
        check_needs(source.checkpoint.spec, server_config(source, config, protocol))


def why_per_video_is_idle(source: Source, config: AdaptConfig) -> str | None:
    """A sentence for whoever starts the server if `adapt=per_video` changes no answer; None if it does.

    It is tried on a made-up clip. Information maximization, for one, has nothing to gain from a single window: take
    `per_video.method.windows_per_clip=16`, or `per_video.method.objective=entropy`.
    """
    frames = 4 * source.window.length * source.window.stride
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(frames, source.checkpoint.spec.features.feature_dim, generator=generator)
    session = Session.open(source, server_config(source, config, "per_video"))
    clip = ClipFeatures("", "", features, np.arange(frames) / 10)
    (result,) = adapt_units(session, [Unit("", (clip,))])
    before, (after,) = Predictor(source).predict_features(clip), result.predictions
    if after.status != OK or after.probabilities.tolist() != list(before.probabilities.values()):
        return None
    return (
        f"adapt=per_video will change no answer: {session.config.name!r} moves nothing by a single video; with "
        "per_video.method.windows_per_clip=16 or per_video.method.objective=entropy, CLIP-AUTT does"
    )


def predict_per_video(predictor: Predictor, clip: ClipFeatures, *, config: AdaptConfig) -> Adapted:
    """Adapt to one video alone, and predict it.

    Args:
        predictor: the model.
        clip: the video's features.
        config: the server's settings.

    Raises:
        RefusedError: `no_label` where no window can be predicted, `not_finite`.
    """
    tuned = Predictor(predictor.source, config=server_config(predictor.source, config, "per_video"))
    with finite():
        adapted, before = (one.predict_features(clip) for one in (tuned, predictor))
    return Adapted(labelled(adapted), before)


def predict_online(
    store: SubjectStore,
    who: Who,
    subject_id: str,
    model: str,
    predictor: Predictor,
    clip: ClipFeatures,
    *,
    config: AdaptConfig,
    ticket: int | None = None,
    tuning: TuningConfig | None = None,
) -> Adapted:
    """Adapt to a further video of a subject, predict it, and store the state that follows.

    The subject goes on from what is stored: an earlier `online` state, or what `personalize` made, whose clips count as
    visited. Without anything stored it begins here. Frames that came before are answered as they were then and change
    nothing, so that a request may be sent again; those of clips that were only personalized to are predicted with what
    is stored now. How much is remembered: `remembered.within_bounds`.

    Args:
        store: where the subject is stored.
        who: its owner.
        subject_id: whose video it is.
        model: name of the model.
        predictor: the model.
        clip: the video's features.
        config: the server's settings.
        ticket: from `SubjectStore.ticket` when the request came; None for now.
        tuning: memory limit, batch size and compilation.

    Raises:
        RefusedError: `no_label`, `not_finite`; `cannot_adapt` where what is stored cannot be gone on from;
            `other_checkpoint`; `unknown_subject` if it was erased meanwhile; `wrong_field` for an id that is none.
    """
    session = Session.open(predictor.source, server_config(predictor.source, config, "online"), tuning)
    with finite():
        before = predictor.predict_features(clip)
        with store.changing(who, subject_id, ticket=ticket) as change:
            stored = change.read(model)
            _check_goes_on(change, model, stored, session)
            visits = _visited(change, model, stored, session, clip)
        answer = visits[-1].answer
        if answer is None:
            made = stored.personalization if stored else None
            known = predictor.predict_features(clip, personalization=made)
            return Adapted(labelled(known), before)
    answer = replace(answer, au_embeddings=answer.au_embeddings.to(predictor.source.backbone.device))
    personal = Personal(change.subject, Basis.of([one.clip for one in visits]), centred=len(visits) > 1)
    (found,) = predictor.describe(session, [clip], [answer], videos=[""], personal=personal)
    return Adapted(labelled(found), before)


def labelled(prediction: VideoPrediction) -> VideoPrediction:
    """The prediction itself.

    Raises:
        RefusedError: `no_label` if it has none.
    """
    if prediction.label is None:
        raise RefusedError("no_label", f"no label: {prediction.reason}")
    return prediction


@contextmanager
def finite() -> Iterator[None]:
    """Numbers that are not finite as a refusal."""
    try:
        yield
    except NotFiniteError as error:
        raise RefusedError("not_finite", "the model's numbers for this video are not finite") from error


def _check_goes_on(change: Change, model: str, stored: Stored | None, session: Session) -> None:
    """Refuse what `adapt=online` cannot go on from.

    Raises:
        RefusedError: `cannot_adapt` or `other_checkpoint`, saying what to do instead.
    """
    name, own = f"subject {change.subject!r}", session.config
    instead = f"personalize {name} again (PUT /v1/subjects/ID), or erase it (DELETE), then send this video again"
    if stored is None:
        if change.made_by_adapt(model):
            raise RefusedError(
                "cannot_adapt", f"{name} was personalized by `clipautt adapt`, and its clips are not here; {instead}"
            )
        return
    check_checkpoint(stored.checkpoint, change.subject, model, session.source)
    theirs = stored.personalization.config
    if theirs.prior == "estimate" or replace(theirs, protocol="online", seed=own.seed) != own:
        raise RefusedError(
            "cannot_adapt",
            f"{name} was personalized by {theirs.name!r}, and this server uses {own.name!r}; {instead}",
        )
    if own.subject_baseline != "none" and not stored.clips:
        raise RefusedError(
            "cannot_adapt", f"the clips of {name}, from which the resting face is taken, are not here; {instead}"
        )


def _visited(
    change: Change, model: str, stored: Stored | None, session: Session, clip: ClipFeatures
) -> Sequence[Remembered]:
    """The clips up to this one, which is visited unless it came before."""
    earlier = stored.clips if stored else ()
    same = find_same(earlier, clip)
    if same is not None:
        return earlier[: earlier.index(same) + 1]
    clip = replace(clip, clip_id=f"clip {next_number(earlier)}", subject_id=change.subject)
    history = None
    if stored is not None:
        history = History(stored.personalization.after(session), tuple(one.clip for one in earlier))
    (result,) = adapt_units(session, [Unit(change.subject, (clip,), history, in_order=True)])
    (prediction,) = result.predictions
    if not prediction.made:
        raise RefusedError("no_label", f"no label: {prediction.status.removeprefix(NO_PREDICTION)}")
    visits = [*earlier, Remembered(clip, answer=ClipAnswer.of(session, result))]
    change.write(model, _after(result, session, stored, within_bounds(visits)))
    return visits


def _after(result: SubjectResult, session: Session, stored: Stored | None, clips: Sequence[Remembered]) -> Stored:
    """What is stored once a clip was visited."""
    made = replace(
        Personalization.of(result, session.config),
        clips=tuple(one.clip.clip_id for one in clips),
        basis=Basis.of([one.clip for one in clips]),
        notes=stored.personalization.notes if stored else (),
    )
    since = stored.since if stored else now()
    return Stored(session.source.checkpoint.fingerprint, made, tuple(clips), since)
