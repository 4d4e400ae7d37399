"""Loads the frozen CLIP that encodes frames and prompts, by name: the embedded one, or one of open_clip.

In: a `BackboneConfig`. Out: a `Backbone` (`frozen_clip`). `embedded` and `open_clip_models` find models and weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipautt.backbones.embedded import EMBEDDED, embedded_weights, load_small_clip, small_clip_facts
from clipautt.backbones.facts import BackboneFacts
from clipautt.backbones.frozen_clip import Backbone, Precision, Prompts
from clipautt.backbones.names import FOLDER, HUB
from clipautt.backbones.registry import default_tag, registered
from clipautt.settings import settings

__all__ = [
    "EMBEDDED",
    "Backbone",
    "BackboneConfig",
    "BackboneFacts",
    "Precision",
    "Prompts",
    "facts_of",
    "load_backbone",
    "recorded_backbone",
]


@settings
class BackboneConfig:
    """Which CLIP encodes frames and prompts."""

    name: str = EMBEDDED
    """`embedded`, an open_clip model such as `ViT-B-32-quickgelu`, `hf-hub:ORGANISATION/MODEL` or `local-dir:FOLDER`. A
    path, here or in `weights`, becomes absolute, `~` included, since workers and later runs may be in another folder.
    """
    weights: str | None = None
    """A local `.pt` or `.safetensors` file, a pretrained tag of the model, `TAG:FILE`, or `hf-hub:ORGANISATION/MODEL`;
    None: the weights that come with the model, or those that `clipautt backbone fetch` got for it. Where the tag's file
    is registered, this becomes `TAG:FILE`, so that every worker opens the same file."""
    precision: Precision = "fp32"
    """Arithmetic of the image tower; `tf32` is fp32 on CPUs. Prompts and losses are always fp32."""

    def __post_init__(self) -> None:
        if self.name.startswith(FOLDER):
            object.__setattr__(self, "name", FOLDER + absolute_path(self.name.removeprefix(FOLDER)))
        if self.weights:
            object.__setattr__(self, "weights", _absolute_weights(self.weights))
        if self.name != EMBEDDED and not self.name.startswith((HUB, FOLDER)):
            object.__setattr__(self, "weights", _registered_weights(self.name, self.weights))


def _absolute_weights(weights: str) -> str:
    """`FILE` or `TAG:FILE` with the file's absolute path; tags and hub addresses stay as they are."""
    tag, colon, file = weights.partition(":")
    if weights.startswith(HUB) or not colon or Path(weights).is_file():
        return absolute_path(weights)
    return f"{tag}:{absolute_path(file)}"


def _registered_weights(name: str, weights: str | None) -> str | None:
    """`TAG:FILE` if no file is named and that of the tag is registered, else the weights as given."""
    tag = weights or default_tag(name)
    file = registered(name, tag)
    return f"{tag}:{file}" if file else weights


def recorded_backbone(facts: Mapping[str, Any]) -> BackboneConfig:
    """The backbone that a checkpoint recorded; a tag's file that is not here is taken from this machine's registry.

    Nobody is misled by that: the fingerprint of the weights has to be that of the checkpoint.
    """
    config = BackboneConfig(**facts)
    tag, colon, file = (config.weights or "").partition(":")
    if not colon or tag == HUB.rstrip(":") or os.path.exists(file):
        return config
    return replace(config, weights=_registered_weights(config.name, tag)) if registered(config.name, tag) else config


def absolute_path(path: str) -> str:
    """The absolute path if something exists there, else the path as given, with a leading `~` expanded."""
    there = os.path.expanduser(path)
    return os.path.abspath(there) if os.path.exists(there) else there


def _small_clip_path(config: BackboneConfig) -> Path:
    return Path(config.weights) if config.weights else embedded_weights()


def facts_of(config: BackboneConfig) -> BackboneFacts:
    """What is known of the training of the backbone that a configuration names, without loading its weights.

    Nothing is known where this machine does not have the file.

    Raises:
        ValueError: if the file holds no small CLIP.
    """
    path = _small_clip_path(config)
    return small_clip_facts(path) if config.name == EMBEDDED and path.is_file() else BackboneFacts()


def load_backbone(config: BackboneConfig) -> Backbone:
    """The backbone that a configuration names.

    Raises:
        ValueError: for an unknown model or tag, weights that cannot be fetched or do not fit, or a text tower that
            takes no context vectors.
        FileNotFoundError: if a local file or folder is not there.
    """
    if config.name == EMBEDDED:
        return load_small_clip(_small_clip_path(config), precision=config.precision)
    # Imported here because open_clip imports torchvision and timm: without them a prediction takes half as long.
    from clipautt.backbones.open_clip_models import load_open_clip

    return load_open_clip(config.name, config.weights, precision=config.precision)
