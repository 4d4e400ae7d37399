"""TDA, the training-free dynamic adapter (Karmanov et al., CVPR 2024): a cache of confident clips corrects the logits.

Per class the most certain samples are kept, keyed by their own prediction; a new sample's logits rise with its
similarity to them. A second cache holds uncertain samples, whose classes of non-negligible probability are pushed down.
The state is the cache; nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from clipautt.adaptation.method import (
    AdaptConfig,
    Fidelity,
    LogitSource,
    SavedState,
    Session,
    changed_settings,
    fit_in_turn,
)
from clipautt.adaptation.methods.zero_shot import clip_vector
from clipautt.adaptation.predictions import ClipOutput
from clipautt.adaptation.readout import read_clip
from clipautt.adaptation.source import Need
from clipautt.features.clip_features import ClipFeatures
from clipautt.model.windows import entropy
from clipautt.settings import settings

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, eq=False, repr=False)
class Cache:
    """Stored samples; an immutable value."""

    vectors: Tensor
    """Unit vectors of the samples, [N, d]."""
    classes: Tensor
    """Predicted class index of each sample, int64 [N]."""
    entropies: Tensor
    """Entropy of each prediction, nats, [N]."""
    masks: Tensor
    """1 for each class that a sample affects, else 0, [N, C]."""

    def __repr__(self) -> str:
        return f"Cache({len(self.classes)} samples)"

    def with_sample(self, vector: Tensor, probabilities: Tensor, mask: Tensor, capacity: int) -> Cache:
        """Add a sample; if its class is full, it replaces the least certain sample, provided it is more certain."""
        label, uncertain = int(probabilities.argmax()), _entropy(probabilities)
        same = (self.classes == label).nonzero()[:, 0]
        keep = torch.ones(len(self.classes), dtype=torch.bool, device=self.classes.device)
        if len(same) >= capacity:
            worst = same[self.entropies[same].argmax()] if len(same) else None
            if worst is None or uncertain >= self.entropies[worst]:
                return self
            keep[worst] = False
        return Cache(
            torch.cat([self.vectors[keep], vector[None]]),
            torch.cat([self.classes[keep], self.classes.new_tensor([label])]),
            torch.cat([self.entropies[keep], uncertain[None]]),
            torch.cat([self.masks[keep], mask[None]]),
        )

    def affinity(self, vector: Tensor, sharpness: float) -> Tensor:
        """Σ exp(−β (1 − cos)) over the samples that affect each class, [C]."""
        return torch.exp(-sharpness * (1 - self.vectors @ vector)) @ self.masks


@dataclass(frozen=True, eq=False)
class TDAState:
    """The positive and the negative cache."""

    positive: Cache
    """Confident samples, each raising the logit of its predicted class."""
    negative: Cache
    """Uncertain samples, each lowering the logits of its classes of non-negligible probability."""


@settings
class TDA:
    """Training-free dynamic adapter; the defaults are those published for ImageNet."""

    on: Literal["frames", "windows"] = "frames"
    """`frames`: mean frame features and class descriptions, as published; `windows`: embeddings and logits of the
    trained CLIP-AU."""
    alpha: NonNegativeFloat = 2.0
    """Weight of the positive cache."""
    beta: NonNegativeFloat = 5.0
    """Sharpness of the positive cache: the larger, the faster the influence of a sample falls with distance."""
    positive_capacity: NonNegativeInt = 3
    """Number of samples per class in the positive cache; 0 disables it."""
    negative_capacity: NonNegativeInt = 2
    """Number of samples per class in the negative cache; 0 disables it."""
    negative_alpha: NonNegativeFloat = 0.117
    """Weight of the negative cache."""
    negative_beta: NonNegativeFloat = 1.0
    """Sharpness of the negative cache."""
    negative_entropy_low: Share = 0.2
    """Lower entropy limit of the negative cache: entropy in nats divided by log2 C, as published, so at most 0.69."""
    negative_entropy_high: Share = 0.5
    """Upper entropy limit of the negative cache, in the unit of `negative_entropy_low`."""
    negative_mask_low: Share = 0.03
    """A negative sample lowers the logits of classes whose probability exceeds this."""
    update: Literal["before", "after"] = "before"
    """Whether a clip enters the cache before it is predicted, as published (it then retrieves itself), or after."""

    name: ClassVar[str] = "tda"
    fidelity: ClassVar[Fidelity] = "adapted"
    deviations: ClassVar[str] = (
        "TDA sees a clip as one sample (the mean of its frame features, or its chosen window) and resets at "
        "each subject; class prompts describe the face in AU words. With two classes the negative cache has no effect."
    )

    @property
    def adapts(self) -> bool:
        """Whether either cache can change a prediction."""
        return bool(self.positive_capacity and self.alpha) or bool(self.negative_capacity and self.negative_alpha)

    @property
    def needs(self) -> frozenset[Need]:
        """Class descriptions, or windows."""
        return frozenset({"class_text"} if self.on == "frames" else {"views"})

    @property
    def logits_from(self) -> LogitSource:
        """Class descriptions on frames, the trained classifier on windows."""
        return "class_text" if self.on == "frames" else "head"

    def title(self, config: AdaptConfig) -> tuple[str, ...]:
        """`TDA, online`, then each setting that differs from the published ones."""
        return (f"TDA, {config.protocol.replace('_', ' ')}", *changed_settings(self))

    def start(self, session: Session, prior: Tensor | None) -> TDAState:
        """Empty caches."""
        device, width = session.source.backbone.device, session.source.backbone.feature_dim
        empty = Cache(
            torch.zeros(0, width, device=device),
            torch.zeros(0, dtype=torch.int64, device=device),
            torch.zeros(0, device=device),
            torch.zeros(0, len(session.source.classes), device=device),
        )
        return TDAState(empty, empty)

    def fit(self, state: TDAState, session: Session, clips: Sequence[ClipFeatures]) -> TDAState:
        """All clips enter the caches in the order of their ids."""
        return fit_in_turn(self, state, session, clips)  # type: ignore[no-any-return]

    def step(self, state: TDAState, session: Session, clip: ClipFeatures) -> tuple[ClipOutput, TDAState]:
        """The clip enters the caches, before or after it is predicted."""
        output, vector = self._unadapted(session, clip)
        after = self._with_clip(state, vector, F.softmax(output.logits, dim=-1))
        return self._corrected(after if self.update == "before" else state, output, vector), after

    def predict(self, state: TDAState, session: Session, clip: ClipFeatures) -> ClipOutput:
        """Predict with the caches of this state."""
        return self._corrected(state, *self._unadapted(session, clip))

    def save(self, state: TDAState) -> SavedState:
        """Both caches."""
        return SavedState(
            {
                f"{name}.{part}": value.cpu().contiguous()
                for name, cache in vars(state).items()
                for part, value in vars(cache).items()
            }
        )

    def restore(self, saved: SavedState, session: Session, prior: Tensor | None) -> TDAState:
        """The inverse of `save`."""
        device = session.source.backbone.device
        caches = [
            Cache(**{part: saved.tensors[f"{name}.{part}"].to(device) for part in Cache.__dataclass_fields__})
            for name in TDAState.__dataclass_fields__
        ]
        return TDAState(*caches)

    @torch.no_grad()
    def _unadapted(self, session: Session, clip: ClipFeatures) -> tuple[ClipOutput, Tensor]:
        """The unadapted output, and the unit vector that represents the clip."""
        source = session.source
        if self.on == "frames":
            class_text = source.class_text()
            vector = clip_vector(clip).to(class_text.device)
            logits = source.backbone.logit_scale * class_text @ vector
            return ClipOutput(logits, float(clip.times[0]), float(clip.times[-1])), vector
        (views,) = source.views_of([clip], whole=session.config.readout == "whole_clip")
        logits, chosen = read_clip(source.logits(views.embeddings), session.config.readout)
        times = float(views.start_seconds[chosen]), float(views.end_seconds[chosen])
        return ClipOutput(logits, *times), views.embeddings[chosen]

    def _with_clip(self, state: TDAState, vector: Tensor, probabilities: Tensor) -> TDAState:
        positive, negative = state.positive, state.negative
        predicted = F.one_hot(probabilities.argmax(), len(probabilities)).to(probabilities)
        if self.positive_capacity:
            positive = positive.with_sample(vector, probabilities, predicted, self.positive_capacity)
        share = float(_entropy(probabilities)) / math.log2(len(probabilities))  # nats over bits, as published
        if self.negative_capacity and self.negative_entropy_low < share < self.negative_entropy_high:
            mask = (probabilities > self.negative_mask_low).to(probabilities)
            negative = negative.with_sample(vector, probabilities, mask, self.negative_capacity)
        return TDAState(positive, negative)

    def _corrected(self, state: TDAState, output: ClipOutput, vector: Tensor) -> ClipOutput:
        raised = self.alpha * state.positive.affinity(vector, self.beta)
        lowered = self.negative_alpha * state.negative.affinity(vector, self.negative_beta)
        return ClipOutput(output.logits + raised - lowered, output.window_start_seconds, output.window_end_seconds)


def _entropy(probabilities: Tensor) -> Tensor:
    """Entropy, nats."""
    return entropy(probabilities.clamp_min(1e-12).log())
