"""Class priors: set shares, estimate them from unlabelled predictions, or apply them to finished probabilities.

A classifier's probabilities reflect the class shares of its training data. Where the classes are more or less common
among the clips at hand, Bayes' rule replaces the old shares by new ones without changing the classifier. Pure tensor
functions; the last class is the positive one. Everything here assumes that probabilities are calibrated, and that the
classes look the same as in training and differ in their shares only.

Source: Saerens, Latinne and Decaestecker, *Adjusting the Outputs of a Classifier to New a Priori Probabilities: A
Simple Procedure*, Neural Computation 14(1), 2002, doi:10.1162/089976602753284446.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_SUM_TOLERANCE = 1e-4


def class_prior(share: float, training_prior: Sequence[float] | Tensor) -> Tensor:
    """The share of every class, computed from that of the positive (last) one.

    Args:
        share: share of the positive class, 0 < share < 1.
        training_prior: class shares in training, [C], C ≥ 2, each above 0, sum 1. The other classes divide the rest
            in the proportions they have here.

    Returns:
        float64 [C]; exactly the training prior if `share` equals its last entry.

    Raises:
        ValueError: for a share or a training prior outside these bounds.
    """
    if not 0 < share < 1:
        raise ValueError(f"adapt.prior={share}; allowed: shares of the positive class above 0 and below 1")
    trained = _checked(training_prior, "training_prior")
    if share == float(trained[-1]):
        return trained
    others = trained[:-1] * ((1 - share) / trained[:-1].sum())
    return torch.cat([others, others.new_tensor([share])])


def shift(logits: Tensor, prior: Sequence[float] | Tensor, training_prior: Sequence[float] | Tensor) -> Tensor:
    """Shift logits to other class shares: logits + log(prior) − log(training_prior).

    Saerens et al. (2002). Softmax of the result is the posterior under `prior` if softmax of `logits` is
    the one under `training_prior`. Gradients pass to `logits`.

    Args:
        logits: [..., C], any float type.
        prior: shares to assume, [C], each above 0, sum 1.
        training_prior: shares implicit in the logits, [C], each above 0, sum 1.

    Returns:
        [..., C], dtype and device of `logits`; the same tensor object if both priors are equal.

    Raises:
        ValueError: for shares that are not above 0, do not sum to 1 or do not match the number of classes.
    """
    wanted, trained = _checked(prior, "prior"), _checked(training_prior, "training_prior")
    for name, shares in {"prior": wanted, "training_prior": trained}.items():
        if logits.shape[-1:] != shares.shape:
            raise ValueError(
                f"{name} has {len(shares)} shares for logits {list(logits.shape)}; allowed is one per class"
            )
    if torch.equal(wanted, trained):
        return logits
    return logits + (wanted.log() - trained.log()).to(logits)


@torch.no_grad()
def estimate_prior(
    logits: Tensor, training_prior: Sequence[float] | Tensor, *, max_steps: int = 100, tolerance: float = 1e-4
) -> Tensor:
    """Estimate class shares from unlabelled predictions, by expectation maximization.

    Saerens et al. (2002): predictions are shifted to the current shares, and the mean of the shifted probabilities
    gives the next shares, starting from the training prior. Each step takes the most likely shares above a floor.
    The floor is 1 / (N + C), which is less than one clip: N clips cannot tell a rarer class from an absent one, and
    a share of 0 would have no logarithm and could never rise again.

    Limits: it needs calibrated probabilities. The more over-confident they are, the closer the estimate comes to
    the share of hard decisions, errors included: with two normal classes 1.5 deviations apart and 10% positives it
    finds 10% from calibrated logits, 22% from logits three times and 26% from logits ten times too large, and 0.1% from
    logits of a third of their size. With few clips it scatters: 20 clips with 20% positives, the classes two deviations
    apart, gave 10% to 21%, and one deviation apart 5% (the floor) to 26%.

    Args:
        logits: logits of N ≥ 1 predictions, [N, C], finite; their order does not change the result.
        training_prior: shares implicit in the logits, [C], each above 0, sum 1.
        max_steps: largest number of steps, from 1.
        tolerance: stop once every share changes by less than this, above 0.

    Returns:
        float64 [C] on the CPU, sum 1, each share at least 1 / (N + C).

    Raises:
        ValueError: without predictions, or if an argument is not as described above.
    """
    trained = _checked(training_prior, "training_prior")
    if logits.ndim != 2 or not len(logits) or logits.shape[1] != len(trained):
        raise ValueError(f"logits are {list(logits.shape)}; allowed: [N, {len(trained)}] with N from 1")
    if not torch.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinity; allowed: finite ones")
    if max_steps < 1 or not tolerance > 0:
        raise ValueError(f"max_steps={max_steps}, tolerance={tolerance}; allowed: steps from 1, tolerance above 0")
    # Sort and count rows, so that sums do not depend on their order.
    rows, counts = torch.unique(logits.to("cpu", torch.float64), dim=0, return_counts=True)
    inside = F.log_softmax(rows, dim=-1) - trained.log()
    weights = counts.to(torch.float64)[:, None] / len(logits)
    floor = 1 / (len(logits) + len(trained))
    prior = _raised(trained, floor)
    for _ in range(max_steps):
        following = _raised((F.softmax(inside + prior.log(), dim=-1) * weights).sum(0), floor)
        moved = float((following - prior).abs().max())
        prior = following
        if moved < tolerance:
            break
    return prior


def assume_share(probability: Tensor, share: float, *, made_with: Tensor | float) -> Tensor:
    """Convert probabilities of the positive of two classes to another share of that class.

    `shift` for probabilities: p·a / (p·a + (1 − p)·b) with a = share / made_with and b = (1 − share) / (1 − made_with).
    0 and 1 are unchanged.

    Example:
        >>> assume_share(torch.tensor([0.5, 0.8, 0.9]), 0.2, made_with=0.5)
        tensor([0.2000, 0.5000, 0.6923], dtype=torch.float64)

    Args:
        probability: probabilities of the positive class, 0..1, any shape.
        share: share to assume, 0 < share < 1.
        made_with: share that the probabilities assume so far, above 0 and below 1: a single one, or one per value.

    Returns:
        float64, the shape of `probability`.

    Raises:
        ValueError: for a value outside these bounds, NaN included.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share}; allowed: shares above 0 and below 1")
    before = probability.to(torch.float64)
    assumed = torch.as_tensor(made_with, dtype=torch.float64, device=before.device)
    for name, values, allowed in (
        ("probability", before, (before >= 0) & (before <= 1)),
        ("made_with", assumed, (assumed > 0) & (assumed < 1)),
    ):
        if not allowed.all():
            bounds = "from 0 to 1" if name == "probability" else "above 0 and below 1"
            raise ValueError(f"{name} holds {float(values[~allowed].flatten()[0])}; allowed: values {bounds}")
    positive, negative = before * (share / assumed), (1 - before) * ((1 - share) / (1 - assumed))
    return positive / (positive + negative)


def _checked(prior: Sequence[float] | Tensor, name: str) -> Tensor:
    """Validate a prior and return it as float64 [C] on the CPU."""
    values = torch.as_tensor(prior, dtype=torch.float64, device="cpu")
    shares = bool(values.ndim == 1 and len(values) > 1 and (values > 0).all())
    if not shares or not abs(float(values.sum()) - 1) < _SUM_TOLERANCE:
        raise ValueError(f"{name}={values.tolist()}; allowed: two or more shares above 0 whose sum is 1")
    return values


def _raised(shares: Tensor, floor: float) -> Tensor:
    """Raise shares [C] below the floor to it, and scale the others down to divide the rest."""
    low = shares < floor
    while True:
        # Scaling the others down may push one of them below the floor in turn.
        rest = 1 - floor * int(low.sum())
        raised = torch.where(low, torch.full_like(shares, floor), shares * (rest / shares[~low].sum()))
        if not (raised < floor).any():
            return raised
        low = low | (raised < floor)
