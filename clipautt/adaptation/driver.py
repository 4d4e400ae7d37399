"""The one driver for every method: `adapt(source, clips, config)`.

In: a frozen source model, unlabelled clips, an `AdaptConfig`. Out: one prediction per clip and one state per subject.

The driver owns the protocol, the reset at each subject, the order of clips, the subject baseline, class priors, the
fallback to the unadapted prediction and the cost counter; it knows no method. Many subjects are worked on at once, and
nothing passes between them. Whatever the order of the given clips, the result is the same: clips are sorted, and
`online` visits them in an order that follows from seed, subject and clip.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clipautt.adaptation.method import AdaptConfig, BatchedMethod, PromptMethod, Session, TuningConfig
from clipautt.adaptation.predictions import OK, ClipOutput, DegenerateError, NotFiniteError, Prediction
from clipautt.adaptation.priors import class_prior, estimate_prior, shift
from clipautt.adaptation.source import Source
from clipautt.clips import Clip, id_number
from clipautt.features.clip_features import ClipFeatures, SubjectBaseline, subject_centre
from clipautt.model.checkpoint import CheckpointSpec

_C = TypeVar("_C", Clip, ClipFeatures)
FALLBACK = "not adapted: "
"""How the status of a prediction begins that was made without adaptation because adaptation went wrong."""
_FEWEST_CLIPS = 8
"""Fewer clips in one class are no collapse; `online` looks back over twice as many."""


@dataclass(frozen=True, eq=False, repr=False)
class SubjectState:
    """Where the adaptation of a subject stands: all that is needed to resume it, or to predict further clips."""

    state: Any
    """The method's own state after the last clip."""
    prior: Tensor | None = None
    """Class shares that are assumed, [C]; None: those of the training clips."""
    decisions: tuple[tuple[int, int], ...] = ()
    """`online`, of the latest clips: the class with adaptation, and without."""
    fallback: str | None = None
    """Why the subject is no longer adapted to; None while it is."""

    def __repr__(self) -> str:
        return f"SubjectState({self.state!r}, fallback={self.fallback!r})"


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """An earlier `online` run of a subject, to be resumed."""

    after: SubjectState
    """Where it stopped."""
    clips: tuple[ClipFeatures, ...]
    """The clips it visited, in that order; a running centre needs their features."""


@dataclass(frozen=True, eq=False, repr=False)
class Unit:
    """Clips of one subject that are adapted to together."""

    subject_id: str
    """Subject."""
    clips: tuple[ClipFeatures, ...]
    """In any order."""
    history: History | None = None
    """`online`: the run to resume."""
    in_order: bool = False
    """Whether `clips` are in the order to visit them, instead of `visiting_order`."""


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
    after: SubjectState
    """After the last clip."""
    centre: Tensor
    """What was subtracted from the frame features of the last clip, [d]; zeros without a subject baseline."""
    seconds: float
    """Wall time of adaptation and prediction; of units that were worked on together, each has a share by its clips."""
    trace: Trace | None = None
    """Where it was asked for."""

    @property
    def state(self) -> Any:
        """The method's state after the last clip."""
        return self.after.state

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
    tuning: TuningConfig | None = None,
) -> dict[str, SubjectResult]:
    """Personalize to every subject among the clips and predict all of them.

    Args:
        source: the frozen model; nothing in it changes.
        clips: unlabelled clips of one or more subjects, in any order.
        config: method, protocol, baseline, prior.
        tuning: memory, batch size and compilation.

    Returns:
        subject → result, subjects in alphabetical order. State never crosses from one subject to another.

    Raises:
        ValueError: if the method needs what the source cannot give, if the checkpoint was trained with another subject
            baseline, or if a clip is given more than once.
        NotFiniteError: if a clip has no finite prediction even without adaptation, naming it.
        MemoryError: if not even one problem fits into the device's memory.
    """
    groups: dict[str, list[ClipFeatures]] = {}
    for clip in clips:
        groups.setdefault(clip.subject_id, []).append(clip)
    units = [Unit(subject, tuple(groups[subject])) for subject in sorted(groups)]
    results = adapt_units(Session.open(source, config, tuning), units)
    return {result.subject_id: result for result in results}


