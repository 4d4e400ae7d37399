"""Tuning of a single problem, as unit tests ask for it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clipautt.adaptation.config import AdaptConfig
from clipautt.adaptation.source import Source
from clipautt.adaptation.tuning import DegenerateError, Problem, Tuner


def tune_context(source: Source, samples: Sequence[Tensor], start: Tensor | None, config: AdaptConfig) -> Tensor:
    """What is tuned, of one problem; raises where tuning went wrong."""
    (outcome,) = Tuner(source).tune([Problem(samples, start)], config)
    if isinstance(outcome, DegenerateError):
        raise outcome
    return outcome.parameter
