"""The original's sparse training files: MinkowskiEngine's names and kernels, made dense.

MinkowskiEngine numbers the positions of a kernel with the first axis (height) fastest: position =
row + K * column (`kernel_region.hpp`). Read as an image, a kernel is therefore transposed.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from convnextv2.weights.state import State, WeightsError

KERNEL = ".kernel"
# Its layers are wrapped: LayerNorm's parameters are those of `.ln`, a linear layer's of `.linear`.
INNER = (".ln.", ".linear.")


def is_sparse(state: Mapping[str, Tensor]) -> bool:
    return any(name.endswith(KERNEL) for name in state)


def densified(state: Mapping[str, Tensor]) -> State:
    """The state under the names of the official dense files, kernels as `nn.Conv2d` has them."""
    dense: State = {}
    for name, value in state.items():
        for inner in INNER:
            name = name.replace(inner, ".")
        if name.endswith(KERNEL):
            dense[name.removesuffix(KERNEL) + ".weight"] = dense_kernel(name, value)
        else:
            dense[name] = value
    return dense


def dense_kernel(name: str, kernel: Tensor) -> Tensor:
    """Lay a sparse kernel out as `nn.Conv2d` does.

    Args:
        name: For the error.
        kernel: (K*K, C_in, C_out), or (K*K, C) of a depthwise convolution.

    Returns:
        (C_out, C_in, K, K), or (C, 1, K, K).

    Raises:
        WeightsError: When the positions are no square.
    """
    side = math.isqrt(len(kernel)) if kernel.ndim in (2, 3) else 0
    if side == 0 or side * side != len(kernel):
        raise WeightsError(
            f"{name} is {tuple(kernel.shape)}, no kernel (K*K, channels) or (K*K, in, out)"
        )
    column_row = kernel.unflatten(0, (side, side))
    if kernel.ndim == 2:
        return column_row.permute(2, 1, 0).unsqueeze(1).contiguous()
    return column_row.permute(3, 2, 1, 0).contiguous()
