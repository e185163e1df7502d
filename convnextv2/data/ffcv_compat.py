"""FFCV as this project uses it: the one file that imports it and uses its internals (1.0.2).

Three things must be done before FFCV is imported or code is compiled: the import is made seconds
faster, numba is told where to cache compiled code, and that compiled code may call
`convnextv2.randomness`. So other modules import FFCV's names, `njit` and `prange` from here.

FFCV's own `Loader` reads a single file, determines the order itself and blocks for ever when its
thread fails. `Pipeline` and `EpochThread` use what it is built on: operations and reading thread.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from queue import Empty
from typing import Any

import numba
import numba.typed
import numpy as np
import torch
from numba import njit, prange
from numba.extending import register_jitable
from numpy.typing import NDArray

from convnextv2 import randomness
from convnextv2.kernels.compiler import cache_folder

TESTED_VERSION = "1.0.2"


def _keep_compiled_code() -> None:
    """Have numba cache compiled code in a folder named by a hash of all sources.

    numba itself notices changes in a function's own file only, not in files of what it calls.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    folder = Path(__file__).parent
    for path in sorted([*folder.rglob("*.py"), folder.parent / "randomness.py"]):
        digest.update(path.read_bytes())
    numba.config.CACHE_DIR = str(cache_folder() / f"numba-{digest.hexdigest()[:16]}")


@contextlib.contextmanager
def _light_import() -> Iterator[None]:
    """Undo what FFCV's import does to a process.

    It fills a numba dictionary that only Python reads; compiling that takes seconds, and a plain
    dictionary works as well. It also sets PyTorch's threads to one.
    """
    typed, threads = numba.typed.Dict, torch.get_num_threads()
    numba.typed.Dict = dict
    try:
        yield
    finally:
        numba.typed.Dict = typed
        torch.set_num_threads(threads)


def check_version(installed: str) -> None:
    """Warn when FFCV is not the version whose insides this file was written for."""
    if installed != TESTED_VERSION:
        warnings.warn(
            f"FFCV {installed} is installed; convnextv2 uses insides of FFCV that were read in "
            f"{TESTED_VERSION} and may fail: pip install ffcv=={TESTED_VERSION}",
            RuntimeWarning,
            stacklevel=2,
        )


if "NUMBA_CACHE_DIR" not in os.environ:
    _keep_compiled_code()

for _function in randomness.COMPILABLE:
    register_jitable(_function)

check_version(importlib.metadata.version("ffcv"))
with _light_import():
    from ffcv.fields import IntField, RGBImageField
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.pipeline import PipelineSpec
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.graph import Graph
    from ffcv.pipeline.operation import Operation
    from ffcv.reader import Reader
    from ffcv.types import (
        ALLOC_TABLE_TYPE,
        CURRENT_VERSION,
        FieldDescType,
        HeaderType,
        get_metadata_type,
    )

__all__ = [
    "ALLOC_TABLE_TYPE",
    "CURRENT_VERSION",
    "AllocationQuery",
    "EpochThread",
    "FieldDescType",
    "HeaderType",
    "IntField",
    "Operation",
    "Pipeline",
    "RGBImageField",
    "Reader",
    "get_metadata_type",
    "load_numba",
    "njit",
    "prange",
]


def load_numba() -> None:
    """Have numba import and index its library, which the first call of compiled code would wait
    for: 0.3 CPU seconds.
    """
    _do_nothing()


@njit(cache=True, nogil=True)
def _do_nothing() -> None:
    """Is compiled like any other function."""


class _Storage:
    """Replaces FFCV's memory manager: the files are mapped already, so nothing is opened."""

    def __init__(self, state: Callable[[], tuple[Any, ...]]) -> None:
        self._state = state

    def schedule_epoch(self, batches: Any) -> "_Storage":
        return self

    def __enter__(self) -> None:
        """Nothing to open."""

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    @property
    def state(self) -> tuple[Any, ...]:
        return self._state()

    def start_batch(self, number: int) -> None:
        """Nothing to schedule: the loader tells the kernel what to read ahead."""


