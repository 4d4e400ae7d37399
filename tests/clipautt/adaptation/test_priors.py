"""Class priors: literal shifts, and estimates from mixtures whose shares are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from clipautt.adaptation.priors import assume_share, class_prior, estimate_prior, shift

BALANCED = (0.5, 0.5)


def mixture(count: int, share: float, *, apart: float = 2.0, confidence: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits [N, 2] and labels [N] of two normal classes at even quantiles of each.

    At confidence 1 the logits are exactly calibrated for balanced classes: the log odds of x are `apart` times x.
    """
    labels = (torch.arange(count) >= count - round(count * share)).long()
    x = torch.empty(count, dtype=torch.float64)
    for label in (0, 1):
        own = int((labels == label).sum())
        even = (torch.arange(own, dtype=torch.float64) + 0.5) / own
        x[labels == label] = torch.special.ndtri(even) + (label - 0.5) * apart
    return torch.stack([-x, x], dim=1) * apart / 2 * confidence, labels


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def test_the_other_classes_share_the_rest() -> None:
    assert class_prior(0.2, BALANCED).tolist() == [0.8, 0.2]
    assert class_prior(0.4, (0.6, 0.2, 0.2)).tolist() == pytest.approx([0.45, 0.15, 0.4])
    assert class_prior(0.2, BALANCED).dtype == torch.float64


@pytest.mark.parametrize("trained", [(1 / 3, 2 / 3), (0.31, 0.49, 0.2), (0.93, 0.07)])
def test_the_share_of_training_gives_the_prior_of_training(trained: tuple[float, ...]) -> None:
    assert class_prior(trained[-1], trained).tolist() == list(trained)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan, math.inf])
def test_a_share_outside_is_named(share: float) -> None:
    with pytest.raises(
        ValueError, match=rf"adapt\.prior={share}; allowed: shares of the positive class above 0 and below 1"
    ):
        class_prior(share, BALANCED)


@pytest.mark.parametrize("trained", [(0.5, 0.6), (1.0, 0.0), (1.0,), (math.nan, 0.5)])
def test_a_training_prior_that_is_none_is_named(trained: tuple[float, ...]) -> None:
    allowed = r"; allowed: two or more shares above 0 whose sum is 1"
    with pytest.raises(ValueError, match=rf"training_prior=\[{trained[0]}.*\]{allowed}"):
        class_prior(0.2, trained)
    with pytest.raises(ValueError, match=rf" ?prior=\[.*\]{allowed}"):
        shift(torch.zeros(1, 2), trained, BALANCED)


def test_shift_by_hand() -> None:
    """Even odds become those of the new prior, 1 to 4; probability 0.8 at equal shares is even at 20%."""
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(4)]], dtype=torch.float64)
    moved = shift(logits, (0.8, 0.2), BALANCED).softmax(-1)
    assert moved.flatten().tolist() == pytest.approx([0.8, 0.2, 0.5, 0.5])
    back = shift(shift(logits, (0.8, 0.2), BALANCED), BALANCED, (0.8, 0.2))
    assert back.flatten().tolist() == pytest.approx(logits.flatten().tolist())


def test_shift_of_many_windows_keeps_type_and_gradient() -> None:
    logits = torch.zeros(3, 4, 2, dtype=torch.bfloat16, requires_grad=True)
    moved = shift(logits, (0.8, 0.2), BALANCED)
    assert moved.dtype == torch.bfloat16 and moved.shape == (3, 4, 2)
    moved.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and (logits.grad == 1).all()


def test_shift_to_the_prior_of_training_is_nothing() -> None:
    logits = torch.randn(5, 3)
    assert shift(logits, class_prior(0.2, (0.31, 0.49, 0.2)), (0.31, 0.49, 0.2)) is logits


def test_priors_of_other_classes_are_named() -> None:
    with pytest.raises(ValueError, match=r"prior has 3 shares for logits \[5, 2\]; allowed is one per class"):
        shift(torch.zeros(5, 2), (0.2, 0.3, 0.5), BALANCED)
    with pytest.raises(ValueError, match=r"training_prior has 3 shares for logits \[5, 2\]"):
        shift(torch.zeros(5, 2), BALANCED, (0.2, 0.3, 0.5))


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8])
def test_estimates_are_near_the_truth_and_mend_the_decisions(share: float) -> None:
    logits, labels = mixture(2000, share)
    prior = estimate_prior(logits, BALANCED)
    assert prior.dtype == torch.float64
    assert prior[1].item() == pytest.approx(share, abs=0.01)
    assert prior.sum().item() == pytest.approx(1, abs=1e-12)
    # The best that any threshold can do, which the estimate comes near and equal shares do not.
    margin = (logits[:, 1] - logits[:, 0]).numpy()
    best = max(float(((margin > cut) == (labels.numpy() == 1)).mean()) for cut in np.linspace(-4, 4, 161))
    assert accuracy(shift(logits, prior, BALANCED), labels) > best - 0.003
    if share == 0.05:
        assert accuracy(logits, labels) < best - 0.1


def test_estimates_undo_another_prior_of_training() -> None:
    """Logits that carry 20% positives, on equal shares: the estimate is relative to what is inside the logits."""
    logits, _ = mixture(2000, 0.5)
    assert estimate_prior(shift(logits, (0.8, 0.2), BALANCED), (0.8, 0.2))[1].item() == pytest.approx(0.5, abs=0.01)


