"""How a clip is predicted from its windows. Pure tensor functions: window logits in, the chosen window or clip
logits out.

`best_window` takes the window of lowest entropy (as published), `peak_window` the one least like the neutral class,
`mean_windows` the mean of all windows' logits, `whole_clip` the clip as a single window.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipautt.model.windows import entropy

Readout = Literal["best_window", "mean_windows", "peak_window", "whole_clip"]


def chosen_window(logits: Tensor, readout: Readout) -> int:
    """Index of the window that a prediction is based on.

    Args:
        logits: logits of all windows of a clip, [V, C]; class 0 is the neutral one.
        readout: `peak_window` takes the window least like the neutral class, the others the one of lowest entropy.
    """
    if readout == "peak_window":
        return int(F.log_softmax(logits, dim=-1)[:, 0].argmin())
    return int(entropy(logits).argmin())


def most_certain_windows(logits: Tensor, count: int) -> list[int]:
    """Indices of the windows of lowest entropy, most certain first; logits [V, C]."""
    return entropy(logits).argsort(stable=True)[:count].tolist()


def read_clip(logits: Tensor, readout: Readout, *, chosen: int | None = None) -> tuple[Tensor, int]:
    """Predict a clip from its windows.

    Args:
        logits: logits of all windows of the clip, [V, C].
        readout: how they become one prediction.
        chosen: index of the window chosen before tuning; `peak_window` always chooses again.

    Returns:
        Logits of the clip [C], and the index of the window they are based on.
    """
    if chosen is None or readout == "peak_window":
        chosen = chosen_window(logits, readout)
    return (logits.mean(0) if readout == "mean_windows" else logits[chosen]), chosen


def read_samples(logits: Tensor, index: Tensor, inside: Tensor, readout: Readout) -> Tensor:
    """`read_clip` for the samples of many problems at once, differentiable.

    Args:
        logits: logits of the windows of B problems, [B, V, C].
        index: indices of the windows of each sample, [B, S, W].
        inside: True where an entry of `index` is not padding, bool [B, S, W].
        readout: `peak_window` takes a sample's peak window; the others average its windows' logits.

    Returns:
        Logits of the samples, [B, S, C]; meaningless for samples that are all padding.
    """
    rows = torch.arange(len(logits), device=logits.device)[:, None, None]
    windows = logits[rows, index]  # [B, S, W, C]
    if readout == "peak_window":
        neutral = F.log_softmax(windows, dim=-1)[..., 0].masked_fill(~inside, torch.inf)
        best = neutral.argmin(-1)[..., None, None].expand(*windows.shape[:2], 1, windows.shape[-1])
        return windows.gather(2, best)[:, :, 0]
    counts = inside.sum(-1, keepdim=True).clamp_min(1)
    return windows.masked_fill(~inside[..., None], 0.0).sum(2) / counts
