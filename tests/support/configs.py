"""Adaptation settings as tests write them: shared settings and those of CLIP-AUTT in one call."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.methods.zero_shot import ZeroShot
from clipautt.adaptation.readout import Readout

_OWN = {field.name for field in fields(ClipAUTT)}
ZERO_SHOT = AdaptConfig(ZeroShot())


def adapt_config(**settings: Any) -> AdaptConfig:
    """CLIP-AUTT with these settings, shared ones and its own."""
    return changed(AdaptConfig(ClipAUTT()), **settings)


def changed(config: AdaptConfig, **settings: Any) -> AdaptConfig:
    """The same with other settings, shared ones or its method's own."""
    own = {name: value for name, value in settings.items() if name in _OWN}
    shared = {name: value for name, value in settings.items() if name not in _OWN}
    return replace(config, method=replace(config.method, **own), **shared)  # type: ignore[type-var]


def own(config: AdaptConfig) -> tuple[ClipAUTT, Readout]:
    """What `Tuner` takes of a configuration."""
    assert isinstance(config.method, ClipAUTT)
    return config.method, config.readout
