"""The Triton programs of GELU + GRN, in their own module because it imports Triton.

Layout: x is (groups, rows, C); the statistics of GRN are taken over the rows of a group. Both
directions read their inputs twice: once for the sums over rows, once to write the result. Sums are
taken in parts and added in a fixed order, so that the same inputs always give the same bits.
"""

import triton
import triton.language as tl

from convnextv2.kernels.gpu.gelu_programs import gelu, gelu_and_slope


@triton.jit
def own_channels(C: tl.constexpr, CHANNELS: tl.constexpr) -> tl.tuple:
    """This program's number among those of the same channels, the channels, and which exist."""
    BLOCKS: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    channel = tl.program_id(0) % BLOCKS * CHANNELS + tl.arange(0, CHANNELS)
    return tl.program_id(0) // BLOCKS, channel, channel < C


@triton.jit
def rows_from(
    start: tl.tensor,
    group: tl.tensor,
    rows: tl.tensor,
    channel: tl.tensor,
    exists: tl.tensor,
    C: tl.constexpr,
    ROWS: tl.constexpr,
) -> tl.tuple:
    """Offsets (ROWS, CHANNELS) of a group's rows from row `start` on, and which of them exist."""
    row = start + tl.arange(0, ROWS)
    at = (group * rows + row)[:, None] * C + channel[None, :]
    return at, (row < rows)[:, None] & exists[None, :]


@triton.jit
def square_sums(
    x: tl.tensor,
    parts: tl.tensor,
    rows: tl.tensor,
    splits: tl.tensor,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    EXACT: tl.constexpr,
) -> None:
    """Sums of GELU(x)^2 over every splits-th block of rows of a group: (groups, splits, C)."""
    SUM: tl.constexpr = parts.dtype.element_ty
    group = tl.program_id(1).to(tl.int64)
    split, channel, exists = own_channels(C, CHANNELS)
    sums = tl.zeros((ROWS, CHANNELS), dtype=SUM)
    for start in range(split * ROWS, rows, splits * ROWS):
        at, mask = rows_from(start, group, rows, channel, exists, C, ROWS)
        response = gelu(tl.load(x + at, mask=mask, other=0).to(SUM), EXACT)
        sums += response * response
    tl.store(parts + (group * splits + split) * C + channel, tl.sum(sums, axis=0), mask=exists)


