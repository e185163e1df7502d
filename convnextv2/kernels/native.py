"""The operations on CPUs, compiled from native.cpp: fp32 and fp64, forward and backward.

Without them, most time goes into passes over tensors four times as wide as the input (GELU, GRN and
their backward) and into the depthwise backward, for which PyTorch has no good CPU kernel.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convnextv2.kernels.build import library

KERNEL_SIZE = 7
GRN_EPS = 1e-6
# A tile with its halo, sixteen channels wide, fits the first-level cache.
LARGEST_TILE = 16
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def usable(x: Tensor, *parameters: Tensor) -> bool:
    """Whether these kernels are compiled and take `x`: on the CPU, fp32 or fp64, in eager mode.

    They read raw memory, so the parameters must be contiguous and have x's dtype and device.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in SUFFIX
        and all(p.dtype == x.dtype and p.device == x.device for p in parameters)
        and all(p.is_contiguous() for p in parameters)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and library() is not None
    )


class _Tiles(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        *((n, ctypes.c_int64) for n in ("batch", "rows", "columns", "height", "width")),
        ("stride", ctypes.c_int64),
        ("channels", ctypes.c_int64),
    )


def _call(name: str, like: Tensor, *arguments: Any) -> None:
    function = getattr(library(), f"{name}_{SUFFIX[like.dtype]}")
    function(*[_as_c(a) for a in arguments], ctypes.c_int(torch.get_num_threads()))


def _as_c(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, _Tiles):
        return ctypes.byref(argument)
    if isinstance(argument, float):
        return ctypes.c_double(argument)
    return ctypes.c_int64(argument)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        rows, channels = x.numel() // x.shape[-1], x.shape[-1]
        out, mean, rstd = torch.empty_like(x), x.new_empty(rows), x.new_empty(rows)
        _call("layer_norm_forward", x, x, weight, bias, eps, out, mean, rstd, rows, channels)
        ctx.save_for_backward(x, weight, mean, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, rstd = ctx.saved_tensors
        grads = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        sizes = len(mean), x.shape[-1]
        _call("layer_norm_backward", x, grad.contiguous(), x, weight, mean, rstd, *grads, *sizes)
        return *grads, None


def grn_forward(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Implements `recomputed.Arithmetic.grn_forward`."""
    out, norm = torch.empty_like(x), x.new_empty(groups, x.shape[-1])
    scale = torch.empty_like(norm)
    sizes = _group_sizes(x, groups)
    _call("gelu_grn_forward", x, x, gamma, beta, GRN_EPS, out, norm, scale, *sizes)
    return out, norm, scale


def grn_sums(
    x: Tensor, grad: Tensor, beta: Tensor, scale: Tensor, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Implements `recomputed.Arithmetic.grn_sums`."""
    along, plain = torch.empty_like(scale), torch.empty_like(scale)
    sizes = _group_sizes(x, len(scale))
    _call("gelu_grn_sums", x, grad, x, scale, beta, out, along, plain, *sizes)
    return along, plain


def grn_backward(
    x: Tensor,
    grad: Tensor,
    gamma: Tensor,
    norm: Tensor,
    scale: Tensor,
    sums: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Implements `recomputed.Arithmetic.grn_backward`."""
    along, plain = sums
    grad_x, by_gamma = torch.empty_like(x), torch.empty_like(norm)
    inputs, sizes = (grad, x, gamma, norm, along), _group_sizes(x, len(norm))
    _call("gelu_grn_backward", x, *inputs, GRN_EPS, grad_x, by_gamma, *sizes)
    return grad_x, by_gamma.sum(0), plain.sum(0)


def _group_sizes(x: Tensor, groups: int) -> tuple[int, int, int]:
    """Number of groups, rows per group, channels."""
    return groups, x.numel() // (groups * x.shape[-1]), x.shape[-1]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, base: Tensor, tile: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor]:
        shortcut = x
        x, weight = x.contiguous(), weight.contiguous()
        tiles = _Tiles(base.data_ptr(), *base.shape, *tile, x.shape[-1])
        out = torch.empty_like(x)
        _call("depthwise_forward", x, x, weight, bias, out, tiles)
        ctx.save_for_backward(x, weight)
        # Not by save_for_backward: the cached base may have been made in inference mode.
        ctx.base, ctx.tile = base, tile
        return out, shortcut

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor, grad_shortcut: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        tiles = _Tiles(ctx.base.data_ptr(), *ctx.base.shape, *ctx.tile, x.shape[-1])
        grads = torch.empty_like(x), torch.empty_like(weight), weight.new_empty(len(weight))
        above = grad.contiguous(), grad_shortcut.contiguous()
        _call("depthwise_backward", x, x, weight, *above, *grads, tiles)
        return *grads, None, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Like `plain.layer_norm`."""
    out: Tensor = _LayerNorm.apply(x, weight, bias, eps)
    return out


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Like `plain.depthwise`, for 7x7 kernels; also returns x for the shortcut."""
    batch, height, width, _ = x.shape
    tile = _largest_divisor(height), _largest_divisor(width)
    base = _dense_base(batch, height, width, tile)
    out, shortcut = _Depthwise.apply(x, weight, bias, base, (*tile, width))
    return out, shortcut


def patch_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, patches: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Like `plain.patch_depthwise`, for 7x7 kernels; also returns x for the shortcut.

    Masked sites are neither stored nor read.
    """
    batch, visible, side = x.shape[:3]
    base = torch.full((batch, grid[0] * grid[1]), -1, dtype=torch.int64)
    slots = torch.arange(batch * visible).view(batch, visible) * side**2
    base.scatter_(1, patches, slots)
    tile = side, side, side
    out, shortcut = _Depthwise.apply(x, weight, bias, base.view(batch, *grid), tile)
    return out, shortcut


def _largest_divisor(length: int) -> int:
    return max(d for d in range(1, min(length, LARGEST_TILE) + 1) if length % d == 0)


@cache
def _dense_base(batch: int, height: int, width: int, tile: tuple[int, int]) -> Tensor:
    """Number of the first site of every tile of (B, H, W), as (B, H/h, W/w)."""
    sites = torch.arange(batch * height * width).view(batch, height, width)
    return sites[:, :: tile[0], :: tile[1]].contiguous()
