"""Results of adaptation for a clip, and the errors that make the driver fall back.

A method returns a `ClipOutput`; the driver applies the class prior and turns it into a `Prediction` with a status.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from clipautt.features.clip_features import ClipFeatures
from clipautt.model.windows import entropy

_T = TypeVar("_T")
OK = "ok"
"""Status of a prediction that needed no fallback."""
NO_PREDICTION = "no prediction: "
"""Prefix of the status of a clip that has features and cannot be predicted from them."""


@dataclass(frozen=True, eq=False, repr=False)
class ClipOutput:
    """Output of a method for one clip, before class priors are applied."""

    logits: Tensor
    """Class logits [C], on the device of the source."""
    window_start_seconds: float
    """Start of the window behind the logits, seconds from the start of the clip."""
    window_end_seconds: float
    """End of that window, seconds."""
    similarities: Tensor | None = None
    """AU similarities s of that window, [K]; None if the method computes none."""

    def __repr__(self) -> str:
        return f"ClipOutput({self.window_start_seconds:.2f}–{self.window_end_seconds:.2f} s)"


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The prediction for one clip."""

    clip_id: str
    """Id of the clip."""
    subject_id: str
    """Id of the subject."""
    probabilities: Tensor
    """Class probabilities, float32 [C], sum 1, on the CPU."""
    window_start_seconds: float
    """Start of the window behind the prediction, seconds from the start of the clip."""
    window_end_seconds: float
    """End of that window, seconds."""
    similarities: Tensor | None = None
    """AU similarities s of that window, [K], on the CPU; None if the method computes none."""
    status: str = OK
    """`ok`, why the prediction was made without adaptation, or why there is none."""
    prior: Tensor | None = None
    """Class shares that the probabilities assume, [C], on the CPU; None for those of the training clips."""

    face_share: float = float("nan")
    """Share of the clip's frames in which the face was found, 0..1; nan without a detector."""

    @classmethod
    def missing(cls, clip: ClipFeatures, why: str, *, num_classes: int) -> Prediction:
        """What stands for the prediction of a clip that cannot be predicted: numbers that are nan, and the reason."""
        nan = float("nan")
        nothing = torch.full((num_classes,), nan)
        status = NO_PREDICTION + why
        return cls(clip.clip_id, clip.subject_id, nothing, nan, nan, status=status, face_share=clip.face_share)

    @property
    def made(self) -> bool:
        """Whether there is a prediction."""
        return not self.status.startswith(NO_PREDICTION)

    @property
    def label_index(self) -> int:
        """Index of the most probable class; meaningless unless `made`."""
        return int(self.probabilities.argmax())

    @property
    def entropy(self) -> float:
        """Entropy of the probabilities, nats."""
        return float(entropy(self.probabilities.clamp_min(1e-12).log()))

    def __repr__(self) -> str:
        if not self.made:
            return f"Prediction({self.clip_id!r}, {self.status})"
        return f"Prediction({self.clip_id!r}, class {self.label_index}, p={self.probabilities.max():.3f})"


class DegenerateError(ArithmeticError):
    """Adaptation failed in a way that can be detected without labels; the driver predicts without adaptation."""


class NotFiniteError(DegenerateError, FloatingPointError):
    """A loss, a prompt or a probability is not finite."""


def unless_degenerate(outcome: _T | DegenerateError) -> _T:
    """Return the outcome, or raise it if it is an error."""
    if isinstance(outcome, DegenerateError):
        raise outcome
    return outcome
