"""Runs any adaptation method over the clips of any number of subjects: `adapt(source, clips, config)`.

In: a frozen source model, unlabelled clips, an `AdaptConfig`. Out: one prediction per clip and one state per subject.

The driver handles the protocol, the reset at each subject, the order of clips, the subject baseline, class priors, the
fallback to the unadapted prediction and the timing; it is independent of the method. Many subjects are processed
together, and no information passes between them. The result does not depend on the order of the input: clips are
sorted, and `online` visits them in an order that follows from seed, subject and clip.
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

from clipautt.adaptation.basis import Basis
from clipautt.adaptation.method import AdaptConfig, BatchedMethod, PromptMethod, Session, TuningConfig
from clipautt.adaptation.omissions import omitted_clips
from clipautt.adaptation.predictions import OK, ClipOutput, DegenerateError, NotFiniteError, Prediction
from clipautt.adaptation.priors import class_prior, estimate_prior, shift
from clipautt.adaptation.source import Source
from clipautt.clips import Clip, id_number
from clipautt.features.clip_features import ClipFeatures, SubjectBaseline, subject_centre
from clipautt.model.checkpoint import CheckpointSpec

_C = TypeVar("_C", Clip, ClipFeatures)
FALLBACK = "not adapted: "
"""Prefix of the status of a prediction made without adaptation because adaptation went wrong."""
_FEWEST_CLIPS = 8
"""With fewer clips than this, a single predicted class is not a collapse; `online` looks back over twice as many."""


@dataclass(frozen=True, eq=False, repr=False)
class SubjectState:
    """Progress of a subject's adaptation: everything needed to resume it or to predict further clips."""

    state: Any
    """State of the method after the last clip."""
    prior: Tensor | None = None
    """Assumed class shares, [C]; None for those of the training clips."""
    decisions: tuple[tuple[int, int], ...] = ()
    """`online`: for each recent clip, the predicted class index with and without adaptation."""
    fallback: str | None = None
    """Why adaptation to the subject has stopped; None while it continues."""

    def __repr__(self) -> str:
        return f"SubjectState({self.state!r}, fallback={self.fallback!r})"


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """An earlier `online` run of a subject that is to be resumed."""

    after: SubjectState
    """State at the end of that run."""
    clips: tuple[ClipFeatures, ...]
    """Clips visited by that run, in order; the running centre needs their features."""


@dataclass(frozen=True, eq=False, repr=False)
class Unit:
    """A unit of work: clips of one subject that are adapted to together."""

    subject_id: str
    """Id of the subject."""
    clips: tuple[ClipFeatures, ...]
    """Features of the clips, in any order."""
    history: History | None = None
    """`online`: the earlier run to resume."""
    in_order: bool = False
    """Whether to visit `clips` in the order given rather than in `visiting_order`."""


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """The inputs behind every prediction of a subject."""

    clips: tuple[ClipFeatures, ...]
    """Clips with a prediction, the centre removed, in visiting order."""
    au_embeddings: tuple[Tensor, ...]
    """AU embeddings a of the prompts used to predict each clip, [K, d]."""

    def __repr__(self) -> str:
        return f"Trace({len(self.clips)} clips)"


@dataclass(frozen=True, eq=False, repr=False)
class SubjectResult:
    """Result of adaptation for one subject."""

    subject_id: str
    """Id of the subject."""
    predictions: tuple[Prediction, ...]
    """One prediction per clip, in visiting order; those that are not `made` have a reason instead."""
    after: SubjectState
    """Progress after the last clip."""
    centre: Tensor
    """Vector subtracted from the frame features of the last clip, [d]; zeros without a subject baseline."""
    seconds: float
    """Wall-clock time of adaptation and prediction; units processed together share it in proportion to their clips."""
    trace: Trace | None = None
    """Inputs behind the predictions; None unless requested."""
    basis: Basis | None = None
    """The clips behind `after` and `centre`, those of a resumed run included; None if that is not known."""

    @property
    def state(self) -> Any:
        """The method's state after the last clip."""
        return self.after.state

    def __repr__(self) -> str:
        return f"SubjectResult({self.subject_id!r}, {len(self.predictions)} clips, {self.seconds:.2f} s)"


