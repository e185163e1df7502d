"""The four operations where time goes, each by the fastest implementation at hand.

`plain` is PyTorch and runs everywhere; `native` is C++ for CPUs. They are equal within rounding,
and the tests hold them to that.
"""

from torch import Tensor

from convnextv2.kernels import native, plain


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension of (..., C)."""
    chosen = native if native.usable(x) else plain
    return chosen.layer_norm(x, weight, bias, eps)


def gelu_grn(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """GELU, then GRN over dimension 1 of (G, N, C)."""
    chosen = native if native.usable(x) else plain
    return chosen.gelu_grn(x, gamma, beta)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise convolution of (B, H, W, C) by (C, 1, K, K), zero padding, same size."""
    chosen = native if native.usable(x) and _is_7x7(weight) else plain
    return chosen.depthwise(x, weight, bias)


def patch_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, patches: Tensor, grid: tuple[int, int]
) -> Tensor:
    """The same among the visible patches (B, V, s, s, C) that `patches` (B, V) numbers."""
    chosen = native if native.usable(x) and _is_7x7(weight) else plain
    return chosen.patch_depthwise(x, weight, bias, patches, grid)


def _is_7x7(weight: Tensor) -> bool:
    return weight.shape[-1] == native.KERNEL_SIZE
