"""Depthwise convolution on GPUs, in Triton: on dense maps and among visible patches.

Only sites that are there are stored, read and written; the halo of a tile is read from the tiles
around it where they lie, and costs nothing where a patch is masked.

Legend: B images, V visible patches, s side of one in sites, K kernel size, C channels.
"""

from math import gcd

import torch
from torch import Tensor

LARGEST_TILE = 8
"""Side of a tile: its sums are kept in registers."""
CHANNELS = 32
WEIGHT_CHANNELS = 32
"""Channels of a program: one for each thread of a warp."""
WARPS = WEIGHT_WARPS = 1
PROGRAMS = 4096
"""The weight's gradient is summed in so many programs, their sums then in a fixed order."""


def convolve(
    x: Tensor, by_place: Tensor, bias: Tensor | None, neighbours: Tensor | None, *, flip: bool
) -> Tensor:
    """Convolve (N, H, W, C) by (K*K, C) in the dtype of sums.

    `neighbours` (N, K, K) numbers the maps around each; without it every map is alone.
    """
    from convnextv2.kernels.gpu import depthwise_programs as programs

    shape = _shape(x, by_place, CHANNELS)
    out = torch.empty_like(x)
    grid = _tiles(x, shape["TILE"]), _blocks(shape["C"], shape["CHANNELS"])
    programs.convolve[grid](
        x,
        by_place,
        by_place if bias is None else bias,
        out,
        by_place if neighbours is None else neighbours,
        **shape,
        DENSE=neighbours is None,
        HAS_BIAS=bias is not None,
        FLIP=flip,
        num_warps=WARPS,
    )
    return out


def weight_gradient(
    x: Tensor, grad: Tensor, by_place: Tensor, neighbours: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to the weight (K*K, C) and the bias (C), in the dtype of sums."""
    from convnextv2.kernels.gpu import depthwise_programs as programs

    shape = _shape(x, by_place, WEIGHT_CHANNELS)
    tiles, blocks = _tiles(x, shape["TILE"]), _blocks(shape["C"], shape["CHANNELS"])
    groups = max(1, min(tiles, PROGRAMS // blocks))
    parts = by_place.new_empty(groups, len(by_place) + 1, shape["C"])
    programs.weight_gradient[groups, blocks](
        x,
        grad,
        parts,
        by_place if neighbours is None else neighbours,
        tiles,
        **shape,
        DENSE=neighbours is None,
        num_warps=WEIGHT_WARPS,
    )
    sums = parts.sum(0)
    return sums[:-1], sums[-1]


def neighbour_table(patches: Tensor, grid: tuple[int, int], kernel: int) -> Tensor:
    """(B*V, K, K): the patch at each offset from each one, numbered through the batch; -1: none.

    Offsets are of patches; a kernel of size K sees at most K // 2 patches away, at s = 1.
    """
    batch, visible = patches.shape
    half = kernel // 2
    padded = patches.new_full((batch, grid[0] + 2 * half, grid[1] + 2 * half), -1)
    row, column = patches // grid[1], patches % grid[1]
    image = torch.arange(batch, device=patches.device)[:, None]
    padded[image, row + half, column + half] = torch.arange(
        batch * visible, device=patches.device
    ).view(batch, visible)
    offset = torch.arange(kernel, device=patches.device)
    rows, columns = row[..., None, None] + offset[:, None], column[..., None, None] + offset
    return padded[image[..., None, None], rows, columns].int().flatten(0, 1).contiguous()


def _shape(x: Tensor, by_place: Tensor, channels: int) -> dict[str, int]:
    height, width = x.shape[1:3]
    common = gcd(height, width)
    tile = max(d for d in range(1, min(common, LARGEST_TILE) + 1) if common % d == 0)
    return {
        "HEIGHT": height,
        "WIDTH": width,
        "C": x.shape[3],
        "TILE": tile,
        "KERNEL": round(len(by_place) ** 0.5),
        "CHANNELS": channels,
    }


def _tiles(x: Tensor, side: int) -> int:
    return x.numel() // (x.shape[3] * side**2)


def _blocks(length: int, block: int) -> int:
    return -(-length // block)