def adapt_units(
    session: Session, units: Sequence[Unit], *, centring: Centring | None = None, trace: bool = False
) -> list[SubjectResult]:
    """`adapt` for units of work: one result each, in their order; a subject may have several units.

    Args:
        session: source model and settings.
        units: each is worked on as if it were alone.
        centring: clips that were centred already, kept from call to call.
        trace: keep what every prediction was made from.
    """
    config = session.config
    check_baseline(session.source.checkpoint.spec, config)
    for unit in units:
        _check_unit(unit, config)
    began = time.perf_counter()
    work = _Work(session, centring or Centring())
    run = {"per_video": _per_video, "online": _online, "per_subject": _per_subject}[config.protocol]
    ordered = [list(unit.clips) if unit.in_order else visiting_order(unit.clips, config) for unit in units]
    done = run(work, ordered, [unit.history for unit in units]) if units else []
    total = max(1, sum(map(len, ordered)))
    seconds = time.perf_counter() - began
    return [
        SubjectResult(
            unit.subject_id,
            tuple(step.prediction for step in steps),
            after,
            centre,
            seconds * len(unit.clips) / total,
            work.trace(steps) if trace else None,
        )
        for unit, (steps, after, centre) in zip(units, done, strict=True)
    ]


def prompts_after(session: Session, state: Any) -> Tensor:
    """AU embeddings a under a method's state, [K, d]; the source's where the method moves no prompts."""
    method = session.config.method
    return method.au_embeddings(state) if isinstance(method, PromptMethod) else session.source.au_embeddings


def predict_clips(session: Session, after: SubjectState, clips: Sequence[ClipFeatures]) -> list[Prediction]:
    """Predict further clips of a subject without adapting to them.

    Args:
        session: source model and settings.
        after: where the subject's adaptation stands.
        clips: with the subject's centre removed.
    """
    work = _Work(session, Centring())
    return work.predicted([after.state] * len(clips), clips, [after.prior] * len(clips))


def check_baseline(spec: CheckpointSpec, config: AdaptConfig) -> None:
    """Refuse a subject baseline other than the checkpoint's; class descriptions go with any.

    Raises:
        ValueError: naming both sides.
    """
    if config.method.logits_from == "head" and config.subject_baseline != spec.subject_baseline:
        raise ValueError(
            f"adapt.subject_baseline={config.subject_baseline!r}, but the checkpoint was trained with "
            f"{spec.subject_baseline!r}; the same centre must be removed in training and at test time"
        )


