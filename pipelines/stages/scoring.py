"""What the stages share whose workers score images: a lease, signs of progress, and one result."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cluster import group
from cluster.resilience.lease import Lease
from cluster.workers import current
from pipelines.results import Result, write_result
from pipelines.runtime.events import EventLog, Point, Start


@dataclass
class Scoring:
    """The part of one worker; `images` are those it has scored so far."""

    directory: Path
    lease: Lease
    event_log: EventLog
    images: int = 0
    batches: int = 0

    @classmethod
    def begin(cls, directory: Path, total: int) -> Self:
        """Begin to score `total` images on this worker; collective.

        From now on no older group of workers can publish a result in `directory`.
        """
        lease = Lease.take(directory)
        lease.watch()
        event_log = EventLog(directory, active=group.rank() == 0, lease=lease)
        event_log.write(Start(step=0, total=total, workers=group.world_size()))
        here = current.worker()
        here.beacon.began = 0
        here.beacon.enter("evaluate")
        return cls(directory, lease, event_log)

    def scored(self, images: int) -> None:
        """One more batch, of so many images, is done."""
        self.images, self.batches = self.images + images, self.batches + 1
        here = current.worker()
        here.beacon.stepped(self.batches)
        here.milestone("first step")
        values = {"images": self.images * group.world_size()}
        self.event_log.write(Point(step=self.images, values=values))

    def publish(self, result: Result) -> None:
        """Write the result of all workers, on rank 0.

        Raises:
            Superseded: When a newer group of workers has begun.
        """
        current.worker().milestone("first step")  # Also of a worker that had no image to score.
        if group.rank() == 0:
            write_result(self.directory, result, self.lease)
        self.event_log.flush()
