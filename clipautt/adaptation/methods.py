"""What adaptation does: CLIP-AU, CLIP-AUTT's prompt tuning, and zero-shot CLIP.

A method is three functions over an immutable state: `start`, `fit` (transductive, all clips of a subject) and `step`
(one clip). One that can do many at once has `fit_many` and `step_many` too. The driver in `adaptation` owns the
protocol, resets, order and fallback. A method never sees a label.

CLIP-AUTT (arXiv 2603.27999): the window of lowest entropy is selected, then the context vectors of the AU prompts take
a few AdamW steps on an objective (`tuning`), then the clip is predicted. With two classes and a single window, entropy
minimisation only sharpens a decision: the gradient of the entropy has the sign of the margin. Information maximisation
(Liang et al., SHOT, 2020) needs several windows or clips; what it does not know is the true share of the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from clipautt.adaptation.config import AdaptConfig
from clipautt.adaptation.objectives import peak_window
from clipautt.adaptation.priors import class_prior, estimate_prior, shift
from clipautt.adaptation.source import Prediction, Source, Views
from clipautt.adaptation.tuning import DegenerateError, Problem, Tuned, Tuner, unless_degenerate
from clipautt.features.clip_features import ClipFeatures
from clipautt.model.windows import entropy


@dataclass(frozen=True, eq=False, repr=False)
class PromptState:
    """What is carried from clip to clip: a value, never changed in place."""

    context: Tensor | None = None
    """Tuned context vectors [K, M, d_text]; None are the source prompts."""
    au_embeddings: Tensor = field(default_factory=lambda: torch.empty(0))
    """a under these prompts, [K, d]."""
    offset: Tensor | None = None
    """`tune=feature`: added to the text features of the prompts, [K, d]."""
    prior: Tensor | None = None
    """Shares of the classes that are assumed, [C]; None: those of the training."""
    memory: tuple[Tensor, ...] = ()
    """`online`: recent samples, each the embeddings of its windows [W, d]."""

    def __repr__(self) -> str:
        tuned = self.context if self.offset is None else self.offset
        return f"PromptState({'source' if tuned is None else tuple(tuned.shape)})"


class Method(Protocol):
    """What the driver calls. A state is an immutable value of the method's own."""

    needs: ClassVar[frozenset[str]]
    """Of `views`, `class_text`, `text_tower`, `subject_set`, `pixels`."""
    fidelity: ClassVar[Literal["exact", "adapted", "variant"]]
    """How close it is to the published method."""
    deviations: ClassVar[str]
    """In which points it differs; printed in the report."""

    def start(self, source: Source, config: AdaptConfig) -> Any:
        """The state before a subject's first clip."""

    def fit(self, state: Any, source: Source, clips: Sequence[ClipFeatures]) -> Any:
        """Transductive use of all clips; the identity for methods that have none."""

    def step(self, state: Any, source: Source, clip: ClipFeatures) -> tuple[Prediction, Any]:
        """Predict one clip and return the next state."""


@runtime_checkable
class BatchedMethod(Protocol):
    """What a method adds that works on many subjects and clips at once; an error stands where a result would."""

    def fit_many(
        self, states: Sequence[Any], source: Source, clips: Sequence[Sequence[ClipFeatures]]
    ) -> list[Any | DegenerateError]:
        """`fit`, one state and one set of clips each."""

    def step_many(
        self, states: Sequence[Any], source: Source, clips: Sequence[ClipFeatures]
    ) -> list[tuple[Prediction, Any] | DegenerateError]:
        """`step`, one state and one clip each."""


