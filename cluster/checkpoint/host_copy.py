"""Copies a worker's fragments to host memory, from which they are written to disk.

The memory is allocated once, before training begins, with the exact size: PyTorch's own allocator
of page-locked memory rounds up to powers of two, which can double it.
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
"""Tensors begin at multiples of this many bytes, a multiple of the size of every element type."""


def on_host(fragments: Iterable[StateFragment]) -> bool:
    """Whether all fragments are already in host memory."""
    return not any(tensor.is_cuda for fragment in fragments for tensor in fragment.tensors.values())


class HostMemory:
    """A block of host memory, page-locked as long as this object lives.

    Args:
        size: In bytes.
        page_locked: Whether to exclude it from swapping, so that a GPU can copy into it at full bus
            speed and asynchronously.

    Attributes:
        content: (size,) uint8; may outlive this object, but is then no longer page-locked.

    Raises:
        MemoryError: When this much memory cannot be page-locked.
    """

    def __init__(self, size: int, *, page_locked: bool) -> None:
        # The kernel refuses length 0. MAP_PRIVATE is what malloc uses.
        memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.content = torch.frombuffer(memory, dtype=torch.uint8)[:size]
        self.content.zero_()  # The kernel allocates a page at the first write.
        if page_locked and size:
            runtime = torch.cuda.cudart()
            status = runtime.cudaHostRegister(self.content.data_ptr(), size, 0)
            if int(status):
                raise MemoryError(
                    f"{size / 1e6:,.0f} MB of the host's memory cannot be page-locked for the "
                    f"copies that checkpoints are written from (CUDA error {int(status)}): give "
                    "workers more memory, or more of them to share the states (cluster.zero.stage)"
                )
            # CUDA must unregister the pages before the kernel reuses their addresses; passing the
            # content as an argument keeps it alive until then.
            weakref.finalize(self, _unlock, self.content).atexit = False


def _unlock(content: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(content.data_ptr())


class HostCopy:
    """Copies fragments to host memory, the same memory for every save."""

    def __init__(self) -> None:
        self._memory: HostMemory | None = None
        self._layout: list[tuple[torch.dtype, torch.Size]] = []
        self._buffers: list[Tensor] = []

    def allocate(self, fragments: Sequence[StateFragment]) -> None:
        """Allocate memory for copies of these fragments, unless that has been done.

        Raises:
            MemoryError: When this much memory cannot be page-locked.
        """
        tensors = list(_tensors(fragments))
        layout = [(tensor.dtype, tensor.shape) for tensor in tensors]
        if self._memory is not None and layout == self._layout:
            return
        self._buffers, self._memory = [], None  # Free the old memory before allocating the new.
        sizes = [ALIGNMENT * math.ceil(tensor.nbytes / ALIGNMENT) for tensor in tensors]
        self._memory = HostMemory(sum(sizes), page_locked=not on_host(fragments))
        pieces = self._memory.content.split(sizes)
        self._buffers = [
            piece[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for piece, tensor in zip(pieces, tensors, strict=True)
        ]
        self._layout = layout

    def take(self, fragments: Sequence[StateFragment]) -> list[StateFragment]:
        """Copies of the fragments, valid until the next call."""
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
