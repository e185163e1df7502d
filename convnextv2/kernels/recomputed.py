"""GELU + GRN and the linear layer after it, without keeping the tensor between them.

GRN's output is the widest tensor of a block, and only the weight gradient of the linear layer needs
it. So it is not kept: the backward of the linear layer recomputes it, in the same pass over memory
that takes the sums from which GRN's backward starts. `Arithmetic` does the computing: the compiled
kernels on CPUs, Triton on GPUs.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Arithmetic(Protocol):
    """GELU + GRN on contiguous x (..., C) in equal groups; the form of the sums is its own."""

    def grn_forward(
        self, x: Tensor, gamma: Tensor, beta: Tensor, groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, and the norms and scales of each group (groups, C)."""

    def grn_sums(
        self, x: Tensor, grad: Tensor, beta: Tensor, scale: Tensor, out: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Sums by group of grad x GELU(x) and of grad; writes the output to `out`, if given."""

    def grn_backward(
        self,
        x: Tensor,
        grad: Tensor,
        gamma: Tensor,
        norm: Tensor,
        scale: Tensor,
        sums: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients with respect to x, gamma and beta, the last two (C)."""


def gelu_grn(arithmetic: Arithmetic, x: Tensor, gamma: Tensor, beta: Tensor, groups: int) -> Tensor:
    """Like `plain.gelu_grn`; for backward, of the large tensors only the input is kept."""
    out: Tensor = _GeluGRN.apply(x, gamma, beta, groups, arithmetic)
    return out


def linear_after_grn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear layer that recomputes its input in backward, if `gelu_grn` has made it."""
    if type(x.grad_fn).__name__ != f"{_GeluGRN.__name__}Backward":
        return F.linear(x, weight, bias)
    out: Tensor = _LinearAfterGRN.apply(x, weight, bias, x.grad_fn)
    return out


class _GeluGRN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, groups: int, arithmetic: Arithmetic
    ) -> Tensor:
        x = x.contiguous()
        out, norm, scale = arithmetic.grn_forward(x, gamma, beta, groups)
        # A copy of beta, because ZeRO-3 frees the parameter before the output is recomputed.
        ctx.save_for_backward(x, gamma, beta.clone(), norm, scale)
        ctx.arithmetic = arithmetic
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, gamma, beta, norm, scale = _kept(ctx)
        # Removed from the node, because it and its attributes live as long as the loss does.
        known, ctx.sums = getattr(ctx, "sums", None), None
        if known is not None and known[0] is grad:
            sums = known[1]
        else:
            grad = grad.contiguous()
            sums = ctx.arithmetic.grn_sums(x, grad, beta, scale, None)
        grad_x, *others = ctx.arithmetic.grn_backward(x, grad, gamma, norm, scale, sums)
        ctx.kept = None
        by_gamma, by_beta = (t.to(gamma.dtype).view_as(gamma) for t in others)
        return grad_x, by_gamma, by_beta, None, None


class _LinearAfterGRN(torch.autograd.Function):
    """A linear layer that does not keep its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, node: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.node = node
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (weight,) = ctx.saved_tensors
        x, _, beta, _, scale = _kept(ctx.node)
        grad_x = grad @ weight
        out = torch.empty_like(grad_x)
        sums = ctx.node.arithmetic.grn_sums(x, grad_x, beta, scale, out)
        ctx.node.sums = grad_x, sums
        rows = grad.flatten(0, -2)
        return grad_x, rows.t() @ out.flatten(0, -2), rows.sum(0), None


def _kept(node: Any) -> Any:
    """Tensors saved on a node, unpacked once: activation checkpointing forbids a second time."""
    if getattr(node, "kept", None) is None:
        node.kept = node.saved_tensors
    return node.kept
