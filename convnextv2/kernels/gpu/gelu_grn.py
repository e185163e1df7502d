"""GELU + GRN on GPUs: two passes over the widest tensors of a block in each direction.

Only the input and the norms are kept for backward; whoever needs the output again asks for it in
the pass that the backward begins with.

Legend: groups, each with statistics of its own; rows, the sites of a group; C channels.
"""

import torch
from torch import Tensor

EPS = 1e-6
ROWS, CHANNELS = 16, 128
"""The largest share of one program: so many rows of so many channels."""
PROGRAMS = 4096
"""Sums over rows are taken in parts until there are about so many programs."""
WARPS = 4


def forward(x: Tensor, gamma: Tensor, beta: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Output, norms and scales (groups, C) of a contiguous `x` (groups*rows, C)."""
    from convnextv2.kernels.gpu import gelu_grn_programs as programs

    rows, channels, block, splits = _shares(x, groups)
    common = {"C": channels, "ROWS": ROWS, "CHANNELS": block, "EXACT": _exact(x)}
    parts = x.new_empty(groups, splits, channels, dtype=_sum_dtype(x))
    norm, scale = parts.new_empty(2, groups, channels)
    out = torch.empty_like(x)
    blocks = _blocks(channels, block)
    programs.square_sums[splits * blocks, groups](
        x, parts, rows, splits, **common, num_warps=WARPS
    )
    programs.norms[(groups,)](
        parts, gamma, norm, scale, splits, C=channels, EPS=EPS, CHANNELS=_power(channels)
    )
    programs.respond[_blocks(rows, ROWS) * blocks, groups](
        x, scale, beta, out, rows, **common, num_warps=WARPS
    )
    return out, norm, scale


def gradient_sums(
    x: Tensor, grad: Tensor, beta: Tensor, scale: Tensor, groups: int, *, again: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums in parts of grad x GELU(x) and of grad; the forward's output, if asked for `again`."""
    from convnextv2.kernels.gpu import gelu_grn_programs as programs

    rows, channels, block, splits = _shares(x, groups)
    along, plain = scale.new_empty(2, groups, splits, channels)
    out = torch.empty_like(x) if again else x
    programs.gradient_sums[splits * _blocks(channels, block), groups](
        *(x, grad, scale, beta, out, along, plain, rows, splits),
        C=channels,
        ROWS=ROWS,
        CHANNELS=block,
        EXACT=_exact(x),
        AGAIN=again,
        num_warps=WARPS,
    )
    return along, plain, out


def backward(
    x: Tensor,
    grad: Tensor,
    gamma: Tensor,
    norm: Tensor,
    scale: Tensor,
    along: Tensor,
    plain: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to x, gamma (C) and beta (C), from what `gradient_sums` found."""
    from convnextv2.kernels.gpu import gelu_grn_programs as programs

    groups, splits, channels = along.shape
    rows, _, block, _ = _shares(x, groups)
    pull = torch.empty_like(norm)
    by_parameters = norm.new_empty(2, groups, channels)
    programs.norm_gradients[(groups,)](
        *(along, plain, gamma, norm, pull, by_parameters[0], by_parameters[1], splits),
        C=channels,
        EPS=EPS,
        CHANNELS=_power(channels),
    )
    grad_x = torch.empty_like(x)
    programs.input_gradient[_blocks(rows, ROWS) * _blocks(channels, block), groups](
        *(x, grad, scale, pull, grad_x, rows),
        C=channels,
        ROWS=ROWS,
        CHANNELS=block,
        EXACT=_exact(x),
        num_warps=WARPS,
    )
    by_gamma, by_beta = by_parameters.sum(1)
    return grad_x, by_gamma, by_beta


def _shares(x: Tensor, groups: int) -> tuple[int, int, int, int]:
    """Rows of a group, C, channels of a program, parts in which rows are summed."""
    channels = x.shape[-1]
    rows = x.numel() // (groups * channels)
    block = _channel_block(channels)
    programs = groups * _blocks(channels, block)
    return rows, channels, block, max(1, min(_blocks(rows, ROWS), PROGRAMS // programs))


def _channel_block(channels: int) -> int:
    """The power of two up to CHANNELS that leaves the fewest lanes without a channel."""
    sizes = [1 << n for n in range(4, CHANNELS.bit_length())]
    return min(sizes, key=lambda size: (_blocks(channels, size) * size, -size))


def _exact(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _blocks(length: int, block: int) -> int:
    return -(-length // block)


def _power(length: int) -> int:
    return 1 << (length - 1).bit_length()
