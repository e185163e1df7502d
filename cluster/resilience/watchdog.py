"""Finds a group that does not move, and the worker that holds it up.

A worker that waits in a collective for another hangs as much as the other does. The one to blame
is suspended, or else is the one that is least far.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.workers.messages import Beat, Status

FACTOR = 5.0
"""A phase may take so many times what it took when it was longest."""
FINISHED = ("ended", "waiting")


@dataclass(frozen=True)
class Limits:
    """Seconds that a phase may take whatever it took before.

    The first step compiles kernels, and evaluation and checkpoints are of any size.
    """

    floors: Mapping[str, float] = field(
        default_factory=lambda: {
            "imports": 300.0,
            "process group": 120.0,
            "start-up": 1800.0,
            "step": 120.0,
            "data": 300.0,
            "evaluate": 1800.0,
            "checkpoint": 1800.0,
        }
    )
    first: float = 900.0
    """Of a phase that has not ended yet in this group."""
    other: float = 600.0

    def of(self, beat: Beat) -> float:
        floor = self.floors.get(beat.phase, self.other)
        if not beat.usual and beat.phase in ("step", "data"):
            return max(floor, self.first)
        return max(floor, FACTOR * beat.usual)


def overdue(status: Status, limits: Limits) -> bool:
    beat = status.beat
    return status.ended is None and beat.phase not in FINISHED and beat.seconds > limits.of(beat)


def to_blame(statuses: Sequence[Status]) -> int:
    """Which of the workers of a group that stands still holds it up."""

    def progress(rank: int) -> tuple[bool, int, int, float]:
        status = statuses[rank]
        beat = status.beat
        return not status.suspended, beat.step, beat.passes, -beat.seconds

    left = [rank for rank, status in enumerate(statuses) if status.ended is None]
    return min(left, key=progress)
