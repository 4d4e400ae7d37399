"""CLIP-AUTT as the driver sees it, and CLIP-AU, which is CLIP-AUTT without tuning.

CLIP-AUTT (arXiv 2603.27999): the window of lowest entropy is selected, then the context vectors of the AU prompts take
a few AdamW steps on an objective, then the clip is predicted with the tuned prompts. With two classes and a single
window, entropy minimization only sharpens a decision: the gradient of the entropy has the sign of the margin.
Information maximization (Liang et al., SHOT, 2020) needs several windows or clips, and assumes class shares: equal
ones, unless a prior is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from clipautt.adaptation.method import AdaptConfig, Fidelity, LogitSource, SavedState, Session
from clipautt.adaptation.methods.clip_autt.objectives import Objective
from clipautt.adaptation.methods.clip_autt.tuner import (
    LearningRateUnit,
    Problem,
    Tune,
    Tuned,
    Tuner,
)
from clipautt.adaptation.predictions import ClipOutput, DegenerateError, unless_degenerate
from clipautt.adaptation.readout import chosen_window, most_certain_windows, read_clip
from clipautt.adaptation.source import Need, Views
from clipautt.backbones.packed_tower import TextPrecision
from clipautt.features.clip_features import ClipFeatures
from clipautt.settings import settings

_OBJECTIVE_NAMES = {"entropy": "entropy", "infomax": "infomax", "infomax_kl": "infomax+KL"}


@dataclass(frozen=True, eq=False, repr=False)
class PromptState:
    """State carried from clip to clip; an immutable value."""

    au_embeddings: Tensor
    """AU embeddings a under the current prompts, [K, d]."""
    context: Tensor | None = None
    """Tuned context vectors [K, M, d_text]; None for the source prompts."""
    offset: Tensor | None = None
    """`tune=feature`: offset added to the text features of the prompts, [K, d]."""
    prior: Tensor | None = None
    """Class shares that the objective assumes, [C]; None for equal ones."""
    memory: tuple[Tensor, ...] = ()
    """`online`: recent samples, each as its window embeddings [W, d]."""

    def __repr__(self) -> str:
        tuned = self.context if self.offset is None else self.offset
        return f"PromptState({'source' if tuned is None else tuple(tuned.shape)})"


@settings
class ClipAUTT:
    """Prompt tuning on selected windows; with `objective=none` or zero steps, CLIP-AU."""

    objective: Objective = "none"
    """Loss that tuning minimizes: `entropy` of the predictions; `infomax`, the mean entropy of the predictions minus
    the entropy of their mean; `infomax_kl`, that plus the divergence from the source predictions; `none` tunes
    nothing."""
    tune: Tune = "context"
    """`context` tunes the context vectors of the AU prompts through the text tower, as published; `feature` tunes an
    offset of the prompts' text features without the tower: much faster, and every run reports how far decisions
    agree."""
    precision: TextPrecision = "fp32"
    """Arithmetic inside the text tower while tuning; context vectors, optimizer and loss are always fp32."""
    per_au_context: bool = True
    """Whether each AU prompt has separate context vectors (or a separate offset), or all share one displacement."""
    steps: NonNegativeInt = 10
    """AdamW steps; 0 is CLIP-AU."""
    learning_rate: PositiveFloat = 1.0
    """Step size of AdamW, in `learning_rate_unit`."""
    learning_rate_unit: LearningRateUnit = "relative"
    """`relative` to the root mean square of the tuned values at the source prompts, or `absolute`."""
    tolerance: NonNegativeFloat = 0.0
    """Stop early once a step changes the objective by less than this, nats; 0 takes all steps."""
    kl_weight: NonNegativeFloat = 0.3
    """Weight of the divergence from the source predictions in `infomax_kl`."""
    balance_weight: NonNegativeFloat = 1.0
    """Weight of the divergence of the mean prediction from the prior in `infomax` and `infomax_kl`; at 1 with equal
    shares, the objective is minus the mutual information."""
    windows_per_clip: PositiveInt = 1
    """`best_window`: number of windows of lowest entropy per clip that enter the objective."""
    memory: PositiveInt = 16
    """`online`: number of recent samples in the objective; their embeddings are not updated."""
    max_drift: NonNegativeFloat = 30.0
    """Largest distance of the tuned values from the source prompts, root mean square, in relative steps of size 1;
    beyond it, the clip or subject is predicted without adaptation."""

    name: ClassVar[str] = "clip_autt"
    fidelity: ClassVar[Fidelity] = "exact"
    deviations: ClassVar[str] = (
        "Objectives other than entropy, the subject baseline and class priors are additions to the published method."
    )

    @property
    def adapts(self) -> bool:
        """Whether prompts change at all."""
        return self.objective != "none" and self.steps > 0

    @property
    def needs(self) -> frozenset[Need]:
        """Windows, and the text tower where context is tuned."""
        return frozenset({"views", "text_tower"} if self.adapts and self.tune == "context" else {"views"})

    @property
    def logits_from(self) -> LogitSource:
        """The trained classifier."""
        return "head"

    @property
    def exact(self) -> ClipAUTT | None:
        """The same settings with context tuned through the text tower in fp32; None if they are exact already."""
        return replace(self, tune="context", precision="fp32") if self.adapts and self.tune != "context" else None

    def title(self, config: AdaptConfig) -> tuple[str, ...]:
        """`CLIP-AU, best window` or `CLIP-AUTT infomax, per subject`, then the changed settings that have an effect."""
        if not self.adapts:
            return (f"CLIP-AU, {config.readout_name}",)
        title = f"CLIP-AUTT {_OBJECTIVE_NAMES[self.objective]}, {config.protocol.replace('_', ' ')}"
        title += "" if config.readout == "best_window" else f", {config.readout_name}"
        return title, *self._particulars(config)

    def _particulars(self, config: AdaptConfig) -> Iterator[str]:
        changed = {setting.name for setting in fields(self) if getattr(self, setting.name) != setting.default}
        if "tune" in changed:
            yield f"{self.tune} tuning"
        elif "precision" in changed:
            yield self.precision
        if changed & {"steps", "learning_rate", "learning_rate_unit"}:
            unit = "" if self.learning_rate_unit == "relative" else " absolute"
            yield f"{self.steps} steps of {self.learning_rate:g}{unit}"
        if not self.per_au_context:
            yield "shared displacement"
        counts = {
            "kl_weight": self.objective == "infomax_kl",
            "balance_weight": self.objective in ("infomax", "infomax_kl"),
            "windows_per_clip": config.readout == "best_window",
            "memory": config.protocol == "online",
        }
        names = {"kl_weight": "KL weight {:g}", "balance_weight": "balance weight {:g}", "memory": "memory {}"}
        names |= {"windows_per_clip": "{} windows per clip", "tolerance": "tolerance {:g}"}
        names |= {"max_drift": "largest drift {:g}"}
        for name, shown in names.items():
            if name in changed and counts.get(name, True):
                yield shown.format(getattr(self, name))

    def start(self, session: Session, prior: Tensor | None) -> PromptState:
        """The source prompts."""
        return PromptState(session.source.au_embeddings, prior=prior)

    def fit(self, state: PromptState, session: Session, clips: Sequence[ClipFeatures]) -> PromptState:
        """Tune on the samples of all clips."""
        return unless_degenerate(self.fit_many([state], session, [clips])[0])

    def step(self, state: PromptState, session: Session, clip: ClipFeatures) -> tuple[ClipOutput, PromptState]:
        """Tune on the clip, then predict it with the tuned prompts.

        `best_window` is chosen under the prompts before tuning on the clip, `peak_window` under the prompts used to
        predict it.
        """
        return unless_degenerate(self.step_many([state], session, [clip])[0])

    def predict(self, state: PromptState, session: Session, clip: ClipFeatures) -> ClipOutput:
        """Predict a clip with the prompts of this state."""
        return self.predict_many([state], session, [clip])[0]

    def au_embeddings(self, state: PromptState) -> Tensor:
        """AU embeddings a under the prompts of this state, [K, d]."""
        return state.au_embeddings

    def save(self, state: PromptState) -> SavedState:
        """The tuned values, the AU embeddings under them, and the memory; no tuned values for the source prompts."""
        tuned = {"context": state.context, "offset": state.offset}
        tensors = {name: value for name, value in tuned.items() if value is not None}
        if tensors:
            tensors["au_embeddings"] = state.au_embeddings
        memory = {f"memory.{i:08d}": sample for i, sample in enumerate(state.memory)}
        return SavedState({name: value.cpu().contiguous() for name, value in (tensors | memory).items()})

    def restore(self, saved: SavedState, session: Session, prior: Tensor | None) -> PromptState:
        """The inverse of `save`."""
        tensors = {name: value.to(session.source.backbone.device) for name, value in saved.tensors.items()}
        memory = tuple(tensors[name] for name in sorted(tensors) if name.startswith("memory."))
        return replace(
            self.start(session, prior),
            context=tensors.get("context"),
            offset=tensors.get("offset"),
            au_embeddings=tensors.get("au_embeddings", session.source.au_embeddings),
            memory=memory,
        )

    def prepare(self, session: Session) -> None:
        """Measure which batch size is fastest."""
        if self.adapts:
            _tuner(session).measure_batch_size(self, session.config.readout)

    def fit_many(
        self, states: Sequence[PromptState], session: Session, clips: Sequence[Sequence[ClipFeatures]]
    ) -> list[PromptState | DegenerateError]:
        """`fit` of many subjects in batches."""
        if not self.adapts:
            return list(states)
        views = iter(_views(session, [clip for members in clips for clip in members]))
        samples = [
            [sample for _ in members for sample in self._samples(next(views), session, state)]
            for state, members in zip(states, clips, strict=True)
        ]
        return self._tuned(states, session, samples)

    def step_many(
        self, states: Sequence[PromptState], session: Session, clips: Sequence[ClipFeatures]
    ) -> list[tuple[ClipOutput, PromptState] | DegenerateError]:
        """`step` of many clips, each with its own state, in batches."""
        views = _views(session, clips)
        chosen = [_chosen(session, view, state) for view, state in zip(views, states, strict=True)]
        after: list[PromptState | DegenerateError] = list(states)
        if self.adapts:
            seen = [self._samples(view, session, state) for view, state in zip(views, states, strict=True)]
            if session.config.protocol == "online":
                states = [self._remember(state, samples) for state, samples in zip(states, seen, strict=True)]
                seen = [state.memory for state in states]
            after = self._tuned(states, session, seen)
        return [
            state if isinstance(state, DegenerateError) else (_output(session, view, state, index), state)
            for state, view, index in zip(after, views, chosen, strict=True)
        ]

    def predict_many(
        self, states: Sequence[PromptState], session: Session, clips: Sequence[ClipFeatures]
    ) -> list[ClipOutput]:
        """`predict` of many clips, each with its own state."""
        views = _views(session, clips)
        return [_output(session, view, state, None) for view, state in zip(views, states, strict=True)]

    def _remember(self, state: PromptState, samples: Sequence[Tensor]) -> PromptState:
        return replace(state, memory=(*state.memory, *samples)[-max(self.memory, len(samples)) :])

    def _samples(self, views: Views, session: Session, state: PromptState) -> tuple[Tensor, ...]:
        """A clip's samples in the objective match the readout: its selected windows, or all its windows as one
        sample."""
        if session.config.readout in ("mean_windows", "peak_window"):
            return (views.embeddings,)
        with torch.no_grad():
            logits = session.source.logits(views.embeddings, state.au_embeddings)
        chosen = most_certain_windows(logits, self.windows_per_clip)
        return tuple(views.embeddings[window : window + 1] for window in chosen)

    def _tuned(
        self, states: Sequence[PromptState], session: Session, samples: Sequence[Sequence[Tensor]]
    ) -> list[PromptState | DegenerateError]:
        """Tune the prompts of each state on its samples; a state without samples is unchanged."""
        some = [i for i, members in enumerate(samples) if members]
        starts = [state.offset if self.tune == "feature" else state.context for state in states]
        problems = [Problem(samples[i], starts[i], states[i].prior) for i in some]
        after: list[PromptState | DegenerateError] = list(states)
        outcomes = _tuner(session).tune(problems, self, session.config.readout)
        for i, outcome in zip(some, outcomes, strict=True):
            after[i] = self._checked(states[i], outcome)
        return after

    def _checked(self, state: PromptState, outcome: Tuned | DegenerateError) -> PromptState | DegenerateError:
        """The state with the tuned prompts, or an error if they drifted too far from the source prompts."""
        if isinstance(outcome, DegenerateError):
            return outcome
        if outcome.drift > self.max_drift:
            return DegenerateError(
                f"the prompts drifted too far (drift {outcome.drift:.3g}, max_drift {self.max_drift:g})"
            )
        context, offset = (None, outcome.parameter) if self.tune == "feature" else (outcome.parameter, None)
        return replace(state, au_embeddings=outcome.au_embeddings, context=context, offset=offset)


CLIP_AU = AdaptConfig(ClipAUTT())
"""CLIP-AU without personalization: the reference for gains, if it is among the methods of a run."""


def _tuner(session: Session) -> Tuner:
    """One tuner per source model and `TuningConfig`; it caches what it has measured and compiled."""
    source = session.source
    return source.kept(("tuner", session.tuning, source.granted), lambda: Tuner(source, session.tuning))


def _views(session: Session, clips: Sequence[ClipFeatures]) -> list[Views]:
    return session.source.views_of(clips, whole=session.config.readout == "whole_clip")


@torch.no_grad()
def _chosen(session: Session, views: Views, state: PromptState) -> int:
    """The window of lowest entropy under these prompts."""
    return chosen_window(session.source.logits(views.embeddings, state.au_embeddings), "best_window")


@torch.no_grad()
def _output(session: Session, views: Views, state: PromptState, chosen: int | None) -> ClipOutput:
    """Predict a clip under the prompts of this state; `chosen` as for `read_clip`."""
    source = session.source
    logits, window = read_clip(
        source.logits(views.embeddings, state.au_embeddings), session.config.readout, chosen=chosen
    )
    similarities = source.model.similarities(views.embeddings[window : window + 1], state.au_embeddings)[0]
    return ClipOutput(logits, float(views.start_seconds[window]), float(views.end_seconds[window]), similarities)
