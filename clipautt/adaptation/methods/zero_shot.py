"""Zero-shot CLIP: the mean of a clip's normalized frame features is compared with class descriptions. No adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from clipautt.adaptation.method import AdaptConfig, Fidelity, LogitSource, SavedState, Session
from clipautt.adaptation.predictions import ClipOutput
from clipautt.adaptation.source import Need
from clipautt.features.clip_features import ClipFeatures
from clipautt.settings import settings


@settings
class ZeroShot:
    """Zero-shot CLIP; it has no settings."""

    name: ClassVar[str] = "zero_shot"
    fidelity: ClassVar[Fidelity] = "variant"
    deviations: ClassVar[str] = "Class prompts describe the face in AU words; no class name is used."

    @property
    def adapts(self) -> bool:
        """Never."""
        return False

    @property
    def needs(self) -> frozenset[Need]:
        """Class descriptions."""
        return frozenset({"class_text"})

    @property
    def logits_from(self) -> LogitSource:
        """Class descriptions."""
        return "class_text"

    def title(self, config: AdaptConfig) -> tuple[str, ...]:
        """Always `zero-shot`."""
        return ("zero-shot",)

    def start(self, session: Session, prior: Tensor | None) -> None:
        """There is no state."""

    def fit(self, state: None, session: Session, clips: Sequence[ClipFeatures]) -> None:
        """Nothing to fit."""

    def step(self, state: None, session: Session, clip: ClipFeatures) -> tuple[ClipOutput, None]:
        """Predict; nothing to adapt."""
        return self.predict(state, session, clip), None

    def predict(self, state: None, session: Session, clip: ClipFeatures) -> ClipOutput:
        """Cosine with each class description, at the backbone's temperature."""
        class_text = session.source.class_text()
        logits = session.source.backbone.logit_scale * class_text @ clip_vector(clip).to(class_text.device)
        return ClipOutput(logits, float(clip.times[0]), float(clip.times[-1]))

    def save(self, state: None) -> SavedState:
        """Nothing."""
        return SavedState()

    def restore(self, saved: SavedState, session: Session, prior: Tensor | None) -> None:
        """Nothing."""


def clip_vector(clip: ClipFeatures) -> Tensor:
    """The normalized mean of a clip's normalized frame features, [d]."""
    return F.normalize(F.normalize(clip.features, dim=-1).mean(0), dim=-1)
