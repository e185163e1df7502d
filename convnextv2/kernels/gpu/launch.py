"""What all Triton programs share: how they are started, and how work is cut into blocks."""

from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def launch(program: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Start `program` on the GPU of its first argument, a tensor.

    Inside an operator that is being traced it goes into the graph instead.
    """
    if is_in_torch_dispatch_mode():
        wrap_triton(program)[grid](*arguments, **constants)
        return
    with torch.cuda.device_of(arguments[0]):
        program[grid](*arguments, **constants)


def sum_dtype(x: Tensor) -> torch.dtype:
    """Sums are taken in fp32, or fp64 for fp64, whatever the tensors are."""
    return torch.promote_types(x.dtype, torch.float32)


def blocks(length: int, block: int) -> int:
    """How many blocks cover a length."""
    return -(-length // block)


def power_of_2(length: int) -> int:
    """The smallest one that is not less, as Triton wants its blocks."""
    return 1 << (length - 1).bit_length()
