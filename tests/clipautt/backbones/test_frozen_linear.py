"""Products with frozen weights: PyTorch's values and gradients, by another library."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipautt.backbones import frozen_linear as module
from clipautt.backbones.frozen_linear import frozen_linear


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on oneDNN's product is an error."""
    monkeypatch.setattr(module, "_product", lambda *_: pytest.fail("the product was oneDNN's"))


def needs_onednn() -> None:
    if not module._HAS_OPERATOR:
        pytest.skip("this PyTorch has no oneDNN on board")


@pytest.mark.parametrize("shape", [(5, 12), (12,), (2, 3, 5, 12), (1, 12)])
@pytest.mark.parametrize("biased", [True, False])
def test_value_and_gradient_are_pytorch_s(shape: tuple[int, ...], biased: bool) -> None:
    weight, bias = drawn(7, 12, seed=1), drawn(7, seed=2) if biased else None
    ours, theirs = (drawn(*shape).requires_grad_(True) for _ in range(2))
    found, expected = frozen_linear(ours, weight, bias), F.linear(theirs, weight, bias)
    assert found.shape == (*shape[:-1], 7)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    outer = drawn(*found.shape, seed=3)
    (gradient,) = torch.autograd.grad((found * outer).sum(), ours)
    (wanted,) = torch.autograd.grad((expected * outer).sum(), theirs)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-5)
    assert weight.grad is None


def test_literal() -> None:
    inputs = torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True)
    found = frozen_linear(inputs, torch.tensor([[3.0, 4.0]]), torch.tensor([0.5]))
    assert found.tolist() == [[11.5], [-3.5]]
    (gradient,) = torch.autograd.grad(found.sum(), inputs)
    assert gradient.tolist() == [[3.0, 4.0], [3.0, 4.0]]


def test_frozen_float32_goes_by_onednn_forth_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_onednn()
    calls: list[tuple[int, ...]] = []
    product = module._product

    def counted(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append((*inputs.shape, *weight.shape))
        return product(inputs, weight, bias)

    monkeypatch.setattr(module, "_product", counted)
    inputs = drawn(5, 12).requires_grad_(True)
    torch.autograd.backward(frozen_linear(inputs, drawn(7, 12), drawn(7)).sum())
    assert calls == [(5, 12, 7, 12), (5, 7, 12, 7)]


def test_transposed_and_expanded_inputs_and_gradients() -> None:
    weight = drawn(7, 12)
    inputs = drawn(12, 5).t()
    torch.testing.assert_close(frozen_linear(inputs, weight), F.linear(inputs, weight), atol=1e-5, rtol=1e-5)
    row = drawn(12).expand(4, 12)
    torch.testing.assert_close(frozen_linear(row, weight), F.linear(row, weight), atol=1e-5, rtol=1e-5)
    leaf = drawn(5, 12).requires_grad_(True)
    (gradient,) = torch.autograd.grad(frozen_linear(leaf, weight).sum(), leaf)  # the gradient that comes is expanded
    torch.testing.assert_close(gradient, weight.sum(0).expand(5, 12), atol=1e-5, rtol=1e-5)


def test_weights_that_need_gradients_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch)
    inputs, weight = drawn(5, 12).requires_grad_(True), drawn(7, 12, seed=1).requires_grad_(True)
    by_input, by_weight = torch.autograd.grad(frozen_linear(inputs, weight).sum(), (inputs, weight))
    torch.testing.assert_close(by_weight, inputs.detach().sum(0).expand(7, 12))
    torch.testing.assert_close(by_input, weight.detach().sum(0).expand(5, 12))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_pytorch_s_own(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch)
    inputs, weight, bias = drawn(5, 12, dtype=dtype), drawn(7, 12, dtype=dtype), drawn(7, dtype=dtype)
    found = frozen_linear(inputs, weight, bias)
    assert found.dtype == dtype and torch.equal(found, F.linear(inputs, weight, bias))


def test_without_onednn_pytorch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch)
    inputs, weight = drawn(5, 12), drawn(7, 12)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(frozen_linear(inputs, weight), F.linear(inputs, weight))
    monkeypatch.setattr(module, "_HAS_OPERATOR", False)
    assert torch.equal(frozen_linear(inputs, weight), F.linear(inputs, weight))


@pytest.mark.parametrize("shape", [(0, 12), (3, 0, 12)])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    inputs = torch.zeros(shape, requires_grad=True)
    found = frozen_linear(inputs, drawn(7, 12), drawn(7))
    assert found.shape == (*shape[:-1], 7)
    (gradient,) = torch.autograd.grad(found.sum(), inputs)
    assert gradient.shape == shape


@pytest.mark.parametrize(("inner", "outer"), [(46, 256), (256, 2), (128, 512), (512, 128)])
def test_a_row_does_not_depend_on_how_many_there_are(inner: int, outer: int) -> None:
    """From 16 rows on, with one thread: what a problem gives in a batch is what it gives alone, bit for bit."""
    needs_onednn()
    weight, bias, problems = drawn(outer, inner), drawn(outer, seed=1), drawn(32, 16, inner, seed=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = torch.cat([frozen_linear(one[None], weight, bias) for one in problems])
        for count in (2, 3, 7, 32):
            assert torch.equal(frozen_linear(problems[:count], weight, bias), alone[:count]), count
    finally:
        torch.set_num_threads(threads)
