"""What all Triton programs share: how they are started, and how work is cut into blocks."""

from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def launch(program: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Start `program` on the GPU of its first argument, a tensor.

    While an operator is being traced, the program becomes part of the graph instead.
    """
    # A wrapped program goes through PyTorch's dispatcher, which costs the host as much as ten
    # launches. Only a dispatch mode, such as tracing, has to see it there.
    started = wrap_triton(program) if is_in_torch_dispatch_mode() else program
    if started is not program:
        started[grid](*arguments, **constants)
        return
    with torch.cuda.device_of(arguments[0]):
        program[grid](*arguments, **constants)


def sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums: fp64 for fp64 tensors, fp32 for all others."""
    return torch.promote_types(x.dtype, torch.float32)


def blocks(length: int, block: int) -> int:
    """How many blocks cover a length."""
    return -(-length // block)


def power_of_2(length: int) -> int:
    """The smallest power of two that is not less than `length`, as Triton wants its blocks."""
    return 1 << (length - 1).bit_length()
