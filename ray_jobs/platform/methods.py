"""Adaptation settings by the names of their presets.

In: options of `conf/adapt`, such as `infomax_kl`, or `infomax_kl@median` with another subject baseline. Out:
`AdaptConfig`s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from clipautt.adaptation.method import AdaptConfig
from ray_jobs.platform.configuration import compose, instantiate


def named_method(option: str) -> AdaptConfig:
    """The settings of an option of `conf/adapt`, or of `option@baseline`, with another subject baseline.

    Raises:
        ValueError: for an unknown option or baseline.
    """
    name, _, baseline = option.partition("@")
    config: AdaptConfig = instantiate(compose("adapt", [f"adapt={name}"]).adapt)
    return replace(config, subject_baseline=baseline) if baseline else config  # type: ignore[arg-type]


def make_methods(own: AdaptConfig, compare: Sequence[str]) -> tuple[AdaptConfig, ...]:
    """The run's own method first, then those to compare with, without duplicates."""
    methods = {own.name: own}
    for option in compare:
        method = named_method(option)
        methods.setdefault(method.name, method)
    return tuple(methods.values())
