"""Files of CLIP weights: read without running code in them, recognized, and loaded into a model.

Supported are safetensors, PyTorch's files of tensors, checkpoints of open_clip's training (`state_dict` inside,
`module.` before each name), and the files of OpenAI's release (a TorchScript archive, or its tensors). Weights of any
precision become float32.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import CLIP, CustomTextCLIP, convert_to_custom_text_state_dict
from safetensors.torch import load_file
from torch import Tensor

from clipautt.backbones.names import SUFFIXES
from clipautt.backbones.tensor_files import OtherObjectsError, read_tensors

_TENSORS = '{k: v for k, v in c.get("state_dict", c).items() if isinstance(v, torch.Tensor)}'
OPENAI_ENTRIES = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Entries that only OpenAI's files hold among the weights."""


@dataclass(frozen=True, eq=False)
class WeightFile:
    """What a file of weights holds."""

    path: Path
    """Where it is."""
    state: Mapping[str, Tensor]
    """The weights by name."""
    openai: bool
    """Whether the file has the format of OpenAI's release, whose models were trained with QuickGELU."""


def read_weights(path: Path) -> WeightFile:
    """Read a file of weights; other objects in it are never unpickled.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another suffix, or a file that is broken or holds no weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"backbone.weights: there is no file {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"backbone.weights: {path} has the suffix {path.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    try:
        content, archive = _read(path)
    except OtherObjectsError as error:
        raise ValueError(f"backbone.weights: {path} {error}") from error
    except Exception as error:  # torch and safetensors raise many types for a broken file
        raise ValueError(f"backbone.weights: {path} could not be read: {_reason(error)}") from error
    state = _state_dict(content, path)
    openai = archive or bool(OPENAI_ENTRIES & state.keys())
    return WeightFile(path, {key: value for key, value in state.items() if key not in OPENAI_ENTRIES}, openai)


def _read(path: Path) -> tuple[Any, bool]:
    """The content of a file, and whether it is a TorchScript archive."""
    if path.suffix.lower() == ".safetensors":
        return load_file(path), False
    if not _is_torchscript(path):
        return read_tensors(path, keep=_TENSORS), False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but OpenAI's files use it
        jit: Any = torch.jit
        return dict(jit.load(path, map_location="cpu").state_dict()), True


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _reason(error: Exception) -> str:
    if isinstance(error, UnpicklingError):  # PyTorch's message explains how to run the code in the file
        return "it is not a complete file of tensors"
    return (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else 'broken file'}"
    )


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name, taken out of a training checkpoint where they are inside one."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    named = isinstance(content, Mapping) and all(isinstance(key, str) for key in content)
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)} if named else {}
    if not state or len(state) < len(content):
        raise ValueError(f"backbone.weights: {path} holds no state dict (tensors by name)")
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): value for key, value in state.items()}


def load_weights(model: CLIP | CustomTextCLIP, weights: WeightFile, *, name: str) -> None:
    """Load weights into a model of the same architecture.

    Args:
        model: float32; changed in place.
        weights: a state dict of open_clip, OpenAI or MobileCLIP.
        name: of the model, for the message.

    Raises:
        ValueError: if the weights belong to another architecture.
    """
    expected = model.state_dict()
    given = _converted(model, weights.state)
    missing = sorted(expected.keys() - given.keys())
    foreign = sorted(given.keys() - expected.keys())
    shapes = [
        f"{key} {list(given[key].shape)} for {list(value.shape)}"
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    findings = {"missing": missing, "unexpected": foreign, "of another shape": shapes}
    told = [f"{len(names)} tensors {kind} (first: {names[0]})" for kind, names in findings.items() if names]
    if told:
        raise ValueError(f"backbone.weights: {weights.path} does not fit backbone.name {name!r}: {', '.join(told)}")
    model.load_state_dict(given)


def _converted(model: CLIP | CustomTextCLIP, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict converted by open_clip to the model's names."""
    given: dict[str, Tensor] = dict(convert_state_dict(model, dict(state)))
    if isinstance(model, CustomTextCLIP):
        given = convert_to_custom_text_state_dict(given)
    if "logit_scale" in given and given["logit_scale"].numel() == 1:
        given["logit_scale"] = given["logit_scale"].reshape(model.logit_scale.shape)
    if model.logit_bias is None:  # no feature depends on it
        given.pop("logit_bias", None)
    else:
        given["logit_bias"] = given.get("logit_bias", torch.zeros(1)).reshape(model.logit_bias.shape)
    return given