def _check_unit(unit: Unit, config: AdaptConfig) -> None:
    for clip in unit.clips:
        if not torch.isfinite(clip.features).all():
            raise NotFiniteError(f"subject {unit.subject_id!r}, clip {clip.clip_id!r}: features not finite")
    seen = () if unit.history is None else unit.history.clips
    counts = Counter(clip.clip_id for clip in (*seen, *unit.clips))
    duplicates = [clip_id for clip_id, count in counts.items() if count > 1]
    if duplicates:
        raise ValueError(f"subject {unit.subject_id!r} has duplicate clips: {', '.join(duplicates)}")
    if unit.history is not None and config.protocol != "online":
        raise ValueError(f"subject {unit.subject_id!r} resumes an online run; protocol={config.protocol!r} cannot")


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

    session: Session
    centring: Centring

    @property
    def config(self) -> AdaptConfig:
        return self.session.config

    @property
    def given_prior(self) -> Tensor | None:
        """The prior of the settings, [C]; None where there is none, or where it is estimated."""
        prior, shares = self.config.prior, self.session.source.class_shares
        return class_prior(float(prior), shares.tolist()) if isinstance(prior, int | float) else None

    def start(self, prior: Tensor | None) -> Any:
        return self.config.method.start(self.session, prior)

    def centred(self, clips: Sequence[ClipFeatures]) -> tuple[list[ClipFeatures], Tensor]:
        return self.centring(clips, self.config.subject_baseline)

    def fit(self, states: Sequence[Any], clips: Sequence[Sequence[ClipFeatures]]) -> list[Any | DegenerateError]:
        """The fitted states, or why there is none."""
        method = self.config.method
        if isinstance(method, BatchedMethod):
            return method.fit_many(states, self.session, clips)
        return [_caught(method.fit, s, self.session, own) for s, own in zip(states, clips, strict=True)]

    def step(
        self, states: Sequence[Any], clips: Sequence[ClipFeatures], priors: Sequence[Tensor | None]
    ) -> list[_Step]:
        """One step each; where adaptation went wrong, the clip is predicted without it and the state starts anew."""
        method = self.config.method
        if isinstance(method, BatchedMethod):
            outcomes = method.step_many(states, self.session, clips)
        else:
            outcomes = [_caught(method.step, s, self.session, clip) for s, clip in zip(states, clips, strict=True)]
        steps: list[_Step | None] = []
        wrong: dict[int, DegenerateError] = {}
        for number, (outcome, clip, prior) in enumerate(zip(outcomes, clips, priors, strict=True)):
            if isinstance(outcome, DegenerateError):
                steps.append(None)
                wrong[number] = outcome
                continue
            prediction = self._prediction(clip, outcome[0], prior)
            steps.append(_Step(clip, prediction, outcome[1]))
            if not torch.isfinite(prediction.probabilities).all():
                wrong[number] = NotFiniteError(f"the probabilities of clip {clip.clip_id!r} are not finite")
        instead = self.unadapted([clips[i] for i in wrong], [priors[i] for i in wrong])
        for (number, error), step in zip(wrong.items(), instead, strict=True):
            steps[number] = step.marked(f"{FALLBACK}{error}")
        return [step for step in steps if step is not None]

    def safely_predicted(
        self, states: Sequence[Any], clips: Sequence[ClipFeatures], priors: Sequence[Tensor | None]
    ) -> list[_Step]:
        """`predicted`, and without adaptation where that is not finite."""
        outputs = self.outputs(states, clips)
        steps = [
            _Step(clip, self._prediction(clip, output, prior), state)
            for clip, output, prior, state in zip(clips, outputs, priors, states, strict=True)
        ]
        wrong = [i for i, step in enumerate(steps) if not torch.isfinite(step.prediction.probabilities).all()]
        instead = self.unadapted([clips[i] for i in wrong], [priors[i] for i in wrong])
        for i, step in zip(wrong, instead, strict=True):
            why = f"the probabilities of clip {clips[i].clip_id!r} are not finite"
            steps[i] = step.marked(FALLBACK + why)
        return steps

    def unadapted(self, clips: Sequence[ClipFeatures], priors: Sequence[Tensor | None]) -> list[_Step]:
        """Predictions from the start of the method, with these priors.

        Raises:
            NotFiniteError: where even they are not finite, naming the clip.
        """
        states = [self.start(prior) for prior in priors]
        predictions = self.predicted(states, clips, priors)
        return [_Step(clip, one, state) for clip, one, state in zip(clips, predictions, states, strict=True)]

    def predicted(
        self, states: Sequence[Any], clips: Sequence[ClipFeatures], priors: Sequence[Tensor | None]
    ) -> list[Prediction]:
        """Predictions without adapting to these clips.

        Raises:
            NotFiniteError: if one is not finite, naming the clip.
        """
        outputs = self.outputs(states, clips)
        predictions = [self._prediction(*one) for one in zip(clips, outputs, priors, strict=True)]
        for prediction in predictions:
            if not torch.isfinite(prediction.probabilities).all():
                raise NotFiniteError(
                    f"subject {prediction.subject_id!r}, clip {prediction.clip_id!r}: probabilities not finite"
                )
        return predictions

    def outputs(self, states: Sequence[Any], clips: Sequence[ClipFeatures]) -> list[ClipOutput]:
        """What the method says under these states."""
        method = self.config.method
        if isinstance(method, BatchedMethod):
            return method.predict_many(states, self.session, clips)
        return [method.predict(state, self.session, clip) for state, clip in zip(states, clips, strict=True)]

    @property
    def trained_shares(self) -> Tensor:
        """Class shares inside the logits, [C]: the training's in the classifier's, equal ones in descriptions'."""
        shares = self.session.source.class_shares
        return shares if self.config.method.logits_from == "head" else torch.full_like(shares, 1 / len(shares))

    @torch.no_grad()
    def estimated_prior(self, clips: Sequence[ClipFeatures]) -> Tensor | None:
        """Of one subject, from its clips without adaptation."""
        if not clips:
            return None
        logits = torch.stack([one.logits for one in self.outputs([self.start(None)] * len(clips), clips)])
        return estimate_prior(logits, self.trained_shares.tolist()).to(logits)

    @torch.no_grad()
    def _prediction(self, clip: ClipFeatures, output: ClipOutput, prior: Tensor | None) -> Prediction:
        logits = output.logits
        if prior is not None:
            logits = shift(logits, prior.to(logits), self.trained_shares)
        return Prediction(
            clip.clip_id,
            clip.subject_id,
            F.softmax(logits, dim=-1).cpu(),
            output.window_start_seconds,
            output.window_end_seconds,
            None if output.similarities is None else output.similarities.cpu(),
            prior=None if prior is None else prior.cpu(),
        )

    def trace(self, steps: Sequence[_Step]) -> Trace:
        """Of one subject."""
        own = self.session.source.au_embeddings
        embeddings = [
            prompts_after(self.session, step.state) if step.prediction.status == OK else own for step in steps
        ]
        return Trace(tuple(step.clip for step in steps), tuple(embeddings))


