"""Import of checkpoints of the published method (CLIP-AUTT, arXiv 2603.27999).

In: a published file, which holds the state dicts `text_adapter`, `temporal` and `temporal_classifier`, and what it does
not hold: prompts, classes, window length and frame rate. Out: a `Checkpoint`. Prompts are kept verbatim, underscores
included, because the weights were trained with exactly these strings.

Those models were trained without context tokens. For an imported checkpoint, CLIP-AUTT tunes the first tokens of each
prompt's words, so that zero steps give CLIP-AU exactly.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt
from torch import Tensor

from clipautt.action_units import descriptions_of
from clipautt.backbones.loading import Backbone, BackboneConfig
from clipautt.backbones.tensor_files import OtherObjectsError, read_tensors
from clipautt.features.clip_features import FeatureSpec
from clipautt.footage import RENDERED_DATASET, Footage
from clipautt.model.checkpoint import Checkpoint, CheckpointSpec
from clipautt.model.network import ClipAU, adapter_width_of
from clipautt.model.windows import WindowSpec
from clipautt.settings import settings
from clipautt.video.decoding import Sampling
from clipautt.video.faces import FaceConfig

_PARTS = {"text_adapter": "adapter", "temporal": "temporal", "temporal_classifier": "classifier"}


@settings
class ImportConfig:
    """Facts about a published model that its file does not hold."""

    classes: tuple[str, ...] = ("neutral", "pain")
    """Class names in the order of the classifier's outputs."""
    window: WindowSpec = WindowSpec()
    """Windows used in training; published lengths are 16 for BioVid and 6 for StressID."""
    sampling: Sampling = Sampling()
    """Frames used in training; published for BioVid is every second frame of 25 per second."""
    faces: FaceConfig = FaceConfig()
    """How faces are cropped; the published models were trained on footage already cropped."""
    datasets: tuple[str, ...] = ()
    """Data sets it was trained on, such as `BioVid`; empty if they are not known."""
    context_tokens: NonNegativeInt = 4
    """Number of leading tokens of each prompt to tune; fewer if the shortest prompt has fewer."""


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """Read one prompt per line, verbatim; empty lines and white space around a prompt are ignored.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file without prompts, with a duplicate, or that is not UTF-8.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"prompts={path}: no such file; give a text file with one prompt per line")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        command = f"iconv -f LATIN1 -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(f'{path}.utf8')}"
        raise ValueError(
            f"prompts={path}: line {line} is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8, or if it is "
            f"Latin-1, convert it: {command}"
        ) from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
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
    """Read a published file as a checkpoint.

    Args:
        weights: the `.pth` file.
        prompts: the K prompts in the order of training, verbatim.
        backbone: the CLIP it was trained with: OpenAI's ViT-B/32.
        config: facts that the file does not hold.
        loaded_from: how the backbone was loaded, to be stored in the checkpoint.

    Returns:
        A checkpoint whose CLIP-AU logits are those of the published forward pass.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a published checkpoint, or prompts, classes or backbone do not fit its shapes.
    """
    config = config or ImportConfig()
    parts = _read_parts(Path(weights))
    feature_dim, num_prompts, num_classes = _shapes(parts, Path(weights))
    mismatches = [
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
    if mismatches:
        raise ValueError(f"weights={weights} was trained with {', '.join(mismatches)}")
    state = {f"{_PARTS[part]}.{key}": value.float() for part, layers in parts.items() for key, value in layers.items()}
    model = ClipAU(feature_dim, num_prompts, num_classes, adapter_width=adapter_width_of(state))
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
        footage=Footage.of((name.startswith(RENDERED_DATASET) for name in config.datasets), config.datasets),
    )
    return Checkpoint(model.eval().requires_grad_(False), spec)


def _read_parts(path: Path) -> dict[str, dict[str, Tensor]]:
    """The three state dicts; nothing but tensors is unpickled."""
    if not path.is_file():
        raise FileNotFoundError(f"weights={path}: no such file")
    try:
        content: Any = read_tensors(path, keep=f"{{k: c[k] for k in {json.dumps(list(_PARTS))}}}")
    except OtherObjectsError as error:
        raise ValueError(f"weights={path} {error}") from error
    except Exception as error:  # truncated or foreign files raise many kinds of errors
        raise ValueError(f"weights={path} is not a complete file of tensors") from error
    states = content if isinstance(content, Mapping) else {}
    absent = [part for part in _PARTS if not isinstance(states.get(part), Mapping)]
    if absent:
        there = ", ".join(map(str, list(states)[:8])) or "none"
        raise ValueError(f"weights={path} lacks {', '.join(absent)}; a published checkpoint has them. It has: {there}")
    parts = {part: {key.removeprefix("module."): value for key, value in states[part].items()} for part in _PARTS}
    for part, tensors in parts.items():
        for key, value in tensors.items():
            if not isinstance(value, Tensor) or not value.isfinite().all():
                raise ValueError(f"weights={path}: {part}.{key} is not a tensor of finite numbers")
    return parts


def _shapes(parts: Mapping[str, Mapping[str, Tensor]], path: Path) -> tuple[int, int, int]:
    """d, K and C, from the shapes of the weights."""
    try:
        return (
            parts["text_adapter"]["0.weight"].shape[1],
            parts["temporal_classifier"]["0.weight"].shape[1],
            parts["temporal_classifier"]["2.weight"].shape[0],
        )
    except (KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"weights={path} does not have the layers of CLIP-AU: no {error}") from error
