"""The one driver for every method: `adapt(source, clips, config)`.

It owns the protocol, the reset at each subject, the order of clips, the subject baseline, the fallback to the source
prompts and the cost counter, and returns one prediction per clip and one state per subject. Clips come without labels.
Many subjects are worked on at once, and nothing passes between them. Whatever the order of the given clips, the result
is the same: clips are sorted, and `online` visits them in an order that follows from seed, subject and clip.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from clipautt.adaptation.config import AdaptConfig
from clipautt.adaptation.methods import BatchedMethod, ClipAUTT, Method, PromptState, make_method
from clipautt.adaptation.source import OK, Prediction, Source
from clipautt.adaptation.tuning import DegenerateError, NotFiniteError, Tuner, unless_degenerate
from clipautt.clips import Clip, id_number
from clipautt.features.clip_features import ClipFeatures, SubjectBaseline, subject_centre
from clipautt.model.checkpoint import Checkpoint

_C = TypeVar("_C", Clip, ClipFeatures)
FALLBACK = "source prompts: "
"""How the status of a prediction begins that was made without the tuned prompts."""
_FEWEST_CLIPS = 8
"""A smaller number of clips in one class is no collapse; `online` looks back over twice as many."""


@dataclass(frozen=True, eq=False, repr=False)
class Course:
    """Where an `online` run has come to; what it needs to go on with further clips of the subject."""

    state: Any
    """The method's state after the last clip."""
    decisions: tuple[tuple[int, int], ...] = ()
    """Of the latest clips: class under the tuned prompts, class under the source prompts."""
    fallen: str | None = None
    """Why the subject stays with the source prompts from some clip on."""

    def __repr__(self) -> str:
        return f"Course({self.state!r}, fallen={self.fallen!r})"


@dataclass(frozen=True, eq=False, repr=False)
class Past:
    """An earlier `online` run of a subject, to be gone on with."""

    course: Course
    """Where it came to."""
    clips: tuple[ClipFeatures, ...]
    """What it has seen, in the order of its visits; a running centre needs their features."""


@dataclass(frozen=True, eq=False, repr=False)
class Unit:
    """Clips of one subject that are adapted on together."""

    subject_id: str
    """Subject."""
    clips: tuple[ClipFeatures, ...]
    """In any order."""
    past: Past | None = None
    """`online`: what went before."""
    in_order: bool = False
    """Whether `clips` are in the order of the visits, instead of `visiting_order`."""


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """What every prediction of a subject was made from."""

    clips: tuple[ClipFeatures, ...]
    """With their centre removed, in the order of the visits."""
    au_embeddings: tuple[Tensor, ...]
    """a of the prompts that each clip was predicted with, [K, d]."""

    def __repr__(self) -> str:
        return f"Trace({len(self.clips)} clips)"


@dataclass(frozen=True, eq=False, repr=False)
class SubjectResult:
    """What adaptation gives for one subject."""

    subject_id: str
    """Subject."""
    predictions: tuple[Prediction, ...]
    """One per clip, in the order in which the clips were visited."""
    course: Course
    """After the last clip; for CLIP-AUTT its state is a `PromptState`."""
    centre: Tensor
    """What was subtracted from the frame features of the last clip, [d]; zeros without a subject baseline."""
    seconds: float
    """Wall time of adaptation and prediction; of units that were worked on together, each has a share by its clips."""
    trace: Trace | None = None
    """Where it was asked for."""

    @property
    def state(self) -> Any:
        """The method's state after the last clip."""
        return self.course.state

    def __repr__(self) -> str:
        return f"SubjectResult({self.subject_id!r}, {len(self.predictions)} clips, {self.seconds:.2f} s)"


@dataclass(eq=False, repr=False)
class Centring:
    """Clips with their common centre removed, kept so that several methods on the same clips share them."""

    _kept: dict[tuple[SubjectBaseline, tuple[ClipFeatures, ...]], tuple[list[ClipFeatures], Tensor]] = field(
        default_factory=dict
    )

    def __call__(self, clips: Sequence[ClipFeatures], baseline: SubjectBaseline) -> tuple[list[ClipFeatures], Tensor]:
        """`centre_clips`, computed once per clips and baseline."""
        key = (baseline, tuple(clips))
        if key not in self._kept:
            self._kept[key] = centre_clips(clips, baseline)
        return self._kept[key]


