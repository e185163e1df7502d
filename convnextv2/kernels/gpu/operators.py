"""The operations as operators for torch.compile, which puts their programs into its graph.

They have a module of their own, imported only while a graph is traced: registering an operator that
starts Triton programs imports Dynamo and Inductor, which takes a second.
"""

from typing import Any

from torch import Tensor
from torch.library import triton_op

from convnextv2.kernels.gpu import depthwise_conv, grn


@triton_op("convnextv2::depthwise", mutates_args=())
def depthwise(x: Tensor, weight: Tensor, bias: Tensor, neighbours: Tensor | None) -> Tensor:
    """`depthwise_conv.forward` as an operator."""
    return depthwise_conv.forward(x, weight, bias, neighbours)


@triton_op("convnextv2::depthwise_backward", mutates_args=())
def depthwise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, neighbours: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`depthwise_conv.backward` as an operator."""
    return depthwise_conv.backward(grad, x, weight, neighbours)


@triton_op("convnextv2::gelu_grn", mutates_args=())
def gelu_grn(x: Tensor, gamma: Tensor, beta: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """`grn.grn_forward` as an operator."""
    return grn.grn_forward(x.contiguous(), gamma, beta, groups)


@triton_op("convnextv2::gelu_grn_backward", mutates_args=())
def gelu_grn_backward(
    grad: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, norm: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`grn.grn_sums` and `grn.grn_backward` as one operator."""
    x, grad = x.contiguous(), grad.contiguous()
    sums = grn.grn_sums(x, grad, beta, scale, None)
    grad_x, *others = grn.grn_backward(x, grad, gamma, norm, scale, sums)
    by_gamma, by_beta = (t.to(gamma.dtype).view(gamma.shape) for t in others)
    return grad_x, by_gamma, by_beta


def _keep_depthwise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, neighbours = inputs
    ctx.save_for_backward(x, weight, neighbours)


def _differentiate_depthwise(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *depthwise_backward(grad, *ctx.saved_tensors), None


def _keep_gelu_grn(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gamma, beta, _ = inputs
    _, norm, scale = output
    ctx.mark_non_differentiable(norm, scale)
    ctx.save_for_backward(x, gamma, beta, norm, scale)


def _differentiate_gelu_grn(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *gelu_grn_backward(grad, *ctx.saved_tensors), None


depthwise.register_autograd(_differentiate_depthwise, setup_context=_keep_depthwise)
gelu_grn.register_autograd(_differentiate_gelu_grn, setup_context=_keep_gelu_grn)
