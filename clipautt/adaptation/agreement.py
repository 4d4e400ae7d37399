"""How far the decisions of an approximation are those of the exact method, on a sample of subjects of every run.

In: methods, and predictions of both for the same clips. Out: `Agreement`.
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
    """The class it predicts."""
    probability: float
    """Of the positive class, 0..1."""


@dataclass(frozen=True)
class Agreement:
    """An approximation beside the exact method."""

    videos: int
    """How many were compared."""
    same: int
    """How many of them have the same decision."""
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
    """Name of each approximation → the exact settings that it approximates."""
    return {config.name: config.exact for config in configs if config.exact is not None}


def subjects_to_compare(subjects: Iterable[str], count: int) -> set[str]:
    """The subjects on which approximations are compared with the exact method; the same in every run."""
    return set(sorted(subjects, key=lambda subject: (id_number(subject), subject))[:count])


def compare_decisions(approximate: Mapping[str, Decision], exact: Mapping[str, Decision]) -> Agreement | None:
    """The agreement over the clips that both have; None where they share none.

    Args:
        approximate: clip id → decision.
        exact: clip id → decision.
    """
    both = [(decision, exact[clip]) for clip, decision in approximate.items() if clip in exact]
    if not both:
        return None
    same = sum(a.label == b.label for a, b in both)
    return Agreement(len(both), same, float(np.mean([abs(a.probability - b.probability) for a, b in both])))


def pooled(parts: Sequence[Agreement]) -> Agreement:
    """The agreement over the clips of several subjects."""
    videos = [one.videos for one in parts]
    difference = float(np.average([one.difference for one in parts], weights=videos))
    return Agreement(sum(videos), sum(one.same for one in parts), difference)
