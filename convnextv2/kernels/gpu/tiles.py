"""Where tiles of sites lie and how they are read, for the Triton programs of the depthwise layers.

Layout: x is (patches, HEIGHT, WIDTH, C). `neighbours` (patches, AROUND, AROUND) holds the number of
the patch at each offset, -1 where there is none. With AROUND 0 there is no table, and no patch has
neighbours.
"""

# Triton unrolls loops in which a tuple grows; a type checker sees one variable of several types.
# mypy: disable-error-code="assignment"

import triton
import triton.language as tl


@triton.jit
def fetch(
    pointer: tl.tensor, exists: tl.tensor, MASKED: tl.constexpr, SUM: tl.constexpr
) -> tl.tensor:
    """Load in the dtype of sums; a mask costs an instruction, so it is used only with MASKED."""
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
    """Number of the patch with the tile DOWN and RIGHT tiles from `tile`, -1 if none has it."""
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
    """Number of the first site of the tile DOWN and RIGHT tiles from `tile`, in `patch`."""
    # Whichever patch the tile lies in, the remainder is its place there.
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
    """`patch_at` every offset up to REACH; all are read at once, so that none waits for another."""
    patches = ()
    for down in tl.static_range(-REACH, REACH + 1):
        for right in tl.static_range(-REACH, REACH + 1):
            patches += (patch_at(neighbours, tile, down, right, ROWS, COLUMNS, AROUND),)
    return patches


@triton.jit
def repeated(value: tl.core.base_value, COUNT: tl.constexpr) -> tl.tuple:
    """A tuple of COUNT times the same value."""
    values = ()
    for _ in tl.static_range(COUNT):
        values += (value,)
    return values


@triton.jit
def read_tile(
    x: tl.tensor,
    exists: tl.tensor,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    SUM: tl.constexpr,
) -> tl.tuple:
    """The sites of a tile, row by row; the first lies at `x`, in maps WIDTH sites wide."""
    rows = ()
    for i in tl.static_range(TILE):
        row = ()
        for j in tl.static_range(TILE):
            row += (fetch(x + (i * WIDTH + j) * C, exists, MASKED, SUM),)
        rows += (row,)
    return rows


@triton.jit
def write_square(
    to: tl.tensor,
    rows: tl.tuple,
    exists: tl.tensor,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    SIDE: tl.constexpr,
    MASKED: tl.constexpr,
) -> None:
    """Store SIDE rows of SIDE vectors, the first at `to`, in maps WIDTH places wide."""
    for i in tl.static_range(SIDE):
        for j in tl.static_range(SIDE):
            if MASKED:
                tl.store(to + (i * WIDTH + j) * C, rows[i][j], mask=exists)
            else:
                tl.store(to + (i * WIDTH + j) * C, rows[i][j])


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
    """A row of the tile RIGHT tiles away; zeros for the sites that the kernel does not reach."""
    values = ()
    for j in tl.static_range(TILE):
        if (RIGHT * TILE + j >= -(KERNEL // 2)) & (RIGHT * TILE + j < TILE + KERNEL // 2):
            values += (fetch(x + j * C, exists, MASKED, SUM),)
        else:
            values += (tl.zeros((CHANNELS,), dtype=SUM),)
    return values
