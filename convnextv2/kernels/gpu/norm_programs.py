"""The Triton programs of LayerNorm, in their own module because it imports Triton.

Layout: x is (rows, C). A program holds whole rows. Mean and deviation are recomputed in the
backward pass: it reads x anyway, and with few channels they would take much memory compared to x.
"""

import torch
import triton
import triton.language as tl

SUM_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def standardised(
    values: tl.tensor, exists: tl.tensor, C: tl.constexpr, EPS: tl.constexpr
) -> tl.tuple:
    """Rows (ROWS, CHANNELS) minus their mean, over their deviation; and 1 / deviation."""
    centred = tl.where(exists[None, :], values - (tl.sum(values, axis=1) / C)[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / C
    inverse = 1.0 / tl.sqrt(variance + EPS)
    return centred * inverse[:, None], inverse


@triton.jit
def rows_from(
    start: tl.tensor, rows: tl.tensor, channel: tl.tensor, C: tl.constexpr, ROWS: tl.constexpr
) -> tl.tuple:
    """Offsets (ROWS, CHANNELS) of the rows from row `start` on, and which of them exist."""
    row = start + tl.arange(0, ROWS)
    at = row.to(tl.int64)[:, None] * C + channel[None, :]
    return at, (row < rows)[:, None] & (channel < C)[None, :]


@triton.jit
def normalise(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    C: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """Write ROWS rows of the output."""
    channel = tl.arange(0, CHANNELS)
    exists = channel < C
    at, mask = rows_from(tl.program_id(0) * ROWS, rows, channel, C, ROWS)
    factor = tl.load(weight + channel, mask=exists, other=0).to(SUM)
    shift = tl.load(bias + channel, mask=exists, other=0).to(SUM)
    values = tl.load(x + at, mask=mask, other=0).to(SUM)
    normal, _inverse = standardised(values, exists, C, EPS)
    tl.store(out + at, normal * factor[None, :] + shift[None, :], mask=mask)


@triton.jit
def norm_gradients(
    x: tl.tensor,
    grad: tl.tensor,
    weight: tl.tensor,
    grad_x: tl.tensor,
    parts: tl.tensor,
    rows: tl.tensor,
    C: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """Gradients of every P-th block of rows, where P is the number of programs.

    `parts` (P, 2, C) receives each program's sums for the gradients of the weight and of the bias.
    """
    channel = tl.arange(0, CHANNELS)
    exists = channel < C
    factor = tl.load(weight + channel, mask=exists, other=0).to(SUM)
    by_weight = tl.zeros((ROWS, CHANNELS), dtype=SUM)
    by_bias = tl.zeros((ROWS, CHANNELS), dtype=SUM)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        at, mask = rows_from(start, rows, channel, C, ROWS)
        values = tl.load(x + at, mask=mask, other=0).to(SUM)
        above = tl.load(grad + at, mask=mask, other=0).to(SUM)
        normal, inverse = standardised(values, exists, C, EPS)
        by_weight += above * normal
        by_bias += above
        scaled = above * factor[None, :]
        mean = tl.sum(scaled, axis=1) / C
        along = tl.sum(scaled * normal, axis=1) / C
        below = (scaled - mean[:, None] - normal * along[:, None]) * inverse[:, None]
        tl.store(grad_x + at, below, mask=mask)
    at = tl.program_id(0).to(tl.int64) * 2 * C + channel
    tl.store(parts + at, tl.sum(by_weight, axis=0), mask=exists)
    tl.store(parts + at + C, tl.sum(by_bias, axis=0), mask=exists)