@dataclass(eq=False, repr=False)
class Centring:
    """Cache of clips with their common centre removed, shared by several methods that run on the same clips."""

    _kept: dict[tuple[SubjectBaseline, tuple[ClipFeatures, ...]], tuple[list[ClipFeatures], Tensor]] = field(
        default_factory=dict
    )

    def __call__(self, clips: Sequence[ClipFeatures], baseline: SubjectBaseline) -> tuple[list[ClipFeatures], Tensor]:
        """Return `centre_clips(clips, baseline)`, computed once for the same arguments."""
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
    """Personalize to every subject among the clips and predict every clip.

    Args:
        source: the frozen model; not modified.
        clips: features of unlabelled clips of one or more subjects, in any order.
        config: method, protocol, subject baseline, readout, prior and seed.
        tuning: memory limit, batch size and compilation.

    Returns:
        subject → result, subjects in alphabetical order. State never crosses from one subject to another. A clip of
        which no window counts, or that is too short, takes no part and has a reason instead of a prediction.

    Raises:
        ValueError: if the source lacks something the method needs, if the checkpoint was trained with another subject
            baseline, or if a clip is duplicated.
        NotFiniteError: if a clip's prediction is not finite even without adaptation; the message names the clip.
        MemoryError: if the device's memory is too small for a single tuning problem.
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
    """`adapt` for units of work; a subject may have several.

    Args:
        session: source model and settings.
        units: clips to process; the result of a unit does not depend on the others.
        centring: cache of centred clips, reusable across calls.
        trace: whether to keep the inputs behind every prediction.

    Returns:
        One result per unit, in the order of `units`.

    Raises:
        ValueError, NotFiniteError, MemoryError: as `adapt`.
    """
    config = session.config
    check_baseline(session.source.checkpoint.spec, config)
    for unit in units:
        _check_unit(unit, config)
    began = time.perf_counter()
    work = _Work(session, centring or Centring())
    run = {"per_video": _per_video, "online": _online, "per_subject": _per_subject}[config.protocol]
    chosen = [_choose(session, unit) for unit in units]
    going = [number for number, one in enumerate(chosen) if one.clips]
    done = iter(run(work, [chosen[i].clips for i in going], [chosen[i].history for i in going]) if going else [])
    total = max(1, sum(len(one.ordered) for one in chosen))
    seconds = time.perf_counter() - began
    results = []
    for unit, one in zip(units, chosen, strict=True):
        steps, after, centre = next(done) if one.clips else work.unmoved(unit, one.history)
        made = {step.clip.clip_id: step.prediction for step in steps}
        results.append(
            SubjectResult(
                unit.subject_id,
                tuple(made.get(clip.clip_id) or one.without(clip, session) for clip in one.ordered),
                after,
                centre,
                seconds * len(unit.clips) / total,
                work.trace(steps) if trace else None,
                one.basis(config),
            )
        )
    return results


@dataclass(frozen=True, eq=False)
class _Chosen:
    """The clips of a unit that take part, and why others do not."""

    ordered: list[ClipFeatures]
    """All clips in visiting order."""
    clips: list[ClipFeatures]
    """Those that take part."""
    reasons: dict[str, str]
    """Clip → why it does not."""
    history: History | None
    """The earlier run, with the clips that took part in it."""

    def basis(self, config: AdaptConfig) -> Basis:
        """What the state rests on; `per_video` starts at every clip, so that the last one alone is behind it."""
        earlier = () if self.history is None else self.history.clips
        return Basis.of(self.clips[-1:] if config.protocol == "per_video" else (*earlier, *self.clips))

    def without(self, clip: ClipFeatures, session: Session) -> Prediction:
        """What stands for the prediction of a clip that does not take part."""
        return Prediction.missing(clip, self.reasons[clip.clip_id], num_classes=len(session.source.classes))


def _choose(session: Session, unit: Unit) -> _Chosen:
    ordered = list(unit.clips) if unit.in_order else visiting_order(unit.clips, session.config)
    if session.config.protocol == "per_subject":  # only the set of clips matters
        ordered = sorted(unit.clips, key=lambda clip: clip.clip_id)
    earlier = () if unit.history is None else unit.history.clips
    reasons = omitted_clips(session, ordered, earlier=earlier)

    def taking_part(clips: Iterable[ClipFeatures]) -> list[ClipFeatures]:
        return [clip for clip in clips if clip.clip_id not in reasons]

    history = unit.history and replace(unit.history, clips=tuple(taking_part(earlier)))
    return _Chosen(ordered, taking_part(ordered), reasons, history)


def prompts_after(session: Session, state: Any) -> Tensor:
    """AU embeddings a under a method's state, [K, d]; those of the source if the method leaves prompts unchanged."""
    method = session.config.method
    return method.au_embeddings(state) if isinstance(method, PromptMethod) else session.source.au_embeddings


