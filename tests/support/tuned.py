"""Tuning of a single problem, as unit tests ask for it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.methods.clip_autt.tuner import Problem, Tuner
from clipautt.adaptation.predictions import DegenerateError
from clipautt.adaptation.source import Source
from tests.support.configs import own


def tune_context(source: Source, samples: Sequence[Tensor], start: Tensor | None, config: AdaptConfig) -> Tensor:
    """What is tuned, of one problem; raises where tuning went wrong."""
    (outcome,) = Tuner(source).tune([Problem(samples, start)], *own(config))
    if isinstance(outcome, DegenerateError):
        raise outcome
    return outcome.parameter
