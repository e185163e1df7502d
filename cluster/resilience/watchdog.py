"""Finds a group that does not move, and the worker that holds it up.

A worker that waits in a collective for another hangs as much as the other does. The one to blame
is suspended, or else is the one that is least far.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from cluster.workers.messages import Beat, Status

FACTOR = 5.0
"""A phase may take so many times what it took when it was longest."""
Seconds = Annotated[float, Field(gt=0)]
WAITING = "waiting"


class Limits(BaseModel):
    """Seconds that something may take, however short it was before.

    The first step of a group has the limit of setting up: it compiles kernels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    setup: Seconds = 1800.0
    """Imports, process group, engine, restoring, and the first step."""
    step: Seconds = 120.0
    """Waiting for data, and computing."""
    evaluation: Seconds = 1800.0
    checkpoint: Seconds = 1800.0

    def of(self, beat: Beat) -> float:
        if beat.phase in ("imports", "process group", "start-up") or beat.step <= beat.began:
            return self.setup
        floors = {"evaluate": self.evaluation, "checkpoint": self.checkpoint}
        return max(floors.get(beat.phase, self.step), FACTOR * beat.usual)


def overdue(status: Status, limits: Limits) -> bool:
    beat = status.beat
    return status.ended is None and beat.phase != WAITING and beat.seconds > limits.of(beat)


def to_blame(statuses: Sequence[Status]) -> int:
    """Which of the workers of a group that stands still holds it up."""

    def progress(rank: int) -> tuple[bool, int, int, float]:
        status = statuses[rank]
        beat = status.beat
        return not status.suspended, beat.step, beat.passes, -beat.seconds

    left = [rank for rank, status in enumerate(statuses) if status.ended is None]
    return min(left, key=progress)
