"""Runs the Triton kernels in Triton's interpreter; prints one JSON line per case.

A program of its own, to be started with TRITON_INTERPRET=1 in the environment: it must be there
before anything imports Triton, and in the process of the tests PyTorch may have done so.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from convnextv2.kernels import gpu, plain, recomputed
from convnextv2.kernels.gpu import depthwise_conv, grn, grn_programs, norm, operators
from convnextv2.kernels.gpu.launch import launch
from convnextv2.kernels.gpu.neighbours import neighbour_table

GRID = (2, 3)
Operation = Callable[..., Tensor]


def with_shortcut(operation: Callable[..., tuple[Tensor, Tensor]]) -> Operation:
    """Add an operation's two outputs, one of them doubled, so that their gradients differ."""

    def added(*leaves: Tensor) -> Tensor:
        out, shortcut = operation(*leaves)
        return torch.add(out, shortcut, alpha=2)

    return added


@dataclass(frozen=True)
class Case:
    """One operation on random inputs; `programs` cuts the sums over all sites into parts."""

    names: ClassVar[tuple[str, ...]]
    dtype: str = "float64"
    channels: int = 5
    programs: int = 2

    def shapes(self) -> list[tuple[int, ...]]:
        """Of the operation's inputs."""
        raise NotImplementedError

    def operations(self) -> tuple[Operation, Operation]:
        """Ours and the plain one."""
        raise NotImplementedError


@dataclass(frozen=True)
class Patches(Case):
    """Depthwise among patches; the images show corners, borders and the middle, in any order."""

    names: ClassVar = ("out", "x", "weight", "bias")
    side: int = 8
    kernel: int = 7
    patches: tuple[tuple[int, ...], ...] = ((4, 0, 5), (1, 2, 3))

    def shapes(self) -> list[tuple[int, ...]]:
        seen = len(self.patches), len(self.patches[0])
        x = (*seen, self.side, self.side, self.channels)
        return [x, (self.channels, 1, self.kernel, self.kernel), (self.channels,)]

    def operations(self) -> tuple[Operation, Operation]:
        patches = torch.tensor(self.patches)
        return (
            with_shortcut(lambda x, w, b: gpu.patch_depthwise(x, w, b, patches, GRID)),
            with_shortcut(lambda x, w, b: (plain.patch_depthwise(x, w, b, patches, GRID), x)),
        )


@dataclass(frozen=True)
class Operators(Patches):
    """The same as torch.compile gets it."""

    def operations(self) -> tuple[Operation, Operation]:
        patches = torch.tensor(self.patches)
        table = neighbour_table(patches, GRID, gpu.LARGEST_KERNEL)

        def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return operators.depthwise(x.flatten(0, 1), weight, bias, table).view_as(x)

        return ours, lambda x, w, b: plain.patch_depthwise(x, w, b, patches, GRID)


@dataclass(frozen=True)
class Dense(Case):
    """Depthwise on whole maps."""

    names: ClassVar = ("out", "x", "weight", "bias")
    size: tuple[int, int] = (4, 6)

    def shapes(self) -> list[tuple[int, ...]]:
        return [(2, *self.size, self.channels), (self.channels, 1, 7, 7), (self.channels,)]

    def operations(self) -> tuple[Operation, Operation]:
        return (
            with_shortcut(gpu.depthwise),
            with_shortcut(lambda x, w, b: (plain.depthwise(x, w, b), x)),
        )


@dataclass(frozen=True)
class Response(Case):
    """GELU and GRN, and the linear layer that has its input computed again."""

    names: ClassVar = ("out", "x", "gamma", "beta", "weight", "bias")
    groups: int = 3

    def shapes(self) -> list[tuple[int, ...]]:
        c = self.channels
        return [(3, 7, 5, c), (1, 1, 1, c), (1, 1, 1, c), (4, c), (4,)]

    def operations(self) -> tuple[Operation, Operation]:
        def ours(x: Tensor, gamma: Tensor, beta: Tensor, *linear: Tensor) -> Tensor:
            return recomputed.linear_after_grn(gpu.gelu_grn(x, gamma, beta, self.groups), *linear)

        return ours, self._plain

    def _plain(self, x: Tensor, gamma: Tensor, beta: Tensor, *linear: Tensor) -> Tensor:
        return F.linear(plain.gelu_grn(x, gamma, beta, self.groups), *linear)


@dataclass(frozen=True)
class ResponseOperator(Response):
    """The same as torch.compile gets it."""

    def operations(self) -> tuple[Operation, Operation]:
        def ours(x: Tensor, gamma: Tensor, beta: Tensor, *linear: Tensor) -> Tensor:
            return F.linear(operators.gelu_grn(x, gamma, beta, self.groups)[0], *linear)

        return ours, self._plain


@dataclass(frozen=True)
class Silence(Response):
    """No response anywhere: the norms are zero, and their gradients with them."""

    def operations(self) -> tuple[Operation, Operation]:
        ours, expected = super().operations()
        return (lambda x, *others: ours(0 * x, *others)), (
            lambda x, *others: expected(0 * x, *others)
        )


