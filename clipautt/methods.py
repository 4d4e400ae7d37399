"""What adaptation does: CLIP-AU, CLIP-AUTT's prompt tuning with its objectives, and zero-shot CLIP.

A method is three functions over an immutable state: `start`, `fit` (transductive, all clips of a subject) and `step`
(one clip). The driver in `adaptation` owns the protocol, resets, order and fallback. A method never sees a label.

CLIP-AUTT (arXiv 2603.27999): the window of lowest entropy is selected, then the context vectors of the AU prompts take
a few AdamW steps on an objective, then the clip is predicted. With two classes and a single window, entropy
minimisation only sharpens a decision: the gradient of the entropy has the sign of the margin. Information maximisation
(Liang et al., SHOT, 2020) needs several windows or clips; what it does not know is the true share of the classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from clipautt.features import SUBJECT_BASELINES, ClipFeatures, SubjectBaseline
from clipautt.source import Prediction, Source, Views
from clipautt.windows import WindowSpec, entropy

Objective = Literal["none", "entropy", "infomax", "infomax_kl"]
AdaptationProtocol = Literal["per_video", "online", "per_subject"]
Readout = Literal["best_window", "mean_windows", "peak_window", "whole_clip"]

_OBJECTIVE_NAMES = {"entropy": "entropy", "infomax": "infomax", "infomax_kl": "infomax+KL"}
_READOUT_NAMES = {
    "best_window": "best window",
    "mean_windows": "mean of windows",
    "peak_window": "peak window",
    "whole_clip": "whole clip",
}


@dataclass(frozen=True)
class AdaptConfig:
    """One way to personalise; `objective=none` is CLIP-AU itself."""

    method: Literal["clip_autt", "zero_shot"] = "clip_autt"
    """`zero_shot` compares frames with class descriptions and ignores the settings of prompt tuning."""
    objective: Objective = "none"
    """What the tuned prompts minimise."""
    protocol: AdaptationProtocol = "per_subject"
    """`per_video`: every clip from the source prompts; `online`: carried along the subject's clips; `per_subject`: all
    unlabeled clips of the subject together, then all are predicted."""
    subject_baseline: SubjectBaseline = "none"
    """Centre removed from the frame features; the checkpoint must have been trained with the same."""
    readout: Readout = "best_window"
    """The lowest-entropy window, the mean of all windows' logits, the window least like the neutral class, or the clip
    as one window."""
    window: WindowSpec | None = None
    """Instead of the checkpoint's windows."""
    per_au_context: bool = True
    """Context vectors of their own for each AU prompt, or one set shared by all."""
    steps: int = 10
    """AdamW steps; 0 is CLIP-AU."""
    learning_rate: float = 1.0
    """Step size, in the unit below."""
    learning_rate_unit: Literal["context_rms", "absolute"] = "context_rms"
    """Relative to the root mean square of the source context, or as it is."""
    kl_weight: float = 0.3
    """Weight of the divergence from the source predictions in `infomax_kl`."""
    balance_weight: float = 1.0
    """Weight of the entropy of the mean prediction in `infomax` and `infomax_kl`; 1 gives the mutual information."""
    windows_per_clip: int = 1
    """`best_window`: lowest-entropy windows of each clip that the objective sees."""
    memory: int = 16
    """`online`: how many recent samples (windows or clips, as read out) the objective sees, embedded as they came."""
    seed: int = 0
    """Of the order of clips in `online`."""

    def __post_init__(self) -> None:
        _check("method", self.method, ("clip_autt", "zero_shot"))
        _check("objective", self.objective, get_args(Objective))
        _check("protocol", self.protocol, get_args(AdaptationProtocol))
        _check("subject_baseline", self.subject_baseline, SUBJECT_BASELINES)
        _check("readout", self.readout, get_args(Readout))
        _check("learning_rate_unit", self.learning_rate_unit, ("context_rms", "absolute"))
        for name, least in (("steps", 0), ("windows_per_clip", 1), ("memory", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"adapt.{name}={getattr(self, name)}; allowed are whole numbers from {least}")
        if not self.learning_rate > 0:
            raise ValueError(f"adapt.learning_rate={self.learning_rate}; allowed are positive numbers")
        for name in ("kl_weight", "balance_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"adapt.{name}={getattr(self, name)}; allowed are numbers from 0")

    @property
    def tunes(self) -> bool:
        """Whether prompts change at all."""
        return self.method == "clip_autt" and self.objective != "none" and self.steps > 0

    @property
    def transductive(self) -> bool:
        """Whether a clip's prediction depends on the subject's other clips."""
        return self.protocol != "per_video" and (self.tunes or self.subject_baseline != "none")

    @property
    def name(self) -> str:
        """The name of its rows in tables: what it does, then each setting that counts for it and is not the default."""
        if self.method == "zero_shot":
            return "zero-shot"
        readout = _READOUT_NAMES[self.readout]
        if not self.tunes:
            name = f"CLIP-AU, {readout}"
        else:
            name = f"CLIP-AUTT {_OBJECTIVE_NAMES[self.objective]}, {self.protocol.replace('_', ' ')}"
            name += "" if self.readout == "best_window" else f", {readout}"
        name += "" if self.subject_baseline == "none" else f", {self.subject_baseline} baseline"
        return ", ".join([name, *self._particulars()])

    def _particulars(self) -> Iterator[str]:
        if self.window is not None:
            yield f"windows of {self.window.length}"
            yield from (f"{part} {value}" for part in ("stride", "hop") if (value := getattr(self.window, part)) > 1)
        if not self.tunes:
            return
        usual = AdaptConfig()
        if (self.steps, self.learning_rate, self.learning_rate_unit) != (
            usual.steps,
            usual.learning_rate,
            usual.learning_rate_unit,
        ):
            unit = "" if self.learning_rate_unit == "context_rms" else " absolute"
            yield f"{self.steps} steps of {self.learning_rate:g}{unit}"
        if not self.per_au_context:
            yield "shared context"
        if self.objective == "infomax_kl" and self.kl_weight != usual.kl_weight:
            yield f"KL weight {self.kl_weight:g}"
        if self.objective in ("infomax", "infomax_kl") and self.balance_weight != usual.balance_weight:
            yield f"balance weight {self.balance_weight:g}"
        if self.readout == "best_window" and self.windows_per_clip != usual.windows_per_clip:
            yield f"{self.windows_per_clip} windows per clip"
        if self.protocol == "online" and self.memory != usual.memory:
            yield f"memory {self.memory}"


def _check(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"adapt.{name}={value!r}; allowed are {', '.join(allowed)}")


@dataclass(frozen=True, eq=False, repr=False)
class PromptState:
    """What is carried from clip to clip: a value, never changed in place."""

    context: Tensor | None = None
    """Tuned context vectors [K, M, d_text]; None are the source prompts."""
    au_embeddings: Tensor = field(default_factory=lambda: torch.empty(0))
    """a under this context, [K, d]."""
    memory: tuple[Tensor, ...] = ()
    """`online`: recent samples, each the embeddings of its windows [W, d]."""

    def __repr__(self) -> str:
        return f"PromptState({'source' if self.context is None else tuple(self.context.shape)})"


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


class NotFiniteError(FloatingPointError):
    """A loss or a prompt stopped being finite; the driver falls back to the source prompts."""


def objective_loss(logits: Tensor, source_logits: Tensor, config: AdaptConfig) -> Tensor:
    """The objective over N samples, a scalar.

    `entropy`: mean entropy of the predictions. `infomax`: mean entropy minus `balance_weight` times the entropy of the
    mean prediction, which is minus the mutual information at weight 1. `infomax_kl`: plus `kl_weight` times the mean
    divergence KL(source ‖ tuned).

    Args:
        logits: under the tuned prompts, [N, C].
        source_logits: under the source prompts, [N, C].
        config: names the objective and its weights.
    """
    value = entropy(logits).mean()
    if config.objective in ("infomax", "infomax_kl"):
        mean = F.softmax(logits, dim=-1).mean(0)
        value = value + config.balance_weight * (mean * mean.clamp_min(1e-12).log()).sum()
    if config.objective == "infomax_kl":
        target = F.log_softmax(source_logits, dim=-1)
        divergence = (target.exp() * (target - F.log_softmax(logits, dim=-1))).sum(-1).mean()
        value = value + config.kl_weight * divergence
    return value


def peak_window(logits: Tensor) -> int:
    """The window whose prediction is least like the neutral class, which is class 0; logits [V, C]."""
    return int(F.log_softmax(logits, dim=-1)[:, 0].argmin())


def read_out(logits: Tensor, sizes: Sequence[int], readout: Readout) -> Tensor:
    """One prediction per sample: the peak of its windows, or their mean.

    Args:
        logits: of the windows of all samples, one sample after the other, [sum(sizes), C].
        sizes: number of windows of each sample.
        readout: `peak_window`; with every other one the logits of a sample are averaged.

    Returns:
        Logits [len(sizes), C].
    """
    samples = torch.split(logits, list(sizes))
    if readout == "peak_window":
        return torch.stack([sample[peak_window(sample)] for sample in samples])
    return torch.stack([sample.mean(0) for sample in samples])


def tune_context(source: Source, samples: Sequence[Tensor], start: Tensor, config: AdaptConfig) -> Tensor:
    """A few AdamW steps of the context vectors on the objective over these samples.

    Args:
        source: frozen.
        samples: what is predicted as one: the embeddings v of a sample's windows, [W, d]; see `read_out`.
        start: context vectors to begin from, [K, M, d_text].
        config: objective, steps, step size.

    Returns:
        Tuned context vectors [K, M, d_text]; `start` itself is not changed. A single sample has no mutual information:
        there `infomax` and `infomax_kl` return `start`, since AdamW would turn rounding errors into full steps.

    Raises:
        NotFiniteError: if the loss or the result is not finite.
    """
    if len(samples) == 1 and config.objective != "entropy":
        return start.detach().clone()
    windows = torch.cat(list(samples))
    sizes = [len(sample) for sample in samples]
    scale = source.context.square().mean().sqrt().item() if config.learning_rate_unit == "context_rms" else 1.0
    parameter = (start if config.per_au_context else start.mean(0, keepdim=True)).detach().clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([parameter], lr=config.learning_rate * scale, weight_decay=0.0)
    source_logits = read_out(source.logits(windows).detach(), sizes, config.readout)
    for step in range(config.steps):
        logits = source.logits(windows, source.au_embeddings_of(parameter.expand_as(start)))
        logits = read_out(logits, sizes, config.readout)
        value = objective_loss(logits, source_logits, config)
        if not torch.isfinite(value):
            raise NotFiniteError(f"the {config.objective} loss of step {step} is {value.item()}")
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
    tuned = parameter.detach().expand_as(start).clone()
    if not torch.isfinite(tuned).all():
        raise NotFiniteError("the tuned context is not finite")
    return tuned


@dataclass(frozen=True)
class ClipAUTT:
    """Prompt tuning on selected windows; with objective `none` or zero steps, CLIP-AU."""

    config: AdaptConfig
    """Objective, protocol, readout."""
    needs: ClassVar[frozenset[str]] = frozenset({"views", "text_tower"})
    fidelity: ClassVar[Literal["exact", "adapted", "variant"]] = "exact"
    deviations: ClassVar[str] = (
        "Objectives other than entropy, and the subject baseline, are additions to the published method."
    )

    def start(self, source: Source, config: AdaptConfig) -> PromptState:
        """The source prompts."""
        return PromptState(au_embeddings=source.au_embeddings)

    def fit(self, state: PromptState, source: Source, clips: Sequence[ClipFeatures]) -> PromptState:
        """`per_subject`: tune on the samples of all clips."""
        if self.config.protocol != "per_subject" or not self.config.tunes or not clips:
            return state
        samples = [sample for clip in clips for sample in self._samples(self._views(source, clip), source, state)]
        return self._tuned(state, source, samples)

    def step(self, state: PromptState, source: Source, clip: ClipFeatures) -> tuple[Prediction, PromptState]:
        """Tune on the clip where the protocol says so, then predict it with the tuned prompts.

        `best_window` is the one of lowest entropy under the prompts that the clip starts from, `peak_window` the peak
        under those that it is predicted with.
        """
        views = self._views(source, clip)
        with torch.no_grad():
            best = int(entropy(source.logits(views.embeddings, state.au_embeddings)).argmin())
        if self.config.tunes and self.config.protocol != "per_subject":
            samples = self._samples(views, source, state)
            if self.config.protocol == "online":
                samples = (*state.memory, *samples)[-max(self.config.memory, len(samples)) :]
                state = replace(state, memory=samples)
            state = self._tuned(state, source, samples)
        return self._predict(state, source, clip, views, best), state

    def _views(self, source: Source, clip: ClipFeatures) -> Views:
        return source.whole_clip(clip) if self.config.readout == "whole_clip" else source.views(clip)

    def _samples(self, views: Views, source: Source, state: PromptState) -> tuple[Tensor, ...]:
        """What the objective sees of a clip is what is read out: its selected windows, or all of them as one."""
        if self.config.readout in ("mean_windows", "peak_window"):
            return (views.embeddings,)
        with torch.no_grad():
            uncertain = entropy(source.logits(views.embeddings, state.au_embeddings))
        chosen = uncertain.argsort(stable=True)[: self.config.windows_per_clip].tolist()
        return tuple(views.embeddings[window : window + 1] for window in chosen)

    def _tuned(self, state: PromptState, source: Source, samples: Sequence[Tensor]) -> PromptState:
        context = tune_context(source, samples, source.context if state.context is None else state.context, self.config)
        with torch.no_grad():
            return replace(state, context=context, au_embeddings=source.au_embeddings_of(context))

    def _predict(self, state: PromptState, source: Source, clip: ClipFeatures, views: Views, best: int) -> Prediction:
        with torch.no_grad():
            logits = source.logits(views.embeddings, state.au_embeddings)
            best = peak_window(logits) if self.config.readout == "peak_window" else best
            used = logits.mean(0) if self.config.readout == "mean_windows" else logits[best]
            similarities = source.model.similarities(views.embeddings[best : best + 1], state.au_embeddings)[0]
        start, end = float(views.start_seconds[best]), float(views.end_seconds[best])
        probabilities = F.softmax(used, dim=-1).cpu()
        return Prediction(clip.clip_id, clip.subject_id, probabilities, start, end, similarities.cpu())


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


def make_method(config: AdaptConfig) -> Method:
    """The method that a configuration names."""
    return ZeroShot() if config.method == "zero_shot" else ClipAUTT(config)
