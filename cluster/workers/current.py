"""The worker that this process is, for the function that trains: where it tells how far it is.

Outside a child nobody listens, and every call does nothing.
"""

from collections.abc import Callable

from cluster.workers.beacon import Beacon


class Stopped(Exception):
    """Raised by the function that a worker runs when it has saved and left because it was asked."""


class Final(RuntimeError):
    """Raised when another group of workers would fare no better: the job ends with it."""


class Diverged(RuntimeError):
    """Raised by all workers when their weights are not the same; `to_blame` are those that differ
    from most.
    """

    def __init__(self, message: str, *, to_blame: bool) -> None:
        super().__init__(message)
        self.to_blame = to_blame


class CurrentWorker:
    """What the process has to tell: its place by a page of memory, its milestones by messages."""

    def __init__(self, beacon: Beacon, send: Callable[[str], None] = lambda name: None) -> None:
        self.beacon = beacon
        self._send = send
        self._reached: set[str] = set()

    def milestone(self, name: str) -> None:
        """Something is ready that a restart has to wait for; the first time counts."""
        if name not in self._reached:
            self._reached.add(name)
            self._send(name)


_worker = CurrentWorker(Beacon.on(None))


def worker() -> CurrentWorker:
    return _worker


def become(worker: CurrentWorker) -> None:
    """Called once, by the child's main program."""
    global _worker
    _worker = worker
