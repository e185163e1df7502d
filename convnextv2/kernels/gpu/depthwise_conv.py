"""Depthwise convolution in Triton: on dense maps and among visible patches.

Only visible sites are stored, read and written. The halo of a tile is read directly from the tiles
around it, and costs nothing where a patch is masked.

Legend: N maps (N, H, W, C), which are images or the visible patches of a batch; K kernel size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convnextv2.kernels.gpu.launch import blocks, launch, sum_dtype

TILES = (4, 7, 6, 5, 3, 2, 1)
"""Sides of a tile, preferred first; larger tiles re-read less but take a minute to compile."""
PROGRAMS = 2048
"""At most this many programs sum the weight's gradient; their sums are added in fixed order."""


def forward(x: Tensor, weight: Tensor, bias: Tensor, neighbours: Tensor | None) -> Tensor:
    """Convolve (N, H, W, C) by (C, 1, K, K).

    `neighbours` (N, R, R) holds the numbers of the maps around each map, -1 where there is none,
    and serves kernels up to K = R. Without it, no map has neighbours.
    """
    return _convolve(x.contiguous(), weight, neighbours, bias=bias)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    neighbours: Tensor | None,
    grad_shortcut: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to x, weight and bias; `grad_shortcut` is added to that of x."""
    x, grad = x.contiguous(), grad.contiguous()
    if grad_shortcut is not None:
        grad_shortcut = grad_shortcut.contiguous()
    grad_x = _convolve(grad, weight, neighbours, shortcut=grad_shortcut)
    return grad_x, *_sums(x, grad, weight, neighbours)


def _convolve(
    x: Tensor,
    weight: Tensor,
    neighbours: Tensor | None,
    *,
    bias: Tensor | None = None,
    shortcut: Tensor | None = None,
) -> Tensor:
    """Forward if there is a bias; otherwise from the output's gradient to the input's."""
    from convnextv2.kernels.gpu import depthwise_programs as programs

    shape = _shape(x, weight, neighbours, _channel_block)
    by_place = x.new_empty(shape["KERNEL"] ** 2, shape["C"], dtype=sum_dtype(x))
    by_place.copy_(weight.flatten(1).t())
    out = torch.empty_like(x)
    start = shortcut if bias is None else bias
    launch(
        programs.convolve,
        (_tiles(x, shape["TILE"]), blocks(shape["C"], shape["CHANNELS"])),
        x,
        by_place,
        by_place if start is None else start,
        out,
        by_place if neighbours is None else neighbours,
        **shape,
        SKIP=shape["TILE"] > 1,
        BACKWARD=bias is None,
        SHORTCUT=shortcut is not None,
    )
    return out


def _sums(
    x: Tensor, grad: Tensor, weight: Tensor, neighbours: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to the weight and the bias."""
    from convnextv2.kernels.gpu import weight_programs as programs

    shape = _shape(x, weight, neighbours, _weight_channel_block)
    tiles, across = _tiles(x, shape["TILE"]), blocks(shape["C"], shape["CHANNELS"])
    groups = max(1, min(tiles, PROGRAMS // across))
    parts = x.new_empty(groups, shape["KERNEL"] ** 2 + 1, shape["C"], dtype=sum_dtype(x))
    launch(
        programs.weight_gradient,
        (groups, across),
        *(x, grad, parts, parts if neighbours is None else neighbours, tiles),
        **shape,
    )
    sums = parts.sum(0)
    by_weight, by_bias = torch.empty_like(weight), weight.new_empty(shape["C"])
    by_weight.flatten(1).copy_(sums[:-1].t())
    return by_weight, by_bias.copy_(sums[-1])


class Depthwise(torch.autograd.Function):
    """`forward` with its gradients; also returns x for the shortcut around it.

    If the shortcut took x itself, autograd would add the two gradients of x in a separate pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, neighbours: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight, neighbours)
        return forward(x, weight, bias, neighbours), x

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor, grad_shortcut: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, neighbours = ctx.saved_tensors
        return *backward(grad, x, weight, neighbours, grad_shortcut), None


def _shape(
    x: Tensor,
    weight: Tensor,
    neighbours: Tensor | None,
    block_of: Callable[[int, int], tuple[int, int]],
) -> dict[str, int]:
    """The constants for which the programs are compiled."""
    _, height, width, channels = (int(length) for length in x.shape)
    tile = next(side for side in TILES if height % side == 0 and width % side == 0)
    block, warps = block_of(channels, tile)
    return {
        "HEIGHT": height,
        "WIDTH": width,
        "C": channels,
        "TILE": tile,
        "KERNEL": int(weight.shape[-1]),
        "AROUND": 0 if neighbours is None else int(neighbours.shape[-1]),
        "CHANNELS": block,
        "num_warps": warps,
    }


def _channel_block(channels: int, tile: int) -> tuple[int, int]:
    """Channels and warps of a program that convolves, chosen by measurements on an H200."""
    if tile <= 2:
        return 64, 1
    return (64, 2) if _fits_64(channels) else (32, 1)


def _weight_channel_block(channels: int, tile: int) -> tuple[int, int]:
    """The same for a program that holds a sum for every position of the kernel."""
    return (64, 1) if tile <= 2 or (tile <= 4 and _fits_64(channels)) else (32, 1)


def _fits_64(channels: int) -> bool:
    """Whether blocks of 64 channels leave few lanes idle."""
    return channels % 64 == 0 or channels > 256


def _tiles(x: Tensor, side: int) -> int:
    return x.numel() // (x.shape[3] * side**2)
