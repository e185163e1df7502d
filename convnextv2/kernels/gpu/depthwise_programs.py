"""The Triton programs of the depthwise convolution, apart because they need Triton to be imported.

A program owns one tile of TILE x TILE sites of some channels and keeps all of its sums in
registers. It goes through the tiles around its own: those that are not there cost a comparison, of
the others every site is read once and multiplied into all sums that it reaches. What is known when
a program is compiled (the geometry, C) leaves addresses that are one register and a constant.

Layout: x is (patches, HEIGHT, WIDTH, C). `neighbours` (patches, AROUND, AROUND) numbers the
patch at each offset, -1 where none is; AROUND 0 has no table, and every patch is alone.
"""

# Triton unrolls loops over tuples that grow, which a type checker takes for one tuple.
# mypy: disable-error-code="assignment"

import triton
import triton.language as tl


@triton.jit
def fetch(
    pointer: tl.tensor, exists: tl.tensor, MASKED: tl.constexpr, SUM: tl.constexpr
) -> tl.tensor:
    """Load as the dtype of sums; a mask costs an instruction, so none where C fits the block."""
    if MASKED:
        return tl.load(pointer, mask=exists, other=0).to(SUM)
    else:
        return tl.load(pointer).to(SUM)


@triton.jit
def patch_at(
    neighbours: tl.tensor,
    tile: tl.tensor,
    DOWN: tl.constexpr,
    RIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AROUND: tl.constexpr,
) -> tl.tensor:
    """Number of the patch that holds the tile at an offset of `tile`, -1 where none does."""
    HALF: tl.constexpr = AROUND // 2
    patch = tile // (ROWS * COLUMNS)
    row = tile // COLUMNS % ROWS + DOWN
    column = tile % COLUMNS + RIGHT
    if AROUND == 0:
        inside = (row >= 0) & (row < ROWS) & (column >= 0) & (column < COLUMNS)
        return tl.where(inside, patch, -1)
    else:
        # Division rounds towards zero, so it is done on numbers that are not negative.
        down = (row + HALF * ROWS) // ROWS
        right = (column + HALF * COLUMNS) // COLUMNS
        return tl.load(neighbours + (patch * AROUND + down) * AROUND + right)


