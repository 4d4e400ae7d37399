"""The embedded backbone: a small CLIP trained on this project's synthetic faces, and the file that holds it.

It knows the words of its own captions and no others, and it has never seen a real face. `pretraining` trains it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from clipautt.backbones.facts import BackboneFacts
from clipautt.backbones.frozen_clip import Backbone, Precision
from clipautt.backbones.small_clip import SmallClip
from clipautt.footage import Footage
from clipautt.settings import one_line
from clipautt.video.preprocessing import Preprocessing

EMBEDDED = "embedded"
RENDERED_FACES = Preprocessing(96, (0.48, 0.455, 0.41), (0.265, 0.26, 0.275), "area")
_WEIGHTS = "embedded_clip.safetensors"
_VOCABULARY = 49408
"""Tokens of open_clip's stock vocabulary."""
_CONTEXT_LENGTH = 77


@dataclass(frozen=True)
class SmallClipShape:
    """The shape of the embedded CLIP: a ModifiedResNet and a three-layer text transformer, both as in open_clip."""

    image_size: int = 96
    """Frame height and width in pixels."""
    layers: tuple[int, int, int, int] = (2, 2, 2, 2)
    """Bottleneck blocks per stage of the image tower."""
    width: int = 16
    """Channels of the first stage; the attention pool has 2 × width × 16 / width = 32 heads."""
    text_width: int = 128
    """d_text: width of the text tower."""
    text_heads: int = 4
    """Attention heads of the text tower."""
    text_layers: int = 3
    """Blocks of the text tower."""
    embed_dim: int = 128
    """d: width of image and text features."""
    preprocessing: Preprocessing = RENDERED_FACES
    """Statistics of the rendered faces."""

    def __post_init__(self) -> None:
        if self.preprocessing.size != self.image_size:
            raise ValueError(f"shape.image_size={self.image_size}; its preprocessing has {self.preprocessing.size}")


def _empty_small_clip(shape: SmallClipShape) -> SmallClip:
    """A CLIP of this shape on the meta device: `load_state_dict` assigns its weights, so none are drawn or copied."""
    with torch.device("meta"):
        return SmallClip(
            image_size=shape.image_size,
            layers=shape.layers,
            width=shape.width,
            embed_dim=shape.embed_dim,
            context_length=_CONTEXT_LENGTH,
            vocabulary=_VOCABULARY,
            text_width=shape.text_width,
            text_heads=shape.text_heads,
            text_layers=shape.text_layers,
        )


def pack_small_clip(model: nn.Module, token_ids: Iterable[int]) -> dict[str, Tensor]:
    """The weights to ship: all tensors, but only the trained rows of the token embedding."""
    rows = torch.tensor(sorted(set(token_ids)))
    state = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items() if name != "attn_mask"
    }
    table = state.pop("token_embedding.weight")
    return {**state, "token_embedding.ids": rows, "token_embedding.rows": table[rows].contiguous()}


def load_small_clip(path: Path, *, precision: Precision = "fp32", name: str = EMBEDDED) -> Backbone:
    """Read weights that `pack_small_clip` wrote, with the shape in the file's metadata.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no small CLIP, or its weights do not have the shape that it states.
    """
    shape = _stated_shape(path)
    state = load_file(path)
    ids, table = _token_table(path, state, shape.text_width)
    try:
        model = _empty_small_clip(shape)
        missing, unexpected = model.load_state_dict(
            {**state, "token_embedding.weight": table}, strict=False, assign=True
        )
    except (RuntimeError, TypeError, AssertionError, ZeroDivisionError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{path} is not a small CLIP of the shape that it states, {shape}: {reason}") from error
    if unexpected or missing:
        raise ValueError(f"{path} is not a small CLIP of this version: missing {missing}, unexpected {unexpected}")
    model = model.to(memory_format=torch.channels_last)
    return Backbone(
        model,
        name=name,
        preprocessing=shape.preprocessing,
        known_tokens=frozenset(ids),
        precision=precision,
        facts=small_clip_facts(path),
    )


def small_clip_facts(path: Path) -> BackboneFacts:
    """What a file of `pretraining` says of its training: rendered faces, and the AUs whose captions it has learned.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no small CLIP.
    """
    units = json.loads(_metadata(path).get("auc", "{}")).get("prompt")  # a figure per AU that the faces show
    return BackboneFacts(Footage("rendered"), tuple(units) if units else None)


def _stated_shape(path: Path) -> SmallClipShape:
    """The shape in a file's metadata."""
    text = _metadata(path)["shape"]
    try:
        facts = {key: _tuples(value) for key, value in json.loads(text).items()}
        return SmallClipShape(**{**facts, "preprocessing": Preprocessing(**facts["preprocessing"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"backbone.weights {str(path)!r} states no shape of a small CLIP in its metadata "
            f"({_reason(error)}); write it again with clipautt pretrain"
        ) from error


def _metadata(path: Path) -> dict[str, str]:
    """A file's metadata, which `shape` is part of."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights of a small CLIP at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError:
        metadata = {}
    if "shape" not in metadata:
        raise ValueError(
            f"backbone.weights {str(path)!r} holds no small CLIP; weights of an open_clip model need its backbone.name"
        )
    return metadata


def _reason(error: Exception) -> str:
    return (
        one_line(error, "preprocessing") if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
    )


def _token_table(path: Path, state: dict[str, Tensor], text_width: int) -> tuple[list[int], Tensor]:
    """The trained ids, and the token embedding [49408, d_text]; both are removed from the state."""
    given = {name: state.pop(f"token_embedding.{name}", None) for name in ("ids", "rows")}
    absent = [f"token_embedding.{name}" for name, value in given.items() if value is None]
    ids, rows = given["ids"], given["rows"]
    if ids is None or rows is None:
        raise ValueError(f"{path} is not a small CLIP of this version: it has no {' and no '.join(absent)}")
    fits = ids.dtype == torch.int64 and ids.ndim == 1 and rows.shape == (len(ids), text_width)
    if not fits or not len(ids) or not 0 <= int(ids.min()) <= int(ids.max()) < _VOCABULARY:
        raise ValueError(
            f"{path} is not a small CLIP of this version: token_embedding.ids {list(ids.shape)} must be whole numbers "
            f"from 0 to {_VOCABULARY - 1}, token_embedding.rows {list(rows.shape)} one row of {text_width} for each"
        )
    table = torch.zeros(_VOCABULARY, text_width)
    table[ids] = rows.float()
    return ids.tolist(), table


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def embedded_weights() -> Path:
    """The path of the weights that ship with the package."""
    return Path(str(resources.files("clipautt.backbones") / "weights" / _WEIGHTS))
