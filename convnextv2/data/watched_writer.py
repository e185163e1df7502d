"""FFCV's writer in a process of its own, watched: it loops for ever when a worker of its dies."""

import contextlib
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial as bound
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np

from convnextv2.data.sources import DataError, RGBImage, Source, UnreadableImage

WRITER_DIED = 3
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class WriteSettings:
    """How images are stored: FFCV's RGBImageField settings and the number of processes."""

    mode: Literal["raw", "jpg", "smart", "proportion"] = "jpg"
    max_resolution: int | None = None
    jpeg_quality: int = 90
    max_unreadable: int = 0
    num_workers: int = 1


def writer_log(partial: Path) -> Path:
    """Where the writer of `partial` says what went wrong."""
    return partial.with_suffix(".log")


def run_writer(
    source: Source, partial: Path, settings: WriteSettings, on_progress: Callable[[int], None]
) -> list[tuple[int, str]]:
    """Run FFCV's writer in a child process and watch it; returns the skipped samples."""
    context = multiprocessing.get_context("spawn")
    done, failures = context.Value("Q", 0), context.Queue()
    log = writer_log(partial)
    child = context.Process(
        target=_write_in_child, args=(source, partial, settings, done, failures, log), daemon=False
    )
    child.start()
    skipped: list[tuple[int, str]] = []
    try:
        while child.is_alive():
            child.join(POLL_SECONDS)
            # Without its lock: a worker that died may hold it for ever.
            on_progress(done.get_obj().value)
            skipped += _drain(failures)
            if len(skipped) > settings.max_unreadable:
                raise _too_many_unreadable(source, skipped, settings.max_unreadable)
    finally:
        _stop_group(child)
    skipped += _drain(failures)
    if len(skipped) > settings.max_unreadable:
        raise _too_many_unreadable(source, skipped, settings.max_unreadable)
    if child.exitcode != 0:
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        reason = lines[-1] if lines else f"exit code {child.exitcode}"
        raise DataError(f"writing {partial.parent / partial.name[1:-8]} failed: {reason}")
    return sorted(skipped)


def _too_many_unreadable(source: Source, skipped: list[tuple[int, str]], limit: int) -> DataError:
    named = "\n".join(f"  {reason}" for _, reason in sorted(skipped)[:5])
    return DataError(
        f"{len(skipped)} of {len(source)} images cannot be read, more than "
        f"data.write.max_unreadable = {limit}:\n{named}"
    )


def _drain(failures: Any) -> list[tuple[int, str]]:
    items = []
    while not failures.empty():
        items.append(failures.get())
    return items


def _stop_group(child: Any) -> None:
    """End the writer and its own children: it leads a group, once it has started."""
    child.kill()
    child.join()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


class _Counted:
    """The dataset FFCV's processes index: counts, and keeps a bad image from ending the run."""

    def __init__(self, source: Source, done: "Synchronized[int]", failures: Any) -> None:
        self.source, self.done, self.failures = source, done, failures

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[RGBImage, int]:
        with self.done.get_lock():
            self.done.value += 1
        try:
            return self.source.image(int(index)), self.source.label(int(index))
        except UnreadableImage as error:
            self.failures.put((int(index), str(error)))
            return np.zeros((1, 1, 3), np.uint8), -1


def _write_in_child(
    source: Source,
    partial: Path,
    settings: WriteSettings,
    done: "Synchronized[int]",
    failures: Any,
    log: Path,
) -> None:
    # A group of its own: Ctrl-C in a terminal goes to our parent, which then ends all of us.
    os.setpgrp()
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # Its processes would be spawned as this one was, and each would import everything again.
    multiprocessing.set_start_method("fork", force=True)
    from ffcv import writer as ffcv_writer
    from ffcv.fields import IntField, RGBImageField

    # The log's last line is the reason of a failure, and must be no progress bar.
    ffcv_writer.tqdm = bound(ffcv_writer.tqdm, disable=True)
    ffcv_writer.Process = _Worker
    ffcv_writer.shared_memory = SimpleNamespace(SharedMemory=_InheritedMemory)

    field = RGBImageField(
        write_mode=settings.mode,
        max_resolution=settings.max_resolution,
        jpeg_quality=settings.jpeg_quality,
    )
    writer = ffcv_writer.DatasetWriter(
        str(partial), {"image": field, "label": IntField()}, num_workers=settings.num_workers
    )
    threading.Thread(target=_die_with_workers, daemon=True).start()
    writer.from_indexed_dataset(_Counted(source, done, failures))
    failures.close()
    failures.join_thread()


class _Worker(multiprocessing.Process):
    """A process of FFCV's, remembered: `multiprocessing` forgets one that dies at once."""

    started: ClassVar[list["_Worker"]] = []

    def start(self) -> None:
        super().start()
        self.started.append(self)


class _InheritedMemory:
    """Stands in for `SharedMemory` among forked processes, for FFCV's table of the images.

    It ends with its processes, however they end; that one would stay in /dev/shm, which holds
    64 MB in a container by default and would have to hold 32 bytes per image.
    """

    def __init__(self, *, create: bool, size: int) -> None:
        self.buf = memoryview(mmap.mmap(-1, size))

    def close(self) -> None:
        self.buf.release()

    def unlink(self) -> None:
        """Nothing has a name."""


def _die_with_workers() -> None:
    """End this process when a writer process of FFCV, or the parent, dies: FFCV would not."""
    parent = os.getppid()
    while os.getppid() == parent:
        if any(worker.exitcode not in (None, 0) for worker in _Worker.started):
            time.sleep(POLL_SECONDS)  # Its last words are on the way to the log.
            break
        time.sleep(POLL_SECONDS)
    for worker in _Worker.started:
        if worker.exitcode is not None and worker.exitcode < 0:
            name = signal.Signals(-worker.exitcode).name
            print(f"a writer process was ended by {name} (out of memory?)", file=sys.stderr)
        worker.kill()
    sys.stderr.flush()
    os._exit(WRITER_DIED)