@dataclass(frozen=True)
class Norm(Case):
    """LayerNorm."""

    names: ClassVar = ("out", "x", "weight", "bias")

    def shapes(self) -> list[tuple[int, ...]]:
        return [(2, 9, self.channels), (self.channels,), (self.channels,)]

    def operations(self) -> tuple[Operation, Operation]:
        # A variance by the difference of two large sums would show; 16 bits cannot hold the shift.
        shift = 4 if self.dtype in ("float32", "float64") else 0
        return (
            lambda x, weight, bias: gpu.layer_norm(x + shift, weight, bias, 1e-6),
            lambda x, weight, bias: plain.layer_norm(x + shift, weight, bias, 1e-6),
        )


# Side by side, so that each reads over its border.
TWO = ((1, 0),)
CASES: tuple[Case, ...] = (
    # Every side of a patch in every dtype; C fits the programs' blocks, or leaves lanes empty.
    Patches("float64", 5, side=8, patches=TWO),
    Patches("float32", 32, side=8, patches=TWO),
    Patches("bfloat16", 5, side=8, patches=TWO),
    Patches("float64", 32, side=4, patches=TWO),
    Patches("float32", 5, side=4, patches=TWO),
    Patches("bfloat16", 32, side=4, patches=TWO),
    Patches("float64", 78, side=2),
    Patches("float32", 5, side=2),
    Patches("bfloat16", 64, side=2),
    Patches("float64", 5, side=1),
    Patches("float32", 64, side=1),
    Patches("bfloat16", 78, side=1),
    # Tiles smaller than a patch, smaller kernels, another 16-bit dtype, one program for all sums.
    Patches("float64", 1, side=6, kernel=3, patches=TWO),
    Patches("float64", 3, side=9, kernel=3, patches=TWO),
    Patches("float16", 3, side=2, kernel=5, programs=1),
    Operators("float64", 5, side=1),
    Dense("float64", 5, size=(4, 6)),
    Dense("float32", 32, size=(2, 8)),
    Dense("bfloat16", 5, size=(7, 7)),
    Dense("float64", 5, size=(5, 3)),
    Response("float64", 22),
    Response("float32", 32, groups=1, programs=8),
    Response("float32", 22, programs=8),
    Response("bfloat16", 32),
    Response("bfloat16", 22, groups=1, programs=8),
    Response("float16", 22),
    ResponseOperator("float64", 22),
    Silence("float32", 22),
    Norm("float64", 22),
    Norm("float32", 32),
    Norm("bfloat16", 22),
)


def main() -> None:
    for case in CASES:
        print(json.dumps({"case": asdict(case), "errors": errors(case)}))
    print(json.dumps(short_gelu()))
    check_operators()


def errors(case: Case) -> dict[str, float]:
    """Largest differences from the plain one in fp64, relative to the largest value."""
    depthwise_conv.PROGRAMS = grn.PROGRAMS = norm.PROGRAMS = case.programs
    grn.ROWS, norm.ELEMENTS = 4, 128
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    leaves = [torch.randn(shape).to(dtype).requires_grad_() for shape in case.shapes()]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    ours, expected = case.operations()
    out = expected(*exact)
    # A gradient that is not contiguous, as a permuting layer sends it.
    towards = torch.randn_like(out.transpose(-1, -2)).transpose(-1, -2).to(dtype)
    wanted = [out.detach(), *torch.autograd.grad(out, exact, towards.double())]
    out = ours(*leaves)
    got = [out.detach(), *torch.autograd.grad(out, leaves, towards)]
    assert {t.dtype for t in got} == {dtype}
    return dict(zip(case.names, map(difference, got, wanted), strict=True))


def short_gelu() -> dict[str, float]:
    """Largest errors of the GELU for 16-bit tensors and of its slope, in fp32."""
    x = torch.linspace(-40, 40, 8192).view(1, -1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    out, slope = torch.empty_like(x), torch.empty_like(x)
    shape = {"C": x.numel(), "ROWS": 1, "CHANNELS": x.numel(), "EXACT": False}
    launch(grn_programs.respond, (1, 1), x, one, zero, out, 1, **shape)
    launch(grn_programs.input_gradient, (1, 1), x, one, one, zero, slope, 1, **shape)
    exact = x.double().requires_grad_()
    wanted = F.gelu(exact)
    (wanted_slope,) = torch.autograd.grad(wanted.sum(), exact)
    return {
        "gelu": float((out - wanted).abs().max()),
        "slope": float((slope - wanted_slope).abs().max()),
    }


def check_operators() -> None:
    """What PyTorch asks of operators, as far as an interpreter can be asked."""
    checks = "test_schema", "test_autograd_registration"
    patches, where = Patches(side=1), (torch.tensor(((0, 1),)), GRID)
    leaves = [torch.randn(shape, requires_grad=True) for shape in patches.shapes()]
    leaves[0] = leaves[0].detach()[0, :2].requires_grad_()
    table = neighbour_table(*where, gpu.LARGEST_KERNEL)
    torch.library.opcheck(operators.depthwise, (*leaves, table), test_utils=checks)
    leaves = [torch.randn(shape, requires_grad=True) for shape in Response().shapes()[:3]]
    torch.library.opcheck(operators.gelu_grn, (*leaves, 3), test_utils=checks)


def difference(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


if __name__ == "__main__":
    main()