def state_before(session: Session) -> SubjectState:
    """A subject's progress before its first clip, for `predict_clips` without adaptation."""
    return _Work(session, Centring()).beginning


def predict_clips(session: Session, after: SubjectState, clips: Sequence[ClipFeatures]) -> list[Prediction]:
    """Predict further clips of a subject without adapting to them.

    Args:
        session: source model and settings.
        after: progress of the subject's adaptation.
        clips: features with the subject's centre already removed.
    """
    work = _Work(session, Centring())
    return work.predicted([after.state] * len(clips), clips, [after.prior] * len(clips))


def check_baseline(spec: CheckpointSpec, config: AdaptConfig) -> None:
    """Refuse a subject baseline other than the checkpoint's; methods that use class descriptions accept any.

    Raises:
        ValueError: if they differ; the message names both.
    """
    if config.method.logits_from == "head" and config.subject_baseline != spec.subject_baseline:
        raise ValueError(
            f"adapt.subject_baseline={config.subject_baseline!r}, but the checkpoint was trained with "
            f"{spec.subject_baseline!r}; the same centre must be removed in training and at test time"
        )


def _check_unit(unit: Unit, config: AdaptConfig) -> None:
    for clip in unit.clips:
        if not torch.isfinite(clip.features).all():
            raise NotFiniteError(f"subject {unit.subject_id!r}, clip {clip.clip_id!r}: features are not finite")
    seen = () if unit.history is None else unit.history.clips
    counts = Counter(clip.clip_id for clip in (*seen, *unit.clips))
    duplicates = [clip_id for clip_id, count in counts.items() if count > 1]
    if duplicates:
        raise ValueError(f"subject {unit.subject_id!r} has duplicate clips: {', '.join(duplicates)}")
    if unit.history is not None and config.protocol != "online":
        raise ValueError(
            f"subject {unit.subject_id!r} resumes an online run, which protocol={config.protocol!r} does not support"
        )


def visiting_order(clips: Iterable[_C], config: AdaptConfig) -> list[_C]:
    """Shuffle one subject's clips; the order depends on seed, subject and clip ids alone."""
    return sorted(clips, key=lambda clip: (id_number(f"{config.seed}/{clip.subject_id}/{clip.clip_id}"), clip.clip_id))


@dataclass(frozen=True, eq=False)
class _Step:
    """A clip with its prediction and the state that follows."""

    clip: ClipFeatures
    """Features with the centre removed."""
    prediction: Prediction
    """Prediction with its status."""
    state: Any
    """State of the method after the clip."""

    def marked(self, why: str | None) -> _Step:
        """A copy with this status; the step itself for None."""
        return self if why is None else replace(self, prediction=replace(self.prediction, status=why))


