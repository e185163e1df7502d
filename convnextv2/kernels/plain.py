"""The operations in plain PyTorch: for any device and dtype, for export, and to test the others.

Legend: B batch, C channels, V visible patches, s side of a patch in sites.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension, computed in fp32 or wider."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def gelu_grn(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int, visible: Tensor | None = None
) -> Tensor:
    """GELU (erf), then GRN with statistics over the sites of each of `groups` equal parts of x.

    x is (B, ..., C); with B groups each image has its own statistics, with 1 group the whole batch
    shares them. `visible` (B, ..., 1) is 1 at the sites that count. Statistics are computed in fp32
    or wider, because the norm is the root of a sum of thousands of squares.
    """
    g = F.gelu(x)
    counted = g.to(torch.promote_types(x.dtype, torch.float32))
    if visible is not None:
        counted = counted * visible
    norm = torch.linalg.vector_norm(counted.view(groups, -1, x.shape[-1]), dim=1, keepdim=True)
    response = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
    # gamma·(g·N) + beta + g, with the two products of g folded into one.
    scale = 1 + gamma.flatten().to(response.dtype) * response
    rows = g.view(groups, -1, x.shape[-1])
    return torch.addcmul(beta.flatten().to(g.dtype), rows, scale.to(g.dtype)).view_as(x)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise convolution of (B, H, W, C) by (C, 1, K, K), zero padding, same size.

    The permuted view is what PyTorch calls channels_last. On CPU this matters: the depthwise
    backward takes a path up to 1,000 times slower when input and gradient are contiguous NCHW.
    """
    return F.conv2d(
        x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=len(weight)
    ).permute(0, 2, 3, 1)


def patch_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, patches: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Depthwise convolution among the visible patches (B, V, s, s, C) of a grid; others are zero.

    `patches` (B, V) are the numbers of the visible patches in the grid, counted row by row. Their
    sites are scattered on a canvas of zeros, convolved there, and gathered again.
    """
    positions = site_positions(patches, grid, x.shape[2])
    return gather_sites(depthwise(scatter_sites(x, positions, grid), weight, bias), positions)


def site_positions(patches: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Flat positions (B, V, s, s) of the sites of `patches` (B, V) on canvases (B, H, W)."""
    rows, columns = grid
    step = torch.arange(side, device=patches.device)
    image = torch.arange(len(patches), device=patches.device)[:, None, None, None]
    row = (patches // columns * side)[..., None, None] + step[:, None]
    column = (patches % columns * side)[..., None, None] + step
    return (image * (rows * side) + row) * (columns * side) + column


def scatter_sites(x: Tensor, positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Scatter sites (B, V, s, s, C) on canvases of zeros, (B, rows*s, columns*s, C)."""
    batch, _, side, _, channels = x.shape
    height, width = grid[0] * side, grid[1] * side
    canvas: Tensor = _ScatterRows.apply(
        x.reshape(-1, channels), positions.flatten(), batch * height * width
    )
    return canvas.view(batch, height, width, channels)


def gather_sites(canvas: Tensor, positions: Tensor) -> Tensor:
    """Gather sites at distinct positions from canvases (B, H, W, C): (*positions.shape, C)."""
    rows: Tensor = _GatherRows.apply(canvas.reshape(-1, canvas.shape[-1]), positions.flatten())
    return rows.view(*positions.shape, -1)


class _ScatterRows(torch.autograd.Function):
    """Copy rows to distinct positions of a larger zero tensor; `_GatherRows` is the adjoint.

    The backward of PyTorch's index_select accumulates row by row. Here no two rows have the same
    position, so both directions are plain copies.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, positions: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(positions)
        return rows.new_zeros(length, rows.shape[1]).index_copy_(0, positions, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _GatherRows.apply(grad, *ctx.saved_tensors), None, None


class _GatherRows(torch.autograd.Function):
    """Copy the rows at distinct positions; the adjoint of `_ScatterRows`."""

    @staticmethod
    def forward(ctx: Any, canvas: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.length = canvas.shape[0]
        return canvas.index_select(0, positions)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        return _ScatterRows.apply(grad.contiguous(), positions, ctx.length), None
