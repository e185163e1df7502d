"""The Triton program of the depthwise weight's gradient, apart because it imports Triton.

A program handles some channels. It keeps the sums for all K*K positions of the kernel, and for the
bias, in registers while it goes through its share of the tiles. For each tile, it reads the
gradient, and the sites around it, once.
"""

# Triton unrolls loops in which a tuple grows; a type checker sees one variable of several types.
# mypy: disable-error-code="assignment"

import triton
import triton.language as tl

from convnextv2.kernels.gpu.tiles import (
    first_site,
    patches_around,
    read_row,
    read_tile,
    repeated,
    write_square,
)


@triton.jit
def row_by_row(
    sums: tl.tuple,
    values: tl.tuple,
    grads: tl.tuple,
    RIGHT: tl.constexpr,
    TILE: tl.constexpr,
    KERNEL: tl.constexpr,
) -> tl.tuple:
    """Add the products of a row of a tile, RIGHT tiles away, and a row of the gradient."""
    FIRST: tl.constexpr = KERNEL // 2 + RIGHT * TILE
    new = ()
    for k in tl.static_range(KERNEL):
        total = sums[k]
        for o in tl.static_range(TILE):
            if (o + k - FIRST >= 0) & (o + k - FIRST < TILE):
                total = tl.fma(values[o + k - FIRST], grads[o], total)
        new += (total,)
    return new


@triton.jit
def tile_by_tile(
    sums: tl.tuple,
    x: tl.tensor,
    grads: tl.tuple,
    exists: tl.tensor,
    DOWN: tl.constexpr,
    RIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    TILE: tl.constexpr,
    KERNEL: tl.constexpr,
    MASKED: tl.constexpr,
    SUM: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tl.tuple:
    """Add the products of a tile of sites, DOWN and RIGHT tiles away, and one of the gradient."""
    HALF: tl.constexpr = KERNEL // 2
    FIRST: tl.constexpr = HALF + DOWN * TILE
    for i in tl.static_range(TILE):
        if (DOWN * TILE + i >= -HALF) & (DOWN * TILE + i < TILE + HALF):
            values = read_row(
                x + i * WIDTH * C, exists, RIGHT, C, TILE, KERNEL, MASKED, SUM, CHANNELS
            )
            new = ()
            for k in tl.static_range(KERNEL):
                if (FIRST + i - k >= 0) & (FIRST + i - k < TILE):
                    new += (row_by_row(sums[k], values, grads[FIRST + i - k], RIGHT, TILE, KERNEL),)
                else:
                    new += (sums[k],)
            sums = new
    return sums


@triton.jit
def weight_gradient(
    x: tl.tensor,
    grad: tl.tensor,
    parts: tl.tensor,
    neighbours: tl.tensor,
    tiles: tl.tensor,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    TILE: tl.constexpr,
    KERNEL: tl.constexpr,
    AROUND: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Sum over every G-th tile, of G programs, into `parts` (G, K*K + 1, C), the bias last."""
    SUM: tl.constexpr = parts.dtype.element_ty
    MASKED: tl.constexpr = C % CHANNELS != 0
    REACH: tl.constexpr = (KERNEL // 2 + TILE - 1) // TILE
    SIDE: tl.constexpr = 2 * REACH + 1
    ROWS: tl.constexpr = HEIGHT // TILE
    COLUMNS: tl.constexpr = WIDTH // TILE
    group = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < C
    by_bias = tl.zeros((CHANNELS,), dtype=SUM)
    sums = repeated(repeated(by_bias, KERNEL), KERNEL)
    for number in range(group, tiles, tl.num_programs(0)):
        # Makes `tile` a tensor in Triton's interpreter, too.
        tile = tl.zeros((), dtype=tl.int32) + number
        patches = patches_around(neighbours, tile, REACH, ROWS, COLUMNS, AROUND)
        own = first_site(tile // (ROWS * COLUMNS), tile, 0, 0, ROWS, COLUMNS, TILE)
        grads = read_tile(grad + own * C + channel, exists, WIDTH, C, TILE, MASKED, SUM)
        for i in tl.static_range(TILE):
            for j in tl.static_range(TILE):
                by_bias += grads[i][j]
        for down in tl.static_range(-REACH, REACH + 1):
            for right in tl.static_range(-REACH, REACH + 1):
                patch = patches[(down + REACH) * SIDE + right + REACH]
                first = first_site(patch, tile, down, right, ROWS, COLUMNS, TILE)
                if patch >= 0:
                    sums = tile_by_tile(
                        sums,
                        x + first * C + channel,
                        grads,
                        exists,
                        down,
                        right,
                        WIDTH,
                        C,
                        TILE,
                        KERNEL,
                        MASKED,
                        SUM,
                        CHANNELS,
                    )
    at = parts + group.to(tl.int64) * (KERNEL * KERNEL + 1) * C + channel
    write_square(at, sums, exists, KERNEL, C, KERNEL, MASKED)
    tl.store(at + KERNEL * KERNEL * C, by_bias, mask=exists)