@dataclass(frozen=True)
class ClipAUTT:
    """Prompt tuning on selected windows; with objective `none` or zero steps, CLIP-AU."""

    config: AdaptConfig
    """Objective, protocol, readout."""
    tuner: Tuner | None = field(default=None, compare=False)
    """What solves the problems; by default a new one at each call."""
    needs: ClassVar[frozenset[str]] = frozenset({"views", "text_tower"})
    fidelity: ClassVar[Literal["exact", "adapted", "variant"]] = "exact"
    deviations: ClassVar[str] = (
        "Objectives other than entropy, the subject baseline and class priors are additions to the published method."
    )

    def start(self, source: Source, config: AdaptConfig) -> PromptState:
        """The source prompts."""
        given = isinstance(config.prior, int | float)
        shares = source.class_shares
        prior = class_prior(float(config.prior), shares.tolist()) if given else None  # type: ignore[arg-type]
        return PromptState(au_embeddings=source.au_embeddings, prior=prior)

    def fit(self, state: PromptState, source: Source, clips: Sequence[ClipFeatures]) -> PromptState:
        """`per_subject`: estimate the prior where asked for, then tune on the samples of all clips."""
        return unless_degenerate(self.fit_many([state], source, [clips])[0])

    def fit_many(
        self, states: Sequence[PromptState], source: Source, clips: Sequence[Sequence[ClipFeatures]]
    ) -> list[PromptState | DegenerateError]:
        """`fit` of many subjects in batches."""
        if self.config.protocol != "per_subject":
            return list(states)
        views = self._views(source, [clip for own in clips for clip in own])
        at, samples, begun = 0, [], []
        for state, own in zip(states, clips, strict=True):
            mine, at = views[at : at + len(own)], at + len(own)
            begun.append(self._with_prior(state, source, mine))
            samples.append([s for one in mine for s in self._samples(one, source, state)] if self.config.tunes else [])
        if not self.config.tunes:
            return list(begun)
        return self._tuned(begun, source, samples)

    def step(self, state: PromptState, source: Source, clip: ClipFeatures) -> tuple[Prediction, PromptState]:
        """Tune on the clip where the protocol says so, then predict it with the tuned prompts.

        `best_window` is the one of lowest entropy under the prompts that the clip starts from, `peak_window` the peak
        under those that it is predicted with.
        """
        return unless_degenerate(self.step_many([state], source, [clip])[0])

    def step_many(
        self, states: Sequence[PromptState], source: Source, clips: Sequence[ClipFeatures]
    ) -> list[tuple[Prediction, PromptState] | DegenerateError]:
        """`step` of many clips, each with its own state, in batches."""
        views = self._views(source, clips)
        with torch.no_grad():
            best = [
                int(entropy(source.logits(one.embeddings, state.au_embeddings)).argmin())
                for one, state in zip(views, states, strict=True)
            ]
        after: list[PromptState | DegenerateError] = list(states)
        if self.config.tunes and self.config.protocol != "per_subject":
            seen = [self._samples(one, source, state) for one, state in zip(views, states, strict=True)]
            if self.config.protocol == "online":
                states = [self._remember(state, own) for state, own in zip(states, seen, strict=True)]
                seen = [state.memory for state in states]
            after = self._tuned(states, source, seen)
        return [
            state if isinstance(state, DegenerateError) else (self._predict(state, source, clip, one, index), state)
            for state, clip, one, index in zip(after, clips, views, best, strict=True)
        ]

    def _views(self, source: Source, clips: Sequence[ClipFeatures]) -> list[Views]:
        return source.views_of(clips, whole=self.config.readout == "whole_clip")

    def _remember(self, state: PromptState, samples: Sequence[Tensor]) -> PromptState:
        return replace(state, memory=(*state.memory, *samples)[-max(self.config.memory, len(samples)) :])

    def _samples(self, views: Views, source: Source, state: PromptState) -> tuple[Tensor, ...]:
        """What the objective sees of a clip is what is read out: its selected windows, or all of them as one."""
        if self.config.readout in ("mean_windows", "peak_window"):
            return (views.embeddings,)
        with torch.no_grad():
            uncertain = entropy(source.logits(views.embeddings, state.au_embeddings))
        chosen = uncertain.argsort(stable=True)[: self.config.windows_per_clip].tolist()
        return tuple(views.embeddings[window : window + 1] for window in chosen)

    def _with_prior(self, state: PromptState, source: Source, views: Sequence[Views]) -> PromptState:
        """With the estimate of the subject's prior, from its clips under the prompts of this state."""
        if self.config.prior != "estimate" or not views:
            return state
        with torch.no_grad():
            logits = torch.stack([self._read(state, source, one)[0] for one in views])
        return replace(state, prior=estimate_prior(logits, source.class_shares.tolist()).to(logits))

    def _tuned(
        self, states: Sequence[PromptState], source: Source, samples: Sequence[Sequence[Tensor]]
    ) -> list[PromptState | DegenerateError]:
        """Every state with its prompts tuned on its samples; one without samples stays as it is."""
        some = [i for i, own in enumerate(samples) if own]
        problems = [Problem(samples[i], self._parameter(states[i]), states[i].prior) for i in some]
        after: list[PromptState | DegenerateError] = list(states)
        for i, outcome in zip(some, (self.tuner or Tuner(source)).tune(problems, self.config), strict=True):
            after[i] = self._checked(states[i], source, outcome)
        return after

    def _parameter(self, state: PromptState) -> Tensor | None:
        return state.offset if self._tunes_features else state.context

    @property
    def _tunes_features(self) -> bool:
        return self.config.tune == "feature"

    def _checked(
        self, state: PromptState, source: Source, outcome: Tuned | DegenerateError
    ) -> PromptState | DegenerateError:
        """The state under the tuned prompts, unless they ran away from the source's."""
        if isinstance(outcome, DegenerateError):
            error = outcome
        elif outcome.drift <= self.config.max_drift:
            context, offset = (None, outcome.parameter) if self._tunes_features else (outcome.parameter, None)
            return replace(state, context=context, offset=offset, au_embeddings=outcome.au_embeddings)
        else:
            limit = self.config.max_drift
            error = DegenerateError(f"the prompts ran away (drift {outcome.drift:.3g}, max_drift {limit:g})")
        error.state = replace(state, context=None, offset=None, au_embeddings=source.au_embeddings, memory=())
        return error

    def _read(self, state: PromptState, source: Source, views: Views, best: int | None = None) -> tuple[Tensor, int]:
        """Logits [C] of a clip under this state, without prior, and the window they rest on."""
        logits = source.logits(views.embeddings, state.au_embeddings)
        if self.config.readout == "peak_window":
            best = peak_window(logits)
        elif best is None:
            best = int(entropy(logits).argmin())
        return (logits.mean(0) if self.config.readout == "mean_windows" else logits[best]), best

    def _predict(self, state: PromptState, source: Source, clip: ClipFeatures, views: Views, best: int) -> Prediction:
        with torch.no_grad():
            used, best = self._read(state, source, views, best)
            if state.prior is not None:
                used = shift(used, state.prior.to(used), source.class_shares)
            similarities = source.model.similarities(views.embeddings[best : best + 1], state.au_embeddings)[0]
        start, end = float(views.start_seconds[best]), float(views.end_seconds[best])
        probabilities = F.softmax(used, dim=-1).cpu()
        prior = None if state.prior is None else state.prior.cpu()
        return Prediction(clip.clip_id, clip.subject_id, probabilities, start, end, similarities.cpu(), prior=prior)


