"""Finds a group that has hung, and the worker that causes it.

A worker that waits for another in a collective looks as hung as the other does. The cause is the
worker that is suspended, or else the one that has made the least progress.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from cluster.workers.messages import Beat, Status

FACTOR = 5.0
"""A phase counts as hung after this many times the longest that it has taken before."""
Seconds = Annotated[float, Field(gt=0)]
WAITING = "waiting"


class Limits(BaseModel):
    """Seconds that a phase may always take, however short it was before.

    The first step of a group has the limit of the set-up, because it compiles kernels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    setup: Seconds = 1800.0
    """Imports, process group, engine, restoring, and the first step."""
    step: Seconds = 120.0
    """Waiting for data, and computing a step."""
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
    """The rank of the worker that causes a hang."""

    def progress(rank: int) -> tuple[bool, int, int, float]:
        status = statuses[rank]
        beat = status.beat
        return not status.suspended, beat.step, beat.passes, -beat.seconds

    left = [rank for rank, status in enumerate(statuses) if status.ended is None]
    return min(left, key=progress)
