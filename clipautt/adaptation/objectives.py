"""What tuned prompts minimise, and how a prediction is read out of a clip's windows. Pure tensor functions.

What this module does not know: prompts, optimisers, and how problems share a batch (`tuning`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipautt.adaptation.config import AdaptConfig, Readout
from clipautt.model.windows import entropy


def peak_window(logits: Tensor) -> int:
    """The window whose prediction is least like the neutral class, which is class 0; logits [V, C]."""
    return int(F.log_softmax(logits, dim=-1)[:, 0].argmin())


def read_out(logits: Tensor, index: Tensor, inside: Tensor, readout: Readout) -> Tensor:
    """One prediction per sample: the peak of its windows, or their mean.

    Args:
        logits: of the windows of B problems, [B, V, C].
        index: which windows belong to a sample, [B, S, W].
        inside: which places of `index` count, bool [B, S, W]; at least one in a sample that counts.
        readout: `peak_window`; with every other one the logits of a sample are averaged.

    Returns:
        Logits [B, S, C].
    """
    rows = torch.arange(len(logits), device=logits.device)[:, None, None]
    windows = logits[rows, index]  # [B, S, W, C]
    if readout == "peak_window":
        neutral = F.log_softmax(windows, dim=-1)[..., 0].masked_fill(~inside, torch.inf)
        best = neutral.argmin(-1)[..., None, None].expand(*windows.shape[:2], 1, windows.shape[-1])
        return windows.gather(2, best)[:, :, 0]
    counts = inside.sum(-1, keepdim=True).clamp_min(1)
    return windows.masked_fill(~inside[..., None], 0.0).sum(2) / counts


def objective_loss(
    logits: Tensor,
    source_logits: Tensor,
    config: AdaptConfig,
    *,
    inside: Tensor | None = None,
    prior: Tensor | None = None,
) -> Tensor:
    """The objective over S samples of each of B problems.

    `entropy`: mean entropy of the predictions. `infomax`: mean entropy plus `balance_weight` times the divergence of
    the mean prediction from the prior; with equal shares that is minus the mutual information at weight 1.
    `infomax_kl`: plus `kl_weight` times the mean divergence KL(source ‖ tuned).

    Args:
        logits: under the tuned prompts, [..., S, C].
        source_logits: under the source prompts, [..., S, C].
        config: names the objective and its weights.
        inside: which samples count, bool [..., S]; all by default.
        prior: shares of the classes, [..., C]; equal ones by default.

    Returns:
        [...], in nats.
    """
    inside = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device) if inside is None else inside

    def mean(values: Tensor) -> Tensor:
        return values.masked_fill(~inside, 0.0).sum(-1) / inside.sum(-1)

    value = mean(entropy(logits))
    if config.objective in ("infomax", "infomax_kl"):
        shares = F.softmax(logits, dim=-1).masked_fill(~inside[..., None], 0.0).sum(-2) / inside.sum(-1, keepdim=True)
        expected = 0.0 if prior is None else (prior * prior.shape[-1]).log()
        value = value + config.balance_weight * (shares * (shares.clamp_min(1e-12).log() - expected)).sum(-1)
    if config.objective == "infomax_kl":
        target = F.log_softmax(source_logits, dim=-1)
        divergence = (target.exp() * (target - F.log_softmax(logits, dim=-1))).sum(-1)
        value = value + config.kl_weight * mean(divergence)
    return value
