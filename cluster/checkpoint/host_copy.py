"""A worker's fragments copied to the host's memory, from where they are written.

The memory is taken once, before training begins, and by the byte: PyTorch's own page-locked memory
comes in powers of two, up to twice as much.
"""

import math
import mmap
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cluster.checkpoint.fragments import StateFragment

ALIGNMENT = 64
"""Bytes; tensors begin at multiples of it, which every element type divides."""


def on_host(fragments: Iterable[StateFragment]) -> bool:
    """Whether all of it is in the host's memory."""
    return not any(tensor.is_cuda for fragment in fragments for tensor in fragment.tensors.values())


class HostMemory:
    """So many bytes of the host's memory; page-locked as long as this object lives.

    Args:
        size: In bytes.
        page_locked: Cannot be swapped out, and a GPU copies into it at the bus's speed while the
            host goes on.

    Attributes:
        content: (size,) uint8; outlives this object, and then is not page-locked any more.

    Raises:
        MemoryError: When so much cannot be page-locked.
    """

    def __init__(self, size: int, *, page_locked: bool) -> None:
        # Not of length 0, which the kernel refuses; private, as what malloc gives.
        memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.content = torch.frombuffer(memory, dtype=torch.uint8)[:size]
        self.content.zero_()  # The kernel gives pages when they are first written: now.
        if page_locked and size:
            runtime = torch.cuda.cudart()
            status = runtime.cudaHostRegister(self.content.data_ptr(), size, 0)
            if int(status):
                raise MemoryError(
                    f"{size / 1e6:,.0f} MB of the host's memory cannot be page-locked for the "
                    f"copies that checkpoints are written from (CUDA error {int(status)}): give "
                    "workers more memory, or more of them to share the states (cluster.zero.stage)"
                )
            # A device must forget the pages before the kernel gives their addresses to others:
            # the content is an argument so that it is there until then.
            weakref.finalize(self, _unlock, self.content).atexit = False


def _unlock(content: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(content.data_ptr())


class HostCopy:
    """Fragments copied to the host's memory, the same memory for every save."""

    def __init__(self) -> None:
        self._memory: HostMemory | None = None
        self._layout: list[tuple[torch.dtype, torch.Size]] = []
        self._buffers: list[Tensor] = []

    def allocate(self, fragments: Sequence[StateFragment]) -> None:
        """Take the memory for copies of such fragments, unless it is there.

        Raises:
            MemoryError: When so much cannot be page-locked.
        """
        tensors = list(_tensors(fragments))
        layout = [(tensor.dtype, tensor.shape) for tensor in tensors]
        if self._memory is not None and layout == self._layout:
            return
        self._buffers, self._memory = [], None  # The old memory goes before the new comes.
        sizes = [ALIGNMENT * math.ceil(tensor.nbytes / ALIGNMENT) for tensor in tensors]
        self._memory = HostMemory(sum(sizes), page_locked=not on_host(fragments))
        pieces = self._memory.content.split(sizes)
        self._buffers = [
            piece[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for piece, tensor in zip(pieces, tensors, strict=True)
        ]
        self._layout = layout

    def take(self, fragments: Sequence[StateFragment]) -> list[StateFragment]:
        """Copy; what comes back is good until the next call."""
        self.allocate(fragments)
        buffers = iter(self._buffers)
        copies = [
            replace(fragment, tensors={
                kind: next(buffers).copy_(part, non_blocking=True)
                for kind, part in fragment.tensors.items()
            })
            for fragment in fragments
        ]  # fmt: skip
        if not on_host(fragments):
            torch.cuda.current_stream().synchronize()
        return copies


def _tensors(fragments: Iterable[StateFragment]) -> Iterator[Tensor]:
    for fragment in fragments:
        yield from fragment.tensors.values()