@dataclass(frozen=True, eq=False)
class _Work:
    """Operations that all protocols share."""

    session: Session
    centring: Centring

    @property
    def config(self) -> AdaptConfig:
        return self.session.config

    @property
    def fixed_prior(self) -> Tensor | None:
        """Prior set in the configuration, [C]; None if there is none or if it is to be estimated."""
        prior, shares = self.config.prior, self.session.source.class_shares
        return class_prior(float(prior), shares.tolist()) if isinstance(prior, int | float) else None

    @property
    def beginning(self) -> SubjectState:
        prior = self.fixed_prior
        return SubjectState(self.start(prior), prior)

    def start(self, prior: Tensor | None) -> Any:
        return self.config.method.start(self.session, prior)

    def unmoved(self, unit: Unit, history: History | None) -> _Run:
        """The result of a unit none of whose clips takes part: where its history left off."""
        after = self.beginning if history is None else history.after
        if history is not None and history.clips:
            return [], after, self.centred(history.clips)[1]
        return [], after, torch.zeros_like(unit.clips[0].features[0])

    def centred(self, clips: Sequence[ClipFeatures]) -> tuple[list[ClipFeatures], Tensor]:
        return self.centring(clips, self.config.subject_baseline)

    def fit(self, states: Sequence[Any], clips: Sequence[Sequence[ClipFeatures]]) -> list[Any | DegenerateError]:
        """Fit every state to its clips; where that fails, the error takes the place of the state."""
        method = self.config.method
        if isinstance(method, BatchedMethod):
            return method.fit_many(states, self.session, clips)
        return [_caught(method.fit, s, self.session, members) for s, members in zip(states, clips, strict=True)]

    def step(
        self, states: Sequence[Any], clips: Sequence[ClipFeatures], priors: Sequence[Tensor | None]
    ) -> list[_Step]:
        """Take one step per state; if adaptation fails, predict the clip without it and reset the state."""
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
        """As `predicted`, but fall back to no adaptation where the result is not finite."""
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
        """Predict from the method's initial state, with these priors.

        Raises:
            NotFiniteError: if even these are not finite; the message names the clip.
        """
        states = [self.start(prior) for prior in priors]
        predictions = self.predicted(states, clips, priors)
        return [_Step(*step) for step in zip(clips, predictions, states, strict=True)]

    def predicted(
        self, states: Sequence[Any], clips: Sequence[ClipFeatures], priors: Sequence[Tensor | None]
    ) -> list[Prediction]:
        """Predict clips without adapting to them.

        Raises:
            NotFiniteError: if a prediction is not finite; the message names the clip.
        """
        outputs = self.outputs(states, clips)
        predictions = [self._prediction(*part) for part in zip(clips, outputs, priors, strict=True)]
        for prediction in predictions:
            if not torch.isfinite(prediction.probabilities).all():
                raise NotFiniteError(
                    f"subject {prediction.subject_id!r}, clip {prediction.clip_id!r}: probabilities are not finite"
                )
        return predictions

    def outputs(self, states: Sequence[Any], clips: Sequence[ClipFeatures]) -> list[ClipOutput]:
        """The method's output for each clip under its state."""
        method = self.config.method
        if isinstance(method, BatchedMethod):
            return method.predict_many(states, self.session, clips)
        return [method.predict(state, self.session, clip) for state, clip in zip(states, clips, strict=True)]

    @property
    def trained_shares(self) -> Tensor:
        """Class shares implicit in the logits, [C]: those of training for the classifier, else equal ones."""
        shares = self.session.source.class_shares
        return shares if self.config.method.logits_from == "head" else torch.full_like(shares, 1 / len(shares))

    @torch.no_grad()
    def estimated_prior(self, clips: Sequence[ClipFeatures]) -> Tensor | None:
        """Estimate a subject's class shares, [C], from its unadapted clips; None without clips."""
        if not clips:
            return None
        logits = torch.stack([output.logits for output in self.outputs([self.start(None)] * len(clips), clips)])
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
            face_share=clip.face_share,
        )

    def trace(self, steps: Sequence[_Step]) -> Trace:
        """The inputs behind one subject's predictions."""
        unadapted = self.session.source.au_embeddings
        embeddings = [
            prompts_after(self.session, step.state) if step.prediction.status == OK else unadapted for step in steps
        ]
        return Trace(tuple(step.clip for step in steps), tuple(embeddings))


def _caught(function: Any, *arguments: Any) -> Any:
    """Call a function; return its result, or the `DegenerateError` it raised."""
    try:
        return function(*arguments)
    except DegenerateError as error:
        return error


_Run = tuple[list[_Step], SubjectState, Tensor]


def _per_video(work: _Work, units: Sequence[Sequence[ClipFeatures]], histories: Sequence[History | None]) -> list[_Run]:
    centred = [[work.centred([clip]) for clip in clips] for clips in units]
    clips = [clip for unit in centred for (clip,), _ in unit]
    prior = work.fixed_prior
    steps = iter(work.step([work.start(prior)] * len(clips), clips, [prior] * len(clips)))
    runs = []
    for unit in centred:
        unit_steps = list(islice(steps, len(unit)))
        runs.append((unit_steps, SubjectState(unit_steps[-1].state, prior), unit[-1][1]))
    return runs


def _online(work: _Work, units: Sequence[Sequence[ClipFeatures]], histories: Sequence[History | None]) -> list[_Run]:
    """Process units side by side: the first clip of every unit in one batch, then the second ones, and so on."""
    prior, baseline = work.fixed_prior, work.config.subject_baseline
    after = [SubjectState(work.start(prior), prior) if history is None else history.after for history in histories]
    seen = [[] if history is None else [clip.shown for clip in history.clips] for history in histories]
    steps: list[list[_Step]] = [[] for _ in units]
    centres = [torch.empty(0) for _ in units]
    for number in range(max(map(len, units))):
        going = [i for i, clips in enumerate(units) if number < len(clips)]
        clips = []
        for i in going:
            clip = units[i][number]
            if baseline != "none":
                seen[i].append(clip.shown)
            centres[i] = subject_centre(torch.cat(seen[i] or [clip.shown]), baseline)
            clips.append(_without(clip, centres[i], baseline))
        for i, (step, following) in zip(going, _online_steps(work, [after[i] for i in going], clips), strict=True):
            steps[i].append(step)
            after[i] = following
    return list(zip(steps, after, centres, strict=True))