@triton.jit
def norms(
    parts: tl.tensor,
    gamma: tl.tensor,
    norm: tl.tensor,
    scale: tl.tensor,
    splits: tl.tensor,
    C: tl.constexpr,
    EPS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """One group's norms (C) and scales (C): 1 + gamma x norm / mean of the norms."""
    SUM: tl.constexpr = parts.dtype.element_ty
    group = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    exists = channel < C
    squares = tl.zeros((CHANNELS,), dtype=SUM)
    for split in range(splits):
        squares += tl.load(parts + (group * splits + split) * C + channel, mask=exists, other=0)
    root = tl.sqrt(squares)
    mean = tl.sum(root, axis=0) / C
    factor = tl.load(gamma + channel, mask=exists, other=0).to(SUM)
    tl.store(norm + group * C + channel, root, mask=exists)
    tl.store(scale + group * C + channel, 1.0 + factor * (root / (mean + EPS)), mask=exists)


@triton.jit
def respond(
    x: tl.tensor,
    scale: tl.tensor,
    beta: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    EXACT: tl.constexpr,
) -> None:
    """Write GELU(x) x scale + beta for one block of rows and channels of a group."""
    SUM: tl.constexpr = scale.dtype.element_ty
    group = tl.program_id(1).to(tl.int64)
    number, channel, exists = own_channels(C, CHANNELS)
    at, mask = rows_from(number * ROWS, group, rows, channel, exists, C, ROWS)
    factor = tl.load(scale + group * C + channel, mask=exists, other=0)
    shift = tl.load(beta + channel, mask=exists, other=0).to(SUM)
    response = gelu(tl.load(x + at, mask=mask, other=0).to(SUM), EXACT)
    tl.store(out + at, response * factor[None, :] + shift[None, :], mask=mask)


@triton.jit
def gradient_sums(
    x: tl.tensor,
    grad: tl.tensor,
    scale: tl.tensor,
    beta: tl.tensor,
    out: tl.tensor,
    along: tl.tensor,
    plain: tl.tensor,
    rows: tl.tensor,
    splits: tl.tensor,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    EXACT: tl.constexpr,
    AGAIN: tl.constexpr,
) -> None:
    """Sums of grad x GELU(x) and of grad, (groups, splits, C); with AGAIN also the output."""
    SUM: tl.constexpr = along.dtype.element_ty
    group = tl.program_id(1).to(tl.int64)
    split, channel, exists = own_channels(C, CHANNELS)
    factor = tl.load(scale + group * C + channel, mask=exists, other=0)
    shift = tl.load(beta + channel, mask=exists, other=0).to(SUM)
    products = tl.zeros((ROWS, CHANNELS), dtype=SUM)
    sums = tl.zeros((ROWS, CHANNELS), dtype=SUM)
    for start in range(split * ROWS, rows, splits * ROWS):
        at, mask = rows_from(start, group, rows, channel, exists, C, ROWS)
        slope = tl.load(grad + at, mask=mask, other=0).to(SUM)
        response = gelu(tl.load(x + at, mask=mask, other=0).to(SUM), EXACT)
        products += slope * response
        sums += slope
        if AGAIN:
            tl.store(out + at, response * factor[None, :] + shift[None, :], mask=mask)
    at = (group * splits + split) * C + channel
    tl.store(along + at, tl.sum(products, axis=0), mask=exists)
    tl.store(plain + at, tl.sum(sums, axis=0), mask=exists)


@triton.jit
def norm_gradients(
    along: tl.tensor,
    plain: tl.tensor,
    gamma: tl.tensor,
    norm: tl.tensor,
    pull: tl.tensor,
    by_gamma: tl.tensor,
    by_beta: tl.tensor,
    splits: tl.tensor,
    C: tl.constexpr,
    EPS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """One group's share of the gradients of gamma and beta, and `pull` (C).

    GELU(x) x pull is the part of GELU's gradient that comes through the group's norms.
    """
    SUM: tl.constexpr = along.dtype.element_ty
    group = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    exists = channel < C
    products = tl.zeros((CHANNELS,), dtype=SUM)
    sums = tl.zeros((CHANNELS,), dtype=SUM)
    for split in range(splits):
        at = (group * splits + split) * C + channel
        products += tl.load(along + at, mask=exists, other=0)
        sums += tl.load(plain + at, mask=exists, other=0)
    root = tl.load(norm + group * C + channel, mask=exists, other=0)
    mean = tl.sum(root, axis=0) / C + EPS
    by_response = products * tl.load(gamma + channel, mask=exists, other=0).to(SUM)
    by_mean = tl.sum(by_response * root, axis=0) / (mean * mean * C)
    by_norm = by_response / mean - by_mean
    # Where a channel is zero everywhere, its norm has no gradient: zero is taken.
    direction = tl.where(root > 0, by_norm / root, 0.0)
    at = group * C + channel
    tl.store(pull + at, direction, mask=exists)
    tl.store(by_gamma + at, products * (root / mean), mask=exists)
    tl.store(by_beta + at, sums, mask=exists)


@triton.jit
def input_gradient(
    x: tl.tensor,
    grad: tl.tensor,
    scale: tl.tensor,
    pull: tl.tensor,
    grad_x: tl.tensor,
    rows: tl.tensor,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    EXACT: tl.constexpr,
) -> None:
    """Write the gradient with respect to x for one block of rows and channels of a group."""
    SUM: tl.constexpr = scale.dtype.element_ty
    group = tl.program_id(1).to(tl.int64)
    number, channel, exists = own_channels(C, CHANNELS)
    at, mask = rows_from(number * ROWS, group, rows, channel, exists, C, ROWS)
    factor = tl.load(scale + group * C + channel, mask=exists, other=0)
    along = tl.load(pull + group * C + channel, mask=exists, other=0)
    response, slope = gelu_and_slope(tl.load(x + at, mask=mask, other=0).to(SUM), EXACT)
    above = tl.load(grad + at, mask=mask, other=0).to(SUM)
    by_response = above * factor[None, :] + response * along[None, :]
    tl.store(grad_x + at, by_response * slope, mask=mask)
