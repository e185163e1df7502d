"""Reading .beton files through FFCV, with randomness and failures under control.

FFCV's `Loader` wants to own the order, keeps 525 bytes per sample in Python dictionaries and
blocks for ever when its thread fails. `BetonLoader` uses the parts below it: the reader, the
compiled pipeline and the epoch thread.
"""

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import torch
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.memory_managers.os_cache import OSCacheContext
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.graph import Graph
from ffcv.reader import Reader
from torch import Tensor

from convnextv2.data.order import Indices
from convnextv2.data.views import DecodeView, View


@dataclass(frozen=True)
class Batch:
    """images: (B, H, W, C) uint8; labels and (sample) indices: (B,) int64; epoch of the draws."""

    images: Tensor
    labels: Tensor
    indices: Tensor
    epoch: int

    def to(self, device: torch.device) -> "Batch":
        """Copy to `device`; on CPU the tensors are shared."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.indices,
            self.epoch,
        )


class BetonLoader:
    """Batches of chosen samples of one .beton file.

    Args:
        path: A file written by `convnextv2.data.write`.
        batch_size: Samples per batch.
        view: What the network sees of an image.
        seed: Seed of the random views.
        num_workers: Decoding threads.
        batches_ahead: Batches prepared in advance.
    """

    def __init__(
        self,
        path: Path,
        *,
        batch_size: int,
        view: View,
        seed: int = 0,
        num_workers: int = 1,
        batches_ahead: int = 3,
    ) -> None:
        self.batch_size, self.seed = batch_size, seed
        self.num_workers, self.batches_ahead = num_workers, batches_ahead
        # EpochIterator compares this after a MemoryError only.
        self.traversal_order = None
        with keep_torch_threads():
            Compiler.set_num_threads(num_workers)
            self.reader = Reader(str(path))
            self.memory_manager = PageCache(self.reader)
            pipelines = {
                "image": PipelineSpec("image", decoder=DecodeView(view)),
                "label": PipelineSpec("label"),
            }
            fields = {name: position for position, name in enumerate(self.reader.handlers)}
            self.graph = Graph(
                pipelines,
                self.reader.handlers,
                fields,
                self.reader.metadata,
                self.memory_manager.compile_reader(),
            )
            self.code = self.graph.codegen_all(self.graph.collect_requirements()[1])

    def batches(self, samples: Indices, epoch: int = 0) -> Generator[Batch]:
        """Serve `samples` in order; the last batch may be short. Leaving early frees the thread.

        Images and labels lie in buffers that are used again: they are good until the next batch
        is asked for.

        Raises:
            RuntimeError: When reading or decoding fails, in the caller's thread.
        """
        self.memory_manager.set_clock(self.seed, epoch)
        with keep_torch_threads():
            thread = _EpochThread(self, samples)
        try:
            for start in range(0, len(samples), self.batch_size):
                indices = samples[start : start + self.batch_size]
                images, labels = thread.take(indices)
                yield Batch(
                    torch.from_numpy(images),
                    labels.reshape(-1),
                    torch.from_numpy(indices.astype(np.int64)),
                    epoch,
                )
        finally:
            thread.stop()


class PageCache:
    """FFCV memory manager over the OS page cache, without per-sample Python objects.

    Its state is what compiled code may read: the mapped file, addresses and sizes of the stored
    images in address order, and the clock (seed, epoch).
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        order = np.argsort(reader.alloc_table["ptr"])
        self.ptrs = reader.alloc_table["ptr"][order]
        self.sizes = reader.alloc_table["size"][order]
        self.clock = np.zeros(2, np.uint64)

    def set_clock(self, seed: int, epoch: int) -> None:
        # A new array: a thread that is still reading ahead keeps the epoch it began with.
        self.clock = np.array([seed, epoch], np.uint64)

    def schedule_epoch(self, batches: Any) -> "_ClockedContext":
        return _ClockedContext(self)

    def compile_reader(self) -> Any:
        def read(address: Any, state: Any) -> Any:
            size = state[2][np.searchsorted(state[1], address)]
            return state[0][address : address + size]

        return Compiler.compile(read)


class _ClockedContext(OSCacheContext):
    @property
    def state(self) -> tuple[Any, ...]:
        return (self.mmap, self.manager.ptrs, self.manager.sizes, self.manager.clock)


class _EpochThread(EpochIterator):
    """FFCV's reading thread; an exception in it reaches the consumer instead of hanging it."""

    def run(self) -> None:
        self.error: BaseException | None = None
        try:
            super().run()
        except BaseException as error:
            self.error = error
            self.output_queue.put(None)

    def take(self, indices: Indices) -> Any:
        result = self.output_queue.get()
        if result is None:
            raise RuntimeError(
                f"reading samples {indices[:4].tolist()}… of {self.loader.reader.file_name} "
                f"failed: {self.error}"
            ) from self.error
        return result[1]

    def stop(self) -> None:
        self.close()
        while self.is_alive():
            # It may be waiting to hand over its last batch.
            with contextlib.suppress(Empty):
                self.output_queue.get_nowait()
            self.join(timeout=0.01)


class keep_torch_threads:
    """FFCV sets PyTorch's thread count along with numba's; put it back on leaving."""

    def __enter__(self) -> None:
        self.threads = torch.get_num_threads()

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.threads)
