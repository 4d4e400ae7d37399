"""How closely an approximation agrees with the exact method, measured on a sample of subjects in every run.

In: method settings, and the decisions of both methods for the same clips. Out: `Agreement`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipautt.adaptation.method import AdaptConfig
from clipautt.clips import id_number


@dataclass(frozen=True)
class Decision:
    """What a method decides about one clip."""

    label: str
    """Name of the predicted class."""
    probability: float
    """Predicted probability of the positive class, 0..1."""


@dataclass(frozen=True)
class Agreement:
    """How closely an approximation matches the exact method."""

    videos: int
    """Number of videos compared."""
    same: int
    """Number of those on which both methods decide alike."""
    difference: float
    """Mean absolute difference of the probability of the positive class, 0..1."""

    def __str__(self) -> str:
        share = 100 * self.same / self.videos
        return f"{share:.1f} % of {self.videos} decisions, probabilities {self.difference:.3f} apart on average"

    @property
    def share(self) -> float:
        """Share of equal decisions, 0..1."""
        return self.same / self.videos


def exact_counterparts(configs: Sequence[AdaptConfig]) -> dict[str, AdaptConfig]:
    """Map the name of each approximation to the exact settings it approximates."""
    return {config.name: config.exact for config in configs if config.exact is not None}


def subjects_to_compare(subjects: Iterable[str], count: int) -> set[str]:
    """Choose `count` subjects on which to compare approximations with the exact method; the same in every run."""
    return set(sorted(subjects, key=lambda subject: (id_number(subject), subject))[:count])


def compare_decisions(approximate: Mapping[str, Decision], exact: Mapping[str, Decision]) -> Agreement | None:
    """Measure agreement over the clips that both sides contain; None if they have no clip in common.

    Args:
        approximate: clip id → decision of the approximation.
        exact: clip id → decision of the exact method.
    """
    both = [(decision, exact[clip]) for clip, decision in approximate.items() if clip in exact]
    if not both:
        return None
    same = sum(a.label == b.label for a, b in both)
    return Agreement(len(both), same, float(np.mean([abs(a.probability - b.probability) for a, b in both])))


def pooled(parts: Sequence[Agreement]) -> Agreement:
    """Combine the agreements of several subjects, weighted by their numbers of videos."""
    videos = [part.videos for part in parts]
    difference = float(np.average([part.difference for part in parts], weights=videos))
    return Agreement(sum(videos), sum(part.same for part in parts), difference)
