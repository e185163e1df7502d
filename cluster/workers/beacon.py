"""A page of memory between a child and its agent: where the child is, and whether it shall stop.

The child writes it in passing; the agent reads it when it likes, also of a child that hangs or is
suspended. A file that both have mapped costs no system call.
"""

import mmap
import os
import struct
import time
from dataclasses import dataclass

from cluster.workers.messages import Beat

_LAYOUT = struct.Struct("=Q24sddqqqqQ")
"""Turn, phase, since (monotonic s, one clock for the whole machine), usual, step, passes, began,
saved, turn again: a reader that sees two different turns came in the middle of a write."""
_STOP = _LAYOUT.size
SIZE = mmap.PAGESIZE


@dataclass
class Beacon:
    """The child's side. Without a file, it is for nobody: a process that no agent watches."""

    page: mmap.mmap
    phase: str = "imports"
    since: float = 0.0
    usual: float = 0.0
    step: int = -1
    passes: int = 0
    began: int = -1
    saved: int = -1
    _turn: int = 0

    @classmethod
    def on(cls, descriptor: int | None) -> "Beacon":
        """On the page that an agent has handed over as an open file; None is for nobody."""
        page = mmap.mmap(-1 if descriptor is None else descriptor, SIZE)
        beacon = cls(page, since=time.monotonic())
        beacon.show()
        return beacon

    def enter(self, phase: str, usual: float = 0.0) -> None:
        """A phase begins; so far it took at most `usual` seconds."""
        self.phase, self.usual, self.since = phase, usual, time.monotonic()
        self.show()

    def stepped(self, step: int) -> None:
        """`step` optimizer steps are done."""
        self.step, self.passes = step, 0
        self.show()

    def passed(self) -> None:
        """One more forward or backward pass of this step is done."""
        self.passes += 1
        self.show()

    def show(self) -> None:
        """Write what is noted here to the page."""
        self._turn += 1
        phase = self.phase.encode()[:24]
        where = (phase, self.since, self.usual, self.step, self.passes, self.began, self.saved)
        _LAYOUT.pack_into(self.page, 0, self._turn, *where, self._turn)

    @property
    def stop_requested(self) -> bool:
        """Whether the agent asks this worker to save and leave."""
        return self.page[_STOP] == 1


class Page:
    """The agent's side, on a file in memory: nothing is left behind, however it ends."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("page")
        os.truncate(self.descriptor, SIZE)
        self._page = mmap.mmap(self.descriptor, SIZE)

    def read(self) -> Beat:
        """Where the child is; if it was suspended in the middle of a write, as far as it came."""
        for _ in range(100):
            first, phase, since, usual, step, passes, began, saved, last = _LAYOUT.unpack_from(
                self._page
            )
            if first == last:
                break
        if not first:
            return Beat()
        return Beat(
            phase=phase.rstrip(b"\0").decode(errors="replace"),
            seconds=max(0.0, time.monotonic() - since),
            usual=usual,
            step=step,
            passes=passes,
            began=began,
            saved=saved,
        )

    def request_stop(self) -> None:
        self._page[_STOP] = 1

    def close(self) -> None:
        self._page.close()
        os.close(self.descriptor)
