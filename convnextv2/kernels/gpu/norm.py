"""LayerNorm in Triton; PyTorch's own kernel is idle most of the time if C is small.

Legend: rows, all sites; C channels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convnextv2.kernels.gpu.launch import blocks, launch, power_of_2, sum_dtype

ELEMENTS = 2048
"""About how many values one program takes, in whole rows."""
PROGRAMS = 1024
"""At most this many programs sum the parameters' gradients, which are added in fixed order."""


class LayerNorm(torch.autograd.Function):
    """Like `plain.layer_norm`; keeps its input but no statistics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        from convnextv2.kernels.gpu import norm_programs as programs

        x = x.contiguous()
        rows, shape = _layout(x, eps)
        out = torch.empty_like(x)
        grid = (blocks(rows, shape["ROWS"]),)
        launch(programs.normalise, grid, x, weight, bias, out, rows, **shape)
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        from convnextv2.kernels.gpu import norm_programs as programs

        x, weight = ctx.saved_tensors
        rows, shape = _layout(x, ctx.eps)
        count = min(PROGRAMS, blocks(rows, shape["ROWS"]))
        parts = x.new_empty(count, 2, shape["C"], dtype=sum_dtype(x))
        grad_x = torch.empty_like(x)
        inputs = x, grad.contiguous(), weight
        launch(programs.norm_gradients, (count,), *inputs, grad_x, parts, rows, **shape)
        by_weight, by_bias = parts.sum(0).to(weight.dtype)
        return grad_x, by_weight, by_bias, None


def _layout(x: Tensor, eps: float) -> tuple[int, dict[str, Any]]:
    """Number of rows, and the constants for which the programs are compiled."""
    from convnextv2.kernels.gpu.norm_programs import SUM_TYPES

    channels = x.shape[-1]
    width = power_of_2(channels)
    return x.numel() // channels, {
        "C": channels,
        "EPS": eps,
        "ROWS": max(1, ELEMENTS // width),
        "CHANNELS": width,
        "SUM": SUM_TYPES[sum_dtype(x)],
        "num_warps": 4 if width <= ELEMENTS else 8,
    }
