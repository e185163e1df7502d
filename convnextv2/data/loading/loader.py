"""Serves batches from shards through FFCV's pipeline; its failures are raised as errors."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from convnextv2 import PathLike
from convnextv2.data.augment import Augment
from convnextv2.data.decoding import library
from convnextv2.data.ffcv_compat import EpochThread, Pipeline
from convnextv2.data.loading.views import DamagedImage, DecodeView, View
from convnextv2.data.shards.local_cache import LocalCache
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.data.shards.mapped import Indices, open_shards
from convnextv2.tasks.batch import Batch


class BetonLoader:
    """Loads batches of given samples from a folder of shards.

    Args:
        folder: Written by `convnextv2 data write`.
        batch_size: Samples per batch.
        view: Which part of an image the network sees.
        augment: Augmentation of that view.
        seed: Seed of all random draws.
        num_workers: Decoding threads, at most one for each core.
        batches_ahead: Batches prepared in advance.
        cache: A started node-local cache; shards are read from it as they arrive.
        classes: Classes that labels are numbered by, instead of the folder's; matched by name.

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
        self.batch_size, self.batches_ahead, self.cache = batch_size, batches_ahead, cache
        manifest = read_manifest(folder)
        self.shards = open_shards(folder, manifest, classes)
        self.clock = np.array([seed, 0], np.uint64)
        self._thread: EpochThread | None = None
        self._pipeline = Pipeline(
            DecodeView(view, manifest.pixel_format),
            augment.operations(self.clock, manifest.pixel_format, manifest.normalization),
            batch_size=batch_size,
            batches_ahead=batches_ahead,
            num_workers=num_workers,
            state=self._table_and_clock,
        )

    def batches(self, samples: Indices | Iterable[Indices], epoch: int = 0) -> Generator[Batch]:
        """Serve samples in order, from one array or from several.

        The last batch of an array may be short. Arrays are taken from an iterable as they are
        needed. Closing the generator frees the thread and its buffers. The buffers of images are
        reused: images are valid until the next batch is asked for.

        Raises:
            RuntimeError: When reading or decoding fails, naming file and image; or when another
                epoch of this loader is still open.
        """
        if self._thread is not None:
            raise RuntimeError("another epoch of this loader is still open; close its generator")
        self.clock[1] = epoch
        arrays = [samples] if isinstance(samples, np.ndarray) else samples
        stream = self._read_ahead(_chunks(arrays, self.batch_size))
        self._thread = thread = EpochThread(self._pipeline, stream)
        try:
            while (taken := thread.take()) is not None:
                indices, made = taken
                images, coefficients = made if isinstance(made, tuple) else (made, None)
                yield Batch(
                    torch.from_numpy(images),
                    torch.from_numpy(self.shards.targets(indices)),
                    torch.from_numpy(indices.astype(np.int64)),
                    epoch,
                    None if coefficients is None else torch.from_numpy(coefficients),
                )
            if thread.error is not None:
                self._fail(thread.error)
        finally:
            thread.stop()
            self._thread = None

    def _table_and_clock(self) -> tuple[Any, ...]:
        """The storage state of `DecodeView`: the shards' table, and the clock [seed, epoch]."""
        return self.shards.table.view("<u8").reshape(-1, 6), self.clock

    def _read_ahead(self, batches: Iterable[Indices]) -> Iterator[Indices]:
        """Yield the batches; the kernel starts to read each one `batches_ahead` batches early."""
        waiting: deque[Indices] = deque()
        arrived = -1
        for batch in batches:
            arrived = self._move_to_cache(arrived)
            table = self.shards.table
            library().convnextv2_prefetch(
                table.ctypes.data,
                len(table),
                batch.ctypes.data,
                len(batch),
                self.shards.pixel_format.pixel_bytes,
            )
            waiting.append(batch)
            if len(waiting) > self.batches_ahead:
                yield waiting.popleft()
        yield from waiting

    def _move_to_cache(self, arrived: int) -> int:
        """Switch to the copies of shards that have arrived on this node; return their number."""
        if self.cache is None or self.cache.arrived == arrived:
            return arrived
        arrived = self.cache.arrived
        for number, path in enumerate(self.shards.paths):
            if self.cache.path(number) != path:
                self.shards.move(number, self.cache.path(number))
        return arrived

    def _fail(self, error: BaseException) -> NoReturn:
        if isinstance(error, DamagedImage):
            where = self.shards.describe(error.sample)
            problem = error.problem.name.lower().replace("_", " ")
            raise RuntimeError(f"{where}: {problem}; convnextv2 data verify finds more") from None
        raise RuntimeError(f"the reading thread failed: {error}") from error


def _chunks(arrays: Iterable[Indices], size: int) -> Iterator[Indices]:
    for array in arrays:
        for start in range(0, len(array), size):
            yield np.ascontiguousarray(array[start : start + size], np.uint64)
