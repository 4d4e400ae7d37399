"""Loads the frozen CLIP that encodes frames and prompts, by name: the embedded one, or one of open_clip.

In: a `BackboneConfig`. Out: a `Backbone` (`frozen_clip`). `embedded` and `open_clip_models` find models and weights.
"""

from __future__ import annotations

import os
from pathlib import Path

from clipautt.backbones.embedded import EMBEDDED, embedded_weights, load_small_clip, small_clip_facts
from clipautt.backbones.facts import BackboneFacts
from clipautt.backbones.frozen_clip import Backbone, Precision, Prompts
from clipautt.backbones.names import FOLDER, HUB
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
    None: the weights that come with the model."""
    precision: Precision = "fp32"
    """Arithmetic of the image tower; `tf32` is fp32 on CPUs. Prompts and losses are always fp32."""

    def __post_init__(self) -> None:
        if self.name.startswith(FOLDER):
            object.__setattr__(self, "name", FOLDER + absolute_path(self.name.removeprefix(FOLDER)))
        if self.weights:
            object.__setattr__(self, "weights", _absolute_weights(self.weights))


def _absolute_weights(weights: str) -> str:
    """`FILE` or `TAG:FILE` with the file's absolute path; tags and hub addresses stay as they are."""
    tag, colon, file = weights.partition(":")
    if weights.startswith(HUB) or not colon or Path(weights).is_file():
        return absolute_path(weights)
    return f"{tag}:{absolute_path(file)}"


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
