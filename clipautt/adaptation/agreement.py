"""How far a cheap mode's decisions are those of the exact one.

TODO
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from clipautt.adaptation.config import AdaptConfig
from clipautt.clips import id_number


def exact_sample(subjects: Iterable[str], count: int) -> set[str]:
    """The subjects on which cheap modes are compared with the exact one: so many, the same in every run."""
    return set(sorted(subjects, key=lambda subject: (id_number(subject), subject))[:count])


def exact_counterpart(method: AdaptConfig) -> AdaptConfig:
    """The same in the exact mode, with the same step size in its own unit."""
    return replace(method, tune="context", precision="fp32", relinearise=0)


def exact_counterparts(methods: Sequence[AdaptConfig]) -> dict[str, AdaptConfig]:
    """Name of each cheap method → its exact counterpart."""
    return {method.name: exact_counterpart(method) for method in methods if method.cheap}
