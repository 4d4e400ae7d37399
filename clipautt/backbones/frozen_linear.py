"""Matrix products with frozen weights: a gradient for the input only, and on CPUs by oneDNN.

On x86, PyTorch computes float32 products with MKL, which on processors not made by Intel runs at about half of what
their vector units can do; oneDNN, which PyTorch includes for convolutions and bfloat16, does not. `make bench-adapt`
prints both rates.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def frozen_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` for weights that need no gradient; differentiable in the inputs.

    Args:
        inputs: [..., d_in].
        weight: [d_out, d_in]; if it does need a gradient, PyTorch's own product is used.
        bias: [d_out].

    Returns:
        [..., d_out], equal to PyTorch's up to the order of floating-point sums.
    """
    if not _by_onednn(inputs, weight):
        return F.linear(inputs, weight, bias)
    product: Tensor = _OneDnnLinear.apply(inputs, weight, bias)
    return product


def _by_onednn(inputs: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling():  # the compiler accepts this operator with constant weights only
        return False
    plain = inputs.device.type == "cpu" and inputs.dtype == weight.dtype == torch.float32 and not weight.requires_grad
    return plain and _HAS_OPERATOR and bool(torch.backends.mkldnn.enabled)


_HAS_OPERATOR = bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(grad.contiguous(), weight.t(), None), None, None


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product