@triton.jit
def first_site(
    patch: tl.tensor,
    tile: tl.tensor,
    DOWN: tl.constexpr,
    RIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """Number of the first site of the tile at an offset of `tile`, which lies in `patch`."""
    # However far it is in patches, its place in its own is the remainder.
    row = (tile // COLUMNS % ROWS + DOWN + TILE * ROWS) % ROWS
    column = (tile % COLUMNS + RIGHT + TILE * COLUMNS) % COLUMNS
    WIDTH: tl.constexpr = COLUMNS * TILE
    return patch.to(tl.int64) * (ROWS * TILE * WIDTH) + (row * WIDTH + column) * TILE


@triton.jit
def patches_around(
    neighbours: tl.tensor,
    tile: tl.tensor,
    REACH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AROUND: tl.constexpr,
) -> tl.tuple:
    """`patch_at` every offset up to REACH, read at once: nothing waits for them one by one."""
    patches = ()
    for down in tl.static_range(-REACH, REACH + 1):
        for right in tl.static_range(-REACH, REACH + 1):
            patches += (patch_at(neighbours, tile, down, right, ROWS, COLUMNS, AROUND),)
    return patches


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
    """Add a row of a tile, RIGHT tiles away, times one row of the kernel to a row of sums."""
    FIRST: tl.constexpr = KERNEL // 2 + RIGHT * TILE
    STEP: tl.constexpr = -C if BACKWARD else C
    # How far to the right of its sum a site lies, by their columns in their own tiles.
    for shift in tl.static_range(1 - TILE, TILE):
        if (FIRST + shift >= 0) & (FIRST + shift < KERNEL):
            factor = fetch(weight + (FIRST + shift) * STEP, exists, MASKED, SUM)
            new = ()
            for o in tl.static_range(TILE):
                if (o + shift >= 0) & (o + shift < TILE):
                    new += (sums[o] + values[o + shift] * factor,)
                else:
                    new += (sums[o],)
            sums = new
    return sums


@triton.jit
def read_row(
    x: tl.tensor,
    exists: tl.tensor,
    RIGHT: tl.constexpr,
    C: tl.constexpr,
    TILE: tl.constexpr,
    KERNEL: tl.constexpr,
    MASKED: tl.constexpr,
    SUM: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tl.tuple:
    """The sites of a tile's row that the kernel reaches from RIGHT tiles away; zeros elsewhere."""
    values = ()
    for j in tl.static_range(TILE):
        if (RIGHT * TILE + j >= -(KERNEL // 2)) & (RIGHT * TILE + j < TILE + KERNEL // 2):
            values += (fetch(x + j * C, exists, MASKED, SUM),)
        else:
            values += (tl.zeros((CHANNELS,), dtype=SUM),)
    return values


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
    """Add what a tile, at `x` and at an offset in tiles, gives to the sums of a tile."""
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
def convolve(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
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
) -> None:
    """One tile of the output; `weight` (K*K, C) is in the dtype of sums.

    BACKWARD from the output's gradient to the input's the kernel is turned around.
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
    start = tl.zeros((CHANNELS,), dtype=SUM)
    if BACKWARD:
        weight += (KERNEL * KERNEL - 1) * C
    else:
        start += fetch(bias + channel, exists, MASKED, SUM)
    row = ()
    for _ in tl.static_range(TILE):
        row += (start,)
    sums = ()
    for _ in tl.static_range(TILE):
        sums += (row,)
    patches = patches_around(neighbours, tile, REACH, ROWS, COLUMNS, AROUND)
    for down in tl.static_range(-REACH, REACH + 1):
        for right in tl.static_range(-REACH, REACH + 1):
            patch = patches[(down + REACH) * SIDE + right + REACH]
            first = first_site(patch, tile, down, right, ROWS, COLUMNS, TILE)
            if SKIP:
                if patch >= 0:
                    sums = tile_into_sums(
                        sums,
                        x + first * C + channel,
                        weight + channel,
                        exists,
                        exists,
                        down,
                        right,
                        WIDTH,
                        C,
                        TILE,
                        KERNEL,
                        BACKWARD,
                        MASKED,
                        MASKED,
                        SUM,
                        CHANNELS,
                    )
            else:
                sums = tile_into_sums(
                    sums,
                    x + first * C + channel,
                    weight + channel,
                    exists & (patch >= 0),
                    exists,
                    down,
                    right,
                    WIDTH,
                    C,
                    TILE,
                    KERNEL,
                    BACKWARD,
                    True,
                    MASKED,
                    SUM,
                    CHANNELS,
                )
    own = first_site(tile // (ROWS * COLUMNS), tile, 0, 0, ROWS, COLUMNS, TILE)
    for i in tl.static_range(TILE):
        for j in tl.static_range(TILE):
            pointer = out + own * C + channel + (i * WIDTH + j) * C
            if MASKED:
                tl.store(pointer, sums[i][j], mask=exists)
            else:
                tl.store(pointer, sums[i][j])


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
                total += values[o + k - FIRST] * grads[o]
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
    """Add the products of a tile of sites, at an offset in tiles, and a tile of the gradient."""
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
    """Sums over every G-th tile, of G programs: `parts` (G, K*K + 1, C), the last by the bias."""
    SUM: tl.constexpr = parts.dtype.element_ty
    MASKED: tl.constexpr = C % CHANNELS != 0
    REACH: tl.constexpr = (KERNEL // 2 + TILE - 1) // TILE
    SIDE: tl.constexpr = 2 * REACH + 1
    ROWS: tl.constexpr = HEIGHT // TILE
    COLUMNS: tl.constexpr = WIDTH // TILE
    group = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < C
    row = ()
    for _ in tl.static_range(KERNEL):
        row += (tl.zeros((CHANNELS,), dtype=SUM),)
    sums = ()
    for _ in tl.static_range(KERNEL):
        sums += (row,)
    by_bias = tl.zeros((CHANNELS,), dtype=SUM)
    for number in range(group, tiles, tl.num_programs(0)):
        # A tensor in the interpreter too.
        tile = tl.zeros((), dtype=tl.int32) + number
        patches = patches_around(neighbours, tile, REACH, ROWS, COLUMNS, AROUND)
        own = first_site(tile // (ROWS * COLUMNS), tile, 0, 0, ROWS, COLUMNS, TILE)
        grads = ()
        for i in tl.static_range(TILE):
            line = ()
            for j in tl.static_range(TILE):
                pointer = grad + own * C + channel + (i * WIDTH + j) * C
                line += (fetch(pointer, exists, MASKED, SUM),)
                by_bias += line[j]
            grads += (line,)
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
    for i in tl.static_range(KERNEL):
        for j in tl.static_range(KERNEL):
            tl.store(at + (i * KERNEL + j) * C, sums[i][j], mask=exists)
    tl.store(at + KERNEL * KERNEL * C, by_bias, mask=exists)
