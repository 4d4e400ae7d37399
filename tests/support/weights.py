"""Files of weights as others publish them, with the random weights of a small model inside."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP, convert_weights_to_fp16
from safetensors.torch import save_file
from torch import Tensor, nn


def write_weights(path: Path, model: CLIP | CustomTextCLIP) -> Path:
    """An open_clip model's weights, as its state dict; the suffix chooses safetensors or PyTorch's format."""
    state = {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def write_openai_weights(path: Path, model: CLIP, *, archive: bool = False) -> Path:
    """A model's weights in the format of OpenAI's release: half precision, three numbers among the tensors.

    Args:
        path: `.safetensors`, or `.pt` for PyTorch's format.
        model: whose weights are written; it is not changed.
        archive: writes a TorchScript archive, as OpenAI's own files are, to a `.pt`.
    """
    state = openai_state_dict(model)
    if archive:
        write_archive(path, state)
    elif path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def openai_state_dict(model: CLIP) -> dict[str, Tensor]:
    """The tensors of such a file: layers in float16, norms and embeddings in float32, and the three numbers."""
    half = copy.deepcopy(model)
    convert_weights_to_fp16(half)
    state = {name: value.detach().clone().contiguous() for name, value in half.state_dict().items()}
    size = model.visual.image_size
    return {
        **state,
        "input_resolution": torch.tensor(size[0] if isinstance(size, tuple) else size),
        "context_length": torch.tensor(model.context_length),
        "vocab_size": torch.tensor(model.vocab_size),
    }


def write_training_checkpoint(path: Path, model: CLIP | CustomTextCLIP, *, parallel: bool = True) -> Path:
    """A checkpoint as open_clip's training writes it, from several GPUs or one."""
    prefix = "module." if parallel else ""
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "a run", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


class _Tree(nn.Module):
    """Parameters and nothing to do with them."""

    def forward(self) -> int:
        return 0


def write_archive(path: Path, state: Mapping[str, Tensor]) -> Path:
    """Tensors in a TorchScript archive without code that does anything."""
    root = _Tree()
    for name, value in state.items():
        *folders, leaf = name.split(".")
        module: Any = root
        for folder in folders:
            if folder not in module._modules:
                module.add_module(folder, _Tree())
            module = module._modules[folder]
        module.register_buffer(leaf, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jit: Any = torch.jit
        jit.save(jit.script(root), str(path))
    return path
