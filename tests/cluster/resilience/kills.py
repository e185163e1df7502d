"""Kills or halts a process at a chosen call that changes the file system.

Calls are observed through Python's audit events (opening, creating, renaming and removing, in any
library) and by replacing `os.write` and `os.fsync`, which have no such events.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

EVENTS = {
    "os.mkdir": "mkdir",
    "os.rename": "rename",
    "os.remove": "unlink",
    "os.rmdir": "rmdir",
    "os.truncate": "truncate",
    "os.link": "link",
    "os.symlink": "symlink",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Kill:
    """Kills before call number `call` (from 1) below `root`, or `inside` it, if it is a write.

    Every call is logged to `log` before it happens, so the last line is where the process died.
    """

    root: Path
    log: Path
    call: int
    inside: bool = False
    reads: ClassVar[bool] = False
    """Whether opening for reading counts as a call, too."""

    def arm(self) -> None:
        """Start to observe calls in this process."""
        sys.addaudithook(_Watch(self).hear)

    def strike(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Pause(Kill):
    """Halts the process at the call until `go_on` is called."""

    reads = True

    def strike(self) -> None:
        self.log.with_suffix(".halted").touch()
        while not self.log.with_suffix(".released").exists():
            time.sleep(0.01)

    def reached(self, seconds: float) -> bool:
        """Wait until the process has halted."""
        deadline = time.monotonic() + seconds
        while not self.log.with_suffix(".halted").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.log.with_suffix(".halted").exists()

    def go_on(self) -> None:
        self.log.with_suffix(".released").touch()


def calls_in(log: Path) -> list[tuple[str, str]]:
    """(kind, path) of the calls in a log."""
    return [
        (kind, path)
        for kind, _, path in (n.partition(" ") for n in log.read_text().split("\n")[:-1])
    ]


class _Watch:
    def __init__(self, kill: Kill) -> None:
        self.kill, self.count, self.busy = kill, 0, False
        self.log = os.open(kill.log, os.O_CREAT | os.O_WRONLY | os.O_EXCL)
        self.write, self.fsync = os.write, os.fsync
        os.write, os.fsync = self._write, self._fsync  # type: ignore[assignment]

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if (flags & WRITING or self.kill.reads) and not isinstance(path, int):
                self._meet("open", path)
        elif event in EVENTS:
            # A rename counts by its new name; a path relative to an open folder by its name alone.
            self._meet(EVENTS[event], arguments[event in ("os.rename", "os.link", "os.symlink")])

    def _write(self, descriptor: int, content: Any) -> int:
        if self._meet("write", _path_of(descriptor)):
            self.write(descriptor, memoryview(content)[: len(content) // 2])
            self.kill.strike()
        return self.write(descriptor, content)

    def _fsync(self, descriptor: int) -> None:
        self._meet("fsync", _path_of(descriptor))
        self.fsync(descriptor)

    def _meet(self, kind: str, path: Any) -> bool:
        """Log a call; returns whether to die inside it."""
        place = Path(os.fsdecode(path))
        if place.is_absolute() and not place.is_relative_to(self.kill.root):
            return False
        self.count += 1
        self.write(self.log, f"{kind} {place}\n".encode())
        if self.count != self.kill.call:
            return False
        if self.kill.inside and kind == "write":
            return True
        self.kill.strike()
        return False


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")
