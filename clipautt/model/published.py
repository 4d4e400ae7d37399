"""Checkpoints of the published method (CLIP-AUTT, arXiv 2603.27999) as checkpoints of ours.

A published file holds three state dicts and no prompts: `text_adapter`, `temporal` and `temporal_classifier`. Its user
knows the prompts; they are kept as they are written, underscores included, because the weights were trained with just
these strings. The files do not say which window length, classes or frame rate they were trained with either.

Those models were trained without context tokens. What CLIP-AUTT tunes for an imported checkpoint are the first tokens
of each prompt's own words, so that zero steps give CLIP-AU exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from clipautt.action_units import descriptions_of
from clipautt.backbones.loading import Backbone, BackboneConfig
from clipautt.features.clip_features import FeatureSpec
from clipautt.model.checkpoint import Checkpoint, CheckpointSpec
from clipautt.model.network import ClipAU
from clipautt.model.windows import WindowSpec
from clipautt.settings import settings
from clipautt.video.decoding import Sampling
from clipautt.video.faces import FaceConfig

_PARTS = {"text_adapter": "adapter", "temporal": "temporal", "temporal_classifier": "classifier"}


@settings
class ImportConfig:
    """What a published file does not say."""

    classes: tuple[str, ...] = ("neutral", "pain")
    """Class names in the order of the classifier's outputs."""
    window: WindowSpec = WindowSpec()
    """Windows of the training; length 16 was published for BioVid, 6 for StressID."""
    sampling: Sampling = Sampling()
    """Frames of the training; every second frame of 25 per second was published for BioVid."""
    faces: FaceConfig = FaceConfig()
    """How faces are cropped; the published models saw footage that was cropped already."""
    context_tokens: NonNegativeInt = 4
    """How many leading tokens of each prompt are tuned; fewer where the shortest prompt has fewer."""


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """One prompt per line, verbatim; empty lines and the white space around a prompt do not count.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file without prompts, or with a duplicate.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"prompts={path}: no such file; it holds one prompt per line")
    prompts = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    twice = sorted({prompt for prompt in prompts if prompts.count(prompt) > 1})
    if twice or not prompts:
        raise ValueError(f"prompts={path}: {f'{twice[0]!r} is listed twice' if twice else 'no prompts in it'}")
    return tuple(prompts)


def import_checkpoint(
    weights: str | Path,
    prompts: Sequence[str],
    backbone: Backbone,
    *,
    config: ImportConfig | None = None,
    loaded_from: BackboneConfig | None = None,
) -> Checkpoint:
    """Read a published file.

    Args:
        weights: the `.pth` file.
        prompts: the K prompts in the order of training, verbatim.
        backbone: the CLIP it was trained with: OpenAI's ViT-B/32.
        config: what the file does not say.
        loaded_from: how the backbone was loaded, to be kept in the checkpoint.

    Returns:
        A checkpoint whose CLIP-AU logits are those of the published forward pass.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another file, or if prompts, classes or backbone do not fit its shapes.
    """
    config = config or ImportConfig()
    parts = _read_parts(Path(weights))
    feature_dim, num_prompts, num_classes = _shapes(parts, Path(weights))
    told = [
        f"{what} ({name} has {given})"
        for what, name, given, fits in (
            (f"{num_prompts} prompts", "prompts", len(prompts), len(prompts) == num_prompts),
            (f"{num_classes} classes", "classes", len(config.classes), len(config.classes) == num_classes),
            (
                f"features of width {feature_dim}",
                backbone.name,
                backbone.feature_dim,
                backbone.feature_dim == feature_dim,
            ),
        )
        if not fits
    ]
    if told:
        raise ValueError(f"weights={weights} was trained with {', '.join(told)}")
    model = ClipAU(feature_dim, num_prompts, num_classes)
    state = {f"{_PARTS[part]}.{key}": value.float() for part, own in parts.items() for key, value in own.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"weights={weights} does not have the layers of CLIP-AU: {error}") from error
    spec = CheckpointSpec(
        classes=config.classes,
        phrases=tuple(prompts),
        context="",
        context_tokens=min(config.context_tokens, backbone.fewest_tokens(prompts)),
        features=FeatureSpec.of(backbone, config.sampling, config.faces),
        subject_baseline="none",
        window=config.window,
        training={"imported": Path(weights).name},
        metrics={},
        descriptions=descriptions_of(config.classes),
        backbone=loaded_from or BackboneConfig(),
    )
    return Checkpoint(model.eval().requires_grad_(False), spec)


def _read_parts(path: Path) -> dict[str, dict[str, Tensor]]:
    """The three state dicts; nothing but tensors is unpickled."""
    if not path.is_file():
        raise FileNotFoundError(f"weights={path}: no such file")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file cut short or of another kind raises many kinds
        raise ValueError(f"weights={path} is no complete file of tensors, or holds other objects") from error
    found = content if isinstance(content, Mapping) else {}
    absent = [part for part in _PARTS if not isinstance(found.get(part), Mapping)]
    if absent:
        there = ", ".join(map(str, list(found)[:8])) or "none"
        raise ValueError(f"weights={path} lacks {', '.join(absent)}; a published checkpoint has them. It has: {there}")
    parts = {part: {key.removeprefix("module."): value for key, value in found[part].items()} for part in _PARTS}
    for part, own in parts.items():
        for key, value in own.items():
            if not isinstance(value, Tensor) or not value.isfinite().all():
                raise ValueError(f"weights={path}: {part}.{key} is no tensor of finite numbers")
    return parts


def _shapes(parts: Mapping[str, Mapping[str, Tensor]], path: Path) -> tuple[int, int, int]:
    """d, K and C."""
    try:
        return (
            parts["text_adapter"]["0.weight"].shape[1],
            parts["temporal_classifier"]["0.weight"].shape[1],
            parts["temporal_classifier"]["2.weight"].shape[0],
        )
    except (KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"weights={path} does not have the layers of CLIP-AU: no {error}") from error
