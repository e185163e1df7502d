"""Part `kernels`: every operation as it is dispatched on this device, against PyTorch in fp64.

A second run of every operation must give the same bits.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from convnextv2 import kernels as dispatched
from convnextv2.kernels import plain
from convnextv2.kernels.gpu import triton_missing
from pipelines.doctor.gpu.parts import Row, Setting, Skipped

GRID = (7, 7)
VISIBLE = 19
BARS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 6e-3}
"""Largest relative error of a depthwise convolution; bf16 rounds it once, by up to 2^-8."""
CHAIN_BARS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest relative error of operations that PyTorch computes in several rounded steps."""

Operation = Callable[..., Tensor]


class Case(NamedTuple):
    """Sites on a side of a patch, channels, images, and sites on a side of the kernel."""

    side: int
    channels: int
    batch: int = 16
    kernel: int = 7


# Channels that are not a multiple of 16 compile to another program, with scalar loads.
EXACT = (Case(8, 40), Case(4, 48), Case(2, 24), Case(1, 40))
ROUNDED = (*EXACT, Case(8, 128), Case(4, 80), Case(2, 352), Case(1, 2816), Case(8, 78))
OTHERS = (Case(4, 40), Case(2, 128))
QUICK = (Case(1, 24, 1, kernel=3),)


def kernels(setting: Setting) -> Iterator[Row]:
    """Relative errors of outputs and gradients, for every patch size and three dtypes.

    Raises:
        Skipped: On a GPU without Triton.
    """
    why = triton_missing()
    if why and setting.on_gpu:
        raise Skipped(
            f"{why}; without it the depthwise convolves on a canvas of zeros, some 2.6 times the "
            "sites"
        )
    # By default cuDNN computes fp32 convolutions in TF32.
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device(setting.device)
    for dtype in BARS:
        cases = ROUNDED if dtype == torch.bfloat16 else EXACT
        for case in QUICK if setting.quick else cases:
            yield depthwise_of_patches(case, dtype, device)
        for case in QUICK if setting.quick else OTHERS:
            yield from others(case, dtype, device)


def depthwise_of_patches(case: Case, dtype: torch.dtype, device: torch.device) -> Row:
    """The depthwise convolution over the visible patches."""
    torch.manual_seed(case.side)
    patches = torch.stack([torch.randperm(GRID[0] * GRID[1])[:VISIBLE] for _ in range(case.batch)])
    seen = patches.to(device)
    shape = (case.batch, VISIBLE, case.side, case.side, case.channels)
    sizes = (shape, (case.channels, 1, case.kernel, case.kernel), (case.channels,))
    pair = (
        with_shortcut(lambda x, w, b: dispatched.patch_depthwise(x, w, b, seen, GRID)),
        with_shortcut(lambda x, w, b: (plain.patch_depthwise(x, w, b, seen, GRID), x)),
    )
    return compare("depthwise", case, pair, random_leaves(sizes, dtype, device), BARS)


def others(case: Case, dtype: torch.dtype, device: torch.device) -> Iterator[Row]:
    """The other operations: dense depthwise convolution, GELU + GRN, LayerNorm."""
    torch.manual_seed(case.channels)
    side, channels = GRID[0] * case.side, case.channels
    dense = ((case.batch, side, side, channels), (channels, 1, case.kernel, case.kernel))
    leaves = random_leaves((*dense, (channels,)), dtype, device)
    pair: tuple[Operation, Operation] = (
        with_shortcut(dispatched.depthwise),
        with_shortcut(lambda x, *parameters: (plain.depthwise(x, *parameters), x)),
    )
    yield compare("dense depthwise", case, pair, leaves, BARS)
    visible = (case.batch, VISIBLE, case.side, case.side, channels)
    leaves = random_leaves((visible, (channels,), (channels,)), dtype, device)
    images = case.batch
    pair = partial(dispatched.gelu_grn, groups=images), partial(plain.gelu_grn, groups=images)
    yield compare("GELU + GRN", case, pair, leaves, CHAIN_BARS)
    pair = partial(dispatched.layer_norm, eps=1e-6), partial(plain.layer_norm, eps=1e-6)
    yield compare("LayerNorm", case, pair, leaves, CHAIN_BARS)


def with_shortcut(operation: Callable[..., tuple[Tensor, Tensor]]) -> Operation:
    """Add the two outputs of an operation, one of them doubled so that their gradients differ."""

    def added(*leaves: Tensor) -> Tensor:
        out, shortcut = operation(*leaves)
        return torch.add(out, shortcut, alpha=2)

    return added


def random_leaves(
    sizes: tuple[tuple[int, ...], ...], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    return [torch.randn(size).to(device, dtype).requires_grad_() for size in sizes]


def compare(
    name: str,
    case: Case,
    pair: tuple[Operation, Operation],
    leaves: list[Tensor],
    bars: dict[torch.dtype, float],
) -> Row:
    """Run the operation twice on random inputs, and the plain one on the same inputs in fp64."""
    operation, oracle = pair
    dtype, towards = leaves[0].dtype, torch.randn_like(leaves[0])
    got, again = (outputs(operation, leaves, towards) for _ in range(2))
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = outputs(oracle, exact, towards.double())
    error = max(relative(a, b) for a, b in zip(got, expected, strict=True))
    problem = "" if error < bars[dtype] else f"the error is above {bars[dtype]:g}"
    if not all(torch.equal(a, b) for a, b in zip(got, again, strict=True)):
        problem = "a second run gave other bits"
    where = f"{str(dtype).removeprefix('torch.')} s={case.side} C={case.channels}"
    return Row(f"{name} {where}", {"error": error}, problem)


def outputs(operation: Operation, leaves: list[Tensor], towards: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and both parameters."""
    out = operation(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, towards)]


def relative(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm; NaN stays NaN, which fails every comparison."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())
