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
    """Samples that are kept: a value, never changed in place."""

    vectors: Tensor
    """Unit vectors [N, d]."""
    classes: Tensor
    """The class that each was predicted as, int64 [N]."""
    entropies: Tensor
    """Entropy of that prediction, nats, [N]."""
    masks: Tensor
    """Which classes a sample acts on, [N, C]."""

    def __repr__(self) -> str:
        return f"Cache({len(self.classes)} samples)"

    def with_sample(self, vector: Tensor, probabilities: Tensor, mask: Tensor, capacity: int) -> Cache:
        """With a sample more; in a full class it replaces the least certain one if it is more certain."""
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
        """Σ exp(−β (1 − cos)) over the samples that act on each class, [C]."""
        return torch.exp(-sharpness * (1 - self.vectors @ vector)) @ self.masks


@dataclass(frozen=True, eq=False)
class TDAState:
    """Both caches."""

    positive: Cache
    """Confident samples, each for the class that it was predicted as."""
    negative: Cache
    """Uncertain samples, each against the classes of non-negligible probability."""


@settings
class TDA:
    """Training-free dynamic adapter; published defaults for ImageNet."""

    on: Literal["frames", "windows"] = "frames"
    """`frames`: mean frame features and class descriptions, as published; `windows`: embeddings and logits of the
    trained CLIP-AU."""
    alpha: NonNegativeFloat = 2.0
    """Weight of the positive cache."""
    beta: NonNegativeFloat = 5.0
    """Sharpness of the positive cache: larger values count near samples only."""
    positive_capacity: NonNegativeInt = 3
    """Samples that the positive cache keeps of each class."""
    negative_capacity: NonNegativeInt = 2
    """Samples that the negative cache keeps of each class; 0 switches it off."""
    negative_alpha: NonNegativeFloat = 0.117
    """Weight of the negative cache."""
    negative_beta: NonNegativeFloat = 1.0
    """Sharpness of the negative cache."""
    negative_entropy_low: Share = 0.2
    """Samples of higher entropy may enter the negative cache; entropy in nats divided by log2 C, as published, which is
    0.69 at most."""
    negative_entropy_high: Share = 0.5
    """Samples of lower entropy, in the same unit, may enter the negative cache."""
    negative_mask_low: Share = 0.03
    """A negative sample acts against the classes of higher probability than this."""
    update: Literal["before", "after"] = "before"
    """Whether a clip enters the cache before it is predicted, as published, so that it retrieves itself, or after."""

    name: ClassVar[str] = "tda"
    fidelity: ClassVar[Fidelity] = "adapted"
    deviations: ClassVar[str] = (
        "TDA sees a clip as one sample (the mean of its frame features, or its chosen window) and starts anew with "
        "each subject; class prompts describe the face in AU words. With two classes the negative cache has no effect."
    )

    @property
    def adapts(self) -> bool:
        """Whether any cache can act."""
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
        """`TDA, online`, then what differs from the published settings."""
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
        """The logits that the caches correct."""
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
        """The source's answer, and the unit vector that stands for the clip."""
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
        own = F.one_hot(probabilities.argmax(), len(probabilities)).to(probabilities)
        if self.positive_capacity:
            positive = positive.with_sample(vector, probabilities, own, self.positive_capacity)
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
    """Nats."""
    return entropy(probabilities.clamp_min(1e-12).log())
