"""A page of memory shared by a child and its agent: the child's progress, and a request to stop.

The child writes it as it trains. The agent can read it at any time, even while the child hangs or
is suspended. Both map the same file, so reading and writing cost no system call.
"""

import mmap
import os
import struct
import time
from dataclasses import dataclass

from cluster.workers.messages import Beat

_LAYOUT = struct.Struct("=Q24sddqqqqQ")
"""Turn, phase, since (seconds of the machine's monotonic clock), usual, step, passes, began, saved,
and the turn again: two different turns mean that the page was read in the middle of a write."""
_STOP = _LAYOUT.size
SIZE = mmap.PAGESIZE


@dataclass
class Beacon:
    """The child's side. Without a file nothing is written: no agent watches this process."""

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
        """Map the page from the open file that an agent has passed on; None without an agent."""
        page = mmap.mmap(-1 if descriptor is None else descriptor, SIZE)
        beacon = cls(page, since=time.monotonic())
        beacon.show()
        return beacon

    def enter(self, phase: str, usual: float = 0.0) -> None:
        """Begin a phase, which has taken at most `usual` seconds so far."""
        self.phase, self.usual, self.since = phase, usual, time.monotonic()
        self.show()

    def stepped(self, step: int) -> None:
        """`step` optimizer steps are done."""
        self.step, self.passes, self.since = step, 0, time.monotonic()
        self.show()

    def passed(self) -> None:
        """One more forward or backward pass of this step, or batch of an evaluation, is done."""
        self.passes, self.since = self.passes + 1, time.monotonic()
        self.show()

    def show(self) -> None:
        """Write the current values to the page."""
        self._turn += 1
        phase = self.phase.encode()[:24]
        where = (phase, self.since, self.usual, self.step, self.passes, self.began, self.saved)
        _LAYOUT.pack_into(self.page, 0, self._turn, *where, self._turn)

    @property
    def stop_requested(self) -> bool:
        """Whether the agent has asked this worker to save and exit."""
        return self.page[_STOP] == 1


class Page:
    """The agent's side, on a file in memory, which disappears with the processes that use it."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("page")
        os.truncate(self.descriptor, SIZE)
        self._page = mmap.mmap(self.descriptor, SIZE)
        self._whole: tuple[int, bytes, float, float, int, int, int, int, int] | None = None

    def read(self) -> Beat:
        """The child's progress; what it was before, while the child does not finish a write."""
        for _ in range(100):
            content = _LAYOUT.unpack_from(self._page)
            if content[0] == content[-1] != 0:
                self._whole = content
                break
        # A write begins with zeros, and on a busy machine the child may be interrupted in it for
        # longer than all these tries: since second 0, it would seem to hang.
        if self._whole is None:
            return Beat()
        _, phase, since, usual, step, passes, began, saved, _ = self._whole
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
