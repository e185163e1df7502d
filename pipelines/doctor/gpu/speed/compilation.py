"""Part `compilation`: compiles the Triton programs of the later parts on all cores in parallel.

Triton compiles a program at its first call, on one core. The check needs about a hundred programs,
and those of the depthwise layers take seconds each. Triton caches them on disk for the later parts.
"""

import multiprocessing
import os
import time
import traceback
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch

from convnextv2 import kernels
from convnextv2.kernels.gpu import triton_missing
from convnextv2.sizes import size_of
from pipelines.doctor.gpu.correctness.kernels import (
    BARS,
    EXACT,
    GRID,
    OTHERS,
    ROUNDED,
    VISIBLE,
    outputs,
    random_leaves,
    with_shortcut,
)
from pipelines.doctor.gpu.parts import Row, Setting, Skipped

SHARE = 0.85
"""The share of the part's time to compile for; the rest is to start and to end the processes. Later
parts compile the remaining programs when they call them."""
BATCH = 16
"""A multiple of 16, as in training: Triton compiles other programs for other numbers."""
DECODER_DIM = 512


class Program(NamedTuple):
    """A layer at one shape: its channels, and the side of a map or of a visible patch."""

    layer: str
    dtype: torch.dtype
    side: int
    channels: int


class Compiled(NamedTuple):
    """The seconds that the programs of a layer took, and the error, if there was one."""

    program: Program
    seconds: float
    problem: str


def compilation(setting: Setting) -> Iterator[Row]:
    """Compile the programs; the row has their number, the seconds and the cores.

    Raises:
        Skipped: Where Triton is not used.
    """
    if not setting.on_gpu:
        raise Skipped("Triton's programs are for GPUs")
    if why := triton_missing():
        raise Skipped(why)
    programs = programs_of(setting)
    cores = min(os.cpu_count() or 1, len(programs))
    begin = time.monotonic()
    deadline = begin + SHARE * setting.seconds
    done: list[Compiled] = []
    # Leaving the pool ends its processes, so none compiles on while a later part measures.
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        stream = pool.imap_unordered(compile_one, programs)
        while len(done) < len(programs):
            try:
                done.append(stream.next(max(0.0, deadline - time.monotonic())))
            except multiprocessing.TimeoutError:
                break
    for program, _, problem in done:
        if problem:
            yield Row(f"{program.layer} s={program.side} C={program.channels}", {}, problem)
    slowest = max((each.seconds for each in done), default=0.0)
    yield Row(
        "layers",
        {
            "compiled": float(len(done)),
            "of": float(len(programs)),
            "cores": float(cores),
            "seconds": time.monotonic() - begin,
            "slowest": slowest,
        },
    )


def programs_of(setting: Setting) -> list[Program]:
    """The programs of the later parts, without duplicates, slowest first."""
    found: dict[Program, None] = {}
    for size in setting.sizes:
        for stage, channels in enumerate(size_of(size).dims):
            found[Program("patches", torch.bfloat16, 8 >> stage, channels)] = None
    found[Program("dense", torch.bfloat16, GRID[0], DECODER_DIM)] = None
    for dtype in BARS:
        for case in ROUNDED if dtype == torch.bfloat16 else EXACT:
            found[Program("patches", dtype, case.side, case.channels)] = None
        for case in OTHERS:
            found[Program("dense", dtype, GRID[0] * case.side, case.channels)] = None
    # The models of the parts `training` and `zero`.
    for dims, grid, decoder in (((8, 16, 24, 32), 4, 32), (size_of("pocket").dims, 2, DECODER_DIM)):
        for dtype in (torch.float32, torch.bfloat16):
            found[Program("dense", dtype, grid, decoder)] = None
            for stage, channels in enumerate(dims):
                found[Program("patches", dtype, 8 >> stage, channels)] = None
    # Classifiers and masked-dense process whole images; `backends` runs Atto in three precisions.
    for size, dtypes in (("atto", tuple(BARS)), ("base", (torch.bfloat16,))):
        for dtype in dtypes if size in setting.sizes else ():
            for stage, channels in enumerate(size_of(size).dims):
                found[Program("dense", dtype, (8 >> stage) * GRID[0], channels)] = None
                found[Program("patches", dtype, 8 >> stage, channels)] = None
    return sorted(found, key=lambda program: -min(program.side, 4))


def compile_one(program: Program) -> Compiled:
    """Call the layers of a program once, forward and backward, on a small input."""
    begin = time.monotonic()
    try:
        _call(program)
    except Exception:
        return Compiled(program, time.monotonic() - begin, traceback.format_exc(limit=-1).strip())
    return Compiled(program, time.monotonic() - begin, "")


def _call(program: Program) -> None:
    device, channels, side = torch.device("cuda"), program.channels, program.side
    shape: tuple[int, ...] = (BATCH, side, side, channels)
    convolve = kernels.depthwise
    if program.layer == "patches":
        shape = (BATCH, VISIBLE, side, side, channels)
        patches = torch.stack([torch.randperm(GRID[0] * GRID[1])[:VISIBLE] for _ in range(BATCH)])
        convolve = partial(kernels.patch_depthwise, patches=patches.to(device), grid=GRID)
    wide = (*shape[:-1], 4 * channels)
    for operation, size, parameters in (
        (with_shortcut(convolve), shape, ((channels, 1, 7, 7), (channels,))),
        (partial(kernels.gelu_grn, groups=BATCH), wide, ((4 * channels,), (4 * channels,))),
        (partial(kernels.layer_norm, eps=1e-6), shape, ((channels,), (channels,))),
    ):
        leaves = random_leaves((size, *parameters), program.dtype, device)
        outputs(operation, leaves, torch.randn_like(leaves[0]))
    torch.cuda.synchronize()
