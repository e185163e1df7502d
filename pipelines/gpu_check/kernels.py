"""Part `kernels`: the GPU kernels against plain PyTorch in fp64, and against themselves."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from convnextv2.kernels import plain, triton_depthwise
from pipelines.gpu_check.parts import Row, Setting, Skipped

GRID = (7, 7)
VISIBLE = 19
BARS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 6e-3}
"""Largest relative error by dtype. In bf16 the result is rounded once, by up to 2^-8."""


class Case(NamedTuple):
    """Side of a patch in sites, channels, images, side of the kernel."""

    side: int
    channels: int
    batch: int = 3
    kernel: int = 7


# Channels that are no multiple of 16 compile to scalar loads: another program than the others.
EXACT = (Case(8, 40), Case(4, 48), Case(2, 24), Case(1, 40))
ROUNDED = (*EXACT, Case(8, 128), Case(4, 80), Case(2, 352), Case(1, 2816), Case(8, 78, 16))
QUICK = (Case(1, 24, 1, kernel=3),)
"""Triton's interpreter takes a second or more for each."""


def kernels(setting: Setting) -> Iterator[Row]:
    """Relative error of the depthwise among patches: output and every gradient.

    On the CPU in Triton's interpreter.

    Raises:
        Skipped: Without Triton.
    """
    why = triton_missing()
    if why:
        raise Skipped(why)
    device = torch.device(setting.device)
    for dtype in BARS:
        cases = ROUNDED if dtype == torch.bfloat16 else EXACT
        for case in QUICK if setting.quick else cases:
            yield compare(case, dtype, device)


def triton_missing() -> str:
    """Words for a Triton that cannot be imported; none when it can."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return (
            f"Triton cannot be imported ({error}): pip install triton; without it the depthwise "
            "convolves on a canvas of zeros, some 2.6 times the sites"
        )
    return ""


def compare(case: Case, dtype: torch.dtype, device: torch.device) -> Row:
    """The kernel on fresh random inputs, twice, and plain PyTorch on the same in fp64."""
    torch.manual_seed(case.side)
    shape = (case.batch, VISIBLE, case.side, case.side, case.channels)
    patches = torch.stack([torch.randperm(GRID[0] * GRID[1])[:VISIBLE] for _ in range(case.batch)])
    patches = patches.to(device)
    leaves = [
        torch.randn(size).to(device, dtype).requires_grad_()
        for size in (shape, (case.channels, 1, case.kernel, case.kernel), (case.channels,))
    ]
    towards = torch.randn(shape).to(device, dtype)
    got, again = (outputs(triton_depthwise, leaves, towards, patches) for _ in range(2))
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = outputs(plain, exact, towards.double(), patches)
    error = max(relative(a, b) for a, b in zip(got, expected, strict=True))
    problem = "" if error < BARS[dtype] else f"the error is above {BARS[dtype]:g}"
    if not all(torch.equal(a, b) for a, b in zip(got, again, strict=True)):
        problem = "a second run gave other bits"
    name = f"{str(dtype).removeprefix('torch.')} s={case.side} C={case.channels}"
    return Row(f"depthwise {name}", {"error": error}, problem)


def outputs(module: object, leaves: list[Tensor], towards: Tensor, patches: Tensor) -> list[Tensor]:
    """The output, and the gradients to input, weight and bias."""
    out: Tensor = module.patch_depthwise(*leaves, patches, GRID)  # type: ignore[attr-defined]
    return [out.detach(), *torch.autograd.grad(out, leaves, towards)]


def relative(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm; NaN stays NaN, and passes no bar."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())
