"""The Triton programs of `triton_depthwise`, apart because they need Triton to be imported.

Sites are numbered through the batch, patch after patch, row after row: the rows of (B, V, s, s, C).
"""

import torch
import triton
import triton.language as tl

SUM_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def reads(
    site: tl.tensor,
    place: tl.tensor,
    patches: tl.tensor,
    slots: tl.tensor,
    total: tl.tensor,
    visible: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    SIDE: tl.constexpr,
    KERNEL: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The sites that `site` reads at a place of the kernel, and whether they are there."""
    patch = site // (SIDE * SIDE)
    number = tl.load(patches + patch, mask=site < total, other=0)
    row = number // columns * SIDE + site // SIDE % SIDE + place // KERNEL - KERNEL // 2
    column = number % columns * SIDE + site % SIDE + place % KERNEL - KERNEL // 2
    inside = (row >= 0) & (row < rows * SIDE) & (column >= 0) & (column < columns * SIDE)
    there = inside & (site < total)
    image = patch // visible
    cell = image * rows * columns + row // SIDE * columns + column // SIDE
    slot = tl.load(slots + cell, mask=there, other=-1)
    source = ((image * visible + slot) * SIDE + row % SIDE) * SIDE + column % SIDE
    return source, there & (slot >= 0)


@triton.jit
def convolve(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    patches: tl.tensor,
    slots: tl.tensor,
    total: tl.tensor,
    visible: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    channels: tl.tensor,
    SIDE: tl.constexpr,
    KERNEL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SITES: tl.constexpr,
    CHANNELS: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """One block of sites by channels of the output."""
    site = tl.program_id(0) * SITES + tl.arange(0, SITES)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    sums = tl.zeros((SITES, CHANNELS), dtype=SUM)
    if HAS_BIAS:
        sums += tl.load(bias + channel, mask=exists, other=0).to(SUM)[None, :]
    for place in range(KERNEL * KERNEL):
        source, there = reads(
            site, place, patches, slots, total, visible, rows, columns, SIDE, KERNEL
        )
        at = source.to(tl.int64)[:, None] * channels + channel[None, :]
        value = tl.load(x + at, mask=there[:, None] & exists[None, :], other=0).to(SUM)
        factor = tl.load(weight + place * channels + channel, mask=exists, other=0).to(SUM)
        sums += value * factor[None, :]
    at = site.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(out + at, sums, mask=(site < total)[:, None] & exists[None, :])


@triton.jit
def weight_gradient(
    x: tl.tensor,
    grad: tl.tensor,
    parts: tl.tensor,
    patches: tl.tensor,
    slots: tl.tensor,
    total: tl.tensor,
    visible: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    channels: tl.tensor,
    SIDE: tl.constexpr,
    KERNEL: tl.constexpr,
    GROUPS: tl.constexpr,
    SITES: tl.constexpr,
    CHANNELS: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """The sum over every GROUPS-th block of sites, for one block of channels at one place."""
    group, place = tl.program_id(0), tl.program_id(2)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    sums = tl.zeros((SITES, CHANNELS), dtype=SUM)
    for start in range(group * SITES, total, GROUPS * SITES):
        site = start + tl.arange(0, SITES)
        source, there = reads(
            site, place, patches, slots, total, visible, rows, columns, SIDE, KERNEL
        )
        mask = there[:, None] & exists[None, :]
        read = source.to(tl.int64)[:, None] * channels + channel[None, :]
        written = site.to(tl.int64)[:, None] * channels + channel[None, :]
        value = tl.load(x + read, mask=mask, other=0).to(SUM)
        sums += value * tl.load(grad + written, mask=mask, other=0).to(SUM)
    at = (group * KERNEL * KERNEL + place) * channels + channel
    tl.store(parts + at, tl.sum(sums, axis=0), mask=exists)