@dataclass(frozen=True)
class ZeroShot:
    """CLIP zero-shot: the mean of the normalised frame features against class descriptions."""

    needs: ClassVar[frozenset[str]] = frozenset({"class_text"})
    fidelity: ClassVar[Literal["exact", "adapted", "variant"]] = "variant"
    deviations: ClassVar[str] = "Class prompts describe the face in AU words; no class name is used."

    def start(self, source: Source, config: AdaptConfig) -> Tensor:
        """Class vectors [C, d]."""
        return source.class_text()

    def fit(self, state: Tensor, source: Source, clips: Sequence[ClipFeatures]) -> Tensor:
        """Nothing to fit."""
        return state

    def step(self, state: Tensor, source: Source, clip: ClipFeatures) -> tuple[Prediction, Tensor]:
        """Cosine with each class, at the backbone's temperature."""
        mean = F.normalize(F.normalize(clip.features, dim=-1).mean(0), dim=-1)
        probabilities = F.softmax(source.backbone.logit_scale * state @ mean.to(state.device), dim=-1).cpu()
        return Prediction(
            clip.clip_id, clip.subject_id, probabilities, float(clip.times[0]), float(clip.times[-1])
        ), state


def make_method(config: AdaptConfig, tuner: Tuner | None = None) -> Method:
    """The method that a configuration names.

    Args:
        config: see `AdaptConfig`.
        tuner: what solves its problems, kept from call to call; a new one by default.
    """
    return ZeroShot() if config.method == "zero_shot" else ClipAUTT(config, tuner)