def _caught(function: Any, *arguments: Any) -> Any:
    """What a function returns, or the error that the driver falls back on."""
    try:
        return function(*arguments)
    except DegenerateError as error:
        return error


_Run = tuple[list[_Step], SubjectState, Tensor]


def _per_video(work: _Work, units: Sequence[Sequence[ClipFeatures]], histories: Sequence[History | None]) -> list[_Run]:
    centred = [[work.centred([clip]) for clip in clips] for clips in units]
    clips = [own[0] for unit in centred for own, _ in unit]
    prior = work.given_prior
    steps = iter(work.step([work.start(prior)] * len(clips), clips, [prior] * len(clips)))
    runs = []
    for unit in centred:
        own = list(islice(steps, len(unit)))
        runs.append((own, SubjectState(own[-1].state, prior), unit[-1][1]))
    return runs


def _online(work: _Work, units: Sequence[Sequence[ClipFeatures]], histories: Sequence[History | None]) -> list[_Run]:
    """All units side by side, each clip by clip: the first clips of all together, then the second ones."""
    prior, baseline = work.given_prior, work.config.subject_baseline
    after = [SubjectState(work.start(prior), prior) if one is None else one.after for one in histories]
    seen = [[] if one is None else [clip.features for clip in one.clips] for one in histories]
    steps: list[list[_Step]] = [[] for _ in units]
    centres = [torch.empty(0) for _ in units]
    for number in range(max(map(len, units))):
        going = [i for i, clips in enumerate(units) if number < len(clips)]
        clips = []
        for i in going:
            clip = units[i][number]
            if baseline != "none":
                seen[i].append(clip.features)
            centres[i] = subject_centre(torch.cat(seen[i] or [clip.features]), baseline)
            clips.append(_without(clip, centres[i], baseline))
        for i, (step, following) in zip(going, _online_steps(work, [after[i] for i in going], clips), strict=True):
            steps[i].append(step)
            after[i] = following
    return list(zip(steps, after, centres, strict=True))


