"""The Triton program of the depthwise convolution, in its own module because it imports Triton.

A program owns one tile of TILE x TILE sites of some channels and keeps all of its sums in
registers. It visits the tiles around its own. A missing tile costs one comparison; of the others,
every site is read once and multiplied into all sums that it reaches. The geometry and C are known
when a program is compiled, so that an address is one register plus a constant.
"""

# Triton unrolls loops in which a tuple grows; a type checker sees one variable of several types.
# mypy: disable-error-code="assignment"

import triton
import triton.language as tl

from convnextv2.kernels.gpu.tiles import (
    fetch,
    first_site,
    patches_around,
    read_row,
    read_tile,
    repeated,
    write_square,
)


@triton.jit
def row_into_row(
    sums: tl.tuple,
    values: tl.tuple,
    weight: tl.tensor,
    exists: tl.tensor,
    RIGHT: tl.constexpr,
    C: tl.constexpr,
    TILE: tl.constexpr,
    KERNEL: tl.constexpr,
    BACKWARD: tl.constexpr,
    MASKED: tl.constexpr,
    SUM: tl.constexpr,
) -> tl.tuple:
    """Add to a row of sums a row of a tile, RIGHT tiles away, times a row of the kernel."""
    FIRST: tl.constexpr = KERNEL // 2 + RIGHT * TILE
    STEP: tl.constexpr = -C if BACKWARD else C
    # The column of a site in its own tile, minus the column of the sum in its tile.
    for shift in tl.static_range(1 - TILE, TILE):
        if (FIRST + shift >= 0) & (FIRST + shift < KERNEL):
            factor = fetch(weight + (FIRST + shift) * STEP, exists, MASKED, SUM)
            new = ()
            for o in tl.static_range(TILE):
                if (o + shift >= 0) & (o + shift < TILE):
                    new += (tl.fma(values[o + shift], factor, sums[o]),)
                else:
                    new += (sums[o],)
            sums = new
    return sums


@triton.jit
def tile_into_sums(
    sums: tl.tuple,
    x: tl.tensor,
    weight: tl.tensor,
    readable: tl.tensor,
    exists: tl.tensor,
    DOWN: tl.constexpr,
    RIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    TILE: tl.constexpr,
    KERNEL: tl.constexpr,
    BACKWARD: tl.constexpr,
    GUARDED: tl.constexpr,
    MASKED: tl.constexpr,
    SUM: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tl.tuple:
    """Add to a tile's sums what the tile at `x`, DOWN and RIGHT tiles away, contributes."""
    HALF: tl.constexpr = KERNEL // 2
    FIRST: tl.constexpr = HALF + DOWN * TILE
    STEP: tl.constexpr = -KERNEL * C if BACKWARD else KERNEL * C
    for i in tl.static_range(TILE):
        if (DOWN * TILE + i >= -HALF) & (DOWN * TILE + i < TILE + HALF):
            values = read_row(
                x + i * WIDTH * C, readable, RIGHT, C, TILE, KERNEL, GUARDED, SUM, CHANNELS
            )
            new = ()
            for o in tl.static_range(TILE):
                if (FIRST + i - o >= 0) & (FIRST + i - o < KERNEL):
                    new += (
                        row_into_row(
                            sums[o],
                            values,
                            weight + (FIRST + i - o) * STEP,
                            exists,
                            RIGHT,
                            C,
                            TILE,
                            KERNEL,
                            BACKWARD,
                            MASKED,
                            SUM,
                        ),
                    )
                else:
                    new += (sums[o],)
            sums = new
    return sums


@triton.jit
def sums_at_start(
    start: tl.tensor,
    own: tl.tensor,
    channel: tl.tensor,
    exists: tl.tensor,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    TILE: tl.constexpr,
    BACKWARD: tl.constexpr,
    SHORTCUT: tl.constexpr,
    MASKED: tl.constexpr,
    SUM: tl.constexpr,
) -> tl.tuple:
    """A tile's sums before anything is convolved; `own` is the number of its first site."""
    if SHORTCUT:
        return read_tile(start + own * C + channel, exists, WIDTH, C, TILE, MASKED, SUM)
    elif BACKWARD:
        return repeated(repeated(tl.zeros(channel.shape, dtype=SUM), TILE), TILE)
    else:
        return repeated(repeated(fetch(start + channel, exists, MASKED, SUM), TILE), TILE)


@triton.jit
def convolve(
    x: tl.tensor,
    weight: tl.tensor,
    start: tl.tensor,
    out: tl.tensor,
    neighbours: tl.tensor,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    TILE: tl.constexpr,
    KERNEL: tl.constexpr,
    AROUND: tl.constexpr,
    CHANNELS: tl.constexpr,
    SKIP: tl.constexpr,
    BACKWARD: tl.constexpr,
    SHORTCUT: tl.constexpr,
) -> None:
    """Compute one tile of the output; `weight` (K*K, C) is in the dtype of sums.

    In the forward pass, `start` is the bias (C). With BACKWARD the kernel is turned by 180 degrees:
    x is the gradient of the output, and the result is that of the input. With SHORTCUT, `start` is
    another gradient of the input; the sums start from it, which is cheaper than a separate pass.

    With SKIP, a missing tile costs one comparison; without it, the tile's sites are read as zeros.
    """
    SUM: tl.constexpr = weight.dtype.element_ty
    MASKED: tl.constexpr = C % CHANNELS != 0
    REACH: tl.constexpr = (KERNEL // 2 + TILE - 1) // TILE
    SIDE: tl.constexpr = 2 * REACH + 1
    ROWS: tl.constexpr = HEIGHT // TILE
    COLUMNS: tl.constexpr = WIDTH // TILE
    tile = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < C
    own = first_site(tile // (ROWS * COLUMNS), tile, 0, 0, ROWS, COLUMNS, TILE)
    sums = sums_at_start(
        start, own, channel, exists, WIDTH, C, TILE, BACKWARD, SHORTCUT, MASKED, SUM
    )
    if BACKWARD:
        weight += (KERNEL * KERNEL - 1) * C
    patches = patches_around(neighbours, tile, REACH, ROWS, COLUMNS, AROUND)
    for down in tl.static_range(-REACH, REACH + 1):
        for right in tl.static_range(-REACH, REACH + 1):
            patch = patches[(down + REACH) * SIDE + right + REACH]
            first = first_site(patch, tile, down, right, ROWS, COLUMNS, TILE)
            if SKIP:
                visited, readable = patch >= 0, exists
            else:
                visited, readable = True, exists & (patch >= 0)
            if visited:
                sums = tile_into_sums(
                    sums,
                    x + first * C + channel,
                    weight + channel,
                    readable,
                    exists,
                    down,
                    right,
                    WIDTH,
                    C,
                    TILE,
                    KERNEL,
                    BACKWARD,
                    MASKED or not SKIP,
                    MASKED,
                    SUM,
                    CHANNELS,
                )
    write_square(out + own * C + channel, sums, exists, WIDTH, C, TILE, MASKED)
