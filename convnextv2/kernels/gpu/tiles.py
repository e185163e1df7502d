"""Where tiles of sites lie and how they are read, for the Triton programs of the depthwise layers.

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
def repeated(value: tl.core.base_value, COUNT: tl.constexpr) -> tl.tuple:
    """COUNT times the same."""
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
    """The rows of a tile whose first site lies at `x`, in maps WIDTH sites wide."""
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
    """Store SIDE rows of SIDE places from `to` on, where a row is WIDTH places long."""
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
    """The sites of a tile's row that the kernel reaches from RIGHT tiles away; zeros elsewhere."""
    values = ()
    for j in tl.static_range(TILE):
        if (RIGHT * TILE + j >= -(KERNEL // 2)) & (RIGHT * TILE + j < TILE + KERNEL // 2):
            values += (fetch(x + j * C, exists, MASKED, SUM),)
        else:
            values += (tl.zeros((CHANNELS,), dtype=SUM),)
    return values
