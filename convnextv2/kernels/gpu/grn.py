"""GELU + GRN in Triton: two passes over the widest tensors of a block in each direction.

Legend: groups, each with its own statistics; rows, the sites of a group; C channels.
"""

from typing import Any

import torch
from torch import Tensor

from convnextv2.kernels.gpu.launch import blocks, launch, power_of_2, sum_dtype

EPS = 1e-6
ROWS, CHANNELS = 32, 128
"""The largest block of one program: ROWS rows of CHANNELS channels."""
PROGRAMS = 4096
"""Sums over rows are split into parts until there are about this many programs."""
WARPS = 4


def grn_forward(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and norms and scales (groups, C), of a contiguous `x` (..., C)."""
    from convnextv2.kernels.gpu import grn_programs as programs

    rows, splits, shape = _shares(x, groups)
    across = blocks(shape["C"], shape["CHANNELS"])
    parts = x.new_empty(groups, splits, shape["C"], dtype=sum_dtype(x))
    norm, scale = (parts.new_empty(groups, shape["C"]) for _ in range(2))
    out = torch.empty_like(x)
    launch(programs.square_sums, (splits * across, groups), x, parts, rows, splits, **shape)
    launch(
        programs.norms,
        (groups,),
        *(parts, gamma, norm, scale, splits),
        C=shape["C"],
        EPS=EPS,
        CHANNELS=power_of_2(shape["C"]),
    )
    grid = blocks(rows, ROWS) * across, groups
    launch(programs.respond, grid, x, scale, beta, out, rows, **shape)
    return out, norm, scale


def grn_sums(
    x: Tensor, grad: Tensor, beta: Tensor, scale: Tensor, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sums of grad x GELU(x) and of grad, (groups, parts, C); writes `out`, if given."""
    from convnextv2.kernels.gpu import grn_programs as programs

    groups = len(scale)
    rows, splits, shape = _shares(x, groups)
    along, plain = (scale.new_empty(groups, splits, shape["C"]) for _ in range(2))
    launch(
        programs.gradient_sums,
        (splits * blocks(shape["C"], shape["CHANNELS"]), groups),
        *(x, grad, scale, beta, x if out is None else out, along, plain, rows, splits),
        **shape,
        AGAIN=out is not None,
    )
    return along, plain


def grn_backward(
    x: Tensor,
    grad: Tensor,
    gamma: Tensor,
    norm: Tensor,
    scale: Tensor,
    sums: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to x, gamma (C) and beta (C), from the sums of `grn_sums`."""
    from convnextv2.kernels.gpu import grn_programs as programs

    groups = len(norm)
    rows, splits, shape = _shares(x, groups)
    pull, by_gamma, by_beta = (torch.empty_like(norm) for _ in range(3))
    launch(
        programs.norm_gradients,
        (groups,),
        *(*sums, gamma, norm, pull, by_gamma, by_beta, splits),
        C=shape["C"],
        EPS=EPS,
        CHANNELS=power_of_2(shape["C"]),
    )
    grad_x = torch.empty_like(x)
    grid = blocks(rows, ROWS) * blocks(shape["C"], shape["CHANNELS"]), groups
    launch(programs.input_gradient, grid, x, grad, scale, pull, grad_x, rows, **shape)
    return grad_x, by_gamma.sum(0), by_beta.sum(0)


def _shares(x: Tensor, groups: int) -> tuple[int, int, dict[str, Any]]:
    """Rows of a group, number of parts in which they are summed, and the programs' constants."""
    channels = int(x.shape[-1])
    rows, block = x.numel() // (groups * channels), _channel_block(channels)
    parts = max(1, min(blocks(rows, ROWS), PROGRAMS // (groups * blocks(channels, block))))
    exact = x.dtype in (torch.float32, torch.float64)
    shape = {"C": channels, "ROWS": ROWS, "CHANNELS": block, "EXACT": exact, "num_warps": WARPS}
    return rows, parts, shape


def _channel_block(channels: int) -> int:
    """The power of two up to CHANNELS that leaves the fewest lanes idle."""
    sizes = [1 << n for n in range(4, CHANNELS.bit_length())]
    return min(sizes, key=lambda size: (blocks(channels, size) * size, -size))
