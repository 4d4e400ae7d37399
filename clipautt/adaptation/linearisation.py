"""The text tower's Jacobian at the source prompts: what a small change of the context does to each prompt's feature.

It belongs to backbone and prompts and takes d passes back through the tower, minutes for a large one; so it is kept in
a file beside the checkpoint. What this module does not know: what the linear model is used for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def tower_jacobian(read: Callable[[Tensor], Tensor], context: Tensor) -> Tensor:
    """∂t_k/∂c_k for every prompt k, at one context.

    Args:
        read: context [1, K, M, d_text] → text features [1, K, d]; a prompt's feature depends on its own context alone.
        context: [K, M, d_text].

    Returns:
        float32 [K, d, M · d_text].
    """
    here = context.detach()[None].clone().requires_grad_(True)
    features = read(here)[0]
    rows = [
        torch.autograd.grad(features[:, column].sum(), here, retain_graph=True)[0][0].flatten(1)
        for column in range(features.shape[-1])
    ]
    return torch.stack(rows, dim=1)


def linear_reader(jacobian: Tensor, context: Tensor, features: Tensor) -> Callable[[Tensor], Tensor]:
    """The first-order model of a tower: context [B, K, M, d_text] → features [B, K, d].

    Args:
        jacobian: [K, d, M · d_text], see `tower_jacobian`.
        context: where the value is exact, [K, M, d_text] or [B, K, M, d_text].
        features: the value there, [K, d] or [B, K, d].
    """

    def read(changed: Tensor) -> Tensor:
        moved = (changed - context).flatten(2).transpose(0, 1)  # [K, B, M · d_text]
        return features + torch.bmm(moved, jacobian.transpose(1, 2)).transpose(0, 1)

    return read


def load_jacobian(path: Path, *, fingerprint: str) -> Tensor | None:
    """The Jacobian in a file; None where there is none, or one of other prompts or another backbone."""
    try:
        with safe_open(path, framework="pt") as file:
            same = (file.metadata() or {}).get("fingerprint") == fingerprint
            jacobian: Tensor | None = file.get_tensor("jacobian") if same else None
    except (OSError, SafetensorError):
        return None
    return jacobian


def save_jacobian(jacobian: Tensor, path: Path, *, fingerprint: str) -> None:
    """Write it aside and rename.

    Raises:
        OSError: if the folder cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({"jacobian": jacobian.contiguous().cpu()}, aside, metadata={"fingerprint": fingerprint})
        os.replace(aside, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({error})") from error
    finally:
        aside.unlink(missing_ok=True)