def adapt(
    source: Source,
    clips: Iterable[ClipFeatures],
    config: AdaptConfig,
    *,
    method: Method | None = None,
    tuner: Tuner | None = None,
) -> dict[str, SubjectResult]:
    """Personalise to every subject among the clips and predict all of them.

    Args:
        source: the frozen model; nothing in it changes.
        clips: unlabeled clips of one or more subjects, in any order.
        config: method, objective, protocol, baseline.
        method: instead of the one that the configuration names.
        tuner: what tunes prompts, kept from call to call; a new one by default.

    Returns:
        subject → result, subjects in alphabetical order. State never crosses from one subject to another.

    Raises:
        ValueError: if the configuration asks for a subject baseline that the checkpoint was not trained with, or if a
            clip stands twice.
        NotFiniteError: if a clip has no finite prediction even under the source prompts, naming it.
        MemoryError: if not even one problem fits into the device's memory.
    """
    groups: dict[str, list[ClipFeatures]] = {}
    for clip in clips:
        groups.setdefault(clip.subject_id, []).append(clip)
    units = [Unit(subject, tuple(groups[subject])) for subject in sorted(groups)]
    results = adapt_units(source, units, config, method=method, tuner=tuner)
    return {result.subject_id: result for result in results}


def adapt_units(
    source: Source,
    units: Sequence[Unit],
    config: AdaptConfig,
    *,
    method: Method | None = None,
    tuner: Tuner | None = None,
    centring: Centring | None = None,
    trace: bool = False,
) -> list[SubjectResult]:
    """`adapt` for units of work: one result each, in their order; a subject may have several units.

    Args:
        source: as for `adapt`.
        units: each is worked on as if it were alone.
        config: as for `adapt`.
        method: as for `adapt`.
        tuner: as for `adapt`.
        centring: what was centred already, kept from call to call.
        trace: keep what every prediction was made from.
    """
    check_baseline(source.checkpoint, config)
    for unit in units:
        _check_unit(unit, config)
    began = time.perf_counter()
    work = _Work(
        source.with_window(config.window), config, method or make_method(config, tuner), centring or Centring()
    )
    run = {"per_video": _per_video, "online": _online, "per_subject": _per_subject}[config.protocol]
    ordered = [list(unit.clips) if unit.in_order else visiting_order(unit.clips, config) for unit in units]
    found = run(work, ordered, [unit.past for unit in units]) if units else []
    total = max(1, sum(map(len, ordered)))
    seconds = time.perf_counter() - began
    return [
        SubjectResult(
            unit.subject_id,
            tuple(step.prediction for step in steps),
            course,
            centre,
            seconds * len(unit.clips) / total,
            work.trace(steps) if trace else None,
        )
        for unit, (steps, course, centre) in zip(units, found, strict=True)
    ]


def check_baseline(checkpoint: Checkpoint, config: AdaptConfig) -> None:
    """Refuse a subject baseline other than the checkpoint's; zero-shot rows use none with any checkpoint.

    Raises:
        ValueError: naming both sides.
    """
    trained = checkpoint.spec.subject_baseline
    if config.method != "zero_shot" and config.subject_baseline != trained:
        raise ValueError(
            f"adapt.subject_baseline={config.subject_baseline!r}, but the checkpoint was trained with {trained!r}; "
            "the same centre must be removed in training and at test time"
        )


def _check_unit(unit: Unit, config: AdaptConfig) -> None:
    for clip in unit.clips:
        if not torch.isfinite(clip.features).all():
            raise NotFiniteError(f"subject {unit.subject_id!r}, clip {clip.clip_id!r}: features not finite")
    seen = () if unit.past is None else unit.past.clips
    counts = Counter(clip.clip_id for clip in (*seen, *unit.clips))
    twice = [clip_id for clip_id, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"subject {unit.subject_id!r} has clips twice: {', '.join(twice)}")
    if unit.past is not None and config.protocol != "online":
        raise ValueError(f"subject {unit.subject_id!r} goes on from a past; protocol={config.protocol!r} has none")


def visiting_order(clips: Iterable[_C], config: AdaptConfig) -> list[_C]:
    """One subject's clips in a shuffled order that follows from seed, subject and clip alone."""
    return sorted(clips, key=lambda clip: (id_number(f"{config.seed}/{clip.subject_id}/{clip.clip_id}"), clip.clip_id))


@dataclass(frozen=True, eq=False)
class _Step:
    """One clip, predicted."""

    clip: ClipFeatures
    """With its centre removed."""
    prediction: Prediction
    """With its status."""
    state: Any
    """After it."""

    def marked(self, why: str | None) -> _Step:
        """With this status, if any."""
        return self if why is None else replace(self, prediction=replace(self.prediction, status=why))


