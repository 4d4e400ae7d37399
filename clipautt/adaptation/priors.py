"""Class priors: how common each class is, given, estimated from unlabelled predictions, or assumed after the fact.

A classifier's probabilities hold the shares of the classes it was trained on. Where the classes are more or less common
among the clips at hand, Bayes' rule puts these shares in place of the old ones, without touching the classifier. Pure
tensor functions; with two or more classes the last one is the positive one.

Source: Saerens, Latinne and Decaestecker, *Adjusting the Outputs of a Classifier to New a Priori Probabilities: A
Simple Procedure*, Neural Computation 14(1), 2002, doi:10.1162/089976602753284446.

What this module does not know: labels, subjects, or whether the probabilities are calibrated. All of it assumes that
the classes look alike here and in training and that only their shares differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_SUM_TOLERANCE = 1e-4


def class_prior(share: float, training_prior: Sequence[float] | Tensor) -> Tensor:
    """The share of every class, given that of the positive (last) one.

    Args:
        share: of the positive class, 0 < share < 1.
        training_prior: shares that the probabilities were trained on, [C], C from 2, each above 0, sum 1. The other
            classes divide the rest in the proportions they have here.

    Returns:
        float64 [C]; exactly the training prior where the share is the one it has.

    Raises:
        ValueError: for a share or a training prior outside these bounds.
    """
    if not 0 < share < 1:
        raise ValueError(f"adapt.prior={share}; allowed are shares of the positive class above 0 and below 1")
    trained = _checked(training_prior, "training_prior")
    if share == float(trained[-1]):
        return trained
    others = trained[:-1] * ((1 - share) / trained[:-1].sum())
    return torch.cat([others, others.new_tensor([share])])


def shift(logits: Tensor, prior: Sequence[float] | Tensor, training_prior: Sequence[float] | Tensor) -> Tensor:
    """Logits as they are where the classes have other shares: logits + log(prior) − log(training_prior).

    Saerens et al. (2002). Softmax of the result is the posterior under `prior` if softmax of `logits` is
    the one under `training_prior`. Gradients pass to `logits`.

    Args:
        logits: [..., C], any float type.
        prior: shares to assume, [C], each above 0, sum 1.
        training_prior: shares inside the logits, [C], each above 0, sum 1.

    Returns:
        [..., C], dtype and device of `logits`; the very same tensor where both priors are equal.

    Raises:
        ValueError: for shares that are not above 0, do not sum to 1 or do not fit the classes.
    """
    wanted, trained = _checked(prior, "prior"), _checked(training_prior, "training_prior")
    for name, given in {"prior": wanted, "training_prior": trained}.items():
        if logits.shape[-1:] != given.shape:
            raise ValueError(
                f"{name} has {len(given)} shares for logits {list(logits.shape)}; allowed is one per class"
            )
    if torch.equal(wanted, trained):
        return logits
    return logits + (wanted.log() - trained.log()).to(logits)


@torch.no_grad()
def estimate_prior(
    logits: Tensor, training_prior: Sequence[float] | Tensor, *, max_steps: int = 100, tolerance: float = 1e-4
) -> Tensor:
    """The shares of the classes among unlabelled predictions, by expectation and maximisation.

    Saerens et al. (2002): the predictions are shifted to the current shares, whose next value is the mean of the
    shifted probabilities; the start is the training prior. Under a floor, each step takes the most likely shares that
    respect it. The floor is 1 / (N + C), which is less than one clip: N clips cannot tell a rarer class from an absent
    one, and a share of 0 would have no logarithm and could never rise again.

    When it fails. It needs calibrated probabilities. The more over-confident they are, the closer the estimate comes to
    the share of hard decisions, errors included: with two normal classes 1.5 deviations apart and 10% positives it
    finds 10% from calibrated logits, 22% from logits three times and 26% from logits ten times too large, and 0.1% from
    logits of a third of their size. With few clips it scatters: 20 clips with 20% positives, the classes two deviations
    apart, gave 10% to 21%, and one deviation apart 5% (the floor) to 26%.

    Args:
        logits: of N predictions, [N, C], N from 1, finite; in any order, which does not change the result.
        training_prior: shares inside the logits, [C], each above 0, sum 1.
        max_steps: at most so many steps, from 1.
        tolerance: no further step once no share moved by as much, above 0.

    Returns:
        float64 [C] on the CPU, sum 1, each share at least 1 / (N + C).

    Raises:
        ValueError: without predictions, for logits that are not finite or of another shape, or for such a prior, number
            of steps or tolerance.
    """
    trained = _checked(training_prior, "training_prior")
    if logits.ndim != 2 or not len(logits) or logits.shape[1] != len(trained):
        raise ValueError(f"logits are {list(logits.shape)}; allowed are [N, {len(trained)}] with N from 1")
    if not torch.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinity; allowed are finite ones")
    if max_steps < 1 or not tolerance > 0:
        raise ValueError(f"max_steps={max_steps}, tolerance={tolerance}; allowed are steps from 1, tolerance above 0")
    # Sorted and counted, so that sums are added in the same order whatever the order of the rows.
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
    """Probabilities of the positive one of two classes, as they are at another share of it: a curve over `share`.

    `shift` for probabilities: p·a / (p·a + (1 − p)·b) with a = share / made_with and b = (1 − share) / (1 − made_with).
    0 and 1 stay what they are.

    Example:
        >>> assume_share(torch.tensor([0.5, 0.8, 0.9]), 0.2, made_with=0.5)
        tensor([0.2000, 0.5000, 0.6923], dtype=torch.float64)

    Args:
        probability: of the positive class, 0..1, any shape.
        share: to assume, 0 < share < 1.
        made_with: share inside the probabilities, above 0 and below 1: one for all, or one each.

    Returns:
        float64, the shape of `probability`.

    Raises:
        ValueError: for a value outside these bounds, NaN included.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share}; allowed are shares above 0 and below 1")
    given = probability.to(torch.float64)
    inside = torch.as_tensor(made_with, dtype=torch.float64, device=given.device)
    for name, values, allowed in (
        ("probability", given, (given >= 0) & (given <= 1)),
        ("made_with", inside, (inside > 0) & (inside < 1)),
    ):
        if not allowed.all():
            bounds = "from 0 to 1" if name == "probability" else "above 0 and below 1"
            raise ValueError(f"{name} holds {float(values[~allowed].flatten()[0])}; allowed are values {bounds}")
    positive, negative = given * (share / inside), (1 - given) * ((1 - share) / (1 - inside))
    return positive / (positive + negative)


def _checked(prior: Sequence[float] | Tensor, name: str) -> Tensor:
    """A prior as float64 [C] on the CPU."""
    values = torch.as_tensor(prior, dtype=torch.float64, device="cpu")
    shares = bool(values.ndim == 1 and len(values) > 1 and (values > 0).all())
    if not shares or not abs(float(values.sum()) - 1) < _SUM_TOLERANCE:
        raise ValueError(f"{name}={values.tolist()}; allowed are two or more shares above 0 whose sum is 1")
    return values


def _raised(shares: Tensor, floor: float) -> Tensor:
    """The shares [C] with none below the floor: those that would be stand on it, the others divide the rest."""
    low = shares < floor
    while True:
        # Scaling the others down may push one of them below the floor in turn.
        rest = 1 - floor * int(low.sum())
        raised = torch.where(low, torch.full_like(shares, floor), shares * (rest / shares[~low].sum()))
        if not (raised < floor).any():
            return raised
        low = low | (raised < floor)
