"""Measures the phases of a recovery, from the fault until the first new step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.resilience.faults import Fault
from cluster.resilience.incidents import Incident
from cluster.workers.messages import Status

LAST = "first step"


@dataclass
class Recovery:
    """An incident that is not over. Times are on the conductor's monotonic clock."""

    incident: Incident
    _since: float
    _steps: int

    @classmethod
    def of(
        cls,
        fault: Fault,
        stage: str,
        generation: int,
        statuses: Sequence[Status],
        before: "Recovery | None",
    ) -> "Recovery":
        """Begin when a fault is noticed; `before` is the recovery that it interrupts, if any.

        Lost steps that the interrupted recovery has not repeated count for the new one.
        """
        steps = max(status.beat.step for status in statuses)
        incident = Incident(
            id=f"{stage}-{generation}",
            time=time.time() - fault.ago,
            stage=stage,
            generation=generation,
            cause=fault.cause,
            rank=fault.rank,
            node=fault.node,
            host=fault.host,
            phase=fault.phase,
            step=fault.step,
            error=fault.error,
            workers=(len(statuses), 0),
            seconds={"detection": fault.ago},
            stacks=fault.stacks,
        )
        return cls(incident, time.monotonic(), max(steps, -1 if before is None else before._steps))

    def taken_down(self) -> None:
        self._book("teardown")

    def assembled(self, workers: int) -> None:
        self._book("placement")
        self.incident = replace(self.incident, workers=(self.incident.workers[0], workers))

    def over(self, statuses: Sequence[Status]) -> bool:
        """Whether every worker of the new group has done a step, or all of its work, which
        completes the incident.
        """
        for status in statuses:
            done = status.ended is not None and status.ended.how == "done"
            if LAST not in status.milestones and not done:
                return False
        reached = [status.milestones for status in statuses if LAST in status.milestones]
        seconds = self._phases(max(reached, key=lambda m: m[LAST]) if reached else {})
        began = max(status.beat.began for status in statuses)
        self.incident = replace(
            self.incident,
            seconds={**self.incident.seconds, **seconds},
            lost_steps=max(0, self._steps - began),
            recovered=True,
        )
        return True

    def _phases(self, milestones: Mapping[str, float]) -> dict[str, float]:
        """Seconds by phase since the group was assembled, of the worker that took longest."""
        took, before = time.monotonic() - self._since, 0.0
        if not milestones:
            return {LAST: took}
        # A child that was still importing when the order was sent started its clock late.
        seconds = {"imports": max(0.0, took - milestones[LAST])}
        for name, reached in milestones.items():
            seconds[name], before = reached - before, reached
        return seconds

    def _book(self, phase: str) -> None:
        now = time.monotonic()
        seconds = {**self.incident.seconds, phase: now - self._since}
        self.incident, self._since = replace(self.incident, seconds=seconds), now
