"""Runs the Triton depthwise in Triton's interpreter; prints one JSON line per case.

A program of its own, to be started with TRITON_INTERPRET=1 in the environment: it must be there
before anything imports Triton, and in the process of the tests PyTorch may have done so.
"""

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from convnextv2.kernels import plain, triton_depthwise

GRID = (2, 3)
# Two images; corners, borders and the middle, with visible and masked neighbours, in any order.
PATCHES = torch.tensor([[4, 0, 5], [1, 2, 3]])


@dataclass(frozen=True)
class Case:
    """`block`: sites and channels of a program; `groups`: parts of the weight's gradient."""

    side: int
    dtype: str = "float64"
    kernel: int = 7
    channels: int = 3
    block: tuple[int, int] = (512, 4)
    groups: int = 2


CASES = (
    *(Case(side) for side in (8, 4, 2, 1)),
    Case(2, "float32"),
    Case(2, "bfloat16", kernel=3),
    Case(2, "float16", kernel=3),
    # Many programs, the last ones partly empty; several blocks of sites in a group.
    Case(2, kernel=3, channels=5, block=(8, 2)),
    Case(1, kernel=5, channels=1, block=(2, 1)),
)


def main() -> None:
    for case in CASES:
        print(json.dumps({"case": str(case), "errors": errors(case)}))


def errors(case: Case) -> dict[str, float]:
    """Largest differences from `plain` in fp64, relative to the largest value."""
    triton_depthwise.SITES, triton_depthwise.CHANNELS = case.block
    triton_depthwise.GROUPS = case.groups
    torch.manual_seed(case.side)
    dtype, shape = getattr(torch, case.dtype), (*PATCHES.shape, case.side, case.side, case.channels)
    leaves = [
        torch.randn(shape).to(dtype).requires_grad_(),
        torch.randn(case.channels, 1, case.kernel, case.kernel).to(dtype).requires_grad_(),
        torch.randn(case.channels).to(dtype).requires_grad_(),
    ]
    # A gradient that is not contiguous, as a permuting layer sends it.
    towards = torch.randn(shape[:-2] + shape[:-3:-1]).to(dtype).transpose(-1, -2)
    got = outputs(triton_depthwise, leaves, towards)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = outputs(plain, exact, towards.double())
    assert [t.dtype for t in got.values()] == [dtype] * 4
    return {name: difference(got[name], expected[name]) for name in got}


def outputs(module: object, leaves: list[Tensor], towards: Tensor) -> dict[str, Tensor]:
    out: Tensor = module.patch_depthwise(*leaves, PATCHES, GRID)  # type: ignore[attr-defined]
    gradients = torch.autograd.grad(out, leaves, towards)
    return dict(zip(("out", "x", "weight", "bias"), (out.detach(), *gradients), strict=True))


def difference(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()
