"""The operations where time goes, each by the fastest implementation at hand.

`plain` is PyTorch and runs everywhere; `native` is C++ for CPUs, `triton_depthwise` for GPUs. They
are equal within rounding, and the tests hold them to that.
"""

import torch.nn.functional as F
from torch import Tensor

from convnextv2.kernels import native, plain, triton_depthwise


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension of (..., C)."""
    chosen = native if native.usable(x, weight, bias) else plain
    return chosen.layer_norm(x, weight, bias, eps)


def gelu_grn(x: Tensor, gamma: Tensor, beta: Tensor, groups: int) -> Tensor:
    """GELU, then GRN over the sites of each of `groups` equal parts of (B, ..., C)."""
    chosen = native if native.usable(x, gamma, beta) else plain
    return chosen.gelu_grn(x, gamma, beta, groups)


def linear_after_grn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear layer that needs not keep its input when that is the output of `gelu_grn`."""
    chosen = native.linear_after_grn if native.usable(x, weight, bias) else F.linear
    return chosen(x, weight, bias)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise convolution of (B, H, W, C) by (C, 1, K, K), zero padding, same size."""
    chosen = native if native.usable(x, weight, bias) and _is_7x7(weight) else plain
    return chosen.depthwise(x, weight, bias)


def patch_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, patches: Tensor, grid: tuple[int, int]
) -> Tensor:
    """The same among the visible patches (B, V, s, s, C) that `patches` (B, V) numbers."""
    if native.usable(x, weight, bias) and _is_7x7(weight):
        return native.patch_depthwise(x, weight, bias, patches, grid)
    if triton_depthwise.available(x):
        return triton_depthwise.patch_depthwise(x, weight, bias, patches, grid)
    return plain.patch_depthwise(x, weight, bias, patches, grid)


def _is_7x7(weight: Tensor) -> bool:
    return weight.shape[-1] == native.KERNEL_SIZE