def _online_steps(
    work: _Work, subjects: Sequence[SubjectState], clips: Sequence[ClipFeatures]
) -> list[tuple[_Step, SubjectState]]:
    """One clip of each subject; a subject that has collapsed is no longer adapted to."""
    up = [i for i, one in enumerate(subjects) if one.fallback is None]
    stepped = dict(
        zip(
            up,
            work.step([subjects[i].state for i in up], [clips[i] for i in up], [subjects[i].prior for i in up]),
            strict=True,
        )
    )
    if not work.config.method.adapts:
        return [(step, replace(subjects[i], state=step.state)) for i, step in stepped.items()]
    plain = work.unadapted(clips, [one.prior for one in subjects])
    results = []
    for i, (subject, before) in enumerate(zip(subjects, plain, strict=True)):
        if i in stepped:
            decision = (stepped[i].prediction.label_index, before.prediction.label_index)
            decisions = (*subject.decisions, decision)[-2 * _FEWEST_CLIPS :]
            why = collapse(decisions, work.session.source.classes, work.config.collapse_share)
            if why is None:
                results.append((stepped[i], replace(subject, state=stepped[i].state, decisions=decisions)))
                continue
            subject = SubjectState(before.state, subject.prior, decisions, FALLBACK + why)
        results.append((before.marked(subject.fallback), subject))
    return results


def _per_subject(
    work: _Work, units: Sequence[Sequence[ClipFeatures]], histories: Sequence[History | None]
) -> list[_Run]:
    # The set of clips is what counts: a sum over them must not depend on the seed's order either.
    centred = [work.centred(sorted(clips, key=lambda clip: clip.clip_id)) for clips in units]
    estimates = work.config.prior == "estimate"
    given = work.given_prior
    priors = [work.estimated_prior(own) if estimates else given for own, _ in centred]
    starts = [work.start(prior) for prior in priors]
    fitted = work.fit(starts, [own for own, _ in centred])
    states = [start if isinstance(one, DegenerateError) else one for one, start in zip(fitted, starts, strict=True)]
    runs = []
    every = iter(
        work.safely_predicted(
            [state for (own, _), state in zip(centred, states, strict=True) for _ in own],
            [clip for own, _ in centred for clip in own],
            [prior for (own, _), prior in zip(centred, priors, strict=True) for _ in own],
        )
    )
    for (own, centre), outcome, prior in zip(centred, fitted, priors, strict=True):
        why = f"{FALLBACK}{outcome}" if isinstance(outcome, DegenerateError) else None
        steps = list(islice(every, len(own)))
        after = SubjectState(steps[-1].state, prior, fallback=why)
        if (work.config.method.adapts and why is None) or estimates:  # an estimate can collapse by itself
            plain_prior = None if estimates else prior
            plain = work.unadapted(own, [plain_prior] * len(own))
            pairs = [(a.prediction.label_index, b.prediction.label_index) for a, b in zip(steps, plain, strict=True)]
            collapsed = collapse(pairs, work.session.source.classes, work.config.collapse_share)
            if collapsed is not None:
                why = FALLBACK + collapsed if why is None else f"{why}; {collapsed}"
                steps, after = plain, SubjectState(plain[-1].state, plain_prior, fallback=why)
        runs.append(([step.marked(why) for step in steps], after, centre))
    return runs


def collapse(decisions: Sequence[tuple[int, int]], classes: Sequence[str], share: float) -> str | None:
    """Whether adaptation put all clips into one class where the unadapted model puts others elsewhere.

    Args:
        decisions: per clip, the class with adaptation and the class without.
        classes: their names.
        share: share of clips that the unadapted model must have put into other classes.

    Returns:
        What happened, or None: also for fewer than eight clips.
    """
    tuned = {one for one, _ in decisions}
    elsewhere = sum(plain not in tuned for _, plain in decisions)
    if len(decisions) < _FEWEST_CLIPS or len(tuned) > 1 or elsewhere < share * len(decisions):
        return None
    (name,) = (classes[one] for one in tuned)
    return f"all {len(decisions)} clips fell into {name!r}, {elsewhere} of them only with adaptation"


def centre_clips(clips: Sequence[ClipFeatures], baseline: SubjectBaseline) -> tuple[list[ClipFeatures], Tensor]:
    """One subject's clips with their common centre removed, and that centre [d]; without a baseline, as they are."""
    centre = subject_centre(torch.cat([clip.features for clip in clips]), baseline)
    return [_without(clip, centre, baseline) for clip in clips], centre


def _without(clip: ClipFeatures, centre: Tensor, baseline: SubjectBaseline) -> ClipFeatures:
    return clip if baseline == "none" else replace(clip, features=clip.features - centre)