def _online_steps(
    work: _Work, subjects: Sequence[SubjectState], clips: Sequence[ClipFeatures]
) -> list[tuple[_Step, SubjectState]]:
    """Process one clip of each subject; adaptation to a subject stops once its predictions have collapsed."""
    active = [i for i, subject in enumerate(subjects) if subject.fallback is None]
    stepped = dict(
        zip(
            active,
            work.step(
                [subjects[i].state for i in active], [clips[i] for i in active], [subjects[i].prior for i in active]
            ),
            strict=True,
        )
    )
    if not work.config.method.adapts:
        return [(step, replace(subjects[i], state=step.state)) for i, step in stepped.items()]
    plain = work.unadapted(clips, [subject.prior for subject in subjects])
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
    # Only the set of clips matters: sums over them must not depend on the seed's order.
    centred = [work.centred(sorted(clips, key=lambda clip: clip.clip_id)) for clips in units]
    estimates = work.config.prior == "estimate"
    fixed = work.fixed_prior
    priors = [work.estimated_prior(clips) if estimates else fixed for clips, _ in centred]
    starts = [work.start(prior) for prior in priors]
    fitted = work.fit(starts, [clips for clips, _ in centred])
    states = [start if isinstance(fit, DegenerateError) else fit for fit, start in zip(fitted, starts, strict=True)]
    runs = []
    predicted = iter(
        work.safely_predicted(
            [state for (clips, _), state in zip(centred, states, strict=True) for _ in clips],
            [clip for clips, _ in centred for clip in clips],
            [prior for (clips, _), prior in zip(centred, priors, strict=True) for _ in clips],
        )
    )
    for (clips, centre), outcome, prior in zip(centred, fitted, priors, strict=True):
        why = f"{FALLBACK}{outcome}" if isinstance(outcome, DegenerateError) else None
        steps = list(islice(predicted, len(clips)))
        after = SubjectState(steps[-1].state, prior, fallback=why)
        if (work.config.method.adapts and why is None) or estimates:  # an estimate can collapse by itself
            plain_prior = None if estimates else prior
            plain = work.unadapted(clips, [plain_prior] * len(clips))
            pairs = [(a.prediction.label_index, b.prediction.label_index) for a, b in zip(steps, plain, strict=True)]
            collapsed = collapse(pairs, work.session.source.classes, work.config.collapse_share)
            if collapsed is not None:
                why = FALLBACK + collapsed if why is None else f"{why}; {collapsed}"
                steps, after = plain, SubjectState(plain[-1].state, plain_prior, fallback=why)
        runs.append(([step.marked(why) for step in steps], after, centre))
    return runs


def collapse(decisions: Sequence[tuple[int, int]], classes: Sequence[str], share: float) -> str | None:
    """Detect that adaptation put all clips into one class while the unadapted model spreads them over several.

    Args:
        decisions: per clip, the class index with adaptation and the one without.
        classes: class names, by index.
        share: minimum share of clips, 0..1, that the unadapted model puts into other classes.

    Returns:
        A description of the collapse; None if there is none, or if there are fewer than eight clips.
    """
    tuned = {adapted for adapted, _ in decisions}
    elsewhere = sum(plain not in tuned for _, plain in decisions)
    if len(decisions) < _FEWEST_CLIPS or len(tuned) > 1 or elsewhere < share * len(decisions):
        return None
    (name,) = (classes[label] for label in tuned)
    return f"all {len(decisions)} clips fell into {name!r}, {elsewhere} of them only with adaptation"


def centre_clips(clips: Sequence[ClipFeatures], baseline: SubjectBaseline) -> tuple[list[ClipFeatures], Tensor]:
    """Remove the centre of the frames that show one subject's face; return the clips and the centre [d] (zeros for
    `none`)."""
    centre = subject_centre(torch.cat([clip.shown for clip in clips]), baseline)
    return [_without(clip, centre, baseline) for clip in clips], centre


def _without(clip: ClipFeatures, centre: Tensor, baseline: SubjectBaseline) -> ClipFeatures:
    return clip if baseline == "none" else replace(clip, features=clip.features - centre)
