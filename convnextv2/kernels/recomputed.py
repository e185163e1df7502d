"""GELU + GRN and the linear layer after it, which recompute the tensor between them.

GRN's output is the widest tensor of a block, and only the weight gradient of the linear layer needs
it. So it is not kept: the linear layer's backward recomputes it, in the same pass over memory in
which it takes the sums that GRN's backward starts from. `Arithmetic` is what computes: the compiled
kernels on CPUs, Triton on GPUs.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Arithmetic(Protocol):
    """GELU + GRN on contiguous x (..., C) in equal groups; each defines the form of its sums."""

    def grn_forward(
        self, x: Tensor, gamma: Tensor, beta: Tensor, groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, and the norms and scales of each group (groups, C)."""

    def grn_sums(
        self, x: Tensor, grad: Tensor, beta: Tensor, scale: Tensor, out: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Sums by group of grad x GELU(x) and of grad; fills `out`, if given, with the output."""

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
    """As `plain.gelu_grn`; keeps only its input and the norms for backward."""
    out: Tensor = _GeluGRN.apply(x, gamma, beta, groups, arithmetic)
    return out


def linear_after_grn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear layer on the output of `gelu_grn`, which is recomputed in the backward, not kept."""
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
        # A copy of beta: ZeRO-3 takes the parameter away before the output is computed again.
        ctx.save_for_backward(x, gamma, beta.clone(), norm, scale)
        ctx.arithmetic = arithmetic
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, gamma, beta, norm, scale = _kept(ctx)
        # Removed from the node, which lives, with all its attributes, as long as the loss does.
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
    """Tensors saved on a node, unpacked once: activation checkpointing allows no second time."""
    if getattr(node, "kept", None) is None:
        node.kept = node.saved_tensors
    return node.kept
