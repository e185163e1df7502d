"""Image collections made up in memory; importable, so that writer processes can unpickle them."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convnextv2.data.collection import RGBImage, UnreadableImage


@dataclass(frozen=True)
class Pictures:
    """Smooth pictures that differ from each other, labels 0, 1, 2, 0, …"""

    shapes: tuple[tuple[int, int], ...]
    unreadable: tuple[int, ...] = ()
    classes: tuple[str, ...] = ("cat", "dog", "eel")

    def __len__(self) -> int:
        return len(self.shapes)

    def name(self, index: int) -> str:
        return f"picture-{index}"

    def label(self, index: int) -> int:
        return index % 3

    def image(self, index: int) -> RGBImage:
        if index in self.unreadable:
            raise UnreadableImage(f"{self.name(index)}: made up to be bad")
        height, width = self.shapes[index]
        rows, columns = np.mgrid[0:height, 0:width]
        waves = np.stack([rows / 5 + index, columns / 4 - index, (rows - columns) / 7], axis=-1)
        return np.round(127.5 + 127.5 * np.sin(waves)).astype(np.uint8)

    def fingerprint(self) -> list[object]:
        return [list(self.shapes)]


@dataclass(frozen=True)
class FatalPictures(Pictures):
    """Pictures of which one does something to the process that reads it (not in the parent)."""

    fatal: int = 0
    act: Callable[[], object] = lambda: None

    def image(self, index: int) -> RGBImage:
        if index == self.fatal and multiprocessing.parent_process() is not None:
            self.act()
        return super().image(index)


def kill_worker() -> None:
    """As the kernel does to the process that needs most memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_worker_at_the_counter() -> None:
    """The worst moment for it: the counter the parent reads is locked."""
    frame = sys._getframe()
    while "done" not in vars(frame.f_locals.get("self", object)):
        assert frame.f_back is not None
        frame = frame.f_back
    frame.f_locals["self"].done.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def kill_writer() -> None:
    """Kill the parent of this worker, and stay alive far longer than any test."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(300)


def refuse_named_memory() -> None:
    """Shared memory with a name outlives who made it, and /dev/shm is 64 MB in a container."""
    if "/dev/shm/psm" in Path("/proc/self/maps").read_text():
        raise RuntimeError("the writer uses /dev/shm")


def stumble() -> None:
    raise RuntimeError("the decoder broke")


def hang() -> None:
    time.sleep(300)