@dataclass(frozen=True, eq=False)
class _Work:
    """What all protocols work with."""

    source: Source
    config: AdaptConfig
    method: Method
    centring: Centring

    def start(self) -> Any:
        return self.method.start(self.source, self.config)

    def anew(self, state: Any) -> Any:
        """The start, with the class prior of this state, which may have been estimated."""
        start = self.start()
        return replace(start, prior=state.prior) if isinstance(start, PromptState) else start

    def centred(self, clips: Sequence[ClipFeatures]) -> tuple[list[ClipFeatures], Tensor]:
        return self.centring(clips, self.config.subject_baseline)

    def fit(self, states: Sequence[Any], clips: Sequence[Sequence[ClipFeatures]]) -> list[tuple[Any, str | None]]:
        """The fitted states; where adaptation went wrong, what to go on from and why."""
        if isinstance(self.method, BatchedMethod):
            found = self.method.fit_many(states, self.source, clips)
        else:
            found = [_caught(self.method.fit, s, self.source, own) for s, own in zip(states, clips, strict=True)]
        return [
            (self._instead(one, state), f"{FALLBACK}{one}") if isinstance(one, DegenerateError) else (one, None)
            for one, state in zip(found, states, strict=True)
        ]

    def step(self, states: Sequence[Any], clips: Sequence[ClipFeatures]) -> list[_Step]:
        """One step each; where adaptation went wrong, the clip is predicted without it and the state starts anew."""
        if isinstance(self.method, BatchedMethod):
            found = self.method.step_many(states, self.source, clips)
        else:
            found = [_caught(self.method.step, s, self.source, clip) for s, clip in zip(states, clips, strict=True)]
        steps: dict[int, _Step] = {}
        wrong: dict[int, DegenerateError] = {}
        for i, (outcome, clip) in enumerate(zip(found, clips, strict=True)):
            if isinstance(outcome, DegenerateError):
                wrong[i] = outcome
            elif torch.isfinite(outcome[0].probabilities).all():
                steps[i] = _Step(clip, *outcome)
            else:
                wrong[i] = NotFiniteError(f"the probabilities of clip {clip.clip_id!r} are not finite")
        instead = [self._instead(error, self.anew(states[i])) for i, error in wrong.items()]
        plain = self.unadapted(instead, [clips[i] for i in wrong])
        for (i, error), prediction, state in zip(wrong.items(), plain, instead, strict=True):
            steps[i] = _Step(clips[i], prediction, state).marked(f"{FALLBACK}{error}")
        return [steps[i] for i in range(len(clips))]

    def trace(self, steps: Sequence[_Step]) -> Trace:
        """Of one subject."""
        own = self.source.au_embeddings
        embeddings = [
            getattr(step.state, "au_embeddings", own) if step.prediction.status == OK else own for step in steps
        ]
        return Trace(tuple(step.clip for step in steps), tuple(embeddings))

    def unadapted(self, states: Sequence[Any], clips: Sequence[ClipFeatures]) -> list[Prediction]:
        """What the source prompts say, with the prior of these states.

        Raises:
            NotFiniteError: where even they say nothing, naming the clip.
        """
        if not clips:
            return []
        prior = self.config.prior if isinstance(self.config.prior, int | float) else None
        config = replace(self.config, method="clip_autt", objective="none", protocol="per_video", prior=prior)
        plain = ClipAUTT(config)
        start = plain.start(self.source, config)
        begun = [replace(start, prior=getattr(state, "prior", start.prior)) for state in states]
        predictions = [unless_degenerate(outcome)[0] for outcome in plain.step_many(begun, self.source, clips)]
        for prediction in predictions:
            if not torch.isfinite(prediction.probabilities).all():
                raise NotFiniteError(
                    f"subject {prediction.subject_id!r}, clip {prediction.clip_id!r}: probabilities not finite"
                )
        return predictions

    def _instead(self, error: DegenerateError, start: Any) -> Any:
        return start if error.state is None else error.state


def _caught(function: Any, *arguments: Any) -> Any:
    """What a function returns, or the error that the driver falls back on."""
    try:
        return function(*arguments)
    except DegenerateError as error:
        return error


_Run = tuple[list[_Step], Course, Tensor]


def _per_video(work: _Work, units: Sequence[Sequence[ClipFeatures]], pasts: Sequence[Past | None]) -> list[_Run]:
    centred = [[work.centred([clip]) for clip in clips] for clips in units]
    clips = [one[0][0] for unit in centred for one in unit]
    fitted = work.fit([work.start()] * len(clips), [[clip] for clip in clips])
    stepped = work.step([state for state, _ in fitted], clips)
    steps = iter([step.marked(why) for step, (_, why) in zip(stepped, fitted, strict=True)])
    runs = []
    for unit in centred:
        own = list(islice(steps, len(unit)))
        runs.append((own, Course(own[-1].state), unit[-1][1]))
    return runs


