"""What tuned prompts minimize, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.methods.clip_autt.objectives import objective_loss


def test_objectives_literal() -> None:
    logits = torch.tensor([[math.log(4), 0.0], [0.0, 0.0]])  # 0.8/0.2 and 0.5/0.5, mean 0.65/0.35
    source = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    mean_entropy = (-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)) + math.log(2)) / 2
    entropy_of_mean = -(0.65 * math.log(0.65) + 0.35 * math.log(0.35))
    divergence = (0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)) / 2
    expected: dict[str, float] = {
        "entropy": mean_entropy,
        "infomax": mean_entropy - entropy_of_mean,
        "infomax_kl": mean_entropy - entropy_of_mean + 0.7 * divergence,
    }
    for objective, value in expected.items():
        method = ClipAUTT(objective, kl_weight=0.7)  # type: ignore[arg-type]
        assert float(objective_loss(logits, source, method)) == pytest.approx(value, abs=1e-6), objective
        doubled = value if objective == "entropy" else value - entropy_of_mean
        balanced = ClipAUTT(objective, kl_weight=0.7, balance_weight=2.0)  # type: ignore[arg-type]
        assert float(objective_loss(logits, source, balanced)) == pytest.approx(doubled)


def test_infomax_of_agreeing_windows_is_zero_and_of_balanced_certain_ones_is_lowest() -> None:
    method = ClipAUTT("infomax")
    agreeing = torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    balanced = torch.tensor([[30.0, 0.0], [0.0, 30.0]])
    assert float(objective_loss(agreeing, agreeing, method)) == pytest.approx(0, abs=1e-6)
    assert float(objective_loss(balanced, balanced, method)) == pytest.approx(-math.log(2), abs=1e-6)


def test_infomax_is_lowest_where_the_mean_prediction_is_the_prior() -> None:
    """The divergence of the mean prediction, 0.65/0.35, from a prior that is not equal shares."""
    logits = torch.tensor([[math.log(4), 0.0], [0.0, 0.0]])
    mean_entropy = float(objective_loss(logits, logits, ClipAUTT("entropy")))
    for prior in ([0.65, 0.35], [0.2, 0.8]):
        divergence = 0.65 * math.log(0.65 / prior[0]) + 0.35 * math.log(0.35 / prior[1])
        found = objective_loss(logits, logits, ClipAUTT("infomax"), prior=torch.tensor(prior))
        assert float(found) == pytest.approx(mean_entropy + divergence - math.log(2), abs=1e-6)


@pytest.mark.parametrize("objective", ["entropy", "infomax", "infomax_kl"])
def test_samples_outside_of_a_problem_do_not_count(objective: str) -> None:
    method = ClipAUTT(objective)  # type: ignore[arg-type]
    logits, source = torch.randn(2, 5, 3, 2, generator=torch.Generator().manual_seed(0)).unbind()
    inside = torch.tensor([[True] * 3, [True, True, False], [True, False, False], [True] * 3, [False, True, True]])
    found = objective_loss(logits, source, method, inside=inside)
    for number, own in enumerate(inside):
        alone = objective_loss(logits[number, own], source[number, own], method)
        torch.testing.assert_close(found[number], alone)