class _NoMetadata:
    """Replaces FFCV's reader, which would load all tables into memory."""

    metadata = {"f0": None}  # noqa: RUF012


class Pipeline:
    """A decoder, operations on its images, and what else FFCV's thread expects of a loader.

    Args:
        decoder: FFCV operation that makes images.
        operations: FFCV operations on these.
        batch_size: Samples per batch, at most.
        batches_ahead: Batches prepared in advance.
        num_workers: Threads of compiled code, at most one for each core.
        state: Called before every batch; its result is the decoder's storage state.
    """

    def __init__(
        self,
        decoder: Operation,
        operations: Sequence[Operation],
        *,
        batch_size: int,
        batches_ahead: int,
        num_workers: int,
        state: Callable[[], tuple[Any, ...]],
    ) -> None:
        self.batch_size, self.batches_ahead = batch_size, batches_ahead
        # numba starts as many threads as there are cores, and refuses to use more.
        self.num_workers = min(num_workers, numba.config.NUMBA_NUM_THREADS)
        self.memory_manager = _Storage(state)
        # FFCV's thread expects these attributes; our operations do not use them.
        self.reader, self.traversal_order = _NoMetadata(), None
        with _compiled_already():
            spec = PipelineSpec("image", decoder, list(operations))
            fields = {"image": RGBImageField(), "label": IntField()}
            self.graph = Graph({"image": spec}, fields, {"image": 0}, _NoMetadata.metadata, None)
            self.code = self.graph.codegen_all(self.graph.collect_requirements()[1])


@contextlib.contextmanager
def _compiled_already() -> Generator[None]:
    """Keep FFCV from compiling: our operations bring compiled code, which numba keeps on disk."""
    enabled = Compiler.is_enabled
    Compiler.set_enabled(False)
    try:
        yield
    finally:
        Compiler.set_enabled(enabled)


class EpochThread(EpochIterator):
    """FFCV's reading thread on a stream of batches.

    FFCV keeps the batches of an epoch in a list, and its consumer waits for ever when the thread
    fails. Here batches are read from a stream as they are needed, and `error` is what went wrong.
    """

    def __init__(self, pipeline: Pipeline, stream: Iterator[NDArray[np.uint64]]) -> None:
        self.stream = stream
        self.error: BaseException | None = None
        self.indices: list[NDArray[np.uint64]] = []
        self.torch_threads = torch.get_num_threads()
        self.gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
        super().__init__(pipeline, [])

    def run(self) -> None:
        try:
            if self.gpu is not None:
                # A new thread uses GPU 0, on which FFCV's events would create a CUDA context.
                torch.cuda.set_device(self.gpu)
            self.iter_ixes = self._batches()
            super().run()
        except BaseException as error:
            self.error = error
            self.output_queue.put(None)

    def _batches(self) -> Iterator[NDArray[np.uint64]]:
        # FFCV has just set PyTorch's thread count along with numba's, for every thread to come.
        torch.set_num_threads(self.torch_threads)
        for batch in self.stream:
            if self.terminate_event.is_set():
                # FFCV's thread checks this only when the queue is full, and `stop` empties it.
                return
            self.storage_state = self.memory_context.state
            self.indices.append(batch)
            yield batch

    def take(self) -> tuple[NDArray[np.uint64], Any] | None:
        """The next batch's indices and images; None at the end, or when there is an `error`."""
        result = self.output_queue.get()
        return None if result is None else (self.indices.pop(0), result[1][0])

    def stop(self) -> None:
        self.close()
        while self.is_alive():
            # It may be waiting to hand over its last batch.
            with contextlib.suppress(Empty):
                self.output_queue.get_nowait()
            self.join(timeout=0.01)
