"""Losses that prompt tuning minimizes, as pure tensor functions: logits in, one loss per problem out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipautt.model.windows import entropy

if TYPE_CHECKING:
    from clipautt.adaptation.methods.clip_autt.method import ClipAUTT

Objective = Literal["none", "entropy", "infomax", "infomax_kl"]


def objective_loss(
    logits: Tensor,
    source_logits: Tensor,
    method: ClipAUTT,
    *,
    inside: Tensor | None = None,
    prior: Tensor | None = None,
) -> Tensor:
    """Compute the objective over the S samples of each problem.

    `entropy`: mean entropy of the predictions. `infomax`: mean entropy plus `balance_weight` times the divergence of
    the mean prediction from the prior; with equal shares that is minus the mutual information at weight 1.
    `infomax_kl`: plus `kl_weight` times the mean divergence KL(source ‖ tuned).

    Args:
        logits: under the tuned prompts, [..., S, C].
        source_logits: under the source prompts, [..., S, C].
        method: settings with the objective and its weights.
        inside: True for samples that count, bool [..., S]; all by default.
        prior: assumed class shares, [..., C]; equal by default.

    Returns:
        Loss of each problem, [...], nats.
    """
    inside = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device) if inside is None else inside

    def mean(values: Tensor) -> Tensor:
        return values.masked_fill(~inside, 0.0).sum(-1) / inside.sum(-1)

    value = mean(entropy(logits))
    if method.objective in ("infomax", "infomax_kl"):
        shares = F.softmax(logits, dim=-1).masked_fill(~inside[..., None], 0.0).sum(-2) / inside.sum(-1, keepdim=True)
        expected = 0.0 if prior is None else (prior * prior.shape[-1]).log()
        value = value + method.balance_weight * (shares * (shares.clamp_min(1e-12).log() - expected)).sum(-1)
    if method.objective == "infomax_kl":
        target = F.log_softmax(source_logits, dim=-1)
        divergence = (target.exp() * (target - F.log_softmax(logits, dim=-1))).sum(-1)
        value = value + method.kl_weight * mean(divergence)
    return value
