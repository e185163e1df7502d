"""The worker of this process, to which the training function reports its progress.

Outside a child process nobody listens, and the calls do nothing.
"""

from collections.abc import Callable
from typing import ClassVar

from cluster.workers.beacon import Beacon
from cluster.workers.messages import Raised


class Stopped(Exception):
    """Raised by the training function after it has saved, when it was asked to stop."""


class Final(RuntimeError):
    """Raised when a new group of workers would fail in the same way: it ends the job."""


class Unusable(Final):
    """This worker's machine cannot do the job. It ends the job before its first step; later, it is
    a fault of the node like any other, because it could do the job before.
    """

    cause: ClassVar[Raised] = "node"


class Agreed(RuntimeError):
    """Raised by all workers at the same step. `to_blame` is true on the worker that is named as the
    cause.
    """

    cause: ClassVar[Raised]

    def __init__(self, message: str, *, to_blame: bool) -> None:
        super().__init__(message)
        self.to_blame = to_blame


class Diverged(Agreed):
    """The weights of the workers are not the same; to blame are those that differ from most."""

    cause = "divergence"


class LossSpiked(Agreed):
    """The loss has risen far above what it was. No worker is the cause; rank 0 is named."""

    cause = "spike"


class CurrentWorker:
    """Reports progress through a page of shared memory, and milestones through messages.

    In a child, `give_up` reports an error and ends the process at once, from any thread, whatever
    the training is waiting for.
    """

    def __init__(
        self,
        beacon: Beacon,
        send: Callable[[str], None] = lambda name: None,
        give_up: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.beacon, self.give_up = beacon, give_up
        self._send = send
        self._reached: set[str] = set()

    def milestone(self, name: str) -> None:
        """Report that a part of the start is done, so that its time can be told; once per name."""
        if name not in self._reached:
            self._reached.add(name)
            self._send(name)


_worker = CurrentWorker(Beacon.on(None))


def worker() -> CurrentWorker:
    return _worker


def become(worker: CurrentWorker) -> None:
    """Set the worker of this process; the child's main program calls it once."""
    global _worker
    _worker = worker