def test_three_classes_are_estimated() -> None:
    """Classes that are told apart without doubt: 5, 3 and 2 of 10 clips."""
    logits = 50 * torch.eye(3)[torch.tensor([0] * 5 + [1] * 3 + [2] * 2)]
    assert estimate_prior(logits, (0.2, 0.2, 0.6)).tolist() == pytest.approx([0.5, 0.3, 0.2])


def test_over_confident_logits_lead_to_the_share_of_hard_decisions() -> None:
    """What the docstring says of failure, and its figures."""
    found = {k: estimate_prior(mixture(10_000, 0.1, apart=1.5, confidence=k)[0], BALANCED) for k in (1, 3, 10, 1 / 3)}
    decided = float((mixture(10_000, 0.1, apart=1.5)[0].argmax(1) == 1).double().mean())
    assert decided == pytest.approx(0.281, abs=0.001)
    assert [round(prior[1].item(), 2) for prior in found.values()] == [0.1, 0.22, 0.26, 0.0]


def test_no_share_falls_below_the_floor() -> None:
    """Ten clips that are surely class 1 of 3: 1 / (10 + 3) is left to each other class, and the shift stays finite."""
    logits = torch.tensor([[0.0, 100.0, 0.0]]).repeat(10, 1)
    prior = estimate_prior(logits, (0.4, 0.3, 0.3))
    assert prior.tolist() == pytest.approx([1 / 13, 11 / 13, 1 / 13])
    assert torch.isfinite(shift(logits, prior, (0.4, 0.3, 0.3))).all()


def test_raising_one_share_may_lower_another_to_the_floor() -> None:
    """Clips that say nothing leave the prior as it is, but for the floor of 1/6: 0.19 falls below it in its turn."""
    trained = (0.6, 0.2, 0.19, 0.01)
    logits = torch.tensor([trained, trained], dtype=torch.float64).log()
    assert estimate_prior(logits, trained).tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])


def test_the_order_of_clips_does_not_matter() -> None:
    logits = mixture(501, 0.3)[0].float() * 1.37
    first = estimate_prior(logits, BALANCED)
    for seed in range(5):
        order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(estimate_prior(logits[order], BALANCED), first)


def test_more_steps_come_closer_until_the_tolerance() -> None:
    logits = mixture(400, 0.05, apart=1.0)[0]
    wide, narrow = (estimate_prior(logits, BALANCED, tolerance=value)[1].item() for value in (0.03, 1e-9))
    one, hundred = (estimate_prior(logits, BALANCED, max_steps=n, tolerance=1e-9)[1].item() for n in (1, 100))
    assert one > wide > hundred == narrow > 0.03


def test_estimates_pass_no_gradient() -> None:
    assert not estimate_prior(torch.zeros(3, 2, requires_grad=True), BALANCED).requires_grad


@pytest.mark.parametrize("shape", [(0, 2), (4, 3), (2,)])
def test_logits_of_another_shape_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits are \[[0-9, ]+\]; allowed: \[N, 2\] with N from 1"):
        estimate_prior(torch.zeros(shape), BALANCED)


def test_other_wrong_arguments_of_an_estimate_are_named() -> None:
    with pytest.raises(ValueError, match="logits hold NaN or infinity; allowed: finite ones"):
        estimate_prior(torch.tensor([[0.0, math.nan]]), BALANCED)
    with pytest.raises(ValueError, match=r"max_steps=0, tolerance=0\.1; allowed: steps from 1, tolerance above 0"):
        estimate_prior(torch.zeros(1, 2), BALANCED, max_steps=0, tolerance=0.1)
    with pytest.raises(ValueError, match=r"max_steps=9, tolerance=nan"):
        estimate_prior(torch.zeros(1, 2), BALANCED, max_steps=9, tolerance=math.nan)


def test_assumed_shares_by_hand() -> None:
    """At equal shares in the probability, a share of 20% is a threshold of 80%, and 0 and 1 are beyond doubt."""
    moved = assume_share(torch.tensor([0.0, 0.5, 0.8, 0.9, 1.0], dtype=torch.float64), 0.2, made_with=0.5)
    assert moved.tolist() == pytest.approx([0.0, 0.2, 0.5, 9 / 13, 1.0])
    each = assume_share(torch.tensor([0.5, 0.5]), 0.2, made_with=torch.tensor([0.2, 0.5]))
    assert each.tolist() == pytest.approx([0.5, 0.2])


def test_assuming_what_was_assumed_changes_no_bit() -> None:
    probability = torch.rand(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(assume_share(probability, 0.3, made_with=0.3), probability)


def test_assumed_shares_are_the_shift() -> None:
    """The curve of the report and the shift of the method are one."""
    logits = mixture(50, 0.3)[0]
    shifted = shift(logits, class_prior(0.1, (0.6, 0.4)), (0.6, 0.4)).softmax(-1)[:, 1]
    assert torch.allclose(assume_share(logits.softmax(-1)[:, 1], 0.1, made_with=0.4), shifted, atol=1e-14, rtol=0)


def test_wrong_values_of_an_assumption_are_named() -> None:
    half = torch.tensor([0.5])
    with pytest.raises(ValueError, match=r"share=1; allowed: shares above 0 and below 1"):
        assume_share(half, 1, made_with=0.5)
    with pytest.raises(ValueError, match=r"probability holds nan; allowed: values from 0 to 1"):
        assume_share(torch.tensor([0.5, math.nan]), 0.2, made_with=0.5)
    with pytest.raises(ValueError, match=r"made_with holds 0\.0; allowed: values above 0 and below 1"):
        assume_share(half, 0.2, made_with=0.0)
