"""T3A, the test-time template adjuster (Iwasawa and Matsuo, NeurIPS 2021): prototypes replace the last layer.

The supports of a class are its row in the trained classifier's last layer and the hidden vectors z of the clips
predicted as that class; the most certain ones are kept. A clip's logits are the products of z with the normalized sum
of each class's supports. The bias is dropped, as published, so the prediction differs from the source's even before
the first clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt
from torch import Tensor, nn

from clipautt.adaptation.method import (
    AdaptConfig,
    Fidelity,
    LogitSource,
    SavedState,
    Session,
    changed_settings,
    fit_in_turn,
)
from clipautt.adaptation.predictions import ClipOutput
from clipautt.adaptation.readout import chosen_window, read_clip
from clipautt.adaptation.source import Need, Source, Views
from clipautt.features.clip_features import ClipFeatures
from clipautt.model.windows import entropy
from clipautt.settings import settings


@dataclass(frozen=True, eq=False, repr=False)
class Supports:
    """Vectors that represent the classes; an immutable value."""

    vectors: Tensor
    """Hidden vectors z, [N, h]."""
    classes: Tensor
    """Class index of each vector, int64 [N]."""
    entropies: Tensor
    """Entropy of the prediction that assigned each class, nats, [N]."""

    def __repr__(self) -> str:
        return f"Supports({len(self.classes)} vectors)"

    def prototypes(self, num_classes: int) -> Tensor:
        """The normalized sum of each class's normalized supports, [C, h]; zeros for a class without supports."""
        members = F.one_hot(self.classes, num_classes).to(self.vectors)
        return F.normalize(members.T @ F.normalize(self.vectors, dim=-1), dim=-1)

    def most_certain(self, capacity: int, num_classes: int) -> Supports:
        """Keep at most `capacity` supports per class, those of lowest entropy, without reordering."""
        kept = []
        for label in range(num_classes):
            members = (self.classes == label).nonzero()[:, 0]
            kept.append(members[self.entropies[members].argsort(stable=True)[:capacity]])
        index = torch.cat(kept).sort().values
        return Supports(self.vectors[index], self.classes[index], self.entropies[index])


@settings
class T3A:
    """Test-time template adjuster on the hidden layer of CLIP-AU's classifier."""

    capacity: NonNegativeInt = 20
    """Number of supports kept per class, the classifier's row included; 0 keeps all."""
    update: Literal["before", "after"] = "before"
    """Whether a clip becomes a support before it is predicted, as published, or after."""

    name: ClassVar[str] = "t3a"
    fidelity: ClassVar[Fidelity] = "exact"
    deviations: ClassVar[str] = (
        "T3A takes the hidden vector of a clip's chosen window and resets at each subject; capacity 0 keeps all "
        "supports, where the published code drops the least certain one."
    )

    @property
    def adapts(self) -> bool:
        """Always."""
        return True

    @property
    def needs(self) -> frozenset[Need]:
        """Windows, and the classifier's output for them."""
        return frozenset({"views"})

    @property
    def logits_from(self) -> LogitSource:
        """The trained classifier."""
        return "head"

    def title(self, config: AdaptConfig) -> tuple[str, ...]:
        """`T3A, online`, then each non-default setting."""
        readout = "" if config.readout == "best_window" else f", {config.readout_name}"
        return (f"T3A, {config.protocol.replace('_', ' ')}{readout}", *changed_settings(self))

    @torch.no_grad()
    def start(self, session: Session, prior: Tensor | None) -> Supports:
        """The rows of the classifier's last layer, each assigned to the class that the layer predicts for it."""
        last = _last_layer(session.source)
        logits = F.linear(last.weight, last.weight, last.bias)
        return Supports(last.weight.detach(), logits.argmax(-1), entropy(logits))

    def fit(self, state: Supports, session: Session, clips: Sequence[ClipFeatures]) -> Supports:
        """All clips become supports in the order of their ids."""
        return fit_in_turn(self, state, session, clips)  # type: ignore[no-any-return]

    def step(self, state: Supports, session: Session, clip: ClipFeatures) -> tuple[ClipOutput, Supports]:
        """The clip becomes a support, before or after it is predicted."""
        views = _views(session, clip)
        after = self._with_clip(state, session, views)
        return _output(after if self.update == "before" else state, session, views), after

    def predict(self, state: Supports, session: Session, clip: ClipFeatures) -> ClipOutput:
        """Predict with the prototypes of this state."""
        return _output(state, session, _views(session, clip))

    def save(self, state: Supports) -> SavedState:
        """The supports."""
        return SavedState({name: value.cpu().contiguous() for name, value in vars(state).items()})

    def restore(self, saved: SavedState, session: Session, prior: Tensor | None) -> Supports:
        """The inverse of `save`."""
        device = session.source.backbone.device
        return Supports(**{name: value.to(device) for name, value in saved.tensors.items()})

    @torch.no_grad()
    def _with_clip(self, state: Supports, session: Session, views: Views) -> Supports:
        source, readout = session.source, session.config.readout
        logits, chosen = read_clip(source.logits(views.embeddings), readout)
        hidden = source.hidden(views.embeddings)
        vector = hidden.mean(0) if readout == "mean_windows" else hidden[chosen]
        grown = Supports(
            torch.cat([state.vectors, vector[None]]),
            torch.cat([state.classes, logits.argmax()[None]]),
            torch.cat([state.entropies, entropy(logits)[None]]),
        )
        return grown.most_certain(self.capacity or len(grown.classes), len(source.classes))


def _last_layer(source: Source) -> nn.Linear:
    last = source.model.classifier[-1]
    assert isinstance(last, nn.Linear)
    return last


def _views(session: Session, clip: ClipFeatures) -> Views:
    return session.source.views_of([clip], whole=session.config.readout == "whole_clip")[0]


@torch.no_grad()
def _output(state: Supports, session: Session, views: Views) -> ClipOutput:
    """Predict a clip with the prototypes; the source model chooses the window."""
    source, readout = session.source, session.config.readout
    logits = source.hidden(views.embeddings) @ state.prototypes(len(source.classes)).T
    chosen = chosen_window(source.logits(views.embeddings), readout)
    used = logits.mean(0) if readout == "mean_windows" else logits[chosen]
    similarities = source.model.similarities(views.embeddings[chosen : chosen + 1], source.au_embeddings)[0]
    return ClipOutput(used, float(views.start_seconds[chosen]), float(views.end_seconds[chosen]), similarities)
