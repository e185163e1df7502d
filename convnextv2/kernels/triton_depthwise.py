"""Depthwise convolution among visible patches, for GPUs, in Triton: forward and backward.

Only sites that are there are stored, read and written; the halo of a patch is read from the
neighbouring patches where they lie, and is zero where a patch is masked. Proven in Triton's
interpreter and by compiling it for NVIDIA's processors; nobody has run it on a GPU yet.

Legend: B images, V visible patches, s side of one in sites, K kernel size, C channels.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convnextv2.kernels.build import turned_off

SITES, CHANNELS = 32, 64
"""A program's share: so many sites of so many channels."""
GROUPS = 64
"""The sums of the weight's gradient are taken in so many parts, then added in a fixed order."""


def available(x: Tensor) -> bool:
    """Whether these kernels take `x`: on a GPU, floating point, eager mode, Triton installed."""
    return (
        x.is_cuda
        and x.is_floating_point()
        and not torch.compiler.is_compiling()
        and _triton_is_installed()
        and not turned_off()
    )


def patch_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, patches: Tensor, grid: tuple[int, int]
) -> Tensor:
    """As `plain.patch_depthwise`; sums in fp32, or fp64 for fp64, whatever `x` is."""
    batch, visible = patches.shape
    slots = patches.new_full((batch, grid[0] * grid[1]), -1, dtype=torch.int32)
    numbers = torch.arange(visible, dtype=torch.int32, device=patches.device)
    slots.scatter_(1, patches, numbers.expand(batch, -1))
    out: Tensor = _PatchDepthwise.apply(x, weight, bias, patches.int().contiguous(), slots, grid)
    return out


class _PatchDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        patches: Tensor,
        slots: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight, bias)
        ctx.where = patches, slots, grid
        return _convolve(x, _by_place(weight), bias, *ctx.where)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, weight, bias = ctx.saved_tensors
        grad = grad.contiguous()
        by_x = _convolve(grad, _by_place(weight).flip(0), None, *ctx.where)
        by_place = _weight_gradient(x, grad, weight.shape[-1], *ctx.where)
        by_weight = by_place.t().reshape_as(weight).to(weight.dtype)
        by_bias = grad.sum((0, 1, 2, 3), dtype=_sum_dtype(x)).to(bias.dtype)
        return by_x, by_weight, by_bias, None, None, None


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    patches: Tensor,
    slots: Tensor,
    grid: tuple[int, int],
) -> Tensor:
    """(B, V, s, s, C) by (K*K, C)."""
    from convnextv2.kernels import triton_programs

    out = torch.empty_like(x)
    sites, channels = x.numel() // x.shape[-1], x.shape[-1]
    block = _channel_block(channels)
    with torch.cuda.device_of(x):
        triton_programs.convolve[_blocks(sites, SITES), _blocks(channels, block)](
            *(x, weight, weight if bias is None else bias, out, patches, slots),
            *_geometry(x, grid),
            KERNEL=_kernel_size(weight),
            HAS_BIAS=bias is not None,
            SITES=SITES,
            CHANNELS=block,
            SUM=triton_programs.SUM_TYPES[_sum_dtype(x)],
        )
    return out


def _weight_gradient(
    x: Tensor, grad: Tensor, kernel: int, patches: Tensor, slots: Tensor, grid: tuple[int, int]
) -> Tensor:
    """(K*K, C) in the dtype of sums."""
    from convnextv2.kernels import triton_programs

    sites, channels = x.numel() // x.shape[-1], x.shape[-1]
    groups, block = min(GROUPS, _blocks(sites, SITES)), _channel_block(channels)
    parts = x.new_empty(groups, kernel**2, channels, dtype=_sum_dtype(x))
    with torch.cuda.device_of(x):
        triton_programs.weight_gradient[groups, _blocks(channels, block), kernel**2](
            *(x, grad, parts, patches, slots),
            *_geometry(x, grid),
            KERNEL=kernel,
            GROUPS=groups,
            SITES=SITES,
            CHANNELS=block,
            SUM=triton_programs.SUM_TYPES[_sum_dtype(x)],
        )
    return parts.sum(0)


def _geometry(x: Tensor, grid: tuple[int, int]) -> tuple[int, int, int, int, int, int]:
    """Sites in all, V, rows and columns of the grid, C, s."""
    _, visible, side, _, channels = x.shape
    return x.numel() // channels, visible, *grid, channels, side


def _by_place(weight: Tensor) -> Tensor:
    """(C, 1, K, K) as (K*K, C)."""
    return weight.flatten(1).t().contiguous()


def _kernel_size(by_place: Tensor) -> int:
    return round(len(by_place) ** 0.5)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _channel_block(channels: int) -> int:
    """A power of two, as Triton wants it."""
    return min(CHANNELS, 1 << (channels - 1).bit_length())


def _blocks(length: int, block: int) -> int:
    return -(-length // block)


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None
