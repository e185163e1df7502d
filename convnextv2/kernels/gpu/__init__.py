"""The operations on GPUs, in Triton, forward and backward; for any floating dtype and any C.

In eager mode they are autograd functions, which start faster. torch.compile is given operators
(`operators`, imported when a graph is traced), whose programs become part of its graph.
"""

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from convnextv2.kernels import recomputed
from convnextv2.kernels.build import turned_off
from convnextv2.kernels.gpu import depthwise_conv, grn, norm
from convnextv2.kernels.gpu.neighbours import neighbour_table

LARGEST_KERNEL = 7
TRITON_IS_INSTALLED = find_spec("triton") is not None


def triton_missing() -> str:
    """Why Triton cannot be imported, in a few words; "" when it can."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error}): pip install triton"
    return ""


def usable(x: Tensor, *parameters: Tensor) -> bool:
    """Whether these kernels take `x`: floating point on a GPU, parameters alike, with Triton."""
    return (
        x.is_cuda
        and x.is_floating_point()
        and all(p.dtype == x.dtype and p.device == x.device for p in parameters)
        and not torch.is_autocast_enabled("cuda")
        and TRITON_IS_INSTALLED
        and not turned_off()
    )


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Like `plain.layer_norm`; torch.compile generates its own kernel."""
    if torch.compiler.is_compiling():
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    out: Tensor = norm.LayerNorm.apply(x, weight, bias, eps)
    return out


def gelu_grn(x: Tensor, gamma: Tensor, beta: Tensor, groups: int) -> Tensor:
    """Like `plain.gelu_grn`; the GELU of 16-bit tensors is within 6e-6 of the exact one."""
    if torch.compiler.is_compiling():
        from convnextv2.kernels.gpu import operators

        out: Tensor = operators.gelu_grn(x, gamma, beta, groups)[0]
        return out
    return recomputed.gelu_grn(grn, x, gamma, beta, groups)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Like `plain.depthwise`; also returns x for the shortcut."""
    return _convolve(x, weight, bias, None)


def patch_depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    patches: Tensor,
    grid: tuple[int, int],
    neighbours: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Like `plain.patch_depthwise`, for kernels up to 7x7; also returns x for the shortcut.

    `neighbours` is the patches' `neighbour_table`, if it has been built.
    """
    if neighbours is None:
        neighbours = neighbour_table(patches, grid, LARGEST_KERNEL)
    out, shortcut = _convolve(x.flatten(0, 1), weight, bias, neighbours)
    return out.view_as(x), shortcut.view_as(x)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor, neighbours: Tensor | None
) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():
        from convnextv2.kernels.gpu import operators

        # The compiler itself chooses how the two gradients of x are added.
        return operators.depthwise(x, weight, bias, neighbours), x
    out, shortcut = depthwise_conv.Depthwise.apply(x, weight, bias, neighbours)
    return out, shortcut
