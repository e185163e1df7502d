"""Serving batches from shards through FFCV's pipeline, with failures that are heard.

FFCV's `Loader` reads one file, wants to own the order and blocks for ever when its thread fails.
`BetonLoader` uses the parts below it, the graph of operations and the epoch thread, on mapped
shards (`convnextv2.data.shards.mapped`).
"""

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from queue import Empty
from typing import Any

import numba
import numpy as np
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.graph import Graph

from convnextv2.data.augment import Augment
from convnextv2.data.batch import Batch
from convnextv2.data.decoding import library
from convnextv2.data.shards.local_cache import LocalCache
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.data.shards.mapped import Indices, Shards, open_shards
from convnextv2.data.views import DamagedImage, DecodeView, View
from convnextv2.paths import PathLike


class BetonLoader:
    """Batches of chosen samples of a folder of shards.

    Args:
        folder: Written by `convnextv2 data write`.
        batch_size: Samples per batch.
        view: What the network sees of an image.
        augment: What happens to that view.
        seed: Seed of all draws.
        num_workers: Decoding threads, at most one for each core.
        batches_ahead: Batches prepared in advance.
        cache: A started node-local cache; shards are read from it as they arrive.
        classes: Whose numbers the labels are, if not the folder's own; matched by name.

    Raises:
        DataError: When the folder is not complete, or has a class that is not among `classes`.
        ValueError: When mixing is asked for with an odd batch size, or RGB's augmentations for
            other images; when `batches_ahead` is 0.
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        batch_size: int,
        view: View,
        augment: Augment | None = None,
        seed: int = 0,
        num_workers: int = 1,
        batches_ahead: int = 3,
        cache: LocalCache | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        augment = augment or Augment()
        if augment.mixing is not None and batch_size % 2:
            raise ValueError(f"mixing pairs images, batch size {batch_size} is odd")
        if batches_ahead < 1:
            raise ValueError(f"{batches_ahead} batches ahead; at least one is prepared in advance")
        self.batch_size, self.seed, self.cache = batch_size, seed, cache
        # numba starts as many threads as there are cores, and refuses to use more.
        self.num_workers = min(num_workers, numba.config.NUMBA_NUM_THREADS)
        self.batches_ahead = batches_ahead
        manifest = read_manifest(folder)
        self.shards = open_shards(folder, manifest, classes)
        self.clock = np.array([seed, 0], np.uint64)
        self.memory_manager = _Storage(self)
        # Two names the epoch thread asks its loader for; of ours nothing depends on them.
        self.reader, self.traversal_order = _NoMetadata(), None
        self._thread: _EpochThread | None = None
        with _compiled_already():
            decoder = DecodeView(view, manifest.pixel_format)
            operations = augment.operations(
                self.clock, manifest.pixel_format, manifest.normalization
            )
            spec = PipelineSpec("image", decoder, operations)
            fields = {"image": RGBImageField(), "label": IntField()}
            self.graph = Graph({"image": spec}, fields, {"image": 0}, _NoMetadata.metadata, None)
            self.code = self.graph.codegen_all(self.graph.collect_requirements()[1])

    def batches(self, samples: Indices | Iterable[Indices], epoch: int = 0) -> Generator[Batch]:
        """Serve samples in order, an array of them, or arrays one after another.

        The last batch of an array may be short. Arrays are asked for as they are needed. Leaving
        early frees the thread and its buffers. Images lie in buffers that are used again: they are
        good until the next batch is asked for.

        Raises:
            RuntimeError: When reading or decoding fails, naming file and image; or when another
                epoch of this loader is still open.
        """
        if self._thread is not None:
            raise RuntimeError("another epoch of this loader is still open; close its generator")
        self.clock[1] = epoch
        arrays = [samples] if isinstance(samples, np.ndarray) else samples
        self._thread = thread = _EpochThread(self, _chunks(arrays, self.batch_size))
        try:
            while (taken := thread.take()) is not None:
                indices, (images, coefficients) = taken
                yield Batch(
                    torch.from_numpy(images),
                    torch.from_numpy(self.shards.targets(indices)),
                    torch.from_numpy(indices.astype(np.int64)),
                    epoch,
                    None if coefficients is None else torch.from_numpy(coefficients),
                )
        finally:
            thread.stop()
            self._thread = None


def _chunks(arrays: Iterable[Indices], size: int) -> Iterator[Indices]:
    for array in arrays:
        for start in range(0, len(array), size):
            yield np.ascontiguousarray(array[start : start + size], np.uint64)


class _Storage:
    """Stands where FFCV has its memory manager: hands the table and the clock to compiled code."""

    def __init__(self, loader: BetonLoader) -> None:
        self.loader = loader

    def schedule_epoch(self, batches: Any) -> "_Storage":
        return self

    def __enter__(self) -> None:
        """Nothing to open: the files are mapped."""

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    @property
    def state(self) -> tuple[Any, ...]:
        return (self.loader.shards.table.view("<u8").reshape(-1, 6), self.loader.clock)

    def start_batch(self, number: int) -> None:
        """Nothing to schedule: the epoch thread has the kernel read ahead."""


class _NoMetadata:
    """Stands where FFCV has its reader, whose tables fill memory."""

    metadata = {"f0": None}  # noqa: RUF012


class _EpochThread(EpochIterator):
    """FFCV's reading thread on a stream of batches; what goes wrong in it reaches the consumer."""

    def __init__(self, loader: BetonLoader, stream: Iterator[Indices]) -> None:
        self.stream = stream
        self.error: BaseException | None = None
        self.indices: list[Indices] = []
        self.arrived = -1
        self.torch_threads = torch.get_num_threads()
        self.gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
        super().__init__(loader, [])

    def run(self) -> None:
        try:
            if self.gpu is not None:
                # A new thread begins on GPU 0, where FFCV's events would open a context.
                torch.cuda.set_device(self.gpu)
            self.iter_ixes = self._ahead()
            super().run()
        except BaseException as error:
            self.error = error
            self.output_queue.put(None)

    def _ahead(self) -> Iterator[Indices]:
        """The stream, with the kernel told to read what comes `batches_ahead` later."""
        # FFCV has just set PyTorch's thread count along with numba's, for every thread to come.
        torch.set_num_threads(self.torch_threads)
        shards = self.loader.shards
        waiting: list[Indices] = []
        for batch in self.stream:
            if self.terminate_event.is_set():
                # FFCV's thread looks only where it finds the queue full, `stop` empties it.
                return
            self._move_to_cache(shards)
            library().convnextv2_prefetch(
                shards.table.ctypes.data,
                len(shards.table),
                batch.ctypes.data,
                len(batch),
                shards.pixel_format.pixel_bytes,
            )
            waiting.append(batch)
            if len(waiting) > self.loader.batches_ahead:
                yield self._next(waiting)
        while waiting:
            yield self._next(waiting)

    def _next(self, waiting: list[Indices]) -> Indices:
        self.indices.append(waiting[0])
        return waiting.pop(0)

    def _move_to_cache(self, shards: Shards) -> None:
        """Read shards that have arrived on this node from there."""
        cache = self.loader.cache
        if cache is None or cache.arrived == self.arrived:
            return
        self.arrived = cache.arrived
        for number, path in enumerate(shards.paths):
            if cache.path(number) != path:
                shards.move(number, cache.path(number))
        self.storage_state = self.memory_context.state

    def take(self) -> tuple[Indices, Any] | None:
        """The next batch's indices and results; None at the end."""
        result = self.output_queue.get()
        if result is not None:
            image = result[1][0]
            return self.indices.pop(0), image if isinstance(image, tuple) else (image, None)
        if self.error is None:
            return None
        if isinstance(self.error, DamagedImage):
            where = self.loader.shards.describe(self.error.sample)
            words = self.error.problem.name.lower().replace("_", " ")
            raise RuntimeError(f"{where}: {words}; convnextv2 data verify finds more") from None
        raise RuntimeError(f"the reading thread failed: {self.error}") from self.error

    def stop(self) -> None:
        self.close()
        while self.is_alive():
            # It may be waiting to hand over its last batch.
            with contextlib.suppress(Empty):
                self.output_queue.get_nowait()
            self.join(timeout=0.01)


@contextlib.contextmanager
def _compiled_already() -> Iterator[None]:
    """Keep FFCV from compiling: our operations bring compiled code, which numba keeps on disk."""
    enabled = Compiler.is_enabled
    Compiler.set_enabled(False)
    try:
        yield
    finally:
        Compiler.set_enabled(enabled)
