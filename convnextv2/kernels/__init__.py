"""The operations that take most of the time, each in the fastest implementation available.

`plain` is PyTorch and runs everywhere, `native` is C++ for CPUs, `gpu` is Triton for GPUs. Their
results are equal within rounding, which the tests check.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from convnextv2.kernels import gpu, native, plain, recomputed
from convnextv2.kernels.gpu.neighbours import neighbour_table


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension of (..., C)."""
    if native.usable(x, weight, bias):
        return native.layer_norm(x, weight, bias, eps)
    if gpu.usable(x, weight, bias):
        return gpu.layer_norm(x, weight, bias, eps)
    return plain.layer_norm(x, weight, bias, eps)


def gelu_grn(x: Tensor, gamma: Tensor, beta: Tensor, groups: int) -> Tensor:
    """GELU, then GRN over the sites of each of `groups` equal parts of (B, ..., C)."""
    if native.usable(x, gamma, beta):
        return recomputed.gelu_grn(native, x, gamma, beta, groups)
    if gpu.usable(x, gamma, beta):
        return gpu.gelu_grn(x, gamma, beta, groups)
    return plain.gelu_grn(x, gamma, beta, groups)


def linear_after_grn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear layer that does not keep its input, if that is the output of `gelu_grn`."""
    eager = not torch.compiler.is_compiling()
    if eager and (native.usable(x, weight, bias) or gpu.usable(x, weight, bias)):
        return recomputed.linear_after_grn(x, weight, bias)
    return F.linear(x, weight, bias)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Depthwise convolution of (B, H, W, C) by (C, 1, K, K), zero padding, same size.

    Returns the output, and x for a shortcut around the convolution. The gradient that comes back
    through this x is added where the convolution's gradient is written, which saves a pass over
    both.
    """
    if native.usable(x, weight, bias) and _is_7x7(weight):
        return native.depthwise(x, weight, bias)
    if gpu.usable(x, weight, bias):
        return gpu.depthwise(x, weight, bias)
    return plain.depthwise(x, weight, bias), x


def patch_depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    patches: Tensor,
    grid: tuple[int, int],
    neighbours: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same among the visible patches (B, V, s, s, C), whose numbers are `patches` (B, V).

    `neighbours` is what `neighbours_of` returned for these patches; without it, it is built again.
    """
    if native.usable(x, weight, bias) and _is_7x7(weight):
        return native.patch_depthwise(x, weight, bias, patches, grid)
    if gpu.usable(x, weight, bias) and weight.shape[-1] <= gpu.LARGEST_KERNEL:
        return gpu.patch_depthwise(x, weight, bias, patches, grid, neighbours)
    return plain.patch_depthwise(x, weight, bias, patches, grid), x


def neighbours_of(patches: Tensor, grid: tuple[int, int]) -> Tensor | None:
    """The table of neighbours for `patch_depthwise`, shared by all layers; None on CPUs."""
    return neighbour_table(patches, grid, gpu.LARGEST_KERNEL) if patches.is_cuda else None


def _is_7x7(weight: Tensor) -> bool:
    return weight.shape[-1] == native.KERNEL_SIZE
