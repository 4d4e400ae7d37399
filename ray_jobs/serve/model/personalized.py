"""PUT /v1/subjects/ID: a subject's videos, encoded already, become what is stored of it.

In: features of videos, and the server's adaptation settings. Out: a file per model in the `SubjectStore`, and what is
stored as plain values; or a `RefusedError`, and what was stored before. Tuning takes its time, so calls belong into a
thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipautt.adaptation.method import AdaptConfig, TuningConfig
from clipautt.adaptation.personalization import Personalization
from clipautt.adaptation.source import Source
from clipautt.features.clip_features import ClipFeatures
from clipautt.personalizing import NothingLeftError, check_keeps_something, personalize_features, without_copies
from ray_jobs.serve.model.remembered import MOST_CLIPS, Remembered, next_number, now
from ray_jobs.serve.model.stored import Stored
from ray_jobs.serve.model.subjects import Change, SubjectStore
from ray_jobs.serve.model.tuned import finite, server_config
from ray_jobs.serve.refusals import Refusal, RefusedError
from ray_jobs.serve.web.keys import Who


@dataclass(frozen=True, eq=False)
class Sent:
    """A video that a subject is to be personalized with."""

    path: Path
    """Its file."""
    features: Mapping[str, ClipFeatures]
    """Model → its features; empty if it could not be read."""
    refusal: Refusal | None = None
    """Why it could not be read."""
    content: npt.NDArray[np.uint8] | None = None
    """Its bytes, where the file lies on another node."""


@dataclass(frozen=True, eq=False)
class _Numbered:
    """A sent video with what it is called here."""

    clip_id: str
    """`clip 1`, `clip 2`, …; a kept video keeps its number."""
    sent: Sent
    """What was sent."""
    name: str
    """Name under which it is kept; empty if it is not."""


def personalize(
    store: SubjectStore,
    who: Who,
    subject_id: str,
    sent: Sequence[Sent],
    sources: Mapping[str, Source],
    *,
    config: AdaptConfig,
    keep: bool,
    ticket: int | None = None,
    tuning: TuningConfig | None = None,
) -> dict[str, Any]:
    """Personalize to a subject; what was stored for these models is replaced.

    With `keep` the videos are kept, and those that were kept before count as well; all else that was stored for these
    models is replaced, an `online` state included. The features of the clips stay with the personalization in any case,
    so that `adapt=online` can go on from it. Either all models are replaced or none.

    Args:
        store: where the subject is stored.
        who: its owner.
        subject_id: whose videos they are.
        sent: the videos, and with `keep` those of `to_encode_again`.
        sources: model → the frozen model, of all that were asked.
        config: the server's settings; the protocol is always `per_subject`.
        keep: whether to keep the videos.
        ticket: from `SubjectStore.ticket` when the work began; None for now.
        tuning: memory limit, batch size and compilation.

    Returns:
        What is stored, as `web.schemas.Subject` in plain values.

    Raises:
        RefusedError: `no_face`, `no_label` or why else no video can be used, with the reason of each; `not_finite`;
            `cannot_adapt` for settings that keep nothing of a person; `over_limit`; `unknown_subject` if it was
            erased meanwhile; `wrong_field`, `unknown_model`.
    """
    for model in sources:
        store.check_model(model)
    with store.changing(who, subject_id, ticket=ticket) as change:
        before = change.kept() if keep else {}
        try:
            earlier = {model: _kept(change, model, source) if keep else [] for model, source in sources.items()}
            clips = list(_numbered(change, sent, earlier.values(), keep))
            made = {
                model: _personalized(change.subject, model, source, clips, earlier[model], config, tuning)
                for model, source in sources.items()
            }
            for model, stored in made.items():
                change.write(model, stored)
        finally:
            change.drop_unused(but=before)  # one that cannot be read today is not lost
    return store.describe(who, subject_id, {model: one.checkpoint.fingerprint for model, one in sources.items()})


def to_encode_again(store: SubjectStore, who: Who, subject_id: str, sources: Mapping[str, Source]) -> list[Path]:
    """Kept videos without features of one of these models, because it was not asked then or has another checkpoint now.

    Raises:
        RefusedError: `wrong_field` for an id that is none.
    """
    with store.changing(who, subject_id) as change:
        known = [{one.video for one in _kept(change, model, source)} for model, source in sources.items()]
        return [path for name, path in change.kept().items() if not all(name in names for names in known)]


def _kept(change: Change, model: str, source: Source) -> list[Remembered]:
    """The clips of which the videos are kept, as far as their features are of this checkpoint."""
    try:
        stored = change.read(model)
    except RefusedError:  # damaged: `to_encode_again` gives the videos
        return []
    if stored is None or stored.checkpoint != source.checkpoint.fingerprint:
        return []
    return [one for one in stored.clips if one.video]


def _numbered(
    change: Change, sent: Sequence[Sent], earlier: Iterable[Sequence[Remembered]], keep: bool
) -> Iterator[_Numbered]:
    """The sent videos with numbers that no kept one has; those that can be read are kept if they are to be."""
    there = {path: name for name, path in change.kept().items()}
    new = [one for one in sent if one.path not in there]
    if len(new) + (len(there) if keep else 0) > MOST_CLIPS:
        raise RefusedError("over_limit", f"{len(new)} videos and those kept are more than {MOST_CLIPS}; send fewer")
    first = max((next_number(clips) for clips in earlier), default=1)
    for number, one in enumerate(sent, start=first):
        name = there.get(one.path, "")
        if keep and not name and one.features:
            name = change.keep(one.path if one.content is None else one.content)
        yield _Numbered(f"clip {number}", one, name)


def _personalized(
    subject: str,
    model: str,
    source: Source,
    clips: Sequence[_Numbered],
    earlier: Sequence[Remembered],
    config: AdaptConfig,
    tuning: TuningConfig | None,
) -> Stored:
    """What one model makes of the clips and of those kept before."""
    own = server_config(source, config, "per_subject")
    try:
        check_keeps_something(source, own)
    except ValueError as error:
        raise RefusedError("cannot_adapt", str(error)) from error
    there = {one.video for one in earlier}
    new = [one for one in clips if model in one.sent.features and (not one.name or one.name not in there)]
    named = [replace(one.sent.features[model], clip_id=one.clip_id, subject_id=subject) for one in new]
    features, copies = without_copies([*(one.clip for one in earlier), *named])
    failed = {one.clip_id: one.sent.refusal for one in clips if one.sent.refusal is not None}
    try:
        with finite():
            made = personalize_features(
                source,
                subject,
                features,
                config=own,
                tuning=tuning,
                omitted={clip_id: refusal.detail for clip_id, refusal in failed.items()},
                notes=[*(note for one in earlier for note in one.notes), *copies],
            )
    except NothingLeftError as error:
        raise _nothing_left(error, failed) from error
    names = {one.clip.clip_id: one.video for one in earlier} | {one.clip_id: one.name for one in clips}
    used = [clip for clip in features if clip.clip_id not in made.omitted]
    remembered = tuple(Remembered(clip, names[clip.clip_id], _notes_on(clip, made)) for clip in used)
    return Stored(source.checkpoint.fingerprint, made, remembered, now())


def _notes_on(clip: ClipFeatures, made: Personalization) -> tuple[str, ...]:
    return tuple(note for note in made.notes if note.startswith(f"{clip.clip_id}: "))


def _nothing_left(error: NothingLeftError, failed: Mapping[str, Refusal]) -> RefusedError:
    """Why no video can be used: the code that all have in common, else `no_label`."""
    codes = {failed[clip_id].code if clip_id in failed else "no_label" for clip_id in error.omitted}
    code = codes.pop() if len(codes) == 1 else "no_label"
    reasons = "; ".join(f"{clip_id}: {why}" for clip_id, why in error.omitted.items())
    return RefusedError(code, f"no video can be used to personalize: {reasons or 'none was sent'}")