def _online(work: _Work, units: Sequence[Sequence[ClipFeatures]], pasts: Sequence[Past | None]) -> list[_Run]:
    """All units side by side, each clip by clip: the first clips of all together, then the second ones."""
    courses = [Course(work.start()) if past is None else past.course for past in pasts]
    seen = [[] if past is None else [clip.features for clip in past.clips] for past in pasts]
    steps: list[list[_Step]] = [[] for _ in units]
    centres = [torch.empty(0) for _ in units]
    for number in range(max(map(len, units))):
        going = [i for i, clips in enumerate(units) if number < len(clips)]
        clips = []
        for i in going:
            clip = units[i][number]
            if work.config.subject_baseline != "none":
                seen[i].append(clip.features)
            centres[i] = subject_centre(torch.cat(seen[i] or [clip.features]), work.config.subject_baseline)
            clips.append(_without(clip, centres[i], work.config.subject_baseline))
        for i, (step, course) in zip(going, _online_steps(work, [courses[i] for i in going], clips), strict=True):
            steps[i].append(step)
            courses[i] = course
    return list(zip(steps, courses, centres, strict=True))


def _online_steps(work: _Work, courses: Sequence[Course], clips: Sequence[ClipFeatures]) -> list[tuple[_Step, Course]]:
    """One clip of each course; a subject that has collapsed stays with the source prompts."""
    up = [i for i, course in enumerate(courses) if course.fallen is None]
    stepped = dict(zip(up, work.step([courses[i].state for i in up], [clips[i] for i in up]), strict=True))
    if not work.config.tunes:
        return [(step, Course(step.state)) for step in stepped.values()]
    plain = work.unadapted([course.state for course in courses], clips)
    found = []
    for i, (course, clip, before) in enumerate(zip(courses, clips, plain, strict=True)):
        if i in stepped:
            decision = (stepped[i].prediction.label_index, before.label_index)
            decisions = (*course.decisions, decision)[-2 * _FEWEST_CLIPS :]
            why = collapse(decisions, work.source.classes, work.config.collapse_share)
            if why is None:
                found.append((stepped[i], Course(stepped[i].state, decisions)))
                continue
            course = Course(work.anew(course.state), decisions, FALLBACK + why)
        found.append((_Step(clip, before, course.state).marked(course.fallen), course))
    return found


def _per_subject(work: _Work, units: Sequence[Sequence[ClipFeatures]], pasts: Sequence[Past | None]) -> list[_Run]:
    # The set of clips is what counts: a sum over them must not depend on the seed's order either.
    centred = [work.centred(sorted(clips, key=lambda clip: clip.clip_id)) for clips in units]
    fitted = work.fit([work.start()] * len(units), [clips for clips, _ in centred])
    states = [state for (own, _), (state, _) in zip(centred, fitted, strict=True) for _ in own]
    stepped = iter(work.step(states, [clip for own, _ in centred for clip in own]))
    runs = []
    for (own, centre), (state, why) in zip(centred, fitted, strict=True):
        steps = list(islice(stepped, len(own)))
        after = steps[-1].state
        estimated = work.config.prior == "estimate"  # an estimate can collapse by itself: it is judged, too
        if (work.config.tunes and why is None) or estimated:
            instead = work.start() if estimated else work.anew(state)
            plain = work.unadapted([instead] * len(own), own)
            pairs = [(step.prediction.label_index, p.label_index) for step, p in zip(steps, plain, strict=True)]
            found = collapse(pairs, work.source.classes, work.config.collapse_share)
            if found is not None:
                why, after = FALLBACK + found if why is None else f"{why}; {found}", instead
                steps = [_Step(clip, prediction, after) for clip, prediction in zip(own, plain, strict=True)]
        runs.append(([step.marked(why) for step in steps], Course(after, fallen=why), centre))
    return runs


def collapse(decisions: Sequence[tuple[int, int]], classes: Sequence[str], share: float) -> str | None:
    """Whether tuned prompts put all clips into one class where the source prompts put others elsewhere.

    Args:
        decisions: per clip, the class under the tuned prompts and the one under the source prompts.
        classes: their names.
        share: of clips that the source prompts must have put into other classes.

    Returns:
        What happened, or None: also for fewer than eight clips.
    """
    tuned = {one for one, _ in decisions}
    elsewhere = sum(plain not in tuned for _, plain in decisions)
    if len(decisions) < _FEWEST_CLIPS or len(tuned) > 1 or elsewhere < share * len(decisions):
        return None
    (name,) = (classes[one] for one in tuned)
    return f"all {len(decisions)} clips fell into {name!r}, {elsewhere} of them under the tuned prompts only"


def centre_clips(clips: Sequence[ClipFeatures], baseline: SubjectBaseline) -> tuple[list[ClipFeatures], Tensor]:
    """One subject's clips with their common centre removed, and that centre [d]; without a baseline, as they are."""
    centre = subject_centre(torch.cat([clip.features for clip in clips]), baseline)
    return [_without(clip, centre, baseline) for clip in clips], centre


def _without(clip: ClipFeatures, centre: Tensor, baseline: SubjectBaseline) -> ClipFeatures:
    return clip if baseline == "none" else replace(clip, features=clip.features - centre)
