"""The processes of a laboratory, found also after their parents are gone."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from cluster.resilience.fault_injection import NODE

LABORATORY = "CONVNEXTV2_LABORATORY"
DEADLINE_SECONDS = 120.0


@dataclass
class ProcessTable:
    """Finds the node of a process, by its session or, if it has started a session of its own, by a
    variable in its environment. The environment alone is not enough, because Ray's workers
    overwrite it with their titles.

    Attributes:
        laboratory: What the environment of all processes of the laboratory says in `LABORATORY`.
        sessions: The node of each session that the laboratory has started.
    """

    laboratory: str
    sessions: dict[int, str] = field(default_factory=dict)

    def find(self, node: str | None, having: str) -> list[psutil.Process]:
        """The processes of a node, or of all, whose command line contains `having`."""
        return [
            process
            for process in psutil.process_iter()
            if (name := self._node_of(process)) is not None
            and node in (None, name)
            and having in command_line(process)
        ]

    def _node_of(self, process: psutil.Process) -> str | None:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            if (name := self.sessions.get(os.getsid(process.pid))) is not None:
                return name
            environment = process.environ()
        except (psutil.Error, ProcessLookupError):
            return None
        return environment.get(NODE) if environment.get(LABORATORY) == self.laboratory else None


def command_line(process: psutil.Process) -> str:
    """The words of its command; "" once it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_until(true: Callable[[], object], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until `true()` is.

    Raises:
        TimeoutError: When it is not after that many seconds.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for: {what}")
        time.sleep(0.1)
